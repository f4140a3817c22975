//! What clients ask of a front end, as a request to the engine.

use crate::{reply, resources};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use forge_engine::{
    Allowed, Attest, BuildContext, BuildRequest, ContextModes, DockerfileSource, Explain, Limits, NamedContext,
    Network, OnFailure, RemoteContext, Resources, SessionDockerfile,
};
use forge_image::{ImageConfig, Platform, Reference};
use std::collections::{BTreeMap, HashMap};
use std::time::SystemTime;
use tonic::Status;

/// The variables that steps get but that are not recorded.
const PROXY: [&str; 5] = ["HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"];

/// A request about which nothing is said.
pub(crate) fn empty_request(allowed: Allowed) -> BuildRequest {
    BuildRequest {
        context: BuildContext::Empty,
        dockerfile: DockerfileSource::Default,
        tags: Vec::new(),
        build_args: BTreeMap::new(),
        target: None,
        no_cache: false,
        no_cache_stages: Vec::new(),
        renew_cache_mounts: true,
        pull: false,
        platforms: Vec::new(),
        named_contexts: BTreeMap::new(),
        outputs: Vec::new(),
        source_policies: Vec::new(),
        caches: Default::default(),
        attest: Attest::default(),
        labels: Vec::new(),
        network: Network::Default,
        allowed,
        secrets: BTreeMap::new(),
        ssh: BTreeMap::new(),
        source_date_epoch: None,
        proxy_env: Vec::new(),
        extra_hosts: Vec::new(),
        limits: Limits::default(),
        total_limits: Resources::default(),
        explain: Explain::FirstCauses,
        compared_as: None,
        max_parallelism: None,
        context_modes: ContextModes::Disk,
        on_failure: OnFailure::default(),
        now: SystemTime::now(),
    }
}

/// What a client asks of the front end for Dockerfiles.
pub(crate) struct DockerfileRequest {
    pub build: BuildRequest,
    pub dockerfile: SessionDockerfile,
    /// A question instead of a build.
    pub question: Option<String>,
}

/// Reads the options of `dockerfile.v0`.
pub(crate) fn dockerfile(options: &HashMap<String, String>, base: BuildRequest) -> Result<DockerfileRequest, Status> {
    let get = |name: &str| options.get(name).map(String::as_str).filter(|value| !value.is_empty());
    let mut build_args: BTreeMap<String, String> = prefixed(options, "build-arg:");
    let labels: Vec<(String, String)> = prefixed(options, "label:");
    let is_proxy = |name: &str| PROXY.iter().any(|proxy| proxy.eq_ignore_ascii_case(name));
    let proxy_env = build_args.iter().filter(|(name, _)| is_proxy(name));
    let proxy_env = proxy_env.map(|(name, value)| format!("{name}={value}")).collect();
    if multi_platform(options)? {
        build_args.insert("BUILDKIT_MULTI_PLATFORM".to_owned(), "true".to_owned());
    }
    let epoch = build_args.get("SOURCE_DATE_EPOCH").and_then(|value| value.parse().ok());
    let (no_cache, no_cache_stages) = match options.get("no-cache").map(String::as_str) {
        None => (false, Vec::new()),
        Some("") => (true, Vec::new()),
        Some(stages) => (false, stages.split(',').map(str::to_owned).collect()),
    };
    let context = match get("context").map(RemoteContext::parse_main).transpose().map_err(|e| reply::status(&e))? {
        Some(Some(remote)) => BuildContext::Remote(remote),
        Some(None) | None => BuildContext::Empty,
    };
    let network = network(get("force-network-mode"))?;
    if network == Network::Host && !base.allowed.host_network {
        return Err(invalid("entitlement network.host is not allowed".to_owned()));
    }
    let build = BuildRequest {
        context,
        build_args,
        target: get("target").map(str::to_owned),
        no_cache,
        no_cache_stages,
        pull: get("image-resolve-mode") == Some("pull"),
        platforms: platforms(get("platform"))?,
        named_contexts: contexts(options)?,
        labels,
        network,
        source_date_epoch: epoch,
        proxy_env,
        extra_hosts: extra_hosts(get("add-hosts"))?,
        limits: Limits {
            resources: resources::read(options, &base.limits.resources)?,
            ..limits(get("shm-size"), get("ulimit"), get("cgroup-parent"))?
        },
        ..base
    };
    let question = get("requestid").map(str::to_owned);
    let dockerfile = SessionDockerfile {
        name: get("filename").map(str::to_owned),
        hostname: get("hostname").unwrap_or_default().to_owned(),
        context: get("dockerfilekey").map(str::to_owned),
        subdir: get("contextsubdir").unwrap_or_default().to_owned(),
        inputs: BTreeMap::new(),
    };
    Ok(DockerfileRequest { build, dockerfile, question })
}

