//! The bodies of the fuzz targets, one module a crate. Tests of the crates include the modules by
//! path and run them on mutated input, so that what is fuzzed now and then is tried on each change.

pub mod media;
pub mod rtmp;
pub mod server;
