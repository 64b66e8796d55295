//! Streams go out here: each output follows a stream at its own pace.

pub mod packer;
pub mod relay;
pub mod source;
pub mod whep;
