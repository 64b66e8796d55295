//! RTMP 1.0 and enhanced RTMP as engines: bytes and time go in, events and bytes come out.
//!
//! [`Server`] is one connection of a publisher or a player, [`Client`] is our own publishing side.
//! Both are driven by one loop: drain the outputs, wait for one thing, feed one thing. The payload
//! of a media message is copied once on the way in, into its own buffer, and never on the way out.
//!
//! Invariant: no socket, clock or randomness of its own, and no input, however hostile, makes an
//! engine panic or keep more than its configured limits.
//!
//! "Spec" in this crate is Adobe's *RTMP Specification 1.0* of December 2012, "E-RTMP" is Veovera's
//! *Enhanced RTMP v2*.

pub mod amf;
pub mod chunk;
pub mod client;
pub mod handshake;
mod link;
pub mod message;
pub mod server;

pub use client::Client;
pub use message::{Kind, Message};
pub use server::Server;

/// Why a connection cannot go on. Nothing is retried on the same connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The first byte is not RTMP version 3: another protocol is spoken to this port.
    #[error("not rtmp: first byte is {0:#04x}{guess}", guess = handshake::guess(*.0))]
    Version(u8),
    /// The handshake took longer than its limit.
    #[error("handshake not finished in time")]
    HandshakeTimeout,
    /// Publish or play did not come, or was not answered, in time.
    #[error("no publish or play in time")]
    CommandTimeout,
    /// Nothing was received for too long.
    #[error("peer is silent")]
    Idle,
    /// A chunk stream began with a header that refers to an earlier one.
    #[error("chunk stream {0} begins with a compressed header")]
    UnknownChunkStream(u32),
    /// More chunk streams than one connection has use for.
    #[error("more than {0} chunk streams")]
    TooManyChunkStreams(usize),
    /// A message announced more bytes than are allowed in this state.
    #[error("message of {size} bytes, {limit} allowed")]
    MessageTooLarge {
        /// Bytes announced.
        size: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// Many unfinished messages that together pass the limit.
    #[error("unfinished messages hold more than {0} bytes")]
    TooMuchUnfinished(usize),
    /// A protocol control message of this type is too short or holds an impossible value.
    #[error("malformed control message of type {0}")]
    Control(u8),
    /// A command lacks its name or transaction id.
    #[error("malformed command")]
    Command,
    /// More commands than any client needs before it publishes or plays.
    #[error("more than {0} commands before publish or play")]
    TooManyCommands(usize),
    /// Media sent before the publish was accepted passes the limit.
    #[error("more than {0} bytes of media before the publish was accepted")]
    TooMuchEarlyMedia(usize),
    /// An AMF value ends in the middle.
    #[error("truncated amf value")]
    AmfTruncated,
    /// An AMF type that has no meaning in RTMP commands, AMF3 (0x11) among them.
    #[error("unsupported amf type {0:#04x}")]
    AmfType(u8),
    /// AMF nested deeper than [`amf::MAX_DEPTH`].
    #[error("amf nested deeper than {} levels", amf::MAX_DEPTH)]
    AmfDepth,
    /// More AMF values in one message than [`amf::MAX_VALUES`].
    #[error("more than {} amf values", amf::MAX_VALUES)]
    AmfValues,
}
