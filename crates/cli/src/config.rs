//! Where forge keeps its things and how it reaches the world: flags, environment, configuration file.

use crate::args::{DaemonArgs, GlobalArgs};
use crate::environment::Environment;
use crate::gc_config::{GcKeys, WorkerKeys};
use crate::request::set_limit;
use anyhow::{Context, anyhow};
use forge_daemon::FrontEndImages;
use forge_engine::{EngineOptions, IntakeLimits, Proxy, RegistryHost};
use forge_session::Redacted;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The configuration file: buildkitd.toml's keys, as far as forge has them. Unknown keys are refused.
///
/// ```toml
/// root = "/srv/forge"
/// [worker.oci]
/// max-parallelism = 4
/// maxUsedSpace = "20GB"
/// [registry."docker.io"]
/// mirrors = ["mirror.example:5000"]
/// [registry."mirror.example:5000"]
/// http = true
/// ca = ["/etc/ssl/mirror.pem"]
/// [unpack]
/// bytes = "64g"
/// entries = 500000
/// [frontend."gateway.v0"]
/// enabled = true
/// allowedRepositories = ["docker.io/docker/dockerfile-x"]
/// ```
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ConfigFile {
    root: Option<PathBuf>,
    registry: BTreeMap<String, RegistryHost>,
    worker: Workers,
    /// Keys and values of `--unpack-limit`.
    unpack: BTreeMap<String, toml::Value>,
    frontend: OwnFrontends,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct OwnFrontends {
    #[serde(rename = "gateway.v0")]
    gateway: OwnGateway,
}

/// Unlike with a daemon, whose clients choose what runs, nothing does unless it is allowed (A42).
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct OwnGateway {
    enabled: bool,
    #[serde(rename = "allowedRepositories")]
    allowed_repositories: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Workers {
    oci: WorkerKeys,
}

/// Where the Container Device Interface keeps its specifications.
const DEVICE_FOLDERS: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];

/// Puts flags, environment and configuration file together, in that order of precedence.
///
/// # Errors
/// Names the configuration file and the line that cannot be used.
pub fn engine_options(global: &GlobalArgs, environment: &Environment, is_root: bool) -> anyhow::Result<EngineOptions> {
    let file = read_file(global, environment, is_root)?;
    let named_root = global.root.clone().or_else(|| environment.filled("FORGE_ROOT").map(PathBuf::from)).or(file.root);
    let intake = intake(&file.unpack, &global.unpack_limits)?;
    let root = named_root.unwrap_or_else(|| default_root(environment, is_root));
    Ok(EngineOptions {
        root: std::path::absolute(root).context("the store's folder has no usable name")?,
        registries: file.registry,
        docker_config: docker_config(environment),
        offline: global.offline,
        intake,
        proxy: Proxy {
            http: environment.either_case("HTTP_PROXY").map(Redacted::new),
            https: environment.either_case("HTTPS_PROXY").map(Redacted::new),
            no_proxy: environment.either_case("NO_PROXY"),
        },
        max_parallelism: file.worker.oci.max_parallelism,
        device_folders: DEVICE_FOLDERS.map(PathBuf::from).to_vec(),
        oci_runtime: None,
        gc: file.worker.oci.gc().options().context("the configuration's [worker.oci]")?,
        user_agent: None,
    })
}

/// The front ends that are images which a build in this process may run.
///
/// # Errors
/// As [`engine_options`].
pub fn front_ends(global: &GlobalArgs, environment: &Environment, is_root: bool) -> anyhow::Result<FrontEndImages> {
    let gateway = read_file(global, environment, is_root)?.frontend.gateway;
    Ok(FrontEndImages { enabled: gateway.enabled, allowed: gateway.allowed_repositories })
}

/// The file's limits, then the flags'.
fn intake(file: &BTreeMap<String, toml::Value>, flags: &[String]) -> anyhow::Result<IntakeLimits> {
    let mut limits = IntakeLimits::default();
    for (key, value) in file {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        set_limit(&mut limits, key, &text).with_context(|| format!("the configuration's unpack.{key}"))?;
    }
    for flag in flags {
        let (key, value) =
            flag.split_once('=').with_context(|| format!("--unpack-limit {flag:?}: expected KEY=VALUE"))?;
        set_limit(&mut limits, key, value).with_context(|| format!("--unpack-limit {flag}"))?;
    }
    Ok(limits)
}

/// The runtime that a flag or the environment names: a path, or a name along the `PATH`.
///
/// # Errors
/// There is none of that name.
pub fn oci_runtime(flag: Option<&str>, environment: &Environment) -> anyhow::Result<Option<PathBuf>> {
    let Some(named) = flag.or_else(|| environment.filled("FORGE_OCI_RUNTIME")) else { return Ok(None) };
    if named.contains('/') {
        let path = std::path::absolute(named).with_context(|| format!("--oci-runtime {named}"))?;
        return if path.is_file() { Ok(Some(path)) } else { Err(anyhow!("--oci-runtime {named}: no such file")) };
    }
    // Users who are not administrators often have no sbin in theirs.
    let folders = [environment.get("PATH").unwrap_or_default(), "/usr/sbin:/sbin:/usr/bin:/bin"].join(":");
    let mut places =
        folders.split(':').filter(|folder| folder.starts_with('/')).map(|folder| Path::new(folder).join(named));
    match places.find(|path| path.is_file()) {
        Some(path) => Ok(Some(path)),
        None => Err(anyhow!("--oci-runtime {named}: there is no such program in the PATH")),
    }
}

/// What the daemon's configuration file says beside what the engine is told.
#[derive(Debug, Default, PartialEq)]
pub struct DaemonConfig {
    /// `[grpc] address`.
    pub addresses: Vec<String>,
    /// `[grpc] debugAddress`.
    pub debug_address: Option<String>,
    /// `[grpc] gid`.
    pub gid: Option<u32>,
    /// `insecure-entitlements`.
    pub entitlements: Vec<String>,
    /// `[worker.oci.labels]`.
    pub labels: BTreeMap<String, String>,
    /// `[grpc.tls]`.
    pub tls: TlsConfig,
    /// `[frontend."gateway.v0"]`.
    pub front_ends: FrontEndImages,
    /// What the files of `provenanceEnvDir` say of this machine.
    pub provenance: serde_json::Map<String, serde_json::Value>,
    /// What the file says that forge does not heed, one line each.
    pub remarks: Vec<String>,
}

/// `[grpc.tls]`: PEM files.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsConfig {
    /// The daemon's certificate.
    pub cert: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
    /// The authority of its clients.
    pub ca: Option<PathBuf>,
}

