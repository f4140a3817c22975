use crate::Address;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

/// PEM files of certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The daemon's own certificate, and those between it and its authority.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The authority that clients must have a certificate of; anybody may connect where there is none.
    pub authority: Option<PathBuf>,
}

/// How the daemon serves. Nothing is read from the environment.
#[derive(Clone, Debug, Default)]
pub struct DaemonOptions {
    /// Where clients connect.
    pub addresses: Vec<Address>,
    /// Where the debug pages are served over HTTP.
    pub debug_address: Option<Address>,
    /// The group that may use Unix sockets; the daemon's own where `None`.
    pub group: Option<u32>,
    /// Further labels of the worker, as clients see them.
    pub labels: BTreeMap<String, String>,
    /// What clients may ask for beyond what every build has: `network.host`, `security.insecure`, `device`.
    pub entitlements: Vec<String>,
    /// How TCP addresses are protected.
    pub tls: Option<TlsFiles>,
    /// Sockets that whoever started this process has bound already (`fd://`).
    pub inherited: Vec<Arc<OwnedFd>>,
    /// Whether TCP addresses are served to everybody who can reach them.
    pub unprotected_tcp: bool,
    /// Further things that provenance says of this machine.
    pub provenance: serde_json::Map<String, serde_json::Value>,
    /// The version that clients are told.
    pub version: String,
    /// The name of this machine.
    pub hostname: String,
}
