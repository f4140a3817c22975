use crate::hidden::{self, Hidden};
use crate::{Capabilities, ExecutorError, GroupPlacement, Resources, SeccompProfile, Sysctl, profile, wire};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

/// Name of a container, unique among those alive: `[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}`.
///
/// Safe as a single path component.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ContainerId(String);

impl ContainerId {
    /// Checks the grammar.
    pub fn new(id: impl Into<String>) -> Result<Self, ExecutorError> {
        let id = id.into();
        let word = |byte: u8| byte.is_ascii_alphanumeric();
        let rest = |byte: u8| word(byte) || matches!(byte, b'_' | b'.' | b'-');
        let valid = id.len() <= 128 && id.bytes().next().is_some_and(word) && id.bytes().all(rest);
        match valid {
            true => Ok(Self(id)),
            false => Err(ExecutorError::InvalidContainerId { id }),
        }
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The file tree a process sees as `/`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum RootFs {
    /// An overlay, mounted within the container's own mount namespace: the host's mount table never changes.
    Overlay {
        /// Read-only directories, top-most first, at most 500.
        #[serde(with = "wire::many")]
        lower: Vec<PathBuf>,
        /// Directory that receives all changes.
        #[serde(with = "wire::one")]
        upper: PathBuf,
        /// Empty directory on the same file system as `upper`.
        #[serde(with = "wire::one")]
        work: PathBuf,
        /// Skips every sync of `upper`; the directory is worthless after a power cut.
        volatile: bool,
    },
    /// A plain directory.
    Directory(#[serde(with = "wire::one")] PathBuf),
}

/// One mount inside the container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MountSpec {
    /// Absolute path in the container. Symbolic links in it are resolved within the root; what is missing is created
    /// and removed again when the container ends.
    #[serde(with = "wire::one")]
    pub target: PathBuf,
    /// What is mounted.
    pub source: MountSource,
    /// Refuses writes.
    pub readonly: bool,
    /// What else is refused.
    pub flags: MountFlags,
}

impl MountSpec {
    /// A mount with `nosuid` and `nodev`.
    pub fn new(target: impl Into<PathBuf>, source: MountSource, readonly: bool) -> Self {
        Self { target: target.into(), source, readonly, flags: MountFlags::default() }
    }
}

/// What a mount refuses beside writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountFlags {
    /// Ignores set-user-ID and file capabilities.
    pub nosuid: bool,
    /// Refuses to open device nodes.
    pub nodev: bool,
    /// Refuses to execute.
    pub noexec: bool,
}

impl Default for MountFlags {
    fn default() -> Self {
        Self { nosuid: true, nodev: true, noexec: false }
    }
}

/// Where the contents of a mount come from.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum MountSource {
    /// A file or directory of the host, with everything mounted below it.
    Bind(#[serde(with = "wire::one")] PathBuf),
    /// What `path` names inside `root`, as a process with that root directory would see it: links cannot lead out of it.
    BindBeneath {
        /// A directory of the host.
        #[serde(with = "wire::one")]
        root: PathBuf,
        /// Path below it.
        #[serde(with = "wire::one")]
        path: PathBuf,
    },
    /// What `path` names in an overlay of its own, which the kernel cannot be asked to write to where `changes` is `None`.
    Overlay {
        /// Read-only directories, top-most first, at most 499.
        #[serde(with = "wire::many")]
        lower: Vec<PathBuf>,
        /// Where changes go.
        changes: Option<OverlayChanges>,
        /// Path within it, as a process with that root directory would see it.
        #[serde(with = "wire::one")]
        path: PathBuf,
    },
    /// A new, empty file system in memory.
    Tmpfs {
        /// Most bytes it may hold; the kernel's default is half of the memory.
        size: Option<u64>,
        /// Permissions of its root.
        mode: u32,
    },
    /// A file with these contents, e.g. `/etc/hosts`.
    File {
        /// Its bytes.
        content: Vec<u8>,
        /// Its permissions; root owns it.
        mode: u32,
    },
    /// A file whose bytes nobody else may see: in memory, where the kernel can do it never swapped out.
    Secret {
        /// Its bytes.
        #[serde(with = "hidden::one")]
        content: Hidden,
        /// Its permissions.
        mode: u32,
        /// Its owner.
        uid: u32,
        /// Its group.
        gid: u32,
    },
    /// A Unix stream socket; [`crate::Container::take_listeners`] gives the side that accepts connections.
    Socket {
        /// Its permissions.
        mode: u32,
        /// Its owner.
        uid: u32,
        /// Its group.
        gid: u32,
    },
}

/// The two writable directories of an overlay, on one file system.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct OverlayChanges {
    /// Receives the changes; they are worthless after a power cut.
    #[serde(with = "wire::one")]
    pub upper: PathBuf,
    /// Empty.
    #[serde(with = "wire::one")]
    pub work: PathBuf,
}

/// What is removed of the mount points that had to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StubRemoval {
    /// All that was made.
    WithParents,
    /// The mount points themselves; directories made on the way to them stay.
    PointsOnly,
}

