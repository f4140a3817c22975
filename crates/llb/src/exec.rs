/// Runs a process. Output 0 is the root file system after it; further outputs come from writable mounts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecOp {
    /// The program and its arguments.
    pub args: Vec<String>,
    /// The environment, `KEY=value`, in order.
    pub env: Vec<String>,
    /// The working directory, absolute.
    pub cwd: String,
    /// `user[:group]` by name or number; empty for root.
    pub user: String,
    /// The file systems; exactly one has the target `/`.
    pub mounts: Vec<ExecMount>,
    /// The network.
    pub network: NetworkMode,
    /// The security mode.
    pub security: SecurityMode,
    /// The host name; empty for the default.
    pub hostname: String,
    /// Further lines of `/etc/hosts`. The addresses are not part of the key.
    pub extra_hosts: Vec<ExtraHost>,
    /// Proxy settings for the process, `KEY=value`: handed over, but not part of the key and not recorded.
    pub proxy_env: Vec<String>,
    /// Secrets that the process finds in its environment. Their values are part of nothing.
    pub secret_env: Vec<SecretEnv>,
    /// Resource limits, setrlimit(2).
    pub ulimits: Vec<Ulimit>,
    /// The cgroup below which the process is put; empty for the default. Not part of the key.
    pub cgroup_parent: String,
    /// Devices by their CDI names.
    pub devices: Vec<CdiDevice>,
    /// The exit codes that are no failure; empty for 0 alone.
    pub valid_exit_codes: Vec<i32>,
    /// Whether folders made only to mount something are removed with their parents.
    pub remove_mount_stubs: bool,
}

/// A secret in the environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretEnv {
    /// The secret's id in the session.
    pub id: String,
    /// The variable.
    pub name: String,
    /// Whether a session without the secret is fine; the variable is unset then.
    pub optional: bool,
}

/// A resource limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ulimit {
    /// The name as docker spells it, `nofile`.
    pub name: String,
    /// The soft limit; -1 for none.
    pub soft: i64,
    /// The hard limit; -1 for none.
    pub hard: i64,
}

/// A device of the Container Device Interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CdiDevice {
    /// `vendor.com/class=name`.
    pub name: String,
    /// Whether a machine without it is fine.
    pub optional: bool,
}

/// A line of `/etc/hosts`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtraHost {
    /// The name.
    pub host: String,
    /// The address.
    pub address: String,
}

/// A file system that the process sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecMount {
    /// Where it is mounted, absolute.
    pub target: String,
    /// Which of the vertex's inputs it shows; `None` for an empty one.
    pub input: Option<usize>,
    /// The path within the input; `/` for all of it.
    pub selector: String,
    /// Which output its state after the process is; `None` discards it.
    pub output: Option<usize>,
    /// Whether the process may not write.
    pub readonly: bool,
    /// What kind of mount it is.
    pub kind: MountKind,
}

impl ExecMount {
    /// The root file system, from input 0 to output 0.
    pub fn root() -> Self {
        Self {
            target: "/".to_owned(),
            input: Some(0),
            selector: "/".to_owned(),
            output: Some(0),
            readonly: false,
            kind: MountKind::Bind,
        }
    }
}

/// Kinds of mounts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountKind {
    /// A file tree of the graph.
    Bind,
    /// Memory, of that many bytes at most.
    Tmpfs {
        /// The limit in bytes; `None` for the kernel's default.
        size: Option<u64>,
    },
    /// A folder that outlives the build. What the input holds is its first content.
    Cache {
        /// Its name, with its namespace.
        id: String,
        /// Who else may use it at the same time.
        sharing: CacheSharing,
    },
    /// A secret of the session as a file.
    Secret(SecretMount),
    /// The session's SSH agent as a socket.
    Ssh(SecretMount),
}

/// Who may use a cache mount at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum CacheSharing {
    /// Everybody.
    #[default]
    Shared,
    /// One step; another one gets a folder of its own.
    Private,
    /// One step; another one waits.
    Locked,
}

/// A secret or an agent as the process sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretMount {
    /// The id in the session.
    pub id: String,
    /// The owner of the file.
    pub uid: u32,
    /// The group of the file.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
    /// Whether a session without it is fine; nothing is mounted then.
    pub optional: bool,
}

/// The network of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum NetworkMode {
    /// What the executor sets up by default.
    #[default]
    Default,
    /// The host's.
    Host,
    /// A loopback interface only.
    None,
}

/// How far a process is confined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum SecurityMode {
    /// The default profile.
    #[default]
    Sandbox,
    /// All privileges; needs an entitlement.
    Insecure,
}

impl ExecOp {
    /// A process of root's in `/` on the tree of input 0, with an empty environment.
    pub fn new(args: Vec<String>) -> Self {
        Self {
            args,
            env: Vec::new(),
            cwd: "/".to_owned(),
            user: String::new(),
            mounts: vec![ExecMount::root()],
            network: NetworkMode::Default,
            security: SecurityMode::Sandbox,
            hostname: String::new(),
            extra_hosts: Vec::new(),
            proxy_env: Vec::new(),
            secret_env: Vec::new(),
            ulimits: Vec::new(),
            cgroup_parent: String::new(),
            devices: Vec::new(),
            valid_exit_codes: Vec::new(),
            remove_mount_stubs: false,
        }
    }
}
