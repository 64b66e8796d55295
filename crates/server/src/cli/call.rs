//! `bywash call` and `bywash sign`: an API call as a customer's backend makes it.

use std::process::ExitCode;

use anyhow::bail;
use clap::Args;

use super::{Source, app, now, pair};
use crate::client;

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
    let body =
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(client::send(&server, &query))?;
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
        Ok((server, client::query(&app, &self.action, self.params, self.test, &nonce, now())))
    }
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
