use crate::{Span, Warning};
use forge_image::{Digest, ImageConfig, Platform, Reference};
use forge_llb::{
    CdiDevice, Edge, ExtraHost, GitSource, Graph, HttpSource, NetworkMode, SourceOp, StepResources, Ulimit,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Everything besides the Dockerfile that decides what is built.
#[derive(Clone, Debug)]
pub struct LowerOptions {
    /// The stage that is wanted, by name or index; `None` for the last one.
    pub target: Option<String>,
    /// `--build-arg`.
    pub build_args: BTreeMap<String, String>,
    /// `--label`, in order; they win over labels of the Dockerfile.
    pub labels: Vec<(String, String)>,
    /// The platform that the image is for.
    pub platform: Platform,
    /// Whether the caller asked for that platform (`--platform`). The image is for it then, also where its last
    /// stage says `FROM --platform=…`.
    pub platform_requested: bool,
    /// The platform that the build runs on (`BUILDPLATFORM`).
    pub build_platform: Platform,
    /// Whether no step takes its result from the cache.
    pub no_cache: bool,
    /// The stages, by name, whose steps take none of their results from the cache (`--no-cache-filter`).
    pub no_cache_stages: Vec<String>,
    /// Whether images are looked up in the registry even when they are in the store.
    pub pull: bool,
    /// The network of RUN steps that do not ask for one.
    pub network: NetworkMode,
    /// What COPY, ADD and bind mounts read that name nothing else; its ignore patterns are those of its ignore file.
    pub main_context: NamedContext,
    /// `--build-context`, by name; `name::os/arch` applies to that platform only and comes first.
    pub named_contexts: BTreeMap<String, NamedContext>,
    /// Proxy settings of the caller, `KEY=value`, for RUN steps. They are not part of any cache key. Build
    /// arguments of those names win.
    pub proxy_env: Vec<String>,
    /// Seconds since the epoch for all times in the image. The build argument `SOURCE_DATE_EPOCH` wins.
    pub source_date_epoch: Option<i64>,
    /// The answer to [`Lowered::NeedTime`].
    pub source_time: SourceTime,
    /// Whether several platforms are built, so that step names say which.
    pub multi_platform: bool,
    /// Further lines of `/etc/hosts` of RUN steps.
    pub extra_hosts: Vec<ExtraHost>,
    /// The host name of RUN steps; empty for the default. The build argument `BUILDKIT_SANDBOX_HOSTNAME` wins.
    pub hostname: String,
    /// Resource limits of RUN steps.
    pub ulimits: Vec<Ulimit>,
    /// What control groups bound of RUN steps. It is not part of any cache key.
    pub resources: Option<Arc<StepResources>>,
    /// The cgroup below which RUN steps are put; empty for the default.
    pub cgroup_parent: String,
    /// The size of `/dev/shm` of RUN steps in bytes.
    pub shm_size: Option<u64>,
    /// Devices of all RUN steps.
    pub devices: Vec<CdiDevice>,
    /// What stands before the ids of cache mounts, so that builds with different ones share no folder. The build
    /// argument `BUILDKIT_CACHE_MOUNT_NS` wins.
    pub cache_mount_namespace: String,
    /// What triggers (ONBUILD) of base images may use; nothing of it unless it is said here (A41).
    pub allow_in_triggers: BTreeSet<TriggerRight>,
    /// Whether somebody lists the software of the result, and may be shown more than that.
    pub scans: bool,
}

impl LowerOptions {
    /// A plain build for a platform.
    pub fn new(platform: Platform) -> Self {
        Self {
            target: None,
            build_args: BTreeMap::new(),
            labels: Vec::new(),
            build_platform: platform.clone(),
            platform,
            platform_requested: false,
            no_cache: false,
            no_cache_stages: Vec::new(),
            pull: false,
            network: NetworkMode::Default,
            main_context: NamedContext::Local { name: "context".to_owned(), exclude: Vec::new() },
            named_contexts: BTreeMap::new(),
            proxy_env: Vec::new(),
            source_date_epoch: None,
            source_time: SourceTime::Unasked,
            multi_platform: false,
            extra_hosts: Vec::new(),
            hostname: String::new(),
            ulimits: Vec::new(),
            resources: None,
            cgroup_parent: String::new(),
            shm_size: None,
            devices: Vec::new(),
            cache_mount_namespace: String::new(),
            allow_in_triggers: BTreeSet::new(),
            scans: false,
        }
    }
}

impl LowerOptions {
    /// The patterns of the main context's ignore file.
    pub(crate) fn ignore_patterns(&self) -> &[String] {
        match &self.main_context {
            NamedContext::Local { exclude, .. } => exclude,
            _ => &[],
        }
    }
}

/// The time of the source that [`Lowered::NeedTime`] asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SourceTime {
    /// Nobody has asked for it yet.
    #[default]
    Unasked,
    /// The source has none: a file that the server does not date and that is no archive.
    None,
    /// Seconds since the epoch.
    Seconds(i64),
}

