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