fn invalid(what: String) -> Status {
    Status::unknown(what)
}

fn prefixed<T: FromIterator<(String, String)>>(options: &HashMap<String, String>, prefix: &str) -> T {
    let mut pairs: Vec<(String, String)> = options
        .iter()
        .filter_map(|(name, value)| Some((name.strip_prefix(prefix)?.to_owned(), value.clone())))
        .collect();
    pairs.sort();
    pairs.into_iter().collect()
}

fn multi_platform(options: &HashMap<String, String>) -> Result<bool, Status> {
    match options.get("multi-platform").map(String::as_str) {
        None | Some("") => Ok(false),
        Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
        Some(other) => Err(invalid(format!("invalid boolean value for multi-platform: {other}"))),
    }
}

fn platforms(text: Option<&str>) -> Result<Vec<Platform>, Status> {
    let mut platforms = Vec::new();
    for name in text.into_iter().flat_map(|text| text.split(',')) {
        let platform: Platform = match name.trim() {
            "local" => Platform::host(),
            name => platform(name)?,
        };
        if !platforms.contains(&platform) {
            platforms.push(platform);
        }
    }
    Ok(platforms)
}

/// `os[(version)]/architecture[/variant]`.
pub(crate) fn platform(name: &str) -> Result<Platform, Status> {
    let failed = |error: String| invalid(format!("failed to parse target platform {name}: {error}"));
    let versioned = name.split_once('(').and_then(|(os, rest)| Some((os, rest.split_once(')')?)));
    let Some((os, (version, rest))) = versioned else {
        return name.parse().map_err(|error| failed(format!("{error}")));
    };
    let plain: Platform = format!("{os}{rest}").parse().map_err(|error| failed(format!("{error}")))?;
    Ok(Platform { os_version: Some(version.to_owned()), ..plain })
}

fn network(mode: Option<&str>) -> Result<Network, Status> {
    match mode {
        None | Some("sandbox" | "default") => Ok(Network::Default),
        Some("host") => Ok(Network::Host),
        Some("none") => Ok(Network::None),
        Some(other) => Err(invalid(format!("invalid netmode {other}"))),
    }
}

/// `name=address`, between commas.
fn extra_hosts(text: Option<&str>) -> Result<Vec<(String, String)>, Status> {
    let hosts = text.into_iter().flat_map(|text| text.split(',')).filter(|host| !host.is_empty());
    hosts
        .map(|host| match host.split_once('=') {
            Some((name, address)) => Ok((name.to_owned(), address.to_owned())),
            None => Err(invalid(format!("failed to parse additional hosts: invalid key-value pair: {host}"))),
        })
        .collect()
}

fn limits(shm_size: Option<&str>, ulimits: Option<&str>, cgroup_parent: Option<&str>) -> Result<Limits, Status> {
    let shm_size = shm_size
        .map(|size| size.parse::<u64>().map_err(|error| invalid(format!("failed to parse shm size: {error}"))))
        .transpose()?;
    let mut parsed = Vec::new();
    for text in ulimits.into_iter().flat_map(|text| text.split(',')) {
        let refused = || invalid(format!("failed to parse ulimit: invalid ulimit argument: {text}"));
        let (name, values) = text.split_once('=').ok_or_else(refused)?;
        let (soft, hard) = values.split_once(':').unwrap_or((values, values));
        parsed.push(forge_engine::Ulimit {
            name: name.to_owned(),
            soft: soft.parse().map_err(|_| refused())?,
            hard: hard.parse().map_err(|_| refused())?,
        });
    }
    Ok(Limits {
        ulimits: parsed,
        shm_size,
        cgroup_parent: cgroup_parent.unwrap_or_default().to_owned(),
        ..Limits::default()
    })
}

