//! bywash: live streams in, CDNs and recordings out, on a signed API call.

pub mod address;
pub mod api;
pub mod app;
pub mod callback;
pub mod cli;
pub mod client;
pub mod config;
pub mod demo;
pub mod http;
pub mod hub;
pub mod ingest;
pub mod job;
pub mod lane;
pub mod live;
pub mod log;
pub mod metrics;
pub mod output;
pub mod plan;
pub mod secret;
pub mod store;
pub mod sys;
pub mod token;
pub mod vendor;
pub mod wire;
