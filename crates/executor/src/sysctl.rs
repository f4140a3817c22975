use crate::{ExecutorError, NetworkMode, SharedNamespaces};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Those of the IPC namespace beside `fs.mqueue.*`.
const IPC: [&str; 8] = ["msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced"];

/// A setting of the kernel that a namespace has for itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sysctl {
    /// Parts of the path below `/proc/sys`.
    parts: Vec<String>,
    value: String,
}

impl Sysctl {
    /// A setting by its name in the form of sysctl(8): parts divided by dots, or by slashes where those come first, by which a
    /// part can have dots.
    ///
    /// # Errors
    /// A setting that is the whole machine's.
    pub fn new(name: &str, value: &str) -> Result<Self, ExecutorError> {
        let slashes = name.find('/').unwrap_or(name.len()) < name.find('.').unwrap_or(name.len());
        let swap = |part: &str| if slashes { part.to_owned() } else { part.replace('/', ".") };
        let parts: Vec<String> = name.split(if slashes { '/' } else { '.' }).map(swap).collect();
        let is_name = |part: &String| !matches!(part.as_str(), "" | "." | "..") && !part.contains(['/', '\0']);
        let this = Self { parts, value: value.to_owned() };
        match this.parts.iter().all(is_name) && (this.is_of_network() || this.is_of_ipc()) {
            true => Ok(this),
            false => Err(ExecutorError::InvalidSpec { reason: format!("sysctl '{name}={value}' is not allowed") }),
        }
    }

    /// Whether it is a network's.
    pub(crate) fn is_of_network(&self) -> bool {
        self.parts.len() > 1 && self.parts[0] == "net"
    }

    fn is_of_ipc(&self) -> bool {
        match self.parts.as_slice() {
            [first, name] => first == "kernel" && IPC.contains(&name.as_str()),
            [first, second, _] => first == "fs" && second == "mqueue",
            _ => false,
        }
    }

    /// Refuses what would be set for the caller too.
    pub(crate) fn check(&self, network: NetworkMode, shared: SharedNamespaces) -> Result<(), ExecutorError> {
        let kept = match self.is_of_network() {
            true => (network == NetworkMode::Host).then_some("network"),
            false => shared.ipc.then_some("IPC namespace"),
        };
        let Some(kept) = kept else { return Ok(()) };
        Err(ExecutorError::InvalidSpec {
            reason: format!("sysctl {} is not allowed with the host's {kept}", self.name()),
        })
    }

    /// Its name with dots, or with slashes where a part has some.
    pub(crate) fn name(&self) -> String {
        let slashes = self.parts.iter().any(|part| part.contains('.'));
        self.parts.join(if slashes { "/" } else { "." })
    }

    /// Below procfs.
    pub(crate) fn path(&self) -> PathBuf {
        std::iter::once("sys").chain(self.parts.iter().map(String::as_str)).collect()
    }

    /// What is written there.
    pub(crate) fn value(&self) -> &str {
        &self.value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Meant to fail with names that are not looked at part by part.
    #[test]
    fn settings_of_the_machine_are_refused() {
        for name in [
            "kernel.core_pattern",
            "kernel.shmmax.x",
            "vm.swappiness",
            "net",
            "net.",
            "net..x",
            "net/../kernel/core_pattern",
            "net.ipv4/../../kernel/core_pattern",
            "/net/ipv4/ip_forward",
            "fs.mqueue",
            "fs.mqueue.a.b",
            "fs.inotify.max_user_watches",
            "net.a\0b",
            "net.//.x",
            "",
        ] {
            assert!(Sysctl::new(name, "1").is_err(), "{name:?}");
        }
        let path = |name: &str| Sysctl::new(name, "1").map(|one| one.path().display().to_string()).ok();
        assert_eq!(path("net.ipv4.ip_forward").as_deref(), Some("sys/net/ipv4/ip_forward"));
        assert_eq!(path("net/ipv4/conf/eth0.7/forwarding").as_deref(), Some("sys/net/ipv4/conf/eth0.7/forwarding"));
        assert_eq!(path("net.ipv4.conf.eth0/7.forwarding").as_deref(), Some("sys/net/ipv4/conf/eth0.7/forwarding"));
        assert_eq!(path("kernel.shmmax").as_deref(), Some("sys/kernel/shmmax"));
        assert_eq!(path("fs.mqueue.msg_max").as_deref(), Some("sys/fs/mqueue/msg_max"));
    }

    #[test]
    fn what_is_the_host_s_is_not_set() {
        let (net, ipc) = (Sysctl::new("net.core.somaxconn", "1").unwrap(), Sysctl::new("kernel.sem", "1").unwrap());
        let own = SharedNamespaces::default();
        assert!(net.check(NetworkMode::Host, own).is_err() && net.check(NetworkMode::None, own).is_ok());
        let shared = SharedNamespaces { ipc: true, ..own };
        assert!(ipc.check(NetworkMode::Host, own).is_ok() && ipc.check(NetworkMode::None, shared).is_err());
    }
}
