//! bywash: live streams in, CDNs and recordings out, on a signed API call.

#![allow(missing_docs)]

pub mod address;
pub mod api;
pub mod app;
pub mod callback;
pub mod cli;
pub mod config;
pub mod demo;
pub mod http;
pub mod job;
pub mod live;
pub mod log;
pub mod secret;
pub mod store;
pub mod token;
pub mod vendor;
