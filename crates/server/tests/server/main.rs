//! The whole server against real and hostile surroundings. Each test is named for its promise.
//!
//! These share the machine; what measures time is in `tests/alone`.

mod browser;
mod callback;
mod client;
mod command;
mod crash;
mod enhanced;
mod growth;
mod hostile;
mod interval;
mod media;
mod merge;
mod object;
mod player;
mod pressure;
mod publish;
mod record;
mod record_call;
mod relay;
mod rule;
mod secret;
mod sound;
mod target;
mod whip;
