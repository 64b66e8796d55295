//! bywash: live streams in, CDNs and recordings out, on a signed API call.

pub mod app;
pub mod cli;
pub mod config;
pub mod demo;
pub mod live;
pub mod log;
pub mod secret;
pub mod store;
pub mod token;
pub mod vendor;
