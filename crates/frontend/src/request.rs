use crate::{Span, Warning};
use forge_image::{Digest, ImageConfig, Platform, Reference};
use forge_llb::{ExtraHost, Graph, NetworkMode};
use std::collections::BTreeMap;

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
    /// The platform that the build runs on (`BUILDPLATFORM`).
    pub build_platform: Platform,
    /// Whether no step takes its result from the cache.
    pub no_cache: bool,
    /// Whether images are looked up in the registry even when they are in the store.
    pub pull: bool,
    /// The network of RUN steps that do not ask for one.
    pub network: NetworkMode,
    /// The patterns of the main context's ignore file.
    pub ignore_patterns: Vec<String>,
    /// `--build-context`, by name; `name::os/arch` applies to that platform only and comes first.
    pub named_contexts: BTreeMap<String, NamedContext>,
    /// Proxy settings of the caller, `KEY=value`, for RUN steps. They are not part of any cache key. Build
    /// arguments of those names win.
    pub proxy_env: Vec<String>,
    /// Seconds since the epoch for all times in the image. The build argument `SOURCE_DATE_EPOCH` wins.
    pub source_date_epoch: Option<i64>,
    /// Whether several platforms are built, so that step names say which.
    pub multi_platform: bool,
    /// Further lines of `/etc/hosts` of RUN steps.
    pub extra_hosts: Vec<ExtraHost>,
    /// The host name of RUN steps; empty for the default.
    pub hostname: String,
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
            no_cache: false,
            pull: false,
            network: NetworkMode::Default,
            ignore_patterns: Vec::new(),
            named_contexts: BTreeMap::new(),
            proxy_env: Vec::new(),
            source_date_epoch: None,
            multi_platform: false,
            extra_hosts: Vec::new(),
            hostname: String::new(),
        }
    }
}

/// What stands for a stage, an image or a context of that name (`--build-context`).
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
}

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
}

/// The images that are known so far.
pub type ResolvedImages = BTreeMap<ImageKey, ResolvedImage>;

/// What a turn of [`lower`](crate::lower()) came to.
#[derive(Clone, Debug)]
pub enum Lowered {
    /// These images must be resolved before the next turn. Never empty, never one that was given.
    Need(Vec<ImageRequest>),
    /// Done.
    Done(Box<LoweredImage>),
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
    /// The contexts of the session that the goal needs, sorted; `context` is the main one.
    pub context_names_used: Vec<String>,
    /// `SOURCE_DATE_EPOCH` as it came to hold.
    pub source_date_epoch: Option<i64>,
    /// The triggers (ONBUILD) that base images brought in, in order, for the user to see.
    pub triggers: Vec<String>,
}
