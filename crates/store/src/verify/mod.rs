//! Whether the store is what its records say, and what to do where it is not.

mod find;
mod repair;

pub(crate) use find::verify;
pub(crate) use repair::repair;

use crate::LayerId;
use crate::layers::TreeFault;
use forge_image::{Digest, ImageId, Reference};
use std::path::PathBuf;

/// How closely to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerifyDepth {
    /// Records, the files that they name, sizes, and the checksums of indexes.
    Records,
    /// Every byte as well.
    Bytes,
}

/// What was looked at, and what is wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verification {
    /// How many blobs have a record.
    pub blobs: u64,
    /// How many layers have a record.
    pub layers: u64,
    /// How many images have a record.
    pub images: u64,
    /// How many bytes were read to be compared with a hash.
    pub bytes: u64,
    /// What is wrong; empty for a store that is whole.
    pub findings: Vec<Finding>,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// SQLite finds its file damaged.
    Database {
        /// What it says, one line for each damage.
        report: String,
    },
    /// A blob that has a record.
    Blob {
        /// Its digest.
        digest: Digest,
        /// What is wrong with it.
        fault: BlobFault,
    },
    /// A layer that has a record.
    Layer {
        /// Which one.
        id: LayerId,
        /// What is wrong with it.
        fault: LayerFault,
    },
    /// An image whose config, manifest or layer is not in the store.
    Image {
        /// Which one.
        id: ImageId,
        /// What it lacks, as people read it.
        lacks: String,
    },
    /// A name whose index or image is not in the store.
    Name {
        /// Which one.
        name: Reference,
        /// What it lacks, as people read it.
        lacks: String,
    },
    /// A file or folder that no record names and nobody works on.
    Stray {
        /// Where it lies, relative to the store's root.
        path: PathBuf,
    },
}

/// What is wrong with a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlobFault {
    /// There is no file.
    Missing,
    /// The file has another length.
    Size {
        /// What the record says.
        expected: u64,
        /// What it has.
        actual: u64,
    },
    /// The file's bytes hash to something else.
    Bytes {
        /// To what.
        actual: Digest,
    },
    /// The file cannot be read.
    Unreadable {
        /// The operating system's answer.
        reason: String,
    },
}

/// What is wrong with a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LayerFault {
    /// There is no folder with its tree.
    NoTree,
    /// Its index is absent, or not the one that was written.
    Index,
    /// Its tree is not what its index says.
    Tree {
        /// Where; never empty.
        faults: Vec<TreeFault>,
    },
    /// Its tree cannot be read.
    Unreadable {
        /// The operating system's answer.
        reason: String,
    },
}

/// What a repair took out of the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Repair {
    /// Layers that were dropped: builds make them again.
    pub layers: Vec<LayerId>,
    /// Blobs that were dropped.
    pub blobs: Vec<Digest>,
    /// Images that were dropped, with the names that stood for them alone: to be pulled or built again.
    pub images: Vec<(ImageId, Vec<Reference>)>,
    /// Where a damaged database lies now; whoever opens the store next makes a new one of what is on disk.
    pub database: Option<PathBuf>,
    /// Files without a record that were removed.
    pub strays: Vec<PathBuf>,
}
