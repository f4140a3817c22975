use crate::RegistryError;
use crate::resolve_image::MAX_LAYERS;
use forge_image::{Digest, DocumentError, ErrorKind, MediaType, Reference};
use forge_store::StoreError;
use std::path::PathBuf;

const ABSENT_HINT: &str = "only its digest is known here; a build with --pull takes what the registry has now";

/// Why an image could not be brought into the store.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The registry failed or lied.
    #[error(transparent)]
    Registry(Box<RegistryError>),
    /// The store failed.
    #[error("cannot {action}")]
    Store {
        /// What was being done.
        action: &'static str,
        /// The cause.
        source: StoreError,
    },
    /// A place that is no registry failed.
    #[error("{place}")]
    Elsewhere {
        /// What was asked.
        place: String,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A manifest, index or config is malformed.
    #[error("cannot read {digest}")]
    Document {
        /// The document.
        digest: Digest,
        /// The cause.
        source: DocumentError,
    },
    /// A document says that it is larger than allowed.
    #[error("document {digest} has {size} bytes, more than the {limit} allowed")]
    DocumentSize {
        /// The document.
        digest: Digest,
        /// Its size by its descriptor.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// Bytes do not have the digest or size that their descriptor says.
    #[error("expected {expected} with {expected_size} bytes, got {actual} with {actual_size} bytes")]
    Mismatch {
        /// The digest asked for.
        expected: Digest,
        /// The size asked for.
        expected_size: u64,
        /// The digest of what came.
        actual: Digest,
        /// The size of what came.
        actual_size: u64,
    },
    /// Indexes are nested too deep, or too many entries are in them.
    #[error("image index is too large or nested too deep")]
    IndexLimit,
    /// What was found is no image.
    #[error("{digest} is no container image: its media type is {media_type}")]
    NotAnImage {
        /// What was found.
        digest: Digest,
        /// Its type.
        media_type: MediaType,
    },
    /// The config and the manifest disagree about the number of layers, or there are too many.
    #[error("config lists {diff_ids} layers, the manifest {layers}; at most {MAX_LAYERS} are possible")]
    LayerCount {
        /// In the config.
        diff_ids: usize,
        /// In the manifest.
        layers: usize,
    },
    /// A layer is of a kind that forge cannot unpack.
    #[error("layer {digest} has the unsupported media type {media_type}")]
    LayerType {
        /// The layer.
        digest: Digest,
        /// Its type.
        media_type: MediaType,
    },
    /// A file of an OCI layout cannot be read.
    #[error("cannot read {path}")]
    LayoutFile {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A folder is no OCI layout.
    #[error("{path} is no OCI image layout: {reason}")]
    LayoutFormat {
        /// The folder.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// An OCI layout has no image of that name.
    #[error("{path} has no image {wanted}; it has {}", list(available))]
    LayoutName {
        /// The folder.
        path: PathBuf,
        /// What was asked for.
        wanted: String,
        /// The names it has.
        available: Vec<String>,
    },
    /// A blob that an image needs is not there.
    #[error("blob {digest} is missing")]
    BlobMissing {
        /// The blob.
        digest: Digest,
    },
    /// A layer that nobody needed so far cannot be had now.
    #[error("cannot fetch layer {blob} of {repository}, which nothing needed before")]
    Absent {
        /// The layer's blob.
        blob: Digest,
        /// The repository that had it.
        repository: Box<Reference>,
        /// The cause.
        source: Box<FetchError>,
    },
    /// The build was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// A thread of ours ended with a panic.
    #[error("a worker thread failed")]
    Thread(#[source] tokio::task::JoinError),
}

fn list(names: &[String]) -> String {
    match names {
        [] => "none with a name".to_owned(),
        names => names.join(", "),
    }
}

impl From<RegistryError> for FetchError {
    fn from(source: RegistryError) -> Self {
        Self::Registry(Box::new(source))
    }
}

impl FetchError {
    /// Who is to blame.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Registry(source) => source.kind(),
            Self::Store { source, .. } => source.kind(),
            Self::Absent { source, .. } => source.kind(),
            Self::Elsewhere { .. } | Self::Document { .. } | Self::DocumentSize { .. } | Self::Mismatch { .. } => {
                ErrorKind::Remote
            }
            Self::IndexLimit | Self::LayerCount { .. } | Self::BlobMissing { .. } => ErrorKind::Remote,
            Self::NotAnImage { .. } | Self::LayerType { .. } => ErrorKind::Unsupported,
            Self::LayoutFile { .. } => ErrorKind::Environment,
            Self::LayoutFormat { .. } | Self::LayoutName { .. } => ErrorKind::UserInput,
            Self::Cancelled => ErrorKind::Cancelled,
            Self::Thread(_) => ErrorKind::Internal,
        }
    }

    /// What the user may do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Registry(source) => source.hint(),
            Self::Absent { source, .. } => source.hint().or_else(|| Some(ABSENT_HINT.to_owned())),
            Self::Store { source, .. } => source.hint().map(str::to_owned),
            _ => None,
        }
    }

    /// A place that is no registry failed.
    pub fn elsewhere(place: impl Into<String>, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Elsewhere { place: place.into(), source: Box::new(source) }
    }

    pub(crate) fn store(action: &'static str) -> impl FnOnce(StoreError) -> Self {
        move |source| Self::Store { action, source }
    }
}
