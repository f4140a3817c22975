//! Where forge keeps its things and how it reaches the world: flags, environment, configuration file.

use crate::args::GlobalArgs;
use crate::environment::Environment;
use anyhow::{Context, anyhow};
use forge_engine::{EngineOptions, Proxy, RegistryHost};
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
/// [registry."docker.io"]
/// mirrors = ["mirror.example:5000"]
/// [registry."mirror.example:5000"]
/// http = true
/// ca = ["/etc/ssl/mirror.pem"]
/// ```
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ConfigFile {
    root: Option<PathBuf>,
    registry: BTreeMap<String, RegistryHost>,
    worker: Workers,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Workers {
    oci: Worker,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
struct Worker {
    max_parallelism: Option<usize>,
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
    let root = named_root.unwrap_or_else(|| default_root(environment, is_root));
    Ok(EngineOptions {
        root: std::path::absolute(root).context("the store's folder has no usable name")?,
        registries: file.registry,
        docker_config: docker_config(environment),
        offline: global.offline,
        proxy: Proxy {
            http: environment.either_case("HTTP_PROXY").map(Redacted::new),
            https: environment.either_case("HTTPS_PROXY").map(Redacted::new),
            no_proxy: environment.either_case("NO_PROXY"),
        },
        max_parallelism: file.worker.oci.max_parallelism,
        device_folders: DEVICE_FOLDERS.map(PathBuf::from).to_vec(),
        oci_runtime: None,
    })
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
    let mut places = folders.split(':').filter(|folder| folder.starts_with('/')).map(|folder| Path::new(folder).join(named));
    match places.find(|path| path.is_file()) {
        Some(path) => Ok(Some(path)),
        None => Err(anyhow!("--oci-runtime {named}: there is no such program in the PATH")),
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
    let mut file: ConfigFile = toml::from_str(text).map_err(|error| {
        let before = error.span().map_or("", |span| &text[..span.start.min(text.len())]);
        let line = before.matches('\n').count() + 1;
        anyhow!("{}:{line}: {}", path.display(), error.message())
    })?;
    let folder = path.parent().unwrap_or(Path::new("."));
    file.registry.values_mut().for_each(|host| anchor(host, folder));
    Ok(file)
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
    }

    #[test]
    fn unknown_keys_are_named_with_file_and_line() {
        let message = |text| parse(text, Path::new("f.toml")).unwrap_err().to_string();
        let error = message("[registry.\"x\"]\nhttp = true\ninsecur = true\n");
        assert!(error.starts_with("f.toml:3: unknown field `insecur`"), "{error}");
        assert!(message("debug = true\n").starts_with("f.toml:1: unknown field `debug`"));
        assert!(message("root = \n").starts_with("f.toml:1: "));
    }
}
