use crate::{HostOptions, RegistryError, RegistryOptions};
use forge_image::Reference;
use reqwest::Url;
use std::net::IpAddr;

/// A server that has, or takes, a repository: the registry's own host, or a mirror of it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Endpoint {
    /// The name that credentials and options are looked up by, exactly as it is written in a reference or in the list
    /// of mirrors (A77): `docker.io`, `localhost:5000`.
    pub name: String,
    /// `https://host[:port]/v2/`.
    pub base: Url,
    /// The repository as this server names it: a mirror may put a path in front.
    pub repository: String,
    /// For mirrors: the registry that they stand for, which containerd sends as `ns`.
    namespace: Option<String>,
}

impl Endpoint {
    /// The registry's own host.
    ///
    /// # Errors
    /// Refuses everything when offline.
    pub(crate) fn origin(options: &RegistryOptions, registry: &str, repository: &str) -> Result<Self, RegistryError> {
        if options.offline {
            return Err(RegistryError::Offline { registry: registry.to_owned() });
        }
        let base = base(options, registry).ok_or_else(|| RegistryError::Options {
            host: registry.to_owned(),
            option: "host",
            reason: "not a host name with an optional port".to_owned(),
        })?;
        Ok(Self { name: registry.to_owned(), base, repository: repository.to_owned(), namespace: None })
    }

    /// All servers to pull from, in the order in which they are asked: mirrors as listed, then the host itself.
    ///
    /// # Errors
    /// Refuses everything when offline, and mirrors that are no host.
    pub(crate) fn sources(options: &RegistryOptions, reference: &Reference) -> Result<Vec<Self>, RegistryError> {
        let origin = Self::origin(options, reference.registry(), reference.repository())?;
        let host = options.hosts.get(reference.registry());
        let mirrors = host.map(|host| host.mirrors.as_slice()).unwrap_or_default();
        let mut sources = Vec::new();
        for mirror in mirrors {
            let endpoint = origin.mirror(options, mirror).ok_or_else(|| RegistryError::Options {
                host: reference.registry().to_owned(),
                option: "mirrors",
                reason: format!("{mirror:?} is not host[:port][/path]"),
            })?;
            sources.push(endpoint);
        }
        sources.push(origin);
        Ok(sources)
    }

    fn mirror(&self, options: &RegistryOptions, mirror: &str) -> Option<Self> {
        let (scheme, rest) = match mirror.split_once("://") {
            Some((scheme @ ("http" | "https"), rest)) => (Some(scheme), rest),
            Some(_) => return None,
            None => (None, mirror),
        };
        let (host, path) = rest.trim_end_matches('/').split_once('/').unwrap_or((rest.trim_end_matches('/'), ""));
        let mut base = base(options, host)?;
        if let Some(scheme) = scheme {
            base = Url::parse(&base.as_str().replacen(base.scheme(), scheme, 1)).ok()?;
        }
        // The reference's grammar keeps dots, queries and escapes out of the path.
        let repository = match path {
            "" => self.repository.clone(),
            path => format!("{path}/{}", self.repository),
        };
        let named: Reference = format!("{host}/{repository}").parse().ok()?;
        let repository = if named.registry() == host { named.repository().to_owned() } else { repository };
        let namespace = (host != self.name).then(|| self.name.clone());
        Some(Self { name: host.to_owned(), base, repository, namespace })
    }

    /// The address of something in the repository: `manifests/latest`.
    pub(crate) fn url(&self, tail: &str) -> Url {
        let text = format!("{}{}/{tail}", self.base, self.repository);
        let mut url =
            Url::parse(&text).expect("base is a URL; repositories, tags and digests hold no reserved characters");
        if let Some(namespace) = &self.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        url
    }
}

/// The address of a registry's API; `None` where the name is no host.
fn base(options: &RegistryOptions, registry: &str) -> Option<Url> {
    let host = match registry {
        // docker.io serves no registry itself.
        "docker.io" | "index.docker.io" => "registry-1.docker.io",
        other => other,
    };
    let configured = options.hosts.get(registry).and_then(|host| host.http);
    let scheme = if configured.unwrap_or_else(|| is_local(host)) { "http" } else { "https" };
    let url = Url::parse(&format!("{scheme}://{host}/v2/")).ok()?;
    let plain = url.path() == "/v2/" && url.username().is_empty() && url.password().is_none() && url.query().is_none();
    (plain && url.has_host() && url.fragment().is_none()).then_some(url)
}

