use crate::Address;
use forge_image::Reference;
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

/// Which front ends that are images (`gateway.v0`) run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrontEndImages {
    /// Whether any does.
    pub enabled: bool,
    /// The repositories that they may come from; all where there is none.
    pub allowed: Vec<String>,
}

impl Default for FrontEndImages {
    fn default() -> Self {
        Self { enabled: true, allowed: Vec::new() }
    }
}

impl FrontEndImages {
    /// None runs.
    pub fn none() -> Self {
        Self { enabled: false, allowed: Vec::new() }
    }

    /// Whether that one runs; why not, if it does not.
    pub(crate) fn check(&self, image: &str) -> Result<(), String> {
        if !self.enabled {
            return Err(format!("front end {image:.200} is not run: gateway.v0 is disabled by the configuration"));
        }
        let repository = |name: &str| name.parse::<Reference>().ok().map(|reference| reference.name());
        let wanted = repository(image);
        let is_allowed = self.allowed.iter().any(|allowed| wanted.is_some() && repository(allowed) == wanted);
        match self.allowed.is_empty() || is_allowed {
            true => Ok(()),
            false => Err(format!("'{image:.200}' is not an allowed gateway source")),
        }
    }
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
    /// The front ends that are images.
    pub front_ends: FrontEndImages,
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

#[cfg(test)]
mod tests {
    use super::*;

    // Fails when the list is not looked at.
    #[test]
    fn a42_front_ends_come_from_where_they_may() {
        let only = FrontEndImages { enabled: true, allowed: vec!["registry.test/team/front".into(), "plain".into()] };
        for good in ["registry.test/team/front", "registry.test/team/front:v1", "docker.io/library/plain@sha256:"] {
            let good = if good.ends_with(':') { format!("{good}{}", "0".repeat(64)) } else { good.to_owned() };
            assert_eq!(only.check(&good), Ok(()), "{good}");
        }
        for bad in ["evil/front", "registry.test/team/front2", "registry.test/team", "other.test/team/front", "", "A b"]
        {
            assert!(only.check(bad).is_err(), "{bad}");
        }
        assert_eq!(FrontEndImages::default().check("any/one"), Ok(()));
        assert!(FrontEndImages { enabled: false, ..only }.check("plain").is_err());
    }
}
