use forge_image::{Digest, DocumentError, ErrorKind, ImageId, Platform, Reference};
use forge_registry::{FetchError, RegistryError};
use forge_store::{LayerId, StoreError};
use std::path::PathBuf;

/// Why an image could not be assembled, written or read.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The store failed.
    #[error("cannot {action}")]
    Store {
        /// What was being done.
        action: &'static str,
        /// The cause.
        source: StoreError,
    },
    /// A registry failed.
    #[error("cannot push {reference}")]
    Registry {
        /// The name that was being pushed.
        reference: Box<Reference>,
        /// The cause.
        source: Box<RegistryError>,
    },
    /// A layer that is in a registry only cannot be had from there.
    #[error("cannot fetch a layer from {reference}")]
    Fetch {
        /// The repository.
        reference: Box<Reference>,
        /// The cause.
        source: Box<FetchError>,
    },
    /// Layers that are in registries only cannot be had from there.
    #[error("cannot fetch layers that are not here")]
    FetchLayers {
        /// The cause.
        source: Box<FetchError>,
    },
    /// A registry says that it took another manifest than it was sent.
    #[error("{reference}: the registry answered {answered} to manifest {pushed}")]
    PushedDigest {
        /// The name that was being pushed.
        reference: Box<Reference>,
        /// What was sent.
        pushed: Digest,
        /// What the registry says.
        answered: Digest,
    },
    /// An image of an archive is not what it says it is.
    #[error("cannot load {archive}")]
    Load {
        /// What was being read.
        archive: String,
        /// The cause.
        source: Box<FetchError>,
    },
    /// A file of the destination cannot be written.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The stream that an archive is written to failed.
    #[error("cannot write the archive")]
    WriteStream(
        /// The cause.
        #[source]
        std::io::Error,
    ),
    /// The stream that an archive is read from failed or is no archive.
    #[error("cannot read the archive")]
    ReadStream(
        /// The cause.
        #[source]
        std::io::Error,
    ),
    /// An archive breaks a rule.
    #[error("invalid archive: {reason}")]
    Archive {
        /// Which rule.
        reason: String,
    },
    /// A document of an archive or of the store cannot be read.
    #[error("cannot read {what}")]
    Document {
        /// What it was taken for.
        what: String,
        /// The cause.
        source: DocumentError,
    },
    /// An archive exceeds a limit of [`LoadLimits`](crate::LoadLimits).
    #[error("archive has more than {limit} {what}")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// A loaded archive would move a name that points at another image (A45).
    #[error("{name} already names image {}; the archive has image {}", existing.digest().short(), loaded.digest().short())]
    NameTaken {
        /// The name.
        name: Box<Reference>,
        /// The image it points at.
        existing: ImageId,
        /// The image of the archive.
        loaded: ImageId,
    },
    /// The history of a config names more layers than the image has.
    #[error("the image's history names {history} layers, but it has {layers}")]
    History {
        /// Entries that are not empty.
        history: usize,
        /// Layers.
        layers: usize,
    },
    /// A config lists another number of layers than the image has.
    #[error("image {image} lists {diff_ids} layers in its config, but has {layers}")]
    LayerCount {
        /// The image.
        image: ImageId,
        /// Number of entries in `rootfs.diff_ids`.
        diff_ids: usize,
        /// Number of layers.
        layers: usize,
    },
    /// A layer that an image needs is no longer in the store.
    #[error("layer {layer} is no longer in the store")]
    LayerGone {
        /// The layer.
        layer: LayerId,
    },
    /// A blob that an image needs is no longer in the store.
    #[error("blob {digest} is no longer in the store")]
    BlobGone {
        /// The blob.
        digest: Digest,
    },
    /// No tar dialect of a stored layer gives the DiffId that the config lists.
    #[error("layer {layer} does not have the digest {diff_id} that the image lists")]
    DiffIdMismatch {
        /// The layer.
        layer: LayerId,
        /// The digest listed.
        diff_id: Digest,
    },
    /// An image is no longer in the store.
    #[error("image {image} is no longer in the store")]
    ImageGone {
        /// The image.
        image: ImageId,
    },
    /// The epoch is before 1970 or after 9999.
    #[error("SOURCE_DATE_EPOCH {seconds} is not between 1970 and 9999")]
    Epoch {
        /// Its value.
        seconds: i64,
    },
    /// Two settings exclude each other.
    #[error("{first} cannot be combined with {second}")]
    Conflict {
        /// One of them.
        first: &'static str,
        /// The other.
        second: &'static str,
    },
    /// A format cannot hold several platforms.
    #[error("the {format} format holds images of one platform only, not of {}", list(platforms))]
    SeveralPlatforms {
        /// The format.
        format: &'static str,
        /// The platforms.
        platforms: Vec<Platform>,
    },
    /// Two platforms would be written into the same folder.
    #[error("two platforms would both be written into the folder {folder:?}")]
    PlatformFolder {
        /// The folder.
        folder: String,
    },
    /// Two platforms that are not kept apart have a file of the same path.
    #[error("two platforms have a file {}, and they are written into one folder", path.display())]
    SamePath {
        /// The path.
        path: PathBuf,
    },
    /// Everything that an image does not have would be removed from the root of this machine.
    #[error("the root of the file system is not emptied for an image")]
    WouldEmptyRoot,
    /// An annotation was asked for in an index, but the result has none.
    #[error("index annotations not supported for single platform export: {key:?}")]
    NoIndex {
        /// The annotation's key.
        key: String,
    },
    /// Another container engine of this machine cannot be reached.
    #[error("cannot reach {engine}")]
    EngineAbsent {
        /// Its name.
        engine: &'static str,
        /// The cause.
        source: std::io::Error,
    },
    /// Another container engine of this machine does not take an image.
    #[error("{engine} refused the image: {message}")]
    RefusedByEngine {
        /// Its name.
        engine: &'static str,
        /// What it said.
        message: String,
    },
    /// What is said of an image is no JSON.
    #[error("cannot read a predicate: it is no JSON")]
    Predicate {
        /// Where the parser stopped.
        source: serde_json::Error,
    },
    /// Two statements would be the same file.
    #[error("duplicate attestation path name {name}")]
    StatementName {
        /// The file.
        name: String,
    },
    /// The build was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// A name in a file tree cannot be a file name.
    #[error("the image has a file named {name:?}, which cannot be written")]
    FileName {
        /// The name, escaped.
        name: String,
    },
    /// An annotation is meant for a place that an index does not have.
    #[error("annotation {key:?} has no place in an index: `index` and `manifest-descriptor` annotations do")]
    AnnotationPlace {
        /// Its key.
        key: String,
    },
    /// What an index is to be made of lacks a platform.
    #[error("no source has an image for {platform}")]
    NoPlatform {
        /// The platform.
        platform: Platform,
    },
    /// There is nothing to be pushed or written.
    #[error("{what}")]
    Nothing {
        /// What is missing.
        what: &'static str,
    },
    /// A thread of ours ended with a panic.
    #[error("a worker thread failed")]
    Thread(
        /// The cause.
        #[source]
        tokio::task::JoinError,
    ),
}

