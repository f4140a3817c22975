use forge_session::Redacted;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// How registries are reached. The library reads neither environment nor configuration files: who composes forge
/// fills this in.
#[derive(Clone, Debug)]
pub struct RegistryOptions {
    /// Options by host, with its port where it has one, as it stands in an image's name (`docker.io`,
    /// `localhost:5000`).
    pub hosts: BTreeMap<String, HostOptions>,
    /// Refuses every request before a connection is made.
    pub offline: bool,
    /// The `User-Agent` of every request.
    pub user_agent: String,
    /// Proxies.
    pub proxy: ProxyOptions,
    /// How many requests may be under way at once, for each host.
    pub max_concurrency: usize,
    /// Files of trusted certificates in PEM (`SSL_CERT_FILE`); where empty, the first that exists of the usual
    /// places of Linux distributions.
    pub roots: Vec<PathBuf>,
    /// How long forge waits.
    pub timeouts: Timeouts,
    /// How often forge tries.
    pub retry: RetryPolicy,
}

impl Default for RegistryOptions {
    fn default() -> Self {
        Self {
            hosts: BTreeMap::new(),
            offline: false,
            user_agent: concat!("forge/", env!("CARGO_PKG_VERSION")).to_owned(),
            proxy: ProxyOptions::default(),
            max_concurrency: 4,
            roots: Vec::new(),
            timeouts: Timeouts::default(),
            retry: RetryPolicy::default(),
        }
    }
}

/// Options of one host: buildkitd.toml's `[registry."host"]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostOptions {
    /// Hosts that are asked before this one, in this order, for pulls only; `host[:port][/path]`. A mirror's own
    /// options are those under its own name.
    pub mirrors: Vec<String>,
    /// `Some(true)`: plain HTTP. `Some(false)`: HTTPS. `None`: HTTP for 127.0.0.0/8, ::1 and localhost, else HTTPS.
    pub http: Option<bool>,
    /// HTTPS without checking the certificate. Never leads to HTTP (A77).
    pub insecure: bool,
    /// Files of certificates in PEM that are trusted besides the usual ones.
    pub ca: Vec<PathBuf>,
    /// Client certificates: key and certificate chain, both PEM. The first pair is used.
    pub keypair: Vec<(PathBuf, PathBuf)>,
}

/// Proxies, as the variables of the same names say (`HTTP_PROXY`, `HTTPS_PROXY`, `NO_PROXY`).
///
/// Loopback addresses and `localhost` are never asked through a proxy, as Go's clients have it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProxyOptions {
    /// The proxy for `http://` addresses. May hold a password, whence it is never shown.
    pub http: Option<Redacted>,
    /// The proxy for `https://` addresses.
    pub https: Option<Redacted>,
    /// Hosts that are asked directly: comma-separated names, `.suffixes`, addresses, networks, each with an
    /// optional port; `*` for all.
    pub no_proxy: Option<String>,
}

/// How long forge waits. The defaults are what users get; tests shorten them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For a connection, TLS included.
    pub connect: Duration,
    /// For an answer to begin, and between two pieces of a body (A79).
    pub stall: Duration,
    /// For a whole document: a manifest, a token, an error.
    pub document: Duration,
    /// For the answer after the last byte of an upload: registries hash the blob then.
    pub commit: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            stall: Duration::from_secs(60),
            document: Duration::from_secs(120),
            commit: Duration::from_secs(600),
        }
    }
}

/// How often a request is tried when the connection fails or the server answers 408, 429 or 5xx, and how long
/// forge waits in between: `base`, doubled each time, less a random part of up to a half. `Retry-After` is heeded up to
/// `longest`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// All tries, the first included; at least 1.
    pub attempts: u32,
    /// The wait after the first try.
    pub base: Duration,
    /// The longest wait.
    pub longest: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { attempts: 5, base: Duration::from_millis(400), longest: Duration::from_secs(60) }
    }
}
