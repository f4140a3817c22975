//! Other container engines of this machine, where they are usually found.

use crate::environment::Environment;
use anyhow::bail;
use forge_engine::Recipient;
use std::path::{Path, PathBuf};

/// The engine that `--load=NAME` means; `None` for forge itself.
///
/// # Errors
/// The environment names an engine that is not on this machine.
pub fn recipient(name: &str, environment: &Environment) -> anyhow::Result<Option<Recipient>> {
    Ok(match name {
        "docker" => {
            let named = socket("DOCKER_HOST", environment)?.or_else(|| existing(environment, "docker.sock"));
            Some(Recipient::Docker { socket: named.unwrap_or_else(|| "/var/run/docker.sock".into()) })
        }
        "podman" => {
            let root = Path::new("/run/podman/podman.sock");
            let named = socket("CONTAINER_HOST", environment)?.or_else(|| existing(environment, "podman/podman.sock"));
            Some(Recipient::Podman { socket: named.or_else(|| root.exists().then(|| root.to_owned())) })
        }
        "containerd" => Some(Recipient::Containerd {
            address: environment.filled("CONTAINERD_ADDRESS").map(PathBuf::from),
            namespace: environment.filled("CONTAINERD_NAMESPACE").unwrap_or("default").to_owned(),
        }),
        _ => None,
    })
}

/// A socket that a variable names as clients write it.
fn socket(variable: &str, environment: &Environment) -> anyhow::Result<Option<PathBuf>> {
    let Some(text) = environment.filled(variable) else { return Ok(None) };
    match text.strip_prefix("unix://") {
        Some(path) => Ok(Some(path.into())),
        None => bail!("--load: {variable}={text} is no socket of this machine (unix://PATH)"),
    }
}

/// A socket of the user's own.
fn existing(environment: &Environment, name: &str) -> Option<PathBuf> {
    let path = Path::new(environment.filled("XDG_RUNTIME_DIR")?).join(name);
    path.exists().then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_are_found_where_their_clients_find_them() {
        let nothing = Environment::default();
        assert_eq!(recipient("forge", &nothing).unwrap(), None);
        let docker = |socket: &str| Some(Recipient::Docker { socket: socket.into() });
        assert_eq!(recipient("docker", &nothing).unwrap(), docker("/var/run/docker.sock"));
        assert_eq!(recipient("docker", &[("DOCKER_HOST", "unix:///d.sock")].into()).unwrap(), docker("/d.sock"));
        let error = recipient("docker", &[("DOCKER_HOST", "tcp://far:2376")].into()).unwrap_err();
        assert_eq!(error.to_string(), "--load: DOCKER_HOST=tcp://far:2376 is no socket of this machine (unix://PATH)");
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("docker.sock"), "").unwrap();
        let own: Environment = [("XDG_RUNTIME_DIR", folder.path().to_str().unwrap())].into();
        let socket = folder.path().join("docker.sock");
        assert_eq!(recipient("docker", &own).unwrap(), Some(Recipient::Docker { socket }));
        let kubernetes = recipient("containerd", &[("CONTAINERD_NAMESPACE", "k8s.io")].into()).unwrap();
        assert_eq!(kubernetes, Some(Recipient::Containerd { address: None, namespace: "k8s.io".into() }));
    }
}
