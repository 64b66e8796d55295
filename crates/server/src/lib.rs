//! bywash: live streams in, CDNs and recordings out, on a signed API call.

#![allow(missing_docs)]

pub mod callback;
pub mod config;
pub mod hub;
pub mod ingest;
pub mod job;
pub mod lane;
pub mod live;
pub mod metrics;
pub mod output;
pub mod plan;
pub mod secret;
pub mod store;
pub mod sys;
pub mod token;
pub mod vendor;
pub mod wire;
