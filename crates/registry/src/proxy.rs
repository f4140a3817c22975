use crate::{ProxyOptions, RegistryError};
use forge_session::Redacted;
use reqwest::Url;
use std::net::IpAddr;

/// Decides which proxy a request goes through, by the rules of Go's `httpproxy`, which docker and BuildKit follow.
#[derive(Clone, Debug)]
pub(crate) struct ProxyRules {
    http: Option<Redacted>,
    https: Option<Redacted>,
    direct: Vec<Direct>,
}

/// One entry of NO_PROXY.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Direct {
    Everything,
    Network {
        address: IpAddr,
        bits: u8,
    },
    Address {
        address: IpAddr,
        port: Option<u16>,
    },
    /// A name and all below it; `itself` is false for one that begins with a dot.
    Domain {
        name: String,
        itself: bool,
        port: Option<u16>,
    },
}

impl ProxyRules {
    /// # Errors
    /// A proxy's address is none.
    pub(crate) fn new(options: &ProxyOptions) -> Result<Self, RegistryError> {
        let check = |option: &'static str, proxy: &Option<Redacted>| {
            let Some(address) = proxy.as_ref().filter(|address| !address.reveal().is_empty()) else { return Ok(None) };
            let address = with_scheme(address.reveal());
            let usable =
                Url::parse(&address).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
            match usable {
                true => Ok(Some(Redacted::new(address))),
                // The address may hold a password, so it is not shown.
                false => Err(RegistryError::Options {
                    host: "the proxy".to_owned(),
                    option,
                    reason: "not an http:// or https:// address".to_owned(),
                }),
            }
        };
        let entries = options.no_proxy.as_deref().unwrap_or_default();
        Ok(Self {
            http: check("HTTP_PROXY", &options.http)?,
            https: check("HTTPS_PROXY", &options.https)?,
            direct: entries.split(',').filter_map(|entry| parse(entry.trim())).collect(),
        })
    }

    /// The proxy for a URL.
    pub(crate) fn proxy_for(&self, url: &Url) -> Option<Url> {
        let proxy = match url.scheme() {
            "https" => self.https.as_ref(),
            _ => self.http.as_ref(),
        }?;
        match self.is_direct(url) {
            true => None,
            false => Url::parse(proxy.reveal()).ok(),
        }
    }

    fn is_direct(&self, url: &Url) -> bool {
        let host = url.host_str().unwrap_or_default().to_ascii_lowercase();
        let address = host.trim_matches(['[', ']']).parse::<IpAddr>().ok();
        if host == "localhost" || address.is_some_and(|address| address.is_loopback()) {
            return true;
        }
        let port = url.port_or_known_default();
        self.direct.iter().any(|entry| entry.covers(&host, address, port))
    }
}

impl Direct {
    fn covers(&self, host: &str, address: Option<IpAddr>, port: Option<u16>) -> bool {
        let same_port = |wanted: &Option<u16>| wanted.is_none() || *wanted == port;
        match self {
            Self::Everything => true,
            Self::Network { address: network, bits } => {
                address.is_some_and(|address| in_network(address, *network, *bits))
            }
            Self::Address { address: wanted, port } => address == Some(*wanted) && same_port(port),
            Self::Domain { name, itself, port } => {
                let below = host.strip_suffix(name.as_str()).is_some_and(|rest| rest.ends_with('.'));
                (below || (*itself && host == name)) && same_port(port)
            }
        }
    }
}

/// Go takes `host:port` for a proxy too.
fn with_scheme(address: &str) -> String {
    match address.contains("://") {
        true => address.to_owned(),
        false => format!("http://{address}"),
    }
}

