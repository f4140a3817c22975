//! Where a build's result goes, and in which form.

use forge_exporter::{
    Annotation, AttestationForm, ExistingBlobs, FolderMode, Nondistributable, PlatformFolders, Recipient,
};
use forge_image::Reference;
use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

/// Where a result goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// An image in the local store, and in its registry where `push` is set.
    Image(ImageOutput),
    /// An OCI image layout.
    Oci(ImageOutput, Destination),
    /// An archive as `docker save` writes it.
    Docker(ImageOutput, Destination),
    /// The files of the result in a folder.
    Local(FilesOutput, FolderMode, PathBuf),
    /// The files of the result as a tar stream.
    Tar(FilesOutput, Destination),
    /// An image for another container engine of this machine.
    Handed(ImageOutput, Recipient),
    /// Nothing: the result stays in the cache.
    CacheOnly,
}

/// How an image is written. What is said of layers, documents or digests (all but `names`, `push`, `keep`) has the manifest
/// made at once; otherwise an image in the local store has none before it leaves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageOutput {
    /// Names besides those of the request.
    pub names: Vec<Reference>,
    /// Names by digest that it gets too.
    pub digest_names: DigestNames,
    /// Whether the image is pushed under all its names.
    pub push: Push,
    /// Whether the local store keeps it.
    pub keep: Keep,
    /// The compression of forge's own layers; gzip where `None`.
    pub compression: Option<LayerCompression>,
    /// Whether base layers are converted too.
    pub force_compression: bool,
    /// The media types of its documents and layers.
    pub media_types: MediaTypes,
    /// Annotations of manifests, indexes and what points at them.
    pub annotations: Vec<Annotation>,
    /// The times in it.
    pub times: Times,
    /// What becomes of blobs that layers have already, where no compression is asked for.
    pub existing_blobs: ExistingBlobs,
    /// What becomes of layers that their makers do not want to be handed on.
    pub nondistributable: Nondistributable,
    /// The form of manifests with statements about it.
    pub attestation_form: AttestationForm,
}

/// How an image is pushed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Push {
    /// Not at all.
    #[default]
    No,
    /// Under its names.
    Names(Transport),
    /// By its digest alone: names must have no tag, and none is moved.
    Digest(Transport),
}

/// How the registry of an output is spoken to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// As the configuration says.
    #[default]
    Configured,
    /// By plain HTTP (`registry.insecure`).
    Plain,
}

impl Push {
    /// Whether anything is pushed.
    pub fn is_wanted(&self) -> bool {
        *self != Self::No
    }

    /// The transport of what is pushed.
    pub(crate) fn transport(&self) -> Option<Transport> {
        match self {
            Self::No => None,
            Self::Names(transport) | Self::Digest(transport) => Some(*transport),
        }
    }
}

/// Whether the local store keeps an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keep {
    /// Under its names.
    #[default]
    Named,
    /// Under its names, with the manifest that it would leave with: its layers are compressed now.
    Manifest,
    /// Not (`store=false`): the layers stay in the cache.
    Nothing,
}

/// Names of an image that end in its digest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DigestNames {
    /// `name@digest` for each of its names (`name-canonical`).
    pub canonical: bool,
    /// `prefix@digest` (`dangling-name-prefix`).
    pub prefix: Option<Reference>,
    /// The prefix only serves an image without any other name (`danging-name-empty-only`).
    pub prefix_only_without_names: bool,
}

/// The vocabulary of media types.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MediaTypes {
    /// That of the OCI image specification.
    #[default]
    Oci,
    /// docker's schema 2.
    Docker,
}

/// What nothing in an output is later than.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Epoch {
    /// `SOURCE_DATE_EPOCH` of the build, where it has one.
    #[default]
    OfBuild,
    /// Times are as they are, whatever the build has.
    Unset,
    /// Seconds since 1970.
    At(i64),
}

impl Epoch {
    /// That of an output of a build with this one.
    #[must_use]
    pub fn with(self, build: Option<i64>) -> Option<i64> {
        match self {
            Self::OfBuild => build,
            Self::Unset => None,
            Self::At(seconds) => Some(seconds),
        }
    }
}

/// The times in an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// What nothing in it is later than.
    pub epoch: Epoch,
    /// Whether the times of files are changed too; where `None`, they are if there is an epoch.
    pub rewrite: Option<bool>,
}

/// How the files of a result are written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FilesOutput {
    /// What all files have for a time.
    pub epoch: Epoch,
    /// Whether each platform gets a folder; where `None`, if there are several.
    pub folders: Option<PlatformFolders>,
    /// What stands before the names of files with statements.
    pub attestation_prefix: String,
}

/// How layers are compressed when they leave the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerCompression {
    /// Not at all.
    Uncompressed,
    /// gzip with a level from 0 to 9.
    Gzip(Option<u32>),
    /// zstd with a table of contents for lazy pullers (podman's).
    ZstdChunked(Option<i32>),
    /// gzip with a table of contents for lazy pullers.
    Estargz(Option<u32>),
    /// zstd with a level from 0 to 22.
    Zstd(Option<i32>),
}

/// Where bytes go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// A file, replaced atomically.
    File(PathBuf),
    /// A folder (`tar=false`).
    Directory(PathBuf),
    /// Standard output.
    Stdout,
    /// Somebody who takes the bytes as they come.
    Stream(OutputStream),
}

/// A stream that one output is written to. Copies share it.
#[derive(Clone)]
pub struct OutputStream(Arc<Mutex<Option<Opening>>>);

/// Opens a stream once it is known what will be told of the image.
type Open = dyn FnOnce(&Metadata) -> io::Result<Box<dyn Write + Send>> + Send;

/// What a stream is had from.
enum Opening {
    Open(Box<dyn Write + Send>),
    Later(Box<Open>),
}

/// What is told of an image, as in `--metadata-file`.
pub type Metadata = serde_json::Map<String, serde_json::Value>;

impl OutputStream {
    /// Hands over a stream. It is flushed and dropped when everything is written.
    pub fn new(stream: impl Write + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(Some(Opening::Open(Box::new(stream))))))
    }

    /// The same for a stream that is opened when it is known what will be written: the metadata of an OCI layout, nothing of
    /// anything else. It is opened on a thread that may block.
    pub fn opening(open: impl FnOnce(&Metadata) -> io::Result<Box<dyn Write + Send>> + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(Some(Opening::Later(Box::new(open))))))
    }

    /// Whether somebody wants to know what will be written.
    pub(crate) fn wants_metadata(&self) -> bool {
        matches!(&*self.0.lock().expect("no holder panics"), Some(Opening::Later(_)))
    }

    /// The stream, for the first who asks.
    pub(crate) fn take(&self, metadata: &Metadata) -> io::Result<Option<Box<dyn Write + Send>>> {
        let opening = self.0.lock().expect("no holder panics").take();
        match opening {
            Some(Opening::Open(stream)) => Ok(Some(stream)),
            Some(Opening::Later(open)) => open(metadata).map(Some),
            None => Ok(None),
        }
    }
}

impl fmt::Debug for OutputStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OutputStream")
    }
}

impl PartialEq for OutputStream {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for OutputStream {}
