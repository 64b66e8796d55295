//! Publishers come in here: socket in, frames out to the hub.

pub mod rtmp;
pub mod whip;
