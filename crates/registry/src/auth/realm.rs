use crate::RegistryError;
use crate::endpoint::Endpoint;
use crate::transport::{authority, is_link_local, shown};
use reqwest::Url;
use std::net::IpAddr;

/// Where tokens are to be fetched, and what may be sent there (A74).
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Realm {
    pub url: Url,
    pub trust: Trust,
}

/// What a token server may be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trust {
    /// The registry's credentials.
    Credentials,
    /// Nothing: it is neither the registry's own host nor under the same registrable domain.
    Anonymous,
}

impl Realm {
    /// Judges the realm that a registry's challenge names.
    ///
    /// # Errors
    /// [`RegistryError::Refused`]: from https to http, a link-local address, an address (rather than a name) of another host,
    /// a user name in the address, or not an address at all.
    pub(crate) fn judge(endpoint: &Endpoint, realm: &str) -> Result<Self, RegistryError> {
        let registry = &endpoint.base;
        let url = crate::transport::checked_target(registry, realm)?;
        let refused = |reason| RegistryError::Refused { registry: authority(registry), target: shown(&url), reason };
        let same_host = url.host_str() == registry.host_str();
        if is_link_local(&url) && !same_host {
            return Err(refused("a link-local address"));
        }
        if !same_host && is_address(&url) {
            return Err(refused("the address of another machine"));
        }
        let trusted = same_host || (same_domain(&url, registry) && url.scheme() == "https");
        let trust = if trusted { Trust::Credentials } else { Trust::Anonymous };
        Ok(Self { url, trust })
    }

    /// # Errors
    /// [`RegistryError::Refused`]: it is not to have the registry's credentials.
    pub(crate) fn check_trusted(&self, endpoint: &Endpoint) -> Result<(), RegistryError> {
        match self.trust {
            Trust::Credentials => Ok(()),
            Trust::Anonymous => Err(RegistryError::Refused {
                registry: endpoint.name.clone(),
                target: shown(&self.url),
                reason: "the token server is under another domain, so it is not given the registry's credentials",
            }),
        }
    }
}

fn is_address(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()
}

/// Whether two hosts lie under one domain that somebody registered, by the public suffix list: `auth.docker.io` and
/// `registry-1.docker.io` do, `a.github.io` and `b.github.io` do not.
fn same_domain(a: &Url, b: &Url) -> bool {
    let domain = |url: &Url| {
        let host = url.host_str()?.trim_end_matches('.').to_ascii_lowercase();
        psl::domain_str(&host).map(str::to_owned)
    };
    !is_address(a) && !is_address(b) && domain(a).is_some_and(|domain_a| domain(b) == Some(domain_a))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RegistryOptions;

    fn check(registry: &str, realm: &str, expect: Option<Trust>) {
        let endpoint = Endpoint::origin(&RegistryOptions::default(), registry, "a").unwrap();
        assert_eq!(Realm::judge(&endpoint, realm).ok().map(|realm| realm.trust), expect, "{registry} {realm}");
    }

    // Seen to fail with `trusted` set to true.
    #[test]
    fn a74_only_the_registrys_own_domain_gets_credentials() {
        use Trust::{Anonymous, Credentials};
        check("docker.io", "https://auth.docker.io/token", Some(Credentials));
        check("registry.gitlab.com", "https://gitlab.com/jwt/auth", Some(Credentials));
        check("r.test", "https://r.test:8443/token", Some(Credentials));
        check("localhost:5000", "http://localhost:5001/token", Some(Credentials));
        check("localhost:5000", "/token", Some(Credentials));
        check("r.test", "https://r.test.evil.test/token", Some(Anonymous));
        check("r.evil.test", "https://evil2.test/token", Some(Anonymous));
        check("a.github.io", "https://b.github.io/token", Some(Anonymous));
        check("a.co.uk", "https://b.co.uk/token", Some(Anonymous));
        check("127.0.0.1:5000", "http://localhost:5000/token", Some(Anonymous));
    }

    // Seen to fail without the two checks of `judge` and without `checked_target`.
    #[test]
    fn a74_downgrades_and_addresses_are_refused() {
        check("r.test", "http://r.test/token", None);
        check("r.test", "https://169.254.169.254/latest", None);
        check("localhost:5000", "http://169.254.169.254/latest", None);
        check("localhost:5000", "http://2852039166/latest", None);
        check("localhost:5000", "http://[fe80::1]/", None);
        check("localhost:5000", "http://[::ffff:169.254.169.254]/", None);
        check("localhost:5000", "http://metadata.google.internal/", None);
        check("r.test", "https://10.0.0.1/token", None);
        check("127.0.0.1:5000", "http://127.0.0.2:5000/token", None);
        check("r.test", "file:///etc/passwd", None);
        check("r.test", "https://u:p@r.test/token", None);
        check("r.test", "https://", None);
    }
}
