//! Every return code in one table: number, message, when.
//!
//! The numbers are ZEGO's (global table and the tables of its actions). A code that several groups of
//! actions number differently is chosen by [`Family`], so an action names what is wrong, not a number.

use std::borrow::Cow;

use crate::store;

/// A row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code {
    /// `Code` of the answer.
    pub number: u32,
    /// `Message` of the answer where nothing better is known.
    pub message: &'static str,
    /// When it is given, for the manual.
    pub when: &'static str,
}

impl Code {
    /// A refusal with this code that says why.
    pub fn because(self, message: impl Into<Cow<'static, str>>) -> Fault {
        Fault::Refused(self, message.into())
    }
}

/// Why a call is not carried out. Nothing was changed.
#[derive(Debug)]
pub enum Fault {
    /// The caller is told this code and this message.
    Refused(Code, Cow<'static, str>),
    /// The store failed; the caller is told the internal code of the action's family.
    Store(store::Error),
}

impl From<Code> for Fault {
    fn from(code: Code) -> Fault {
        Fault::Refused(code, Cow::Borrowed(code.message))
    }
}

impl From<store::Error> for Fault {
    fn from(error: store::Error) -> Fault {
        Fault::Store(error)
    }
}

/// The codes and words that the actions of one group of ZEGO's documentation share.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// `Message` of a success.
    pub ok: &'static str,
    /// A parameter is missing or wrong and no other code says so; also a POST body that is not a JSON
    /// object, not readable, or larger than 1 MiB.
    pub parameter: Code,
    /// A StreamId is missing or wrong.
    pub stream: Code,
    /// A list of StreamIds is empty, too long or has a wrong one.
    pub streams: Code,
    /// The Sequence is not a number or goes back.
    pub order: Code,
    /// Too many calls in a second.
    pub rate: Code,
    /// IsTest is neither `true` nor `false`.
    pub is_test: Code,
    /// The store failed.
    pub internal: Code,
}

impl Family {
    /// What the caller is told of `fault`.
    pub fn tell(&self, fault: Fault) -> (Code, Cow<'static, str>) {
        match fault {
            Fault::Refused(code, message) => (code, message),
            Fault::Store(store::Error::Full(_)) => {
                (self.internal, "the server's disk is full or read-only; nothing was changed".into())
            }
            Fault::Store(store::Error::Busy) => (self.internal, "the store is busy; nothing was changed".into()),
            Fault::Store(_) => (self.internal, self.internal.message.into()),
        }
    }
}

/// media-service: what its groups have in common.
const MEDIA: Family = Family {
    ok: "ok",
    parameter: INTERNAL,
    stream: BAD_STREAM,
    streams: BAD_STREAMS,
    order: INTERNAL,
    rate: TOO_MANY_CALLS,
    is_test: BAD_IS_TEST,
    internal: INTERNAL,
};

/// The CDN transfer rules, and the actions that bywash adds to ZEGO's.
pub const TRANSFER: Family = Family { parameter: INVALID_REQUEST, order: INVALID_REQUEST, ..MEDIA };

/// Forbid, resume and state of a stream: ZEGO gives this group no code for a bad request, so the internal
/// code carries a message that says what is wrong.
pub const STREAM: Family = MEDIA;

/// RTMPDispatchV2 and RTMPDispatch.
pub const DISPATCH: Family = Family { parameter: BAD_DISPATCH, order: BAD_DISPATCH, ..MEDIA };

/// The cdn group.
pub const CDN: Family = Family {
    ok: "success",
    parameter: BAD_PARAMETER,
    stream: BAD_PARAMETER,
    streams: BAD_PARAMETER,
    order: BAD_PARAMETER,
    rate: TOO_FREQUENT,
    is_test: BAD_PARAMETER,
    internal: REQUEST_FAILED,
};

