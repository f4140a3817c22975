use crate::{
    AgentSource, Allowed, Attest, ContextModes, Device, DeviceRule, GcOptions, Limits, Output, Port, RemoteContext,
    SecretSource, SharedCaches, SourcePolicy,
};
use forge_executor::{AppArmor, Resources};
use forge_exporter::LoadLimits;
use forge_image::{ImageConfig, Platform, Reference};
use forge_llb::ExtraHost;
use forge_session::Redacted;
use forge_solver::{Explain, OnFailure};
use forge_store::UnpackLimits;
use forge_worker::Resolver;
use std::collections::BTreeMap;
use std::fmt;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

/// Where an engine keeps its things and how it reaches the world. Nothing is read from the environment.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// The store's root folder.
    pub root: PathBuf,
    /// Registry hosts by name (`host[:port]`), with buildkitd.toml's keys.
    pub registries: BTreeMap<String, RegistryHost>,
    /// docker's `config.json` with credentials; need not exist.
    pub docker_config: PathBuf,
    /// Never open a connection.
    pub offline: bool,
    /// What strangers' layers and archives may ask of this machine.
    pub intake: IntakeLimits,
    /// Proxies for connections to registries.
    pub proxy: Proxy,
    /// How many steps run at the same time; `None` for as many as there are.
    pub max_parallelism: Option<usize>,
    /// Folders with specifications of devices (Container Device Interface); a later one counts more. They need not exist.
    pub device_folders: Vec<PathBuf>,
    /// The OCI runtime that runs steps and containers instead of forge's own sandbox, by its absolute path.
    pub oci_runtime: Option<PathBuf>,
    /// How the build cache is kept small.
    pub gc: GcOptions,
    /// What servers are told of who asks, where it is not forge under its own name.
    pub user_agent: Option<String>,
}

/// How much strangers' layers and archives may ask of this machine (A58 to A60).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IntakeLimits {
    /// Of each layer that is pulled or loaded, and of each archive that ADD unpacks.
    pub unpacked: UnpackLimits,
    /// Of the archive that images are loaded from.
    pub loaded: LoadLimits,
}

/// How a registry host is reached (`[registry."host"]` of buildkitd.toml).
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegistryHost {
    /// Hosts that are asked first when pulling.
    pub mirrors: Vec<String>,
    /// Whether plain HTTP is spoken.
    pub http: Option<bool>,
    /// Whether certificates are not verified.
    pub insecure: bool,
    /// Further certificate authorities, PEM files.
    pub ca: Vec<PathBuf>,
    /// Client certificates.
    pub keypair: Vec<KeyPair>,
}

/// A client certificate and its key, PEM files.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyPair {
    /// The key.
    pub key: PathBuf,
    /// The certificate.
    pub cert: PathBuf,
}

/// Proxy settings as the usual variables hold them. The addresses may hold passwords.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxy {
    /// `HTTP_PROXY`.
    pub http: Option<Redacted>,
    /// `HTTPS_PROXY`.
    pub https: Option<Redacted>,
    /// `NO_PROXY`.
    pub no_proxy: Option<String>,
}

/// A build as the user asked for it.
#[derive(Clone, Debug)]
pub struct BuildRequest {
    /// The main context.
    pub context: BuildContext,
    /// The Dockerfile.
    pub dockerfile: DockerfileSource,
    /// The names of the image.
    pub tags: Vec<Reference>,
    /// `--build-arg`, with values.
    pub build_args: BTreeMap<String, String>,
    /// The stage that is wanted; the last one where `None`.
    pub target: Option<String>,
    /// Ask no cache.
    pub no_cache: bool,
    /// The stages, by name, that ask no cache (`--no-cache-filter`).
    pub no_cache_stages: Vec<String>,
    /// Has the cache mounts of steps that ask no cache begin anew.
    pub renew_cache_mounts: bool,
    /// Ask registries for newer base images.
    pub pull: bool,
    /// The platforms; the host's where empty.
    pub platforms: Vec<Platform>,
    /// `--build-context name=value`.
    pub named_contexts: BTreeMap<String, NamedContext>,
    /// Where the result goes; [`Output::Image`] into the local store where empty.
    pub outputs: Vec<Output>,
    /// Rules about what the build may be made of.
    pub source_policies: Vec<SourcePolicy>,
    /// The caches that the build shares with other machines.
    pub caches: SharedCaches,
    /// What is said of the result beside it.
    pub attest: Attest,
    /// Labels set last.
    pub labels: Vec<(String, String)>,
    /// The network of RUN steps.
    pub network: Network,
    /// What steps may have beyond what every step has.
    pub allowed: Allowed,
    /// Secrets that steps may ask for, by id.
    pub secrets: BTreeMap<String, SecretSource>,
    /// The SSH agents that steps may ask for, by id.
    pub ssh: BTreeMap<String, AgentSource>,
    /// `SOURCE_DATE_EPOCH` of the command line's environment, or the build argument.
    pub source_date_epoch: Option<i64>,
    /// Proxy settings handed to RUN steps, `KEY=value`; not recorded.
    pub proxy_env: Vec<String>,
    /// `--add-host`, name and address.
    pub extra_hosts: Vec<(String, String)>,
    /// Bounds of each step.
    pub limits: Limits,
    /// Bounds of all steps together.
    pub total_limits: Resources,
    /// What becomes of the other steps when one fails.
    pub on_failure: OnFailure,
    /// How many steps run at the same time; `None` for what the engine says.
    pub max_parallelism: Option<usize>,
    /// Where the permission bits of context files come from.
    pub context_modes: ContextModes,
    /// Which of the steps that run say why.
    pub explain: Explain,
    /// What the builds have in common that are compared with each other; the place of the context where `None`. Builds that
    /// somebody steers are not compared then.
    pub compared_as: Option<String>,
    /// The time that the image says it was made.
    pub now: SystemTime,
}