fn parse(entry: &str) -> Option<Direct> {
    let entry = entry.to_ascii_lowercase();
    if entry.is_empty() {
        return None;
    }
    if entry == "*" {
        return Some(Direct::Everything);
    }
    if let Some((address, bits)) = entry.split_once('/') {
        let address: IpAddr = address.parse().ok()?;
        let bits = bits.parse().ok().filter(|bits| *bits <= if address.is_ipv4() { 32 } else { 128 })?;
        return Some(Direct::Network { address, bits });
    }
    if let Ok(address) = entry.trim_matches(['[', ']']).parse() {
        return Some(Direct::Address { address, port: None });
    }
    let (host, port) = match entry.rsplit_once(':') {
        Some((host, port)) => (host.to_owned(), Some(port.parse().ok()?)),
        None => (entry, None),
    };
    if let Ok(address) = host.trim_matches(['[', ']']).parse() {
        return Some(Direct::Address { address, port });
    }
    let host = host.strip_prefix('*').filter(|rest| rest.starts_with('.')).unwrap_or(&host);
    let (name, itself) = match host.strip_prefix('.') {
        Some(name) => (name, false),
        None => (host, true),
    };
    Some(Direct::Domain { name: name.to_owned(), itself, port })
}

fn in_network(address: IpAddr, network: IpAddr, bits: u8) -> bool {
    let shift = |width: u8| u32::from(width - bits);
    match (address, network) {
        (IpAddr::V4(a), IpAddr::V4(n)) => (a.to_bits() ^ n.to_bits()).checked_shr(shift(32)).unwrap_or(0) == 0,
        (IpAddr::V6(a), IpAddr::V6(n)) => (a.to_bits() ^ n.to_bits()).checked_shr(shift(128)).unwrap_or(0) == 0,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(no_proxy: &str) -> ProxyRules {
        let options = ProxyOptions {
            http: Some(Redacted::new("proxy.test:3128")),
            https: Some(Redacted::new("http://u:p@proxy.test:3129")),
            no_proxy: Some(no_proxy.to_owned()),
        };
        ProxyRules::new(&options).unwrap()
    }

    #[test]
    fn no_proxy_is_read_as_go_does() {
        let check = |no_proxy: &str, url: &str, direct: bool| {
            assert_eq!(rules(no_proxy).proxy_for(&Url::parse(url).unwrap()).is_none(), direct, "{no_proxy} {url}");
        };
        check("", "https://a.test/", false);
        check("", "http://127.0.0.9:5000/", true);
        check("", "http://[::1]:5000/", true);
        check("", "http://localhost:5000/", true);
        check("*", "https://a.test/", true);
        check("a.test", "https://a.test/", true);
        check("a.test", "https://b.a.test/", true);
        check("a.test", "https://ba.test/", false);
        check(".a.test", "https://a.test/", false);
        check("*.a.test", "https://b.a.test/", true);
        check("x, a.test:8443", "https://a.test:8443/", true);
        check("a.test:8443", "https://a.test/", false);
        check("10.0.0.0/8", "https://10.9.8.7/", true);
        check("10.0.0.0/8", "https://11.9.8.7/", false);
        check("0.0.0.0/0", "https://11.9.8.7/", true);
        check("10.1.2.3", "https://10.1.2.3/", true);
        check("fd00::/8", "https://[fd12::1]/", true);
        check("10.0.0.0/99,::/x", "https://10.1.2.3/", false);
    }

    #[test]
    fn each_scheme_has_its_proxy_and_bad_ones_are_not_shown() {
        let rules = rules("");
        let proxy = |url: &str| rules.proxy_for(&Url::parse(url).unwrap()).unwrap().to_string();
        assert_eq!(proxy("http://a.test/"), "http://proxy.test:3128/");
        assert_eq!(proxy("https://a.test/"), "http://u:p@proxy.test:3129/");
        let options = ProxyOptions { http: Some(Redacted::new("socks5://u:geheim@h")), ..ProxyOptions::default() };
        let error = ProxyRules::new(&options).unwrap_err().to_string();
        assert!(error.contains("HTTP_PROXY") && !error.contains("geheim"), "{error}");
        assert!(!format!("{rules:?}").contains("u:p"));
    }
}
