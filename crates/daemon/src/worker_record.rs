//! What clients are told of the one worker that there is.

use crate::info_service::Version;
use crate::{DaemonError, DaemonOptions};
use forge_buildkit_proto::encode_platform;
use forge_buildkit_proto::moby::buildkit::v1::types::{BuildkitVersion, GcPolicy, WorkerRecord};
use forge_engine::{DOCKERFILE_VERSION, OwnOptions, Policy};
use forge_image::{Digest, Platform};
use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::Path;

/// What stands before the names of labels.
const LABEL: &str = "org.mobyproject.buildkit.worker.";

/// Clients know features by the package that BuildKit's own daemon names.
const PACKAGE: &str = "github.com/moby/buildkit";

/// The record, made once.
pub(crate) fn make(root: &Path, options: &DaemonOptions, policies: &[Policy]) -> Result<WorkerRecord, DaemonError> {
    let own = [
        ("executor", "oci"),
        ("snapshotter", "overlayfs"),
        ("network", "host"),
        ("oci.process-mode", "sandbox"),
        ("selinux.enabled", "false"),
        ("apparmor.profile", ""),
        ("hostname", options.hostname.as_str()),
    ];
    let mut labels: HashMap<String, String> =
        own.iter().map(|(name, value)| (format!("{LABEL}{name}"), (*value).to_owned())).collect();
    labels.insert(OwnOptions::LABEL.to_owned(), "true".to_owned());
    labels.extend(options.labels.clone());
    Ok(WorkerRecord {
        id: id(root)?,
        labels,
        platforms: vec![encode_platform(&Platform::host())],
        gc_policy: policies.iter().map(policy).collect(),
        buildkit_version: Some(version(options)),
        cdi_devices: Vec::new(),
    })
}

/// A policy of garbage collection. Go's durations are nanoseconds.
fn policy(policy: &Policy) -> GcPolicy {
    let bytes = |limit: Option<u64>| limit.map_or(0, |bytes| i64::try_from(bytes).unwrap_or(i64::MAX));
    GcPolicy {
        all: policy.all,
        keep_duration: i64::try_from(policy.keep_duration.as_nanos()).unwrap_or(i64::MAX),
        filters: policy.filters.iter().map(ToString::to_string).collect(),
        reserved_space: bytes(policy.reserved_space),
        max_used_space: bytes(policy.max_used_space),
        min_free_space: bytes(policy.min_free_space),
    }
}

/// The version as clients are told it.
pub(crate) fn version(options: &DaemonOptions) -> BuildkitVersion {
    BuildkitVersion {
        package: PACKAGE.to_owned(),
        version: options.version.clone(),
        revision: format!("forge-{}", env!("CARGO_PKG_VERSION")),
    }
}

/// The version with that of the Dockerfile language.
pub(crate) fn full_version(options: &DaemonOptions) -> Version {
    let BuildkitVersion { package, version, revision } = version(options);
    Version { package, version, revision, dockerfile: DOCKERFILE_VERSION.to_owned() }
}

/// The same for as long as the root is: 25 letters and digits, as BuildKit's ids are.
fn id(root: &Path) -> Result<String, DaemonError> {
    let path = root.join("workerid");
    let failed = |source| DaemonError::File { path: path.clone(), source };
    match std::fs::read_to_string(&path) {
        Ok(id) if !id.trim().is_empty() => return Ok(id.trim().to_owned()),
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let seed = format!("{}{:?}{}", root.display(), std::time::SystemTime::now(), std::process::id());
    let id: String = Digest::sha256(seed.as_bytes()).as_str().chars().skip("sha256:".len()).take(25).collect();
    std::fs::write(&path, &id).map_err(failed)?;
    Ok(id)
}
