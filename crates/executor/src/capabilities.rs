use serde::{Deserialize, Serialize};

/// Names in the order of their numbers in `linux/capability.h`.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// A set of capabilities, one bit per number of `linux/capability.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities(u64);

impl Capabilities {
    /// The fourteen docker gives by default.
    pub const DEFAULT: Self = Self(0xa804_25fb);
    /// Docker's without MKNOD, NET_RAW and AUDIT_WRITE: the eleven podman gives by default.
    pub const MINIMAL: Self = Self(0x8004_05fb);
    /// None at all.
    pub const NONE: Self = Self(0);
    /// Interfaces, addresses, routes and firewalls of its network namespace.
    pub const NET_ADMIN: Self = Self(1 << 12);
    /// Changing the root directory.
    pub const SYS_CHROOT: Self = Self(1 << 18);
    /// Making device nodes.
    pub const MKNOD: Self = Self(1 << 27);
    /// Mounts, namespaces and much else of the machine.
    pub const SYS_ADMIN: Self = Self(1 << 21);
    /// All that are known; those the kernel or the caller lacks are left out when the process starts.
    pub const ALL: Self = Self((1 << NAMES.len()) - 1);

    /// Finds one by name, with or without `CAP_`, in any case; `ALL` is every one.
    pub fn from_name(name: &str) -> Option<Self> {
        let upper = name.to_ascii_uppercase();
        let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
        if short == "ALL" {
            return Some(Self::ALL);
        }
        let number = NAMES.iter().position(|&known| known == short)?;
        Some(Self(1 << number))
    }

    /// A set from the kernel's bits; what this crate does not know is left out.
    pub fn from_bits(bits: u64) -> Self {
        Self(bits).intersection(Self::ALL)
    }

    /// The set as the kernel writes it in `/proc/<pid>/status`.
    pub fn bits(self) -> u64 {
        self.0
    }

    /// The names of those in the set, with `CAP_`.
    pub(crate) fn names(self) -> impl Iterator<Item = String> {
        let held = move |(number, _): &(usize, &&str)| self.0 >> number & 1 == 1;
        NAMES.iter().enumerate().filter(held).map(|(_, name)| format!("CAP_{name}"))
    }

    /// True when every one of `other` is in this set.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// What is in either set.
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What is in this set and not in the other.
    pub fn difference(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// What is in both sets.
    pub fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl Default for Capabilities {
    fn default() -> Self {
        Self::DEFAULT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> Capabilities {
        names.iter().fold(Capabilities::NONE, |all, name| all.union(Capabilities::from_name(name).expect("known name")))
    }

    #[test]
    fn default_is_docker_s_fourteen() {
        let docker = set(&[
            "CHOWN",
            "DAC_OVERRIDE",
            "FSETID",
            "FOWNER",
            "MKNOD",
            "NET_RAW",
            "SETGID",
            "SETUID",
            "SETFCAP",
            "SETPCAP",
            "NET_BIND_SERVICE",
            "SYS_CHROOT",
            "KILL",
            "AUDIT_WRITE",
        ]);
        assert_eq!(docker, Capabilities::DEFAULT);
        assert_eq!(set(&["SYS_ADMIN"]), Capabilities::SYS_ADMIN);
        let fewer = set(&["cap_mknod", "CAP_NET_RAW", "audit_write"]);
        assert_eq!(docker.difference(fewer), Capabilities::MINIMAL);
    }

    #[test]
    fn unknown_names_are_no_capability() {
        assert_eq!(Capabilities::from_name("SYS_EVERYTHING"), None);
        assert_eq!(Capabilities::from_name(""), None);
    }
}
