//! What addresses of peers and targets are: which are of the public internet, the only ones pushed to unless the operator allows others.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A peer as everybody writes it: an IPv4 one of a listener on both families comes inside an IPv6 address.
pub fn canonical(peer: SocketAddr) -> SocketAddr {
    SocketAddr::new(peer.ip().to_canonical(), peer.port())
}

/// Whether `ip` is a host of the public internet: not loopback, private, link-local, shared, multicast or
/// reserved (RFC 6890), neither itself nor inside an IPv6 address that carries an IPv4 one.
pub fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => public_v4(ip),
        IpAddr::V6(ip) => carried_v4(ip).map_or_else(|| public_v6(ip), public_v4),
    }
}

fn public_v4(ip: Ipv4Addr) -> bool {
    let refused = match ip.octets() {
        [0 | 10 | 127 | 224..=255, ..] => true,
        [100, second, ..] => second & 0xc0 == 64,
        [169, 254, ..] | [192, 168, ..] | [192, 0, 0, _] => true,
        [172, second, ..] => second & 0xf0 == 16,
        [198, second, ..] => second & 0xfe == 18,
        _ => false,
    };
    !refused
}

fn public_v6(ip: Ipv6Addr) -> bool {
    // Everything that is or will be given to hosts is in 2000::/3 (RFC 4291 §2.4, IANA).
    ip.segments()[0] & 0xe000 == 0x2000
}

/// The IPv4 address inside: mapped (RFC 4291), translated by NAT64 (RFC 6052), tunnelled by 6to4 (RFC 3056).
fn carried_v4(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let [a, b, c, d, e, f, high, low] = ip.segments();
    let v4 = |high: u16, low: u16| Some(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)));
    match [a, b, c, d, e, f] {
        [0, 0, 0, 0, 0, 0xffff] | [0x64, 0xff9b, 0, 0, 0, 0] => v4(high, low),
        [0x2002, high, low, ..] => v4(high, low),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hosts_of_the_public_internet_are_public() {
        for ip in ["8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700::1", "::ffff:8.8.8.8", "64:ff9b::808:808"] {
            assert!(is_public(ip.parse().unwrap()), "{ip}");
        }
        let refused = "0.0.0.0 127.0.0.1 127.9.9.9 10.1.2.3 172.16.0.1 172.31.255.255 192.168.1.1 169.254.169.254 \
                       100.64.0.1 198.18.0.1 224.0.0.1 240.0.0.1 255.255.255.255 :: ::1 fe80::1 fc00::1 fd12::1 \
                       ff02::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 64:ff9b::a00:1 2002:7f00:1:: ::7f00:1";
        for ip in refused.split_whitespace() {
            assert!(!is_public(ip.parse().unwrap()), "{ip}");
        }
    }
}