/// Which network the process sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetworkMode {
    /// The caller's own.
    Host,
    /// A new one with nothing but a loopback interface.
    None,
    /// A new one from which the world can be reached and which nobody but the host reaches. What
    /// [`crate::Executor::private_network`] refuses is an error here.
    Private,
}

/// The namespaces of the caller's that the process is in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedNamespaces {
    /// System V's and POSIX's means of communication, with `/dev/shm` and `/dev/mqueue`.
    pub ipc: bool,
    /// Host and domain name.
    pub uts: bool,
    /// What is shown of control groups.
    pub cgroup: bool,
}

/// Numeric identity of the process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessUser {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary groups.
    pub additional_gids: Vec<u32>,
}

/// The process to run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// Program and arguments. A program without a slash is looked up along the `PATH` in `env`, inside the root.
    #[serde(with = "wire::many")]
    pub args: Vec<OsString>,
    /// The whole environment, `KEY=VALUE`. Nothing is inherited or added.
    #[serde(with = "wire::many")]
    pub env: Vec<OsString>,
    /// Further variables, `KEY=VALUE`, whose values nobody else may see.
    #[serde(with = "hidden::many")]
    pub secret_env: Vec<Hidden>,
    /// Working directory, resolved within the root and made (root, 0755) when missing. Never inside procfs.
    #[serde(with = "wire::one")]
    pub cwd: PathBuf,
    /// Identity.
    pub user: ProcessUser,
    /// Gives the process a terminal of its own instead of the three streams.
    pub terminal: bool,
    /// Bounding set, and permitted and effective sets of a root process.
    pub capabilities: Capabilities,
    /// Puts a first process before it that hands signals on and takes orphans in.
    pub reaper: bool,
    /// Forbids gaining privileges by execve(2).
    pub no_new_privileges: bool,
    /// What AppArmor confines it by.
    pub apparmor: AppArmor,
    /// File mode creation mask.
    pub umask: u32,
    /// Limits to set; the others are inherited. What exceeds the caller's own hard limit is clamped to it.
    pub rlimits: Vec<Rlimit>,
    /// How readily the kernel kills it for want of memory, -1000 to 1000; inherited where `None`.
    pub oom_score: Option<i16>,
}

impl ProcessSpec {
    /// A process of root's in `/` with no environment but a `PATH`, docker's capabilities and limits.
    pub fn new<A: Into<OsString>>(args: impl IntoIterator<Item = A>) -> Self {
        Self {
            args: args.into_iter().map(Into::into).collect(),
            env: vec![format!("PATH={}", profile::DEFAULT_PATH).into()],
            secret_env: Vec::new(),
            cwd: PathBuf::from("/"),
            user: ProcessUser::default(),
            terminal: false,
            capabilities: Capabilities::DEFAULT,
            reaper: false,
            no_new_privileges: false,
            apparmor: AppArmor::Default,
            umask: 0o022,
            rlimits: profile::rlimits(),
            oom_score: None,
        }
    }
}

/// The AppArmor profile of a process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum AppArmor {
    /// forge's own, where root of the machine runs the container, the kernel has AppArmor and the profile can be loaded.
    #[default]
    Default,
    /// None.
    Unconfined,
    /// One that is in the kernel. Where it is not the container cannot be started.
    Profile(String),
}

/// One resource limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// What is limited.
    pub resource: RlimitResource,
    /// The limit in force; `u64::MAX` is unlimited.
    pub soft: u64,
    /// How far the process may raise it.
    pub hard: u64,
}

/// The resources of setrlimit(2).
#[allow(missing_docs)] // the names are getrlimit(2)'s
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RlimitResource {
    As,
    Core,
    Cpu,
    Data,
    Fsize,
    Locks,
    Memlock,
    Msgqueue,
    Nice,
    Nofile,
    Nproc,
    Rss,
    Rtprio,
    Rttime,
    Sigpending,
    Stack,
}

/// Whether system calls are filtered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seccomp {
    /// Docker's default policy, less what `docs/deviations.md` names.
    Default,
    /// No filter.
    Unconfined,
    /// A policy of the caller's.
    Profile(Box<SeccompProfile>),
}

/// Which device nodes may be opened.
#[expect(clippy::large_enum_variant, reason = "it is copied as it is, once for each container")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DevicePolicy {
    /// The null family, terminals and nothing else; any node may be made.
    Standard,
    /// These as well. What a device says of itself is up to whoever grants it.
    StandardAnd(GrantedNodes),
    /// Every device of the host.
    All,
}

impl DevicePolicy {
    /// The nodes beside the standard ones.
    pub(crate) fn granted(&self) -> &[Option<DeviceNode>] {
        match self {
            Self::StandardAnd(nodes) => nodes,
            Self::Standard | Self::All => &[],
        }
    }
}

/// As many device nodes as a container may be granted one by one.
pub type GrantedNodes = [Option<DeviceNode>; 16];

/// Device nodes that may be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceNode {
    /// Block or character device.
    pub kind: DeviceKind,
    /// The driver; every one where `None`.
    pub major: Option<u32>,
    /// Which of its devices; every one where `None`.
    pub minor: Option<u32>,
    /// Whether it may be read.
    pub read: bool,
    /// Whether it may be written.
    pub write: bool,
}

