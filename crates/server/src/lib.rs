//! bywash: live streams in, CDNs and recordings out, on a signed API call.

#![allow(missing_docs)]

pub mod address;
pub mod api;
pub mod callback;
pub mod config;
pub mod http;
pub mod job;
pub mod live;
pub mod secret;
pub mod store;
pub mod vendor;
