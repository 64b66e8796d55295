//! What goes on beside the streams: one module a job.

pub mod callback;
pub mod merge;
pub mod retention;
pub mod upload;