/// The files that a build may read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BuildContext {
    /// A folder.
    Directory(PathBuf),
    /// Nothing.
    Empty,
    /// An archive with the files (tar, plain or compressed, told by its content); anything else is the Dockerfile of a
    /// build without files.
    Stream(ContextStream),
    /// A Git repository, or a download: an archive with the files, else the Dockerfile.
    Remote(RemoteContext),
}

/// A stream that one build reads. Copies share it.
#[derive(Clone)]
pub struct ContextStream(Arc<Mutex<StreamSource>>);

enum StreamSource {
    Once(Option<ArchiveReader>),
    Again(Box<dyn Fn() -> Option<ArchiveReader> + Send>),
}

impl ContextStream {
    /// Hands over a stream.
    pub fn new(stream: impl Read + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(StreamSource::Once(Some(Box::new(stream))))))
    }

    /// Hands over what can be read from its start any number of times.
    pub fn again<R: Read + Send + 'static>(open: impl Fn() -> Option<R> + Send + 'static) -> Self {
        let open = move || open().map(|stream| Box::new(stream) as ArchiveReader);
        Self(Arc::new(Mutex::new(StreamSource::Again(Box::new(open)))))
    }

    /// The stream, for the first who asks, or for everybody where it can be read again.
    pub fn take(&self) -> Option<ArchiveReader> {
        match &mut *self.0.lock().expect("no holder panics") {
            StreamSource::Once(stream) => stream.take(),
            StreamSource::Again(open) => open(),
        }
    }
}

impl fmt::Debug for ContextStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ContextStream")
    }
}

impl PartialEq for ContextStream {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for ContextStream {}

/// Where the Dockerfile comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DockerfileSource {
    /// `Dockerfile` in the context, or `dockerfile`.
    Default,
    /// A file of that path; a relative one is relative to the working directory of the user.
    File(PathBuf),
    /// A file of that path within the context.
    InContext(String),
    /// Its text, from standard input.
    Inline(Vec<u8>),
    /// A download.
    Remote(RemoteContext),
}

/// A named context.
#[derive(Clone, Debug, PartialEq)]
pub enum NamedContext {
    /// A folder.
    Directory(PathBuf),
    /// `docker-image://`.
    Image(Reference),
    /// `oci-layout://path[:tag][@digest]`.
    OciLayout {
        /// The layout's folder.
        path: PathBuf,
        /// The tag within it.
        tag: Option<String>,
        /// The digest within it.
        digest: Option<forge_image::Digest>,
    },
    /// A Git repository, or a download: an archive becomes its files.
    Remote(RemoteContext),
    /// `target:name`, a stage of the Dockerfile.
    Stage(String),
    /// No files at all (`docker-image://scratch`).
    Scratch,
    /// A result of that name that a client handed in ([`SessionDockerfile::inputs`](crate::SessionDockerfile)).
    Input {
        /// Its name.
        name: String,
        /// The config of the image that it is.
        config: Option<Box<ImageConfig>>,
    },
}

/// The network of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Network {
    /// A private one with a way out; the host's where that cannot be set up.
    #[default]
    Default,
    /// The host's.
    Host,
    /// A loopback interface only.
    None,
}

