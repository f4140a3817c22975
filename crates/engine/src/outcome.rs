use forge_cache::{Policy, Reason};
use forge_image::{Descriptor, Digest, ImageConfig, ImageId, Platform, Reference};
use forge_session::WarningNotice;
use std::time::SystemTime;

/// What a build came to.
#[derive(Clone, Debug, Default)]
pub struct BuildOutcome {
    /// The image ID, or the digest of the index for several platforms; `None` where no image was made.
    pub image: Option<Digest>,
    /// The manifest or index, where one was written.
    pub descriptor: Option<Descriptor>,
    /// The names that now stand for it.
    pub names: Vec<Reference>,
    /// What `--metadata-file` holds, in order: `containerimage.digest` and so on.
    pub metadata: Vec<(String, serde_json::Value)>,
    /// The remarks of the build checks, in order.
    pub warnings: Vec<WarningNotice>,
    /// How many steps ran and how many came from the cache.
    pub steps: StepCounts,
    /// What was not as isolated or bounded as it could be, one line each.
    pub notices: Vec<String>,
}

/// How many steps of a build did what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepCounts {
    /// Steps that ran.
    pub executed: usize,
    /// Steps whose result came from the cache.
    pub cached: usize,
}

/// One row of `forge images`.
#[derive(Clone, Debug)]
pub struct ImageSummary {
    /// The name; `None` for a dangling image.
    pub name: Option<Reference>,
    /// The image ID (the index's digest for several platforms).
    pub id: Digest,
    /// When it says it was made, RFC 3339.
    pub created: Option<String>,
    /// Unpacked bytes of all its layers.
    pub bytes: u64,
    /// The platforms.
    pub platforms: Vec<Platform>,
    /// Its manifest's or index's digest, where one exists.
    pub digest: Option<Digest>,
}

/// One image in full.
#[derive(Clone, Debug)]
pub struct ImageDetails {
    /// The image ID.
    pub id: ImageId,
    /// The names, docker's `RepoTags`.
    pub names: Vec<Reference>,
    /// Names with digests, docker's `RepoDigests`.
    pub digests: Vec<Reference>,
    /// The config document.
    pub config: ImageConfig,
    /// The manifest, where one exists.
    pub manifest: Option<Descriptor>,
    /// Unpacked bytes of all layers.
    pub bytes: u64,
    /// When it came into the store.
    pub stored: SystemTime,
}

/// One row of `forge history`, newest first.
#[derive(Clone, Debug)]
pub struct HistoryRow {
    /// The image ID for the newest row, `None` (docker: `<missing>`) otherwise.
    pub id: Option<ImageId>,
    /// When, RFC 3339.
    pub created: Option<String>,
    /// The instruction.
    pub created_by: String,
    /// Unpacked bytes of the layer.
    pub bytes: u64,
    /// The remark.
    pub comment: String,
}

/// What `rmi` did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removal {
    /// A name was taken away.
    Untagged(Reference),
    /// An image was removed.
    Deleted(ImageId),
}

/// What `pull` did.
#[derive(Clone, Debug)]
pub struct PullOutcome {
    /// The name.
    pub reference: Reference,
    /// The digest that the name stands for at the registry.
    pub digest: Digest,
    /// The image ID.
    pub id: ImageId,
    /// Whether the store lacked it.
    pub fetched: bool,
}

/// What `push` did.
#[derive(Clone, Debug)]
pub struct PushOutcome {
    /// The name.
    pub reference: Reference,
    /// The manifest or index at the registry.
    pub descriptor: Descriptor,
}

/// What `load` did with one image of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Loaded {
    /// The name now stands for the image.
    Named(Reference),
    /// The image had no name, or none that could be used.
    Unnamed(ImageId),
}

impl BuildOutcome {
    /// The same with one more line for the user.
    pub(crate) fn with_notice(mut self, notice: Option<String>) -> Self {
        self.notices.extend(notice);
        self
    }
}

/// One row of `forge du`.
#[derive(Clone, Debug)]
pub struct UsageRow {
    /// The cache record's key or layer's id.
    pub id: String,
    /// What it is: `regular`, `source.image`, …
    pub kind: String,
    /// What made it.
    pub description: String,
    /// Bytes on disk.
    pub bytes: u64,
    /// Whether a running forge uses it.
    pub in_use: bool,
    /// Whether an image needs it too.
    pub shared: bool,
    /// When it was last used.
    pub last_used: Option<SystemTime>,
    /// The ids of the records that made the layer below its own.
    pub parents: Vec<String>,
    /// Whether steps write to it.
    pub mutable: bool,
    /// Why `prune` removes it.
    pub reason: Option<Reason>,
}

/// What `prune` is to remove.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PruneRequest {
    /// What goes of the cache. Without `all` and without a filter, cache mounts stay.
    pub policy: Policy,
    /// Removes nothing, and says what would be.
    pub dry_run: bool,
}

/// What `du` found.
#[derive(Clone, Debug, Default)]
pub struct UsageReport {
    /// One row for each cache record, largest first.
    pub rows: Vec<UsageRow>,
    /// Bytes of everything in the store.
    pub total: u64,
    /// Bytes that `prune -a` would free.
    pub reclaimable: u64,
}

/// What `prune` removed.
#[derive(Clone, Debug, Default)]
pub struct PruneReport {
    /// One row for each record.
    pub removed: Vec<UsageRow>,
    /// Dangling images that were removed.
    pub images: Vec<ImageId>,
    /// Bytes that became free.
    pub bytes: u64,
    /// Bytes beyond a limit that are in use or too new to go.
    pub over: u64,
}

/// What `info` shows.
#[derive(Clone, Debug)]
pub struct EngineInfo {
    /// The store's root folder.
    pub root: std::path::PathBuf,
    /// The file system type of the store.
    pub file_system: String,
    /// How many images there are.
    pub images: u64,
    /// How many layers there are.
    pub layers: u64,
    /// Bytes of everything in the store.
    pub bytes: u64,
    /// The platform steps run on.
    pub platform: Platform,
    /// The kernel's release.
    pub kernel: String,
    /// What is not set up or not enforced on this machine, one line each.
    pub notices: Vec<String>,
}

/// How a container ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunOutcome {
    /// The exit code as docker passes it on: the process's own, or 128 + the signal's number.
    pub code: i32,
    /// The limit of memory that was reached, if the kernel ended it for that.
    pub memory_limit: Option<u64>,
}
