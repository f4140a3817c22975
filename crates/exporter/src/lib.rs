//! Turns what a build made, or what the store holds, into an image and writes it somewhere: the store, an OCI
//! layout, a docker archive, a folder, a plain tar, a registry; and reads archives back in.
//!
//! The crate knows nothing of Dockerfiles, graphs, caches or command lines: it is handed layers and a config.
//! One image is always the same three things, whatever it is written to: layers by DiffId, a config that lists
//! them, a manifest that lists the blobs. Bytes depend on nothing but the layers, the config and the settings:
//! no clock, no order of directory entries, no number of cores.
//!
//! Reading order: [`BuiltImage`], [`ExportSettings`]; [`assemble`] makes an [`AssembledImage`] of them, one or several
//! are an [`ImageSet`]; the writers [`to_store`], [`to_oci`], [`to_docker`], [`push`] (and [`push_layer`] ahead of it), [`hand_over`], and for a [`BuiltTree`]
//! [`to_local`] and [`to_tar`], answer with [`Exported`]; [`save`] writes images of the store with the same code,
//! [`load`] reads them back, [`unpack_layout`] puts a layout from elsewhere into a folder. [`Attestation`]s are what is said of an image beside it.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod archive;
mod assemble;
mod attestation;
mod compose;
mod docker_archive;
mod engine_api;
mod error;
mod exported;
mod hand_over;
mod image;
mod layout;
mod leaving_blob;
mod load;
mod local;
mod origins;
mod package;
mod push;
mod push_layer;
mod rootfs_tar;
mod save;
mod settings;
mod statement_files;
mod stored;
mod supplement;
mod surplus;
mod tar_stream;
mod timestamp;
mod tree;
mod unpack_layout;
mod work;

pub use archive::LoadLimits;
pub use assemble::{assemble, dated};
pub use attestation::{
    Attestation, AttestationForm, MakePredicate, Placement, Predicate, SPDX, Subject, package_url, with_qualifier,
};
pub use compose::{Composed, Part, Single, compose};
pub use docker_archive::to_docker;
pub use error::ExportError;
pub use exported::{Exported, ExportedImage};
pub use hand_over::{Recipient, hand_archive, hand_over};
pub use image::{AssembledImage, AssembledLayer, BuiltImage, MissingHistory};
pub use layout::{LayoutDestination, to_oci};
pub use load::{ExistingNames, LoadInput, Loaded, load};
pub use local::{FolderMode, to_local};
pub use package::ImageSet;
pub use push::{Pushed, push};
pub use push_layer::push_layer;
pub use rootfs_tar::to_tar;
pub use save::{ArchiveFormat, SavedImage, save};
pub use settings::{Annotation, AnnotationScope, ExistingBlobs, ExportSettings, Nondistributable};
pub use statement_files::{StatementFile, statement_files};
pub use stored::{package, to_store, to_store_packaged};
pub use tree::{BuiltTree, PlatformFolders};
pub use unpack_layout::unpack_layout;
