//! Which addresses the public internet is made of.
//!
//! Whoever can reach the mirror endpoint can name any upstream. Upstreams that the operator did
//! not configure are therefore reached by public addresses only, so that nobody can use a node to
//! talk to the hosts around it, to itself, or to a cloud's metadata service.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

/// A name or address that only configured upstreams may lead to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0} is not a public address, and only upstreams in this node's configuration may lead to \
     one; if you meant it, configure the upstream (--origin NAME=URL)"
)]
pub(super) struct NotPublic(pub(super) String);

/// Whether an address is reached across the public internet. Private, shared (CGNAT), loopback,
/// link-local, documentation, benchmark, multicast and reserved addresses are not, and neither
/// are IPv6 addresses that carry such an IPv4 address (IANA special-purpose registries).
pub(super) fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !matches!(
        (a, b, c),
        (0 | 10 | 127 | 224.., _, _)
            | (100, 64..=127, _)
            | (169, 254, _)
            | (172, 16..=31, _)
            | (192, 0, 0 | 2)
            | (192, 88, 99)
            | (192, 168, _)
            | (198, 18 | 19, _)
            | (198, 51, 100)
            | (203, 0, 113)
    )
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    let embedded = || {
        let [.., a, b, c, d] = address.octets();
        Ipv4Addr::new(a, b, c, d)
    };
    match segments {
        // IPv4-mapped, and NAT64's well-known prefix, which IPv6-only networks need.
        [0, 0, 0, 0, 0, 0xffff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => is_public_v4(embedded()),
        // IETF assignments and Teredo, documentation, 6to4, documentation.
        [0x2001, 0..=0x1ff | 0xdb8, ..] | [0x2002, ..] | [0x3fff, 0..=0xfff, ..] => false,
        // Global unicast is all that is left.
        [first, ..] => (0x2000..0x4000).contains(&first),
    }
}

/// Refuses a URL whose host is written as an address that is not public. Names are checked when
/// they are resolved.
pub(super) fn check_literal(url: &Url) -> Result<(), NotPublic> {
    let address = match url.host() {
        Some(Host::Ipv4(address)) => IpAddr::V4(address),
        Some(Host::Ipv6(address)) => IpAddr::V6(address),
        Some(Host::Domain(_)) | None => return Ok(()),
    };
    if is_public(address) {
        Ok(())
    } else {
        Err(NotPublic(address.to_string()))
    }
}

/// Resolves names as the system does, and drops what is not public.
pub(super) struct PublicResolver {
    /// Host names of the proxies in the environment: they are asked for through this resolver
    /// too, and are usually private.
    proxies: Vec<String>,
}

impl PublicResolver {
    pub(super) fn new(proxies: Vec<String>) -> Self {
        Self { proxies }
    }
}

impl Resolve for PublicResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let name = name.as_str().to_owned();
        let is_proxy = self.proxies.contains(&name);
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let allowed: Vec<SocketAddr> = found
                .filter(|address| is_proxy || is_public(address.ip()))
                .collect();
            if allowed.is_empty() {
                return Err(NotPublic(format!("what {name} resolves to")).into());
            }
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

/// The host names of the proxies that the environment names.
pub(super) fn proxies_of_environment() -> Vec<String> {
    ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"]
        .iter()
        .filter_map(|variable| std::env::var(variable).ok())
        .filter_map(|proxy| proxy_host(&proxy))
        .collect()
}

fn proxy_host(proxy: &str) -> Option<String> {
    let url = if proxy.contains("://") {
        Url::parse(proxy)
    } else {
        Url::parse(&format!("http://{proxy}"))
    };
    url.ok()?.host_str().map(str::to_ascii_lowercase)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_public_internet_is_public() {
        for address in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.168.1.1",
            "198.18.0.1",
            "203.0.113.9",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::808:808",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "fc00::1",
            "fd12:3456::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!is_public(address.parse().unwrap()), "{address}");
        }
        for address in [
            "1.1.1.1",
            "100.63.255.255",
            "100.128.0.1",
            "172.15.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "223.255.255.1",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
            "2001:4860:4860::8888",
            "2600:1f18::1",
        ] {
            assert!(is_public(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn addresses_in_disguise_are_seen_through() {
        for url in [
            "https://127.1/",
            "https://0x7f000001/",
            "https://2130706433/",
            "https://[::ffff:127.0.0.1]/",
        ] {
            assert!(check_literal(&Url::parse(url).unwrap()).is_err(), "{url}");
        }
        for url in ["https://1.1.1.1/", "https://ghcr.io/"] {
            assert!(check_literal(&Url::parse(url).unwrap()).is_ok(), "{url}");
        }
    }

    #[tokio::test]
    async fn a_name_that_resolves_to_loopback_is_refused_unless_it_is_the_proxy() {
        let localhost = || "localhost".parse().unwrap();
        let strict = PublicResolver::new(Vec::new());
        assert!(strict.resolve(localhost()).await.is_err());
        let proxied = PublicResolver::new(vec!["localhost".to_owned()]);
        assert!(proxied.resolve(localhost()).await.is_ok());
    }

    #[test]
    fn proxies_are_named_with_and_without_a_scheme() {
        for proxy in [
            "proxy.corp:3128",
            "http://user:word@Proxy.corp:3128/",
            "https://proxy.corp",
        ] {
            assert_eq!(proxy_host(proxy).as_deref(), Some("proxy.corp"), "{proxy}");
        }
    }
}
