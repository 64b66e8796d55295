//! `bywash call` and `bywash sign`: an API call as a customer's backend makes it.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use md5::{Digest, Md5};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::{Source, app, now, pair};
use crate::config::App;

/// Signs and sends an API call
///
/// Prints the answer; exits 0 only for Code 0.
#[derive(Args)]
#[command(
    after_help = "Example: bywash call CreatCDNTransferRule StreamId=rtc01 CDNUrl=rtmp://push.example.com/live/rtc01"
)]
pub struct Call {
    #[command(flatten)]
    request: Request,
}

/// Prints the signed address of an API call
#[derive(Args)]
#[command(after_help = "Example: bywash sign DescribeRTCStreamState StreamId=rtc01")]
pub struct Sign {
    #[command(flatten)]
    request: Request,
}

#[derive(Args)]
struct Request {
    /// The action, such as CreatCDNTransferRule
    action: String,
    /// Its parameters; a list is StreamId[]=a StreamId[]=b
    #[arg(value_name = "KEY=VALUE", value_parser = pair)]
    params: Vec<(String, String)>,
    /// The server; without it http.public_url of the configuration
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// The app, where there are several
    #[arg(long, value_name = "ID")]
    app: Option<u32>,
    /// Acts in the test environment (IsTest=true)
    #[arg(long)]
    test: bool,
    #[command(flatten)]
    source: Source,
}

/// Sends the call and prints its answer.
pub fn call(it: Call) -> anyhow::Result<ExitCode> {
    let (server, query) = it.request.prepare()?;
    let body = tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(send(&server, &query))?;
    let Ok(answer) = serde_json::from_str::<serde_json::Value>(&body) else {
        bail!("{server} does not answer with JSON: is it a bywash server? Name another with --server");
    };
    println!("{}", indent(&body));
    Ok(if answer["Code"] == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Prints the signed address.
pub fn sign(it: Sign) -> anyhow::Result<ExitCode> {
    let (server, query) = it.request.prepare()?;
    println!("{server}/?{query}");
    Ok(ExitCode::SUCCESS)
}

impl Request {
    /// The server and the signed query.
    fn prepare(self) -> anyhow::Result<(String, String)> {
        let config = self.source.load()?;
        let app = app(&config, self.app)?;
        let server = self.server.unwrap_or(config.http.public_url).trim_end_matches('/').to_owned();
        let nonce = hex::encode(rand::random::<[u8; 8]>());
        Ok((server, query(&app, &self.action, self.params, self.test, &nonce, now())))
    }
}

/// The query of `action`, signed at `now` (Unix time).
fn query(app: &App, action: &str, params: Vec<(String, String)>, test: bool, nonce: &str, now: Duration) -> String {
    let seconds = now.as_secs();
    let signature = hex::encode(Md5::digest(format!("{}{nonce}{}{seconds}", app.id, app.server_secret.expose())));
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

async fn send(server: &str, query: &str) -> anyhow::Result<String> {
    let client = reqwest::Client::builder()
        .timeout(Duration::from_secs(30))
        .redirect(reqwest::redirect::Policy::none())
        .build()?;
    // The address is signed: it stays out of every error.
    let advice = || format!("no answer from {server}: start it with `bywash serve`, or name another with --server");
    let answer = client
        .get(format!("{server}/?{query}"))
        .send()
        .await
        .map_err(reqwest::Error::without_url)
        .with_context(advice)?;
    answer.text().await.map_err(reqwest::Error::without_url).with_context(advice)
}

/// JSON with its members in the order they came, one a line.
fn indent(json: &str) -> String {
    let (mut out, mut depth, mut chars) = (String::new(), 0usize, json.chars().peekable());
    let line = |out: &mut String, depth: usize| *out += &format!("\n{:1$}", "", 2 * depth);
    while let Some(c) = chars.next() {
        match c {
            '"' => {
                out.push(c);
                let mut escaped = false;
                for c in chars.by_ref() {
                    out.push(c);
                    if c == '"' && !escaped {
                        break;
                    }
                    escaped = c == '\\' && !escaped;
                }
            }
            '{' | '[' => {
                out.push(c);
                while chars.next_if(|it| it.is_whitespace()).is_some() {}
                if let Some(end) = chars.next_if(|it| matches!(it, '}' | ']')) {
                    out.push(end);
                } else {
                    depth += 1;
                    line(&mut out, depth);
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                line(&mut out, depth);
                out.push(c);
            }
            ',' => {
                out.push(c);
                line(&mut out, depth);
            }
            ':' => out += ": ",
            c if c.is_whitespace() => {}
            c => out.push(c),
        }
    }
    out
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

    #[test]
    fn an_answer_is_printed_in_its_own_order() {
        let check = |json: &str, want: &str| assert_eq!(indent(json), want);
        check("{\"Code\":0, \"A\":{},\"Data\":[ ]}", "{\n  \"Code\": 0,\n  \"A\": {},\n  \"Data\": []\n}");
        check(
            "{\"b\":[1,\"x,{\\\"y\"],\"a\":\"\\\\\"}",
            "{\n  \"b\": [\n    1,\n    \"x,{\\\"y\"\n  ],\n  \"a\": \"\\\\\"\n}",
        );
    }
}