/// The two kinds of device nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceKind {
    /// A disk or the like.
    Block,
    /// Anything else.
    Character,
}

/// One range of user or group ids seen inside and the host's ids behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMap {
    /// First id inside.
    pub container: u32,
    /// First id outside.
    pub host: u32,
    /// Number of ids.
    pub count: u32,
}

/// Id maps of a user namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMappings {
    /// User ids.
    pub uids: Vec<IdMap>,
    /// Group ids.
    pub gids: Vec<IdMap>,
}

/// Everything about one container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// The file tree.
    pub root: RootFs,
    /// Mounts the root read-only.
    pub readonly_root: bool,
    /// Mounts beyond the standard ones (`/proc`, `/dev`, `/dev/pts`, `/dev/shm`, `/dev/mqueue`, `/sys`,
    /// `/sys/fs/cgroup`), in this order.
    pub mounts: Vec<MountSpec>,
    /// What becomes of mount points that had to be made.
    pub stubs: StubRemoval,
    /// Host name inside; empty keeps the host's.
    pub hostname: String,
    /// NIS domain name inside; empty keeps the kernel's.
    pub domain: String,
    /// The network.
    pub network: NetworkMode,
    /// What is the caller's inside too.
    pub shared: SharedNamespaces,
    /// Settings of the kernel in the container's own namespaces.
    pub sysctls: Vec<Sysctl>,
    /// The process.
    pub process: ProcessSpec,
    /// System call filter.
    pub seccomp: Seccomp,
    /// Paths that look empty: files become `/dev/null`, directories an empty read-only file system.
    #[serde(with = "wire::many")]
    pub masked_paths: Vec<PathBuf>,
    /// Paths that cannot be written.
    #[serde(with = "wire::many")]
    pub readonly_paths: Vec<PathBuf>,
    /// Makes `/sys` and the cgroup file systems writable.
    pub writable_sys: bool,
    /// Device nodes that may be opened.
    pub devices: DevicePolicy,
    /// Bytes of `/dev/shm`; without a size there is none, unless it is the caller's.
    pub shm_size: Option<u64>,
    /// Upper bounds.
    pub resources: Resources,
    /// The control groups.
    pub group: GroupPlacement,
    /// Maps of a user namespace. Not built yet: anything but `None` is refused.
    pub id_mappings: Option<IdMappings>,
}

impl SandboxSpec {
    /// Docker's defaults: masks, read-only paths, capabilities, seccomp; the host's network.
    pub fn for_root(root: RootFs, process: ProcessSpec) -> Self {
        Self {
            root,
            readonly_root: false,
            mounts: Vec::new(),
            stubs: StubRemoval::WithParents,
            hostname: String::new(),
            domain: String::new(),
            network: NetworkMode::Host,
            shared: SharedNamespaces::default(),
            sysctls: Vec::new(),
            process,
            seccomp: Seccomp::Default,
            masked_paths: profile::masked_paths(),
            readonly_paths: profile::readonly_paths(),
            writable_sys: false,
            devices: DevicePolicy::Standard,
            shm_size: Some(profile::SHM_SIZE),
            resources: Resources { pids: Some(profile::PIDS), ..Resources::default() },
            group: GroupPlacement::default(),
            id_mappings: None,
        }
    }

    /// Takes the confinement away that `--privileged` and `--security=insecure` take away: all capabilities, no
    /// filter, no AppArmor profile, nothing masked, `/sys` writable, every device. Namespaces stay.
    pub fn privileged(self) -> Self {
        Self {
            process: ProcessSpec { capabilities: Capabilities::ALL, apparmor: AppArmor::Unconfined, ..self.process },
            seccomp: Seccomp::Unconfined,
            masked_paths: Vec::new(),
            readonly_paths: Vec::new(),
            writable_sys: true,
            devices: DevicePolicy::All,
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn container_ids_are_one_path_component() {
        for valid in ["a", "0", "build-1.step_2", &"x".repeat(128)] {
            assert!(ContainerId::new(valid).is_ok(), "{valid}");
        }
        for invalid in ["", ".", "..", "-a", "_a", "a/b", "../x", "a b", "a\0", "ä", &"x".repeat(129)] {
            assert!(ContainerId::new(invalid).is_err(), "{invalid}");
        }
    }

    #[test]
    fn spec_survives_the_wire() {
        use std::os::unix::ffi::OsStringExt;
        let odd = OsString::from_vec(vec![b'A', b'=', 0xff, 0xc3]);
        let mut process = ProcessSpec::new(["sh"]);
        process.env.push(odd.clone());
        let spec = SandboxSpec::for_root(RootFs::Directory("/r".into()), process);
        let text = serde_json::to_string(&spec).expect("serialises");
        let back: SandboxSpec = serde_json::from_str(&text).expect("parses");
        assert_eq!(back.process.env.last(), Some(&odd));
        assert_eq!(format!("{back:?}"), format!("{spec:?}"));
    }
}
