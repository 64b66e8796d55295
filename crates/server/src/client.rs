//! The API as a customer's backend calls it: for the commands `call` and `sign`, and for the demonstration.
//!
//! Invariant: a signed address stays out of every error.

use std::time::Duration;

use anyhow::Context;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::api::guard;
use crate::config::App;
use crate::tls;

/// The query of `action`, signed at `now` (Unix time).
pub fn query(app: &App, action: &str, params: Vec<(String, String)>, test: bool, nonce: &str, now: Duration) -> String {
    let seconds = now.as_secs();
    let signature = guard::signature(&app.id.to_string(), nonce, &app.server_secret, &seconds.to_string());
    let mut all: Vec<(String, String)> = [
        ("Action", action.to_owned()),
        ("AppId", app.id.to_string()),
        ("SignatureNonce", nonce.to_owned()),
        ("Timestamp", seconds.to_string()),
        ("Signature", signature),
        ("SignatureVersion", "2.0".to_owned()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into();
    if test {
        all.push(("IsTest".into(), "true".into()));
    }
    if SEQUENCED.contains(&action) && !params.iter().any(|(key, _)| key == "Sequence") {
        all.push(("Sequence".into(), now.as_millis().to_string()));
    }
    all.extend(params);
    let encode = |text: &str| utf8_percent_encode(text, RESERVED).to_string();
    all.iter().map(|(key, value)| format!("{}={}", encode(key), encode(value))).collect::<Vec<_>>().join("&")
}

/// The actions that ask for a Sequence; a time in milliseconds is what ZEGO recommends.
const SEQUENCED: [&str; 10] = [
    "ClearCDNTransferRule",
    "CreatCDNTransferRule",
    "DeleteCDNTransferRule",
    "DescribeRTCStreamState",
    "ForbidRTCStream",
    "ForbidRTCStreams",
    "RTMPDispatch",
    "RTMPDispatchV2",
    "ResumeRTCStream",
    "ResumeRTCStreams",
];

/// All but RFC 3986's unreserved characters.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Sends a signed query to `server` and gives the answer's text.
pub async fn send(server: &str, query: &str) -> anyhow::Result<String> {
    let url =
        url::Url::parse(server).with_context(|| format!("{server} is no address: name it as http://HOST:PORT"))?;
    let none = reqwest::redirect::Policy::none();
    let client = reqwest::Client::builder().timeout(Duration::from_secs(30)).redirect(none);
    let mut client = client.tls_backend_preconfigured(tls::client(Vec::new())?);
    // A proxy of the environment does not reach our own loopback.
    if matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]")) {
        client = client.no_proxy();
    }
    // The address is signed: it stays out of every error.
    let advice = || format!("no answer from {server}: start it with `bywash serve`, or name another with --server");
    let answer = client.build()?.get(format!("{server}/?{query}")).send().await;
    let answer = answer.map_err(reqwest::Error::without_url).with_context(advice)?;
    answer.text().await.map_err(reqwest::Error::without_url).with_context(advice)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    fn check(action: &str, params: &[(&str, &str)], test: bool, want: &str) {
        let app =
            App { id: 1_234_567_890, server_secret: Secret::new("0123456789abcdef0123456789abcdef"), ..App::default() };
        let params = params.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        let got = query(&app, action, params, test, "c1b2a3d4e5f60718", Duration::from_millis(1_700_000_000_123));
        let signed = "&AppId=1234567890&SignatureNonce=c1b2a3d4e5f60718&Timestamp=1700000000&Signature=19bb93a8bac88beacf1bd7b5df7e1bf6&SignatureVersion=2.0";
        assert_eq!(got, format!("Action={action}{signed}{want}"));
    }

    #[test]
    fn a_call_is_signed_as_zego_documents_it() {
        check("StartCDNRecord", &[("StreamId", "a")], false, "&StreamId=a");
        check("StartCDNRecord", &[], true, "&IsTest=true");
    }

    #[test]
    fn a_sequence_is_added_where_the_action_needs_one_and_the_caller_gave_none() {
        check(
            "ForbidRTCStreams",
            &[("StreamId[]", "a"), ("StreamId[]", "b")],
            false,
            "&Sequence=1700000000123&StreamId%5B%5D=a&StreamId%5B%5D=b",
        );
        check("ForbidRTCStream", &[("Sequence", "7")], false, "&Sequence=7");
    }

    #[test]
    fn values_are_percent_encoded() {
        check(
            "X",
            &[("CDNUrl", "rtmp://h/a/s?k=v&w=+ 流~")],
            false,
            "&CDNUrl=rtmp%3A%2F%2Fh%2Fa%2Fs%3Fk%3Dv%26w%3D%2B%20%E6%B5%81~",
        );
    }
}
