//! WebRTC sessions over one port: UDP and ICE-TCP in, packets to the session that they are for.
//!
//! str0m is the engine (ICE-lite, SRTP, RTP); here are its sockets, its offers, its DTLS and the loop around it. What a session
//! does with its media is its owner's affair: [`ingest::whip`](crate::ingest::whip) publishes, [`output::whep`](crate::output::whep) plays.
//!
//! Invariant: what comes from an unknown address costs a look into a table and nothing else.

pub mod certificate;
pub mod demux;
pub mod dtls;
pub mod framing;
pub mod gather;
pub mod line;
pub mod offer;
pub mod order;
pub mod pace;
pub mod peer;
pub mod place;
pub mod port;
pub mod resend;
pub mod source;

pub use demux::Id;
pub use peer::{Peer, Turn};
pub use port::{Counters, Port};