/// buildkitd.toml as the daemon reads it: what forge knows, and what it says it does not heed.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct DaemonFile {
    root: Option<PathBuf>,
    registry: BTreeMap<String, RegistryHost>,
    worker: DaemonWorkers,
    grpc: Grpc,
    cdi: Cdi,
    frontend: Frontends,
    #[serde(rename = "insecure-entitlements")]
    entitlements: Vec<String>,
    #[serde(rename = "provenanceEnvDir")]
    provenance_folder: Option<PathBuf>,
    debug: bool,
    #[serde(flatten)]
    others: BTreeMap<String, toml::Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct DaemonWorkers {
    oci: DaemonWorker,
    #[serde(flatten)]
    others: BTreeMap<String, toml::Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct DaemonWorker {
    #[serde(rename = "max-parallelism")]
    max_parallelism: Option<usize>,
    labels: BTreeMap<String, String>,
    #[serde(flatten)]
    gc: GcKeys,
    #[serde(flatten)]
    others: BTreeMap<String, toml::Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Grpc {
    address: Vec<String>,
    #[serde(rename = "debugAddress")]
    debug_address: Option<String>,
    gid: Option<u32>,
    tls: TlsConfig,
    #[serde(flatten)]
    others: BTreeMap<String, toml::Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Frontends {
    #[serde(rename = "gateway.v0")]
    gateway: GatewayKeys,
    #[serde(flatten)]
    others: BTreeMap<String, toml::Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct GatewayKeys {
    enabled: Option<bool>,
    #[serde(rename = "allowedRepositories")]
    allowed_repositories: Vec<String>,
    #[serde(flatten)]
    others: BTreeMap<String, toml::Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Cdi {
    disabled: bool,
    #[serde(rename = "specDirs")]
    spec_dirs: Vec<PathBuf>,
    #[serde(flatten)]
    others: BTreeMap<String, toml::Value>,
}

impl DaemonFile {
    /// A line for each key that has no effect.
    fn remarks(&self) -> Vec<String> {
        let tables = [
            ("", &self.others),
            ("grpc.", &self.grpc.others),
            ("worker.", &self.worker.others),
            ("worker.oci.", &self.worker.oci.others),
            ("cdi.", &self.cdi.others),
            ("frontend.", &self.frontend.others),
            ("frontend.\"gateway.v0\".", &self.frontend.gateway.others),
        ];
        let keys = tables.iter().flat_map(|(table, keys)| keys.keys().map(move |key| format!("{table}{key}")));
        keys.map(|key| format!("the configuration's {key} has no effect")).collect()
    }
}

/// As [`engine_options`], for the daemon: its file is buildkitd.toml, of which it heeds what it knows and names the rest.
///
/// # Errors
/// Names the configuration file and the line that cannot be used.
pub fn daemon_options(
    global: &GlobalArgs,
    args: &DaemonArgs,
    environment: &Environment,
    is_root: bool,
) -> anyhow::Result<(EngineOptions, DaemonConfig)> {
    let file: DaemonFile = match &global.config {
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            let mut file: DaemonFile = parse_toml(&text, path)?;
            anchor_all(&mut file.registry, path);
            file
        }
        None => DaemonFile::default(),
    };
    let bare = GlobalArgs { config: None, root: global.root.clone().or(file.root.clone()), ..global.clone() };
    let mut options = engine_options(&bare, environment, is_root)?;
    options.root = own_folder(options.root);
    let remarks = file.remarks();
    options.gc = file.worker.oci.gc.options().context("the configuration's [worker.oci]")?;
    options.gc.enabled &= !args.oci_worker_gc.as_deref().is_some_and(is_false);
    options.registries.extend(file.registry);
    options.max_parallelism = args.oci_max_parallelism.or(file.worker.oci.max_parallelism).or(options.max_parallelism);
    let folders = [args.cdi_spec_dir.clone(), file.cdi.spec_dirs].into_iter().find(|folders| !folders.is_empty());
    options.device_folders = match (args.cdi_disabled || file.cdi.disabled, folders) {
        (true, _) => Vec::new(),
        (false, Some(folders)) => folders,
        (false, None) => options.device_folders,
    };
    let config = DaemonConfig {
        provenance: provenance(file.provenance_folder.as_deref())?,
        addresses: file.grpc.address,
        debug_address: file.grpc.debug_address,
        gid: file.grpc.gid,
        tls: file.grpc.tls,
        entitlements: file.entitlements,
        labels: file.worker.oci.labels,
        front_ends: FrontEndImages {
            enabled: file.frontend.gateway.enabled.unwrap_or(true),
            allowed: file.frontend.gateway.allowed_repositories,
        },
        remarks,
    };
    Ok((options, config))
}

/// The words that Go's flags take for no.
fn is_false(word: &str) -> bool {
    matches!(word, "false" | "FALSE" | "False" | "f" | "F" | "0")
}

/// What JSON files of a folder say of this machine, in the order of their names; the usual folder need not be there.
fn provenance(folder: Option<&Path>) -> anyhow::Result<serde_json::Map<String, serde_json::Value>> {
    let (folder, is_named) = (folder.unwrap_or(Path::new("/etc/buildkit/provenance.d")), folder.is_some());
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !is_named => return Ok(serde_json::Map::new()),
        entries => entries.with_context(|| format!("cannot read {}", folder.display()))?,
    };
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    files.sort();
    let mut all = serde_json::Map::new();
    for path in files {
        let text = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let values: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(&text).with_context(|| format!("cannot read {}", path.display()))?;
        all.extend(values);
    }
    Ok(all)
}

/// A folder that holds other things, sockets for example, has the store in a folder of its own.
fn own_folder(root: PathBuf) -> PathBuf {
    let is_empty = std::fs::read_dir(&root).is_ok_and(|mut entries| entries.next().is_none());
    match !root.exists() || is_empty || root.join("FORMAT").exists() {
        true => root,
        false => root.join("forge"),
    }
}

/// docker's `config.json`.
pub fn docker_config(environment: &Environment) -> PathBuf {
    let folder = environment.filled("DOCKER_CONFIG").map(PathBuf::from);
    folder.unwrap_or_else(|| environment.home().join(".docker")).join("config.json")
}

fn default_root(environment: &Environment, is_root: bool) -> PathBuf {
    if is_root {
        return PathBuf::from("/var/lib/forge");
    }
    xdg(environment, "XDG_DATA_HOME", ".local/share").join("forge")
}

fn xdg(environment: &Environment, variable: &str, fallback: &str) -> PathBuf {
    environment.filled(variable).map_or_else(|| environment.home().join(fallback), PathBuf::from)
}

/// A file that was named must exist; the one at the usual place need not.
fn read_file(global: &GlobalArgs, environment: &Environment, is_root: bool) -> anyhow::Result<ConfigFile> {
    if let Some(path) = global.config.clone().or_else(|| environment.filled("FORGE_CONFIG").map(PathBuf::from)) {
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        return parse(&text, &path);
    }
    let path = match is_root {
        true => PathBuf::from("/etc/forge/forge.toml"),
        false => xdg(environment, "XDG_CONFIG_HOME", ".config").join("forge/forge.toml"),
    };
    match std::fs::read_to_string(&path) {
        Ok(text) => parse(&text, &path),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(ConfigFile::default()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

fn parse(text: &str, path: &Path) -> anyhow::Result<ConfigFile> {
    let mut file: ConfigFile = parse_toml(text, path)?;
    anchor_all(&mut file.registry, path);
    Ok(file)
}

fn parse_toml<T: serde::de::DeserializeOwned>(text: &str, path: &Path) -> anyhow::Result<T> {
    toml::from_str(text).map_err(|error| {
        let before = error.span().map_or("", |span| &text[..span.start.min(text.len())]);
        let line = before.matches('\n').count() + 1;
        anyhow!("{}:{line}: {}", path.display(), error.message())
    })
}

fn anchor_all(hosts: &mut BTreeMap<String, RegistryHost>, path: &Path) {
    let folder = path.parent().unwrap_or(Path::new("."));
    hosts.values_mut().for_each(|host| anchor(host, folder));
}

/// Files named in the configuration are relative to its folder.
fn anchor(host: &mut RegistryHost, folder: &Path) {
    host.ca.iter_mut().for_each(|path| *path = folder.join(&*path));
    for pair in &mut host.keypair {
        pair.key = folder.join(&pair.key);
        pair.cert = folder.join(&pair.cert);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(global: GlobalArgs, environment: Environment, is_root: bool) -> EngineOptions {
        engine_options(&global, &environment, is_root).unwrap()
    }

    #[test]
    fn the_root_comes_from_the_flag_then_the_environment_then_the_user() {
        let flag = GlobalArgs { root: Some("/flag".into()), ..GlobalArgs::default() };
        assert_eq!(options(flag, [("FORGE_ROOT", "/env")].into(), true).root, Path::new("/flag"));
        assert_eq!(options(GlobalArgs::default(), [("FORGE_ROOT", "/env")].into(), true).root, Path::new("/env"));
        let home: Environment = [("HOME", "/home/x")].into();
        assert_eq!(options(GlobalArgs::default(), home.clone(), false).root, Path::new("/home/x/.local/share/forge"));
        assert_eq!(options(GlobalArgs::default(), home, true).root, Path::new("/var/lib/forge"));
    }

    #[test]
    fn dockers_config_and_the_proxies_come_from_the_environment() {
        let environment: Environment =
            [("DOCKER_CONFIG", "/d"), ("http_proxy", "a"), ("HTTP_PROXY", "b"), ("NO_PROXY", "c")].into();
        let options = options(GlobalArgs::default(), environment, true);
        assert_eq!(options.docker_config, Path::new("/d/config.json"));
        assert!(!format!("{options:?}").contains("\"a\""), "a proxy's address may hold a password");
        assert_eq!(options.proxy, Proxy { http: Some(Redacted::new("a")), https: None, no_proxy: Some("c".into()) });
    }

    #[test]
    fn registries_are_configured_as_in_buildkitd_toml() {
        let text = "[worker.oci]\nmax-parallelism = 2\n[registry.\"r.test:5000\"]\nhttp = true\nmirrors = [\"m\"]\nca = [\"ca.pem\"]\n[[registry.\"r.test:5000\".keypair]]\nkey = \"/k\"\ncert = \"c\"\n";
        let file = parse(text, Path::new("/etc/forge/forge.toml")).unwrap();
        let host = &file.registry["r.test:5000"];
        assert_eq!((host.http, host.mirrors.as_slice()), (Some(true), &["m".to_owned()][..]));
        assert_eq!(host.ca, [Path::new("/etc/forge/ca.pem")]);
        assert_eq!(
            (host.keypair[0].key.as_path(), host.keypair[0].cert.as_path()),
            (Path::new("/k"), Path::new("/etc/forge/c"))
        );
        assert_eq!(file.worker.oci.max_parallelism, Some(2));
        let text = "[worker.oci]\nmaxUsedSpace = 5\n[[worker.oci.gcpolicy]]\nall = true\n";
        let gc = parse(text, Path::new("f.toml")).unwrap().worker.oci.gc().options().unwrap();
        assert_eq!((gc.bounds.max_used_space, gc.policies.len()), (Some(forge_engine::DiskSpace::Bytes(5)), 1));
    }

    #[test]
    fn limits_of_what_is_unpacked_come_from_the_flags_then_the_file() {
        let file: ConfigFile = toml::from_str("[unpack]\nbytes = \"64m\"\nentries = 10\n").unwrap();
        let flags = ["entries=20".to_owned(), "depth=5".to_owned(), "load-bytes=1g".to_owned()];
        let limits = intake(&file.unpack, &flags).unwrap();
        assert_eq!((limits.unpacked.bytes, limits.unpacked.entries, limits.unpacked.depth), (64 << 20, 20, 5));
        assert_eq!(limits.loaded.bytes, 1 << 30);
        for (flag, expect) in [
            ("bytes", "--unpack-limit \"bytes\": expected KEY=VALUE"),
            (
                "inodes=1",
                "--unpack-limit inodes=1: expected bytes, ratio, ratio-floor, entries, depth, header, load-bytes or load-entries",
            ),
            ("entries=many", "--unpack-limit entries=many: expected a number of at least 1"),
            ("depth=0", "--unpack-limit depth=0: expected a number of at least 1"),
        ] {
            let error = intake(&BTreeMap::new(), &[flag.to_owned()]).unwrap_err();
            assert_eq!(format!("{error:#}"), expect);
        }
        let file: ConfigFile = toml::from_str("[unpack]\ninodes = 1\n").unwrap();
        let error = format!("{:#}", intake(&file.unpack, &[]).unwrap_err());
        assert!(error.starts_with("the configuration's unpack.inodes: expected bytes"), "{error}");
    }

    #[test]
    fn unknown_keys_are_named_with_file_and_line() {
        let message = |text| parse(text, Path::new("f.toml")).unwrap_err().to_string();
        let error = message("[registry.\"x\"]\nhttp = true\ninsecur = true\n");
        assert!(error.starts_with("f.toml:3: unknown field `insecur`"), "{error}");
        let error = message("[worker.oci]\nmax-parallelism = 2\nmaxUsedSpce = 1\n");
        assert!(error.starts_with("f.toml:3: unknown field `maxUsedSpce`"), "{error}");
        let error = message("[worker.oci]\n\nmaxUsedSpace = \"much\"\n");
        assert!(error.starts_with("f.toml:3: invalid value: string \"much\", expected a number of bytes"), "{error}");
        assert!(message("debug = true\n").starts_with("f.toml:1: unknown field `debug`"));
        assert!(message("root = \n").starts_with("f.toml:1: "));
    }
}
