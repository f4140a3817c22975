//! Turns what a build made, or what the store holds, into an image and writes it somewhere: the store, an OCI
//! layout, a docker archive, a folder, a plain tar, a registry; and reads archives back in.
//!
//! The crate knows nothing of Dockerfiles, graphs, caches or command lines: it is handed layers and a config.
//! One image is always the same three things, whatever it is written to: layers by DiffId, a config that lists
//! them, a manifest that lists the blobs. Bytes depend on nothing but the layers, the config and the settings:
//! no clock, no order of directory entries, no number of cores.
//!
//! Reading order: [`BuiltImage`], [`ExportSettings`]; [`assemble`] makes an [`AssembledImage`] of them; the
//! writers [`to_store`], [`to_oci`], [`to_docker`], [`to_local`], [`to_tar`], [`push`] answer with [`Exported`];
//! [`save`] writes images of the store with the same code, [`load`] reads them back.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod error;
mod exported;
mod image;
mod settings;

pub use error::ExportError;
pub use exported::{Exported, ExportedImage};
pub use image::{AssembledImage, AssembledLayer, BuiltImage};
pub use settings::{Annotation, AnnotationScope, ExportSettings};
