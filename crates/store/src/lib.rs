//! Bytes by digest and file trees by id: blobs, layers, image names, leases, garbage collection.
//!
//! Several processes use one store at the same time. Metadata lives in SQLite (WAL mode, `BEGIN IMMEDIATE`), files
//! come into place by rename, what must be exclusive is held with `flock`, and whatever a running build uses is held by a
//! [`Lease`]. All calls block; an async caller moves them to a thread for blocking work.
//!
//! The crate knows nothing of registries, Dockerfiles, graphs or cache keys. It never mounts anything and never runs a
//! process.
//!
//! ```text
//! <root>/                 0700, one owner
//!   FORMAT                version, owner and id maps of the store; the last file written when a store is made
//!   forge.db              SQLite: every record
//!   blobs/<algorithm>/<hex>
//!   layers/<id>/          `tree/` in overlayfs's own format, `index`, and `origin` of a foreign one
//!   names/<blake3>        a name and what it stands for, should the database be lost
//!   cache-mounts/<name>/  what cache mounts of steps show
//!   scratch/<owner>/<n>   private folders of one process, removed with it
//!   locks/<blake3>        one file for each named lock
//!   leases/<owner>        held with flock as long as that process has the store open
//! ```
//!
//! A record never exists before the bytes that it names; a file without a record is garbage.
//!
//! Reading order: [`Store`]; [`Blobs`], [`BlobWriter`]; [`LayerId`], [`LayerRecord`], [`Layers`]; [`Image`], [`Target`],
//! [`Images`]; [`CacheMounts`]; [`Lease`], [`LockGuard`], [`ScratchDir`]; [`Collected`], [`Usage`]; [`Verification`],
//! [`Finding`], [`Repair`]; [`StoreError`].
#![warn(missing_docs)]
#![forbid(unsafe_code)]

mod arriving;
mod background;
mod blobs;
mod cache_mounts;
mod collect;
mod database;
mod error;
mod file_system;
mod file_times;
mod format;
mod ids;
mod image_lookup;
mod image_rows;
mod images;
mod layer_rows;
mod layers;
mod lease;
mod left_over;
mod lock;
mod name_files;
mod opened;
mod owner;
mod rebuild;
mod remote_rows;
mod removal;
mod schema;
mod scratch;
mod selections;
mod store;
#[cfg(test)]
mod tests;
mod tree_size;
mod usage;
mod verify;

pub use arriving::BlobFollower;
pub use blobs::{BlobWriter, Blobs};
pub use cache_mounts::{CacheMountFound, CacheMountGuard, CacheMountKey, CacheMountRecord, CacheMountUse, CacheMounts};
pub use collect::Collected;
pub use error::StoreError;
pub use file_times::FileTimes;
pub use ids::{Compression, ContentDigest, IdError, LayerBlob, LayerId, LayerOutline, LayerRecord, TarOptions};
pub use images::{Found, Image, Images, Target};
pub use layers::{
    ActiveLayer, Adoption, EntryKind, Extracted, KnownFile, KnownFiles, LayerEntry, LayerError, LayerIndex, Layers,
    LowerDirs, MergedTree, Metadata, Pack, PackContents, PackWriter, PackedBytes, PackedEntry, TableOfContents,
    TreeEntry, TreeFault, TreeFile, TreeFolder, TreeKind, UnpackLimits, path_order,
};
pub use lease::Lease;
pub use left_over::left_over;
pub use lock::LockGuard;
pub use opened::Belongings;
pub use rebuild::Rebuilt;
pub use remote_rows::RemoteLayer;
pub use removal::remove_folder;
pub use scratch::ScratchDir;
pub use store::Store;
pub use usage::{Usage, UsageEntry};
pub use verify::{BlobFault, Finding, LayerFault, Repair, Verification, VerifyDepth};