/// A foreground container as the user asked for it.
#[derive(Clone, Debug)]
pub struct RunRequest {
    /// The image: a name, an id or the start of one.
    pub image: String,
    /// What to run instead of the image's command.
    pub command: Vec<String>,
    /// What to run instead of the image's entry point; an empty text removes it.
    pub entrypoint: Option<String>,
    /// `-e`, `KEY=value`.
    pub env: Vec<String>,
    /// `-w`.
    pub workdir: Option<String>,
    /// `-u`.
    pub user: Option<String>,
    /// `-v`.
    pub binds: Vec<Bind>,
    /// `--network`.
    pub network: Network,
    /// `--add-host`.
    pub extra_hosts: Vec<ExtraHost>,
    /// `--dns` and its like.
    pub resolver: Resolver,
    /// `--hostname`.
    pub hostname: Option<String>,
    /// `--platform`.
    pub platform: Option<Platform>,
    /// When the image is fetched.
    pub pull: PullPolicy,
    /// `--read-only`.
    pub readonly_root: bool,
    /// `-t`.
    pub terminal: bool,
    /// The columns and rows that the terminal has from the start; a process may ask for them at once.
    pub terminal_size: Option<(u16, u16)>,
    /// `-i`: whether standard input is handed to the process.
    pub interactive: bool,
    /// Bounds of the container.
    pub limits: Limits,
    /// File systems in memory.
    pub tmpfs: Vec<TmpfsMount>,
    /// What it may do beyond or short of the default.
    pub rights: Rights,
    /// Whether forge's own init is its first process: it hands signals on and takes orphans in.
    pub init: bool,
    /// `--name`; no other running container has it.
    pub name: Option<String>,
    /// `-l`, shown to whoever looks at running containers.
    pub labels: Vec<(String, String)>,
    /// `-p`.
    pub ports: Vec<Port>,
    /// `-P`: the ports that the image exposes are published too.
    pub publish_all: bool,
    /// `--expose`, as an image's own: `PORT/PROTOCOL`.
    pub exposed: Vec<String>,
    /// `--device`.
    pub devices: Vec<Device>,
    /// `--device-cgroup-rule`.
    pub device_rules: Vec<DeviceRule>,
    /// What is the host's in it, and how the kernel treats it.
    pub isolation: Isolation,
}

/// Which of the host's namespaces a container is in, and settings of those of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Isolation {
    /// `--ipc`.
    pub ipc: Ipc,
    /// `--uts host`.
    pub host_uts: bool,
    /// `--cgroupns host`.
    pub host_cgroup: bool,
    /// `--sysctl`, names and values.
    pub sysctls: Vec<(String, String)>,
    /// `--domainname`.
    pub domain: Option<String>,
    /// `--oom-score-adj`.
    pub oom_score: Option<i16>,
}

/// System V's and POSIX's means of communication.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ipc {
    /// The container's own.
    #[default]
    Own,
    /// Its own, without `/dev/shm`.
    WithoutSharedMemory,
    /// The host's.
    Host,
}

/// What a container may do beyond or short of docker's default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    /// Everything (`--privileged`).
    pub privileged: bool,
    /// Capabilities that are given, or `ALL`.
    pub added: Vec<String>,
    /// Capabilities that are taken, or `ALL`.
    pub dropped: Vec<String>,
    /// No rights are gained by executing a program.
    pub no_new_privileges: bool,
    /// Which system calls are refused.
    pub filter: SyscallFilter,
    /// AppArmor's profile, where it is not the default one, or none for a privileged container.
    pub apparmor: Option<AppArmor>,
    /// Nothing of `/proc` and `/sys` is masked or made read-only.
    pub bare_system_paths: bool,
    /// Further groups of the process, by name or number.
    pub groups: Vec<String>,
}

/// The filter of a container's system calls (`--security-opt seccomp=…`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SyscallFilter {
    /// docker's, or none where everything is given.
    #[default]
    Default,
    /// docker's in any case.
    Builtin,
    /// None.
    Unconfined,
    /// A policy in docker's format.
    Profile(Vec<u8>),
}

/// A file system in memory (`--tmpfs`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TmpfsMount {
    /// In the container, absolute.
    pub target: PathBuf,
    /// Most bytes; half of the memory where `None`.
    pub size: Option<u64>,
    /// Permissions of its root; 1777 where `None`.
    pub mode: Option<u32>,
    /// Whether it cannot be written.
    pub readonly: bool,
    /// Whether programs in it can be executed.
    pub exec: bool,
    /// Whether set-user-ID programs in it have effect.
    pub suid: bool,
    /// Whether device nodes in it can be opened.
    pub dev: bool,
}

/// A folder or file of the host in a container (`-v host:container[:ro]`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bind {
    /// On the host, absolute.
    pub source: PathBuf,
    /// In the container, absolute.
    pub target: PathBuf,
    /// Whether it cannot be written.
    pub readonly: bool,
    /// Whether a missing source is made, a folder.
    pub create: bool,
}

/// When an image is fetched before a container runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PullPolicy {
    /// Always.
    Always,
    /// When the store lacks it.
    #[default]
    Missing,
    /// Never.
    Never,
}

/// The descriptors that a container's process gets. `None` means the null device.
#[derive(Debug, Default)]
pub struct RunStreams {
    /// Standard input.
    pub stdin: Option<OwnedFd>,
    /// Standard output.
    pub stdout: Option<OwnedFd>,
    /// Standard error.
    pub stderr: Option<OwnedFd>,
}

/// In which format images are saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArchiveFormat {
    /// As `docker save` writes it.
    Docker,
    /// An OCI image layout.
    Oci,
}

/// Something that an archive is read from.
pub type ArchiveReader = Box<dyn Read + Send>;
/// Something that an archive is written to.
pub(crate) type ArchiveWriter = Box<dyn Write + Send>;