/// What a build gives to steps that its author wrote, and to triggers of base images only when told so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TriggerRight {
    /// `RUN --mount=type=secret`.
    Secret,
    /// `RUN --mount=type=ssh`.
    Ssh,
    /// `RUN --network=host`.
    HostNetwork,
    /// `RUN --security=insecure`.
    Insecure,
    /// `RUN --device`.
    Device,
}

impl TriggerRight {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Secret, Self::Ssh, Self::HostNetwork, Self::Insecure, Self::Device];

    /// Its name for users, which for entitlements is theirs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Secret => "secret",
            Self::Ssh => "ssh",
            Self::HostNetwork => "network.host",
            Self::Insecure => "security.insecure",
            Self::Device => "device",
        }
    }
}

/// What a step needs that whoever asks for the build must have allowed (`--allow`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Entitlement {
    /// `network.host`: the host's network.
    NetworkHost,
    /// `security.insecure`: all privileges.
    SecurityInsecure,
    /// `device`: the device of that CDI name.
    Device(String),
}

impl std::fmt::Display for Entitlement {
    /// As `--allow` takes it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NetworkHost => f.write_str("network.host"),
            Self::SecurityInsecure => f.write_str("security.insecure"),
            Self::Device(name) => write!(f, "device={name}"),
        }
    }
}

/// A step that needs an entitlement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntitlementUse {
    /// What it needs.
    pub entitlement: Entitlement,
    /// The flag that says so, else the instruction.
    pub span: Span,
}

/// Files that stand for a stage, an image or a context of that name (`--build-context`), or that are the main
/// context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamedContext {
    /// A folder.
    Local {
        /// The context's name in the session.
        name: String,
        /// The patterns of its ignore file.
        exclude: Vec<String>,
    },
    /// An image.
    Image(Reference),
    /// An image in an OCI layout folder.
    OciLayout {
        /// The name of the layout folder in the session.
        name: String,
        /// The tag within the layout.
        tag: Option<String>,
        /// The digest within the layout.
        digest: Option<Digest>,
    },
    /// A revision of a Git repository. Its files get the times of the commit where the source says so; a main context
    /// does with `SOURCE_DATE_EPOCH`, which whoever makes the source decides.
    Git(GitSource),
    /// A file from a web server: an archive (tar, plain or compressed) becomes its files, anything else one file.
    Http(HttpSource),
    /// A stage of the Dockerfile, or another named context (`target:name`).
    Stage(String),
    /// No files at all (`docker-image://scratch`).
    Scratch,
    /// What another graph makes.
    Graph(GraphInput),
}

/// A graph that stands for a context. Cheap to clone.
#[derive(Clone, Debug)]
pub struct GraphInput(Arc<(Graph, Option<ImageConfig>)>);

impl GraphInput {
    /// What the goal of a graph makes, and the config of the image that it is, where it is one.
    pub fn new(graph: Graph, config: Option<ImageConfig>) -> Self {
        Self(Arc::new((graph, config)))
    }