macro_rules! codes {
    ($(#[doc = $when:literal] $name:ident = $number:literal, $message:literal;)*) => {
        $(#[doc = $when] pub const $name: Code = Code { number: $number, message: $message, when: $when.trim_ascii() };)*

        /// The table, ascending.
        pub const ALL: &[Code] = &[$($name),*];
    };
}

codes! {
    /// The call is carried out.
    OK = 0, "ok";
    /// cdn group: a parameter is missing or wrong.
    BAD_PARAMETER = 2, "bad parameter";
    /// Not given: what is configured is permitted.
    NO_PERMISSION = 3, "the permission is missing";
    /// cdn group: the app does not record as the Vendor, or the action is not there for it.
    OTHER_CDN = 4, "Vendor is not the app's CDN";
    /// Not given: recordings by bywash itself need no configuration at the vendor's.
    BAD_CDN_CONFIG = 5, "the CDN's configuration is wrong";
    /// cdn group: more calls of the action by the app in one second than its limit, or too many merges that are not over.
    TOO_FREQUENT = 6, "too many calls";
    /// Not given: recordings by bywash itself need no key of the vendor's.
    CDN_REFUSED = 7, "the CDN refuses the app's key";
    /// Not given, for the same reason.
    NO_CDN_KEY = 8, "the CDN's key is not configured";
    /// cdn group: internal error, of which a full disk is one; with DescribeMediaTask also an unknown task.
    REQUEST_FAILED = 1000, "request failed";
    /// RTMPDispatchV2: a parameter is missing.
    BAD_DISPATCH = 1006, "bad parameter";
    /// DeleteCDNTransferRule: CDNUrl is not an RTMP address.
    BAD_URL = 5004, "invalid CDN address";
    /// Transfer rules and bywash's own actions: a bad parameter, a Sequence out of order, or more rules than a stream may have.
    INVALID_REQUEST = 5005, "invalid request";
    /// CreatCDNTransferRule: no RTMP address, one that the server does not push to, or none given and the app has no default.
    BAD_TARGET = 30001, "invalid CDN address";
    /// media-service: more calls of the action by the app in one second than its limit.
    TOO_MANY_CALLS = 30002, "too many calls";
    /// media-service: internal error, of which a full disk is one; for stream actions also a bad Sequence.
    INTERNAL = 30003, "internal error";
    /// media-service: IsTest is neither `true` nor `false`.
    BAD_IS_TEST = 30004, "IsTest is neither true nor false";
    /// ForbidRTCStreams and ResumeRTCStreams: the list is empty, has more than 20 ids or a wrong one.
    BAD_STREAMS = 30006, "invalid list of StreamId";
    /// A StreamId is missing, not of 1 to 256 of `A-Z a-z 0-9 - _ .`, of dots alone, or in the test environment without its prefix.
    BAD_STREAM = 30009, "invalid StreamId";
    /// RTMPDispatchV2: Type is neither `pull` nor `push`.
    BAD_TYPE = 30010, "Type is neither pull nor push";
    /// RTMPDispatchV2: ClientIP is not an IPv4 address.
    BAD_CLIENT_IP = 30011, "ClientIP is not an IPv4 address";
    /// MergeMedia: a file that is to be merged is not there.
    NO_FILE = 41003, "the file does not exist";
    /// DescribeRTCStreamState: no such stream.
    NO_STREAM = 41004, "stream not found";
    /// DescribeRTCStreamState: the stream is over; only where the app keeps a history.
    STREAM_CLOSED = 41006, "stream is closed";
    /// The Host header is missing or is not a host.
    BAD_HOST = 100000000, "bad Host header";
    /// AppId is missing or not a number of 32 bits.
    BAD_APP_ID = 100000001, "AppId is malformed";
    /// Timestamp is missing.
    NO_TIMESTAMP = 100000002, "Timestamp is empty";
    /// Timestamp is not a number.
    BAD_TIMESTAMP = 100000003, "Timestamp is malformed";
    /// Timestamp is more than 600 s from the server's clock, either way.
    EXPIRED = 100000004, "signature expired";
    /// Signature is not that of AppId, SignatureNonce, ServerSecret and Timestamp.
    BAD_SIGNATURE = 100000005, "signature is wrong";
    /// Action is missing.
    NO_ACTION = 100000006, "Action is empty";
    /// There is no such action.
    UNKNOWN_ACTION = 100000007, "Action is not supported";
    /// SignatureNonce is missing.
    NO_NONCE = 100000008, "SignatureNonce is empty";
    /// Signature is missing.
    NO_SIGNATURE = 100000009, "Signature is empty";
    /// The server has no app of this AppId.
    UNKNOWN_APP = 100000010, "ServerSecret not found: unknown AppId";
    /// Not given: an app's configuration is there whenever its secret is.
    NO_APP_CONFIG = 100000011, "app configuration not found";
    /// SignatureVersion is missing.
    NO_VERSION = 100000013, "SignatureVersion is empty";
    /// SignatureVersion is not 2.0.
    BAD_VERSION = 100000014, "SignatureVersion is not supported";
    /// Not given: a failure inside an action has the action's own internal code.
    GATEWAY = 100000015, "gateway internal error";
    /// The app does not have the environment that IsTest names.
    NO_ENVIRONMENT = 100000016, "the app has no such environment";
    /// Not given: an app has all services.
    NO_SERVICE = 100000017, "the app does not have this service";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_has_one_row_that_says_when() {
        for pair in ALL.windows(2) {
            assert!(pair[0].number < pair[1].number, "{pair:?}");
        }
        assert_eq!(OK.when, "The call is carried out.");
    }
}
