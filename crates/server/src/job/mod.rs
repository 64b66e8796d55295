//! Loops that take due rows, do one thing each, and record what came of it.

pub mod callback;
