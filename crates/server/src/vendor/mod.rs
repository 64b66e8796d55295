//! What differs from one CDN vendor to the next: here, how the address of a push is signed.
//!
//! Invariant: a vendor's name and the names of its parameters appear in this folder, in the configuration and in the actions of
//! ZEGO's cdn group, whose answers have each vendor's shape.

mod aliyun;
mod huawei;
mod target;
mod tencent;
mod wangsu;

use std::fmt;

pub use target::Target;

use crate::config::{Push, Vendor};
use crate::secret::Secret;

/// Which of a domain's two keys signs. Vendors accept either at any time; the backup is for the hour in which the main one is changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Key {
    /// The key that every push domain has.
    #[default]
    Main,
    /// The second key; the main one where there is no second.
    Backup,
}

/// A target as it is given to the CDN in one connect. Prints as the target.
#[derive(Clone)]
pub struct PushUrl {
    target: Target,
    stream: Secret,
    has_backup: bool,
}

impl PushUrl {
    /// RTMP's `app`: the path without its last segment.
    pub fn app(&self) -> &str {
        self.target.app()
    }

    /// RTMP's stream name: the last segment with the query, as `publish` carries it.
    pub fn stream_with_query(&self) -> &Secret {
        &self.stream
    }

    /// RTMP's `tcUrl`.
    pub fn tc_url(&self) -> String {
        self.target.tc_url()
    }

    /// Whether another attempt with [`Key::Backup`] would be signed differently.
    pub fn has_backup(&self) -> bool {
        self.has_backup
    }
}

impl fmt::Debug for PushUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.target.fmt(f)
    }
}

/// Signs `target` for one connect at `now` (Unix seconds) by the most exact entry of `push` for its host; without one the
/// target goes out as its caller wrote it. The caller's own parameters are kept, but for those that the signature sets.
pub fn sign(target: &Target, push: &[Push], which: Key, now: i64) -> PushUrl {
    let entry = push
        .iter()
        .filter(|it| host_matches(&it.host, target.host()))
        .max_by_key(|it| (!it.host.starts_with('*'), it.host.len()));
    let Some(entry) = entry else {
        return PushUrl { target: target.clone(), stream: Secret::new(target.stream_with_query()), has_backup: false };
    };
    let key = match which {
        Key::Main => &entry.key,
        Key::Backup => entry.backup_key.as_ref().unwrap_or(&entry.key),
    };
    let expires = now.saturating_add(entry.ttl.as_secs().try_into().unwrap_or(i64::MAX));
    let signature = match entry.vendor {
        Vendor::Tencent => tencent::parameters(target.stream(), key, expires),
        Vendor::Ws => wangsu::parameters(&target.path(), key, expires),
        Vendor::Huawei => huawei::parameters(target.stream(), key, expires),
        Vendor::Aliyun => aliyun::parameters(&target.path(), key, expires),
    };
    let mut query: Vec<String> = target
        .query()
        .split('&')
        .filter(|pair| !pair.is_empty())
        .filter(|pair| !signature.iter().any(|(name, _)| pair.split('=').next() == Some(name)))
        .map(str::to_owned)
        .collect();
    query.extend(signature.iter().map(|(name, value)| format!("{name}={value}")));
    PushUrl {
        target: target.clone(),
        stream: Secret::new(format!("{}?{}", target.stream(), query.join("&"))),
        has_backup: entry.backup_key.is_some(),
    }
}

/// Whether one of `patterns` covers the target's host.
pub fn names(patterns: &[String], target: &Target) -> bool {
    patterns.iter().any(|pattern| host_matches(pattern, target.host()))
}