impl ExportError {
    /// Who is to blame.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Store { source, .. } => source.kind(),
            Self::Registry { source, .. } => source.kind(),
            Self::Fetch { source, .. } | Self::FetchLayers { source } => source.kind(),
            Self::PushedDigest { .. } => ErrorKind::Remote,
            Self::Load { source, .. } => source.kind(),
            Self::Write { .. } | Self::WriteStream(_) | Self::ReadStream(_) => ErrorKind::Environment,
            Self::EngineAbsent { .. } | Self::RefusedByEngine { .. } => ErrorKind::Environment,
            Self::LayerGone { .. } | Self::BlobGone { .. } | Self::ImageGone { .. } => ErrorKind::Environment,
            Self::Archive { .. } | Self::Document { .. } | Self::TooLarge { .. } | Self::NameTaken { .. } => {
                ErrorKind::UserInput
            }
            Self::History { .. } | Self::LayerCount { .. } => ErrorKind::UserInput,
            Self::Epoch { .. } | Self::Conflict { .. } | Self::PlatformFolder { .. } | Self::NoIndex { .. } => {
                ErrorKind::UserInput
            }
            Self::FileName { .. } | Self::Nothing { .. } => ErrorKind::UserInput,
            Self::Predicate { .. } | Self::StatementName { .. } => ErrorKind::UserInput,
            Self::SamePath { .. } | Self::WouldEmptyRoot => ErrorKind::UserInput,
            Self::AnnotationPlace { .. } | Self::NoPlatform { .. } => ErrorKind::UserInput,
            Self::SeveralPlatforms { .. } => ErrorKind::Unsupported,
            Self::Cancelled => ErrorKind::Cancelled,
            Self::DiffIdMismatch { .. } | Self::Thread(_) => ErrorKind::Internal,
        }
    }

    /// What the user may do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NameTaken { .. } => {
                Some("remove the name first, or ask for existing names to be replaced".to_owned())
            }
            Self::SeveralPlatforms { .. } => Some("use the OCI format, which holds an index".to_owned()),
            Self::SamePath { .. } => Some("leave platform-split on, which gives each platform a folder".to_owned()),
            Self::WouldEmptyRoot => Some("write with mode=copy, or name another folder".to_owned()),
            Self::EngineAbsent { engine, .. } => Some(match *engine {
                "docker" => "start docker, or name its socket: DOCKER_HOST=unix://PATH".to_owned(),
                "podman" => {
                    "install podman, start podman.socket, or name its socket: CONTAINER_HOST=unix://PATH".to_owned()
                }
                _ => "install ctr, which comes with containerd".to_owned(),
            }),
            Self::Store { source, .. } => source.hint().map(str::to_owned),
            Self::Registry { source, .. } => source.hint(),
            Self::Fetch { source, .. } | Self::FetchLayers { source } => source.hint(),
            Self::Load { source, .. } => source.hint(),
            _ => None,
        }
    }

    pub(crate) fn store(action: &'static str) -> impl FnOnce(StoreError) -> Self {
        move |source| Self::Store { action, source }
    }
}

fn list(platforms: &[Platform]) -> String {
    platforms.iter().map(Platform::to_string).collect::<Vec<_>>().join(", ")
}
