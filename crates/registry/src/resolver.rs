use hickory_resolver::TokioResolver;
use hickory_resolver::config::{GOOGLE, LookupIpStrategy, ResolverConfig};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};

/// Finds the addresses of names, and refuses those that lead into a private network: what a public server may redirect
/// to (A112). The addresses that were judged are those that are connected to.
#[derive(Clone, Default)]
pub(crate) struct PublicNames(Arc<OnceLock<TokioResolver>>);

#[derive(Debug, thiserror::Error)]
#[error("{host} leads into a private network")]
struct PrivateAddress {
    host: String,
}

/// Words that BuildKit's clients know.
#[derive(Debug, thiserror::Error)]
#[error("dial tcp: lookup {host}: no such host")]
struct NoSuchHost {
    host: String,
}

/// Finds the addresses of all names.
pub(crate) struct AllNames(pub PublicNames);

impl Resolve for AllNames {
    fn resolve(&self, name: Name) -> Resolving {
        let names = self.0.clone();
        Box::pin(async move {
            let found = names.lookup(name.as_str()).await;
            let addresses = found.map_err(|error| -> Box<dyn std::error::Error + Send + Sync> {
                match error.is_no_records_found() || error.is_nx_domain() {
                    true => NoSuchHost { host: name.as_str().to_owned() }.into(),
                    false => error.into(),
                }
            })?;
            let addresses: Addrs = Box::new(addresses.into_iter().map(|address| SocketAddr::new(address, 0)));
            Ok(addresses)
        })
    }
}

impl PublicNames {
    /// Whether an address lies in a private network, or a name leads there. What cannot be found leads nowhere.
    pub(crate) async fn is_private(&self, url: &Url) -> bool {
        if let Some(private) = judged_by_text(url) {
            return private;
        }
        let addresses = self.lookup(url.host_str().unwrap_or_default()).await.unwrap_or_default();
        addresses.into_iter().any(is_private)
    }

    /// Whether an address lies in a private network, or all that a name leads to does. What has one foot in the public
    /// internet is public: it must not open the way into private networks (A112).
    pub(crate) async fn is_wholly_private(&self, url: &Url) -> bool {
        if let Some(private) = judged_by_text(url) {
            return private;
        }
        wholly_private(&self.lookup(url.host_str().unwrap_or_default()).await.unwrap_or_default())
    }

    async fn lookup(&self, host: &str) -> Result<Vec<IpAddr>, NetError> {
        let resolver = match self.0.get() {
            Some(resolver) => resolver,
            None => {
                let made = resolver()?;
                self.0.get_or_init(|| made)
            }
        };
        Ok(resolver.lookup_ip(host).await?.iter().collect())
    }
}

impl Resolve for PublicNames {
    fn resolve(&self, name: Name) -> Resolving {
        let names = self.clone();
        Box::pin(async move {
            let addresses = names.lookup(name.as_str()).await?;
            if addresses.iter().copied().any(is_private) {
                return Err(PrivateAddress { host: name.as_str().to_owned() }.into());
            }
            let addresses: Addrs = Box::new(addresses.into_iter().map(|address| SocketAddr::new(address, 0)));
            Ok(addresses)
        })
    }
}

/// As the HTTP library makes its own, so that both find the same addresses.
fn resolver() -> Result<TokioResolver, NetError> {
    let mut builder = TokioResolver::builder_tokio().unwrap_or_else(|_| {
        TokioResolver::builder_with_config(ResolverConfig::udp_and_tcp(&GOOGLE), TokioRuntimeProvider::default())
    });
    builder.options_mut().ip_strategy = LookupIpStrategy::Ipv6AndIpv4;
    builder.build()
}

fn wholly_private(addresses: &[IpAddr]) -> bool {
    !addresses.is_empty() && addresses.iter().copied().all(is_private)
}

/// What can be said of a URL's host without asking anybody; `None` for names.
pub(crate) fn judged_by_text(url: &Url) -> Option<bool> {
    let host = url.host_str().unwrap_or_default().trim_end_matches('.').to_ascii_lowercase();
    if host == "localhost" || host.ends_with(".localhost") {
        return Some(true);
    }
    host.trim_matches(['[', ']']).parse().ok().map(is_private)
}

/// Whether an address is none of the public internet's: loopback, private and shared networks, link-local, reserved.
pub(crate) fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, _] = address.octets();
            address.is_private()
                || address.is_loopback()
                || address.is_link_local()
                || address.is_multicast()
                || matches!((a, b, c), (0 | 240.., ..) | (100, 64..=127, _) | (192, 0, 0) | (198, 18 | 19, _))
        }
        IpAddr::V6(address) => {
            let inner =
                address.to_ipv4_mapped().or_else(|| address.to_ipv4()).or_else(|| translated(address.segments()));
            address.is_loopback()
                || address.is_unspecified()
                || address.is_unique_local()
                || address.is_unicast_link_local()
                || address.is_multicast()
                || inner.is_some_and(|inner| is_private(IpAddr::V4(inner)))
        }
    }
}

/// The IPv4 address inside of one of `64:ff9b::/96` (RFC 6052) or `2002::/16` (RFC 3056).
fn translated(segments: [u16; 8]) -> Option<std::net::Ipv4Addr> {
    let address = |high: u16, low: u16| std::net::Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low));
    match segments {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(address(high, low)),
        [0x2002, high, low, ..] => Some(address(high, low)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Seen to fail with `is_private` that knows only `Ipv4Addr::is_private`.
    #[test]
    fn a112_what_is_private_is_known() {
        let private = [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "0.1.2.3",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "ff02::1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "64:ff9b::a00:1",
            "2002:7f00:1::",
        ];
        for address in private {
            assert!(is_private(address.parse().unwrap()), "{address}");
        }
        for address in ["1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"]
        {
            assert!(!is_private(address.parse().unwrap()), "{address}");
        }
    }

    // Meant to fail with `any` in the place of `all`.
    #[test]
    fn a112_a_name_with_a_public_address_is_no_private_one() {
        let check = |addresses: &[&str], expect: bool| {
            let addresses: Vec<IpAddr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
            assert_eq!(wholly_private(&addresses), expect, "{addresses:?}");
        };
        check(&["10.0.0.1", "fd00::1"], true);
        check(&["10.0.0.1", "1.1.1.1"], false);
        check(&["1.1.1.1", "127.0.0.1"], false);
        check(&[], false);
    }

    #[test]
    fn a112_odd_spellings_of_addresses_are_known() {
        let judge = |url: &str| judged_by_text(&Url::parse(url).unwrap());
        for url in
            ["http://2130706433/", "http://0x7f.1/", "http://LOCALHOST./", "http://a.localhost/", "http://[::1]/"]
        {
            assert_eq!(judge(url), Some(true), "{url}");
        }
        assert_eq!(judge("http://1.1.1.1/"), Some(false));
        assert_eq!(judge("http://example.com/"), None);
    }
}