/// What a vendor adds to the query, in its order.
type Parameters = Vec<(&'static str, String)>;

/// Whether `pattern`, a host name or `*.` and a domain, covers `host`. The domain itself is not under `*.`.
fn host_matches(pattern: &str, host: &str) -> bool {
    let (pattern, host) = (pattern.to_ascii_lowercase(), host.to_ascii_lowercase());
    match pattern.strip_prefix('*') {
        Some(domain) => host.len() > domain.len() && host.ends_with(domain),
        None => host == pattern,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const MAIN: &str = "0123456789abcdef0123456789abcdef";
    const BACKUP: &str = "fedcba9876543210fedcba9876543210";
    /// 2018-12-29 14:13:45 +08:00, one day before.
    const NOW: i64 = 1_546_064_025 - 86_400;

    fn push(host: &str, vendor: Vendor, key: &str, backup_key: Option<&str>) -> Push {
        Push {
            host: host.into(),
            vendor,
            key: Secret::new(key),
            backup_key: backup_key.map(Secret::new),
            ttl: Duration::from_secs(86_400),
        }
    }

    fn check(url: &str, push: &[Push], which: Key, want: &str) {
        let signed = sign(&Target::parse(url).unwrap(), push, which, NOW);
        assert_eq!(signed.stream_with_query().expose(), want, "{url} {which:?}");
    }

    #[test]
    fn each_vendor_is_signed_as_zego_documents_it_with_either_key() {
        let table = [
            (Vendor::Tencent, Key::Main, "123?txSecret=bc7f6a7cc26552c7448d6e79fbc66cae&txTime=5c271099"),
            (Vendor::Tencent, Key::Backup, "123?txSecret=741e68d5b8f15b2ff41ea6ed7f6d8670&txTime=5c271099"),
            (Vendor::Ws, Key::Main, "123?wsSecret=28e82d4417e0b1f549422ee5842a3381&wsABStime=5C271099"),
            (Vendor::Ws, Key::Backup, "123?wsSecret=65011f52da12b61900bea66a7a92845d&wsABStime=5C271099"),
            (
                Vendor::Huawei,
                Key::Main,
                "123?hwSecret=140678b99ea80c577ffd0156f445f5d6d68cf3fc665cff3809d7823d33abbe40&hwTime=5c271099",
            ),
            (
                Vendor::Huawei,
                Key::Backup,
                "123?hwSecret=2bf1c22f5f565f95b9dc8be875ca4e99c1ba4a7bbe7954a37d44005068d41b74&hwTime=5c271099",
            ),
            (Vendor::Aliyun, Key::Main, "123?auth_key=1546064025-0-0-3ea81a7fd71dc9e8147afc762d9b3cbd"),
            (Vendor::Aliyun, Key::Backup, "123?auth_key=1546064025-0-0-e4031c53b234cefbb93cc83165d75d8b"),
        ];
        for (vendor, which, want) in table {
            check(
                "rtmp://push.example.com/live/123",
                &[push("push.example.com", vendor, MAIN, Some(BACKUP))],
                which,
                want,
            );
        }
    }

    #[test]
    fn the_callers_parameters_stay_and_an_old_signature_is_replaced() {
        let signature = "txSecret=bc7f6a7cc26552c7448d6e79fbc66cae&txTime=5c271099";
        let push = [push("push.example.com", Vendor::Tencent, MAIN, None)];
        for (query, kept) in
            [("a=1&b", "a=1&b&"), ("txSecret=old&a=1&txTime=0", "a=1&"), ("&&", ""), ("xtxSecret=1", "xtxSecret=1&")]
        {
            check(
                &format!("rtmp://push.example.com/live/123?{query}"),
                &push,
                Key::Main,
                &format!("123?{kept}{signature}"),
            );
        }
    }

    #[test]
    fn a_host_without_an_entry_goes_out_as_written() {
        check(
            "rtmp://other.example/live/123?k=v",
            &[push("push.example.com", Vendor::Ws, MAIN, None)],
            Key::Main,
            "123?k=v",
        );
        check("rtmp://other.example/live/123", &[], Key::Backup, "123");
    }

    #[test]
    fn without_a_backup_key_the_main_key_signs() {
        let push = [push("push.example.com", Vendor::Aliyun, MAIN, None)];
        check(
            "rtmp://push.example.com/live/123",
            &push,
            Key::Backup,
            "123?auth_key=1546064025-0-0-3ea81a7fd71dc9e8147afc762d9b3cbd",
        );
        let signed = sign(&Target::parse("rtmp://push.example.com/live/123").unwrap(), &push, Key::Main, NOW);
        assert!(!signed.has_backup());
    }

    #[test]
    fn the_most_exact_host_decides() {
        let push = [
            push("*.com", Vendor::Aliyun, MAIN, None),
            push("push.example.com", Vendor::Tencent, MAIN, None),
            push("*.example.com", Vendor::Ws, MAIN, None),
        ];
        for (host, begins) in [
            ("PUSH.example.com", "123?tx"),
            ("b.example.com", "123?ws"),
            ("a.b.example.com", "123?ws"),
            ("example.com", "123?auth_key"),
        ] {
            let signed = sign(&Target::parse(&format!("rtmp://{host}/live/123")).unwrap(), &push, Key::Main, NOW);
            assert!(signed.stream_with_query().expose().starts_with(begins), "{host}");
        }
    }

    #[test]
    fn a_signed_address_prints_without_its_secret() {
        let signed = sign(
            &Target::parse("rtmp://push.example.com/live/123").unwrap(),
            &[push("*.example.com", Vendor::Ws, MAIN, None)],
            Key::Main,
            NOW,
        );
        let shown = format!("{signed:?}");
        assert!(shown.starts_with("rtmp://push.example.com/live/") && !shown.contains('?'), "{shown}");
    }
}
