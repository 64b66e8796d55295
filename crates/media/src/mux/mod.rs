//! Containers: reader and writer of each as mirror halves.

pub mod flv;
