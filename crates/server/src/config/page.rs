//! docs/configuration.md, made from the keys.

use super::keys::Scope;
use super::{App, Config, Push, Record};

/// The manual page of the configuration.
pub fn page() -> String {
    let mut text = String::from(INTRODUCTION);
    section::<Config>(&mut text, "The server", "");
    section::<App>(&mut text, "Apps: `[[app]]`", "One for each app; without any, a first start makes one, see above.");
    section::<Push>(
        &mut text,
        "Push authentication: `[[app.cdn.push]]`",
        "Targets of these hosts are signed when they are connected to.",
    );
    section::<Record>(
        &mut text,
        "Recording: `[app.record.Tencent]`, likewise `.Ws`, `.Huawei`, `.Aliyun`",
        "What recordings asked for under a vendor's name are like.",
    );
    text
}

fn section<S: Scope>(text: &mut String, title: &str, about: &str) {
    *text += &format!("\n## {title}\n\n");
    if !about.is_empty() {
        *text += &format!("{about}\n\n");
    }
    *text += "| key | value | default | what |\n|---|---|---|---|\n";
    for key in S::keys() {
        *text += &key.row(&S::default());
    }
}

const INTRODUCTION: &str = r#"# Configuration

<!-- Made from the table of keys; `BYWASH_BLESS=1 cargo test -p bywash` rewrites it. -->

`bywash serve` reads the TOML file of `--config`, or else of the variable `BYWASH_CONFIG`, or else `bywash.toml` in the working
directory if it is there, or else starts with the defaults. `bywash check` lists everything that is wrong with a
configuration, with its lines. Paths are relative to the working directory. An unknown key is an error.

Where no app is configured, `serve` makes one with fresh secrets, keeps it in `dev-app.toml` in `data_dir`, readable by
its owner alone, and allows private targets. `demo` reads no configuration but its flags, and the variables of `data_dir` and, for their ports, of the three `listen`.

A variable of the environment overrides a key of the file: `BYWASH_HTTP__LISTEN=0.0.0.0:8080` is `http.listen`,
`BYWASH_RELAY__RETRY__FIRST=2s` is `relay.retry.first`, and `BYWASH_APP__1234567890__SERVER_SECRET=…` is the `server_secret` of the app
1234567890, which is created if the file does not define it. A flag overrides both: `--set relay.retry.first=2s`. Lists have commas between their values there.
Keys of `[[app.cdn.push]]` and `[app.record.*]` have no variable and no flag: they are set in the file only.
Variables that Kubernetes makes of a service's name, such as `BYWASH_PORT_8080_TCP`, are passed over.
`BYWASH_LOG` (or `RUST_LOG`) sets what is logged: `info`, `debug`, `info,bywash::plan=trace`. A part alone, without `info,` before it, silences all others.

Durations are such as `"500ms"`, `"90s"`, `"1h30m"`, `"30d"`; sizes such as `"512KiB"`, `"64MiB"`. Text, durations and sizes are in quotes.

SIGHUP reloads the file. Apps and all keys take effect at once, but for those marked *Restart.* No stream is cut but those of an app
or environment that is gone: no call could stop them. A file with
problems, or one that has lost its last app, changes nothing.
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manual_page_is_made_from_the_keys() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/configuration.md");
        if std::env::var_os("BYWASH_BLESS").is_some() {
            std::fs::create_dir_all(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs")).unwrap();
            std::fs::write(file, page()).unwrap();
        }
        let kept = std::fs::read_to_string(file).unwrap_or_default();
        assert!(kept == page(), "docs/configuration.md is old: run BYWASH_BLESS=1 cargo test -p bywash");
    }
}