    /// The graph.
    pub fn graph(&self) -> &Graph {
        &self.0.0
    }

    /// The config.
    pub fn config(&self) -> Option<&ImageConfig> {
        self.0.1.as_ref()
    }
}

impl PartialEq for GraphInput {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for GraphInput {}

/// An image whose digest and config decide how the Dockerfile is lowered.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ImageKey {
    /// Where it comes from.
    pub source: ImageKeySource,
    /// The platform that is wanted.
    pub platform: Platform,
}

/// Where an image comes from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ImageKeySource {
    /// The local store or a registry.
    Image(Reference),
    /// An OCI layout folder of the session.
    OciLayout {
        /// The name of the layout folder in the session.
        name: String,
        /// The tag within the layout.
        tag: Option<String>,
        /// The digest within the layout.
        digest: Option<Digest>,
    },
}

/// Asks for the digest and config of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRequest {
    /// Which image.
    pub key: ImageKey,
    /// Where the Dockerfile names it first.
    pub span: Span,
    /// What users see while it is looked up, `[internal] load metadata for docker.io/library/alpine:latest`.
    pub step: String,
}

/// What is known of an image.
#[derive(Clone, Debug, PartialEq)]
pub struct ResolvedImage {
    /// The digest of the manifest for the platform (not of an index).
    pub digest: Digest,
    /// Its config.
    pub config: ImageConfig,
    /// What stands in its place, where a policy says that something else does.
    pub replaced: Option<SourceOp>,
}

/// The images that are known so far.
pub type ResolvedImages = BTreeMap<ImageKey, ResolvedImage>;

/// What a turn of [`lower`](crate::lower()) came to.
#[derive(Clone, Debug)]
pub enum Lowered {
    /// These images must be resolved before the next turn. Never empty, never one that was given.
    Need(Vec<ImageRequest>),
    /// `SOURCE_DATE_EPOCH` names a source: its time must be put into [`LowerOptions::source_time`] before the next
    /// turn. Asked for once, before any image.
    NeedTime(Box<TimeRequest>),
    /// Done.
    Done(Box<LoweredImage>),
}

/// Asks for the time of a source: when the commit was made; what the server says of the file (`Last-Modified`), else
/// the newest regular file of the archive that it is, else none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimeRequest {
    /// The source: [`SourceOp::Git`] or [`SourceOp::Http`].
    pub source: SourceOp,
    /// What users see while it is looked up.
    pub step: String,
    /// The ADD that it stands in; `None` where no line is to blame.
    pub span: Option<Span>,
}

/// A Dockerfile as a graph, and the config of the image that it makes.
#[derive(Clone, Debug)]
pub struct LoweredImage {
    /// The steps; its goal is the image's file system.
    pub graph: Graph,
    /// The config without `created` and `rootfs.diff_ids`. The base's history comes first; each new entry
    /// without `empty_layer` stands for one layer on top of the base, in order.
    pub config: ImageConfig,
    /// How many entries of `config.history` come from the base image.
    pub base_history: usize,
    /// The base image that the target's chain of stages starts from; `None` for scratch and folders.
    pub base: Option<ImageKey>,
    /// What the checks found, in the order of the file.
    pub warnings: Vec<Warning>,
    /// Build arguments that no ARG asked for, sorted.
    pub unused_build_args: Vec<String>,
    /// The contexts of the session (folders and layouts) that the goal needs, sorted; `context` is the main one.
    pub context_names_used: Vec<String>,
    /// `SOURCE_DATE_EPOCH` as it came to hold.
    pub source_date_epoch: Option<i64>,
    /// The triggers (ONBUILD) that base images brought in, in order, for the user to see.
    pub triggers: Vec<String>,
    /// What the steps need that must be allowed, in the order of the file; empty for most builds.
    pub entitlements: Vec<EntitlementUse>,
    /// Stages and contexts besides the result that scanners are shown, by name.
    pub scanned: Vec<(String, Edge)>,
}