/// Whether a host is this machine by its very name, as docker and BuildKit have it.
fn is_local(host: &str) -> bool {
    let Ok(url) = Url::parse(&format!("http://{host}/")) else { return false };
    let name = url.host_str().unwrap_or_default();
    let address = name.trim_matches(['[', ']']).parse::<IpAddr>();
    name == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// The options for the server behind a URL, by `host` or `host:port`.
pub(crate) fn options_for<'a>(options: &'a RegistryOptions, url: &Url) -> Option<(&'a str, &'a HostOptions)> {
    let host = url.host_str()?;
    let port = url.port_or_known_default()?;
    let hub = (host == "registry-1.docker.io").then_some("docker.io");
    let names = [format!("{host}:{port}"), if url.port().is_none() { host.to_owned() } else { String::new() }];
    let find = |name: &str| options.hosts.get_key_value(name).map(|(name, host)| (name.as_str(), host));
    names.iter().find_map(|name| find(name)).or_else(|| hub.and_then(find))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(hosts: &[(&str, HostOptions)]) -> RegistryOptions {
        let hosts = hosts.iter().map(|(name, host)| ((*name).to_owned(), host.clone())).collect();
        RegistryOptions { hosts, ..RegistryOptions::default() }
    }

    fn check(options: &RegistryOptions, reference: &str, expect: &[&str]) {
        let sources = Endpoint::sources(options, &reference.parse().unwrap()).unwrap();
        let urls: Vec<String> = sources.iter().map(|source| source.url("manifests/x").to_string()).collect();
        assert_eq!(urls, expect);
    }

    #[test]
    fn hosts_are_reached_as_their_options_say() {
        let plain = options(&[]);
        check(&plain, "alpine", &["https://registry-1.docker.io/v2/library/alpine/manifests/x"]);
        check(&plain, "localhost:5000/a", &["http://localhost:5000/v2/a/manifests/x"]);
        check(&plain, "127.3.2.1/a", &["http://127.3.2.1/v2/a/manifests/x"]);
        check(&plain, "[::1]:5000/a", &["http://[::1]:5000/v2/a/manifests/x"]);
        check(&plain, "localhost.evil.test/a", &["https://localhost.evil.test/v2/a/manifests/x"]);
        check(&plain, "127.0.0.1.evil.test/a", &["https://127.0.0.1.evil.test/v2/a/manifests/x"]);
        let http = |http| HostOptions { http: Some(http), ..HostOptions::default() };
        let set = options(&[("localhost:5000", http(false)), ("r.test", http(true))]);
        check(&set, "localhost:5000/a", &["https://localhost:5000/v2/a/manifests/x"]);
        check(&set, "r.test/a", &["http://r.test/v2/a/manifests/x"]);
    }

    #[test]
    fn a77_insecure_alone_stays_https() {
        let insecure = HostOptions { insecure: true, ..HostOptions::default() };
        check(&options(&[("r.test", insecure)]), "r.test/a", &["https://r.test/v2/a/manifests/x"]);
    }

    #[test]
    fn mirrors_come_first() {
        let mirrors = ["m.test:5000", "localhost:1/proxy/hub", "http://p.test/"].map(str::to_owned).to_vec();
        let set = options(&[("docker.io", HostOptions { mirrors, ..HostOptions::default() })]);
        check(
            &set,
            "alpine",
            &[
                "https://m.test:5000/v2/library/alpine/manifests/x?ns=docker.io",
                "http://localhost:1/v2/proxy/hub/library/alpine/manifests/x?ns=docker.io",
                "http://p.test/v2/library/alpine/manifests/x?ns=docker.io",
                "https://registry-1.docker.io/v2/library/alpine/manifests/x",
            ],
        );
        for bad in ["", "ftp://x", "u:p@h.test", "h.test/../x", "h.test/a?b"] {
            let set = options(&[("r.test", HostOptions { mirrors: vec![bad.to_owned()], ..HostOptions::default() })]);
            assert!(Endpoint::sources(&set, &"r.test/a".parse().unwrap()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn options_are_found_by_exact_host() {
        let set = options(&[
            ("r.test", HostOptions::default()),
            ("s.test:5000", HostOptions::default()),
            ("docker.io", HostOptions::default()),
        ]);
        let name = |url: &str| options_for(&set, &Url::parse(url).unwrap()).map(|(name, _)| name.to_owned());
        assert_eq!(name("https://r.test/x").as_deref(), Some("r.test"));
        assert_eq!(name("https://r.test:5000/x"), None);
        assert_eq!(name("https://s.test:5000/x").as_deref(), Some("s.test:5000"));
        assert_eq!(name("https://s.test/x"), None);
        assert_eq!(name("https://ar.test/x"), None);
        assert_eq!(name("https://registry-1.docker.io/x").as_deref(), Some("docker.io"));
    }
}
