//! A build as the daemon is asked for it: the options of the front end for Dockerfiles.

use crate::outputs::unsupported;
use crate::stores::Stores;
use forge_buildkit_proto::moby::buildkit::v1::sourcepolicy::Policy;
use forge_engine::{
    Allowed, Attest, BuildContext, BuildRequest, DockerfileSource, EngineError, NamedContext, Network, OwnOptions,
    ProvenanceMode, RemoteContext, SlsaVersion,
};
use std::collections::{BTreeMap, HashMap};

/// Where the daemon finds a context that is a stream of this side.
const STREAM: &str = "http://buildkit-session/context";

/// The options of the front end. `dockerfile` is the name of the Dockerfile among what is handed over.
///
/// # Errors
/// The request asks for what the interface has no words for.
pub(crate) fn options(
    request: &BuildRequest,
    dockerfile: Option<&str>,
    stores: &Stores,
) -> Result<HashMap<String, String>, EngineError> {
    let mut options = HashMap::new();
    let mut set = |name: &str, value: String| _ = options.insert(name.to_owned(), value);
    match &request.context {
        BuildContext::Directory(_) | BuildContext::Empty => {}
        BuildContext::Stream(_) => set("context", STREAM.to_owned()),
        BuildContext::Remote(remote) => set("context", address(remote)?),
    }
    match (dockerfile, &request.dockerfile) {
        (Some(name), _) => {
            set("filename", name.to_owned());
            if !matches!(request.context, BuildContext::Directory(_) | BuildContext::Empty) {
                set("dockerfilekey", "dockerfile".to_owned());
            }
        }
        (None, DockerfileSource::InContext(name)) => set("filename", name.clone()),
        (None, _) => {}
    }
    for (name, value) in &request.build_args {
        set(&format!("build-arg:{name}"), value.clone());
    }
    for pair in &request.proxy_env {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        if !request.build_args.contains_key(name) {
            set(&format!("build-arg:{name}"), value.to_owned());
        }
    }
    for (name, value) in &request.labels {
        set(&format!("label:{name}"), value.clone());
    }
    if let Some(target) = &request.target {
        set("target", target.clone());
    }
    match (request.no_cache, request.no_cache_stages.as_slice()) {
        (true, _) => set("no-cache", String::new()),
        (false, []) => {}
        (false, stages) => set("no-cache", stages.join(",")),
    }
    if request.pull {
        set("image-resolve-mode", "pull".to_owned());
    }
    if !request.platforms.is_empty() {
        set("platform", join(request.platforms.iter().map(ToString::to_string)));
    }
    match request.network {
        Network::Default => {}
        Network::Host => set("force-network-mode", "host".to_owned()),
        Network::None => set("force-network-mode", "none".to_owned()),
    }
    if !request.extra_hosts.is_empty() {
        set("add-hosts", join(request.extra_hosts.iter().map(|(name, address)| format!("{name}={address}"))));
    }
    if let Some(bytes) = request.limits.shm_size {
        set("shm-size", bytes.to_string());
    }
    if !request.limits.ulimits.is_empty() {
        let limits = request.limits.ulimits.iter();
        set("ulimit", join(limits.map(|limit| format!("{}={}:{}", limit.name, limit.soft, limit.hard))));
    }
    if !request.limits.cgroup_parent.is_empty() {
        set("cgroup-parent", request.limits.cgroup_parent.clone());
    }
    for (name, context) in &request.named_contexts {
        set(&format!("context:{name}"), named(name, context, stores)?);
    }
    if let Some(own) = OwnOptions::of(request) {
        set(OwnOptions::ATTRIBUTE, own.text());
    }
    options.extend(attestations(&request.attest));
    Ok(options)
}

fn join(parts: impl Iterator<Item = String>) -> String {
    parts.collect::<Vec<_>>().join(",")
}

/// The rules about sources.
///
/// # Errors
/// There are several lists, of which each would have to allow a source.
pub(crate) fn source_policy(request: &BuildRequest) -> Result<Option<Policy>, EngineError> {
    match request.source_policies.as_slice() {
        [] => Ok(None),
        [policy] => Ok(Some(policy.wire().clone())),
        _ => Err(unsupported("more than one list of source policies", "it takes one")),
    }
}

/// An address, unless it has what must not be told.
fn address(remote: &RemoteContext) -> Result<String, EngineError> {
    match remote.has_credentials() {
        true => Err(unsupported("a context whose address has a password", "it would be kept in the daemon's history")),
        false => Ok(remote.to_string()),
    }
}

fn named(name: &str, context: &NamedContext, stores: &Stores) -> Result<String, EngineError> {
    Ok(match context {
        NamedContext::Directory(_) => format!("local:{name}"),
        NamedContext::Image(reference) => format!("docker-image://{reference}"),
        NamedContext::Scratch => "docker-image://scratch".to_owned(),
        NamedContext::Remote(remote) => address(remote)?,
        NamedContext::Stage(stage) => format!("target:{stage}"),
        NamedContext::OciLayout { .. } => stores.layout(name).unwrap_or_default().to_owned(),
        NamedContext::Input { name, .. } => format!("input:{name}"),
    })
}

fn attestations(attest: &Attest) -> BTreeMap<String, String> {
    let mut options = BTreeMap::new();
    if let Some(wanted) = &attest.provenance {
        let mode = if wanted.mode == ProvenanceMode::Min { "min" } else { "max" };
        let version = if wanted.version == SlsaVersion::V1 { "v1" } else { "v0.2" };
        let mut fields = vec![format!("mode={mode}"), format!("version={version}")];
        fields.push(format!("inline-only={}", wanted.inline_only));
        fields.push(format!("reproducible={}", wanted.reproducible));
        fields.push(format!("complete-materials={}", wanted.complete_materials));
        fields.push(field("builder-id", &wanted.builder_id));
        fields.push(field("filename", &wanted.file_name));
        options.insert("attest:provenance".to_owned(), fields.join(","));
    }
    if let Some(wanted) = &attest.sbom {
        let generator = field("generator", &wanted.generator.to_string());
        let parameters = wanted.parameters.iter().map(|(name, value)| field(name, value));
        options.insert("attest:sbom".to_owned(), join([generator].into_iter().chain(parameters)));
    }
    options
}

/// A field of CSV.
fn field(name: &str, value: &str) -> String {
    let plain = format!("{name}={value}");
    match plain.contains([',', '"', '\n']) {
        true => format!("\"{}\"", plain.replace('"', "\"\"")),
        false => plain,
    }
}

/// What the daemon is asked to allow.
pub(crate) fn entitlements(allowed: &Allowed, network: Network) -> Vec<String> {
    let mut names = Vec::new();
    // Whoever gives all steps the host's network allows it.
    if allowed.host_network || network == Network::Host {
        names.push("network.host".to_owned());
    }
    if allowed.insecure {
        names.push("security.insecure".to_owned());
    }
    if allowed.all_devices {
        names.push("device".to_owned());
    }
    names.extend(allowed.devices.iter().map(|device| format!("device={device}")));
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_that_need_it_are_quoted() {
        assert_eq!(field("a", "b"), "a=b");
        assert_eq!(field("a", "b,\"c\""), "\"a=b,\"\"c\"\"\"");
    }

    #[test]
    fn the_hosts_network_is_asked_for() {
        assert_eq!(entitlements(&Allowed::default(), Network::Host), ["network.host"]);
        assert!(entitlements(&Allowed::default(), Network::Default).is_empty());
    }
}