/// `context:name` and `context:name::platform`.
fn contexts(options: &HashMap<String, String>) -> Result<BTreeMap<String, NamedContext>, Status> {
    let named: BTreeMap<String, String> = prefixed(options, "context:");
    let mut contexts = BTreeMap::new();
    for (name, value) in named {
        let context = match value.strip_prefix("input:") {
            Some(input) => NamedContext::Input { name: input.to_owned(), config: input_config(options, &name)? },
            None => context(&value)?,
        };
        contexts.insert(name, context);
    }
    Ok(contexts)
}

/// The config of the image that an input is: JSON whose values are base64.
pub(crate) fn input_config(
    options: &HashMap<String, String>,
    context: &str,
) -> Result<Option<Box<ImageConfig>>, Status> {
    let Some(text) = options.get(&format!("input-metadata:{context}")) else { return Ok(None) };
    let refused = |error: String| invalid(format!("failed to parse input-metadata:{context}: {error}"));
    let values: HashMap<String, String> = serde_json::from_str(text).map_err(|error| refused(error.to_string()))?;
    let Some(config) = values.get("containerimage.config") else { return Ok(None) };
    let bytes = STANDARD.decode(config).map_err(|error| refused(error.to_string()))?;
    let config = ImageConfig::from_json(&bytes).map_err(|error| refused(error.to_string()))?;
    Ok(Some(Box::new(config)))
}

fn context(value: &str) -> Result<NamedContext, Status> {
    let refused = || invalid(format!("unsupported context source {value}"));
    if let Some(name) = value.strip_prefix("docker-image://").or(value.strip_prefix("docker-image:")) {
        if name == "scratch" {
            return Ok(NamedContext::Scratch);
        }
        let reference: Reference = name.parse().map_err(|error| invalid(format!("invalid context {name}: {error}")))?;
        return Ok(NamedContext::Image(reference));
    }
    if let Some(name) = value.strip_prefix("local:") {
        return Ok(NamedContext::Directory(name.into()));
    }
    if let Some(layout) = value.strip_prefix("oci-layout://").or(value.strip_prefix("oci-layout:")) {
        let (name, digest) = layout
            .split_once('@')
            .ok_or_else(|| invalid(format!("oci-layout reference {layout:?} must have a digest")))?;
        let digest = digest.parse().map_err(|error| invalid(format!("invalid digest in {value}: {error}")))?;
        return Ok(NamedContext::OciLayout { path: name.into(), tag: None, digest: Some(digest) });
    }
    if let Some(stage) = value.strip_prefix("target:") {
        return Ok(NamedContext::Stage(stage.to_owned()));
    }
    let remote = RemoteContext::parse(value).map_err(|error| reply::status(&error))?;
    remote.map(NamedContext::Remote).ok_or_else(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(options: &[(&str, &str)]) -> Result<DockerfileRequest, String> {
        let options = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        dockerfile(&options, empty_request(Allowed::default())).map_err(|status| status.message().to_owned())
    }

    #[test]
    fn options_become_a_request() {
        let request = read(&[
            ("build-arg:A", "1"),
            ("build-arg:http_proxy", "p"),
            ("label:l", "x"),
            ("platform", "linux/amd64,linux/arm64"),
            ("no-cache", ""),
            ("filename", "d/Dockerfile"),
            ("add-hosts", "a=1.2.3.4,b=::1"),
            ("context:base", "docker-image://busybox"),
            ("ulimit", "nofile=1:2"),
        ])
        .unwrap();
        let build = request.build;
        assert_eq!(build.build_args.len(), 2);
        assert_eq!(build.proxy_env, ["http_proxy=p"]);
        assert!(build.no_cache && build.platforms.len() == 2 && build.extra_hosts.len() == 2);
        assert_eq!(request.dockerfile.name.as_deref(), Some("d/Dockerfile"));
        assert!(matches!(build.named_contexts["base"], NamedContext::Image(_)));
        assert_eq!((build.limits.ulimits[0].soft, build.limits.ulimits[0].hard), (1, 2));
        assert_eq!(read(&[("no-cache", "a,b")]).unwrap().build.no_cache_stages, ["a", "b"]);
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        assert_eq!(read(&[("force-network-mode", "x")]).err().unwrap(), "invalid netmode x");
        assert!(read(&[("platform", "a/b/c/d/e")]).is_err() && read(&[("context:a", "x y")]).is_err());
    }
}
