//! The nouns of the OCI image specification, as values.
//!
//! Everything else in forge speaks in these types. This crate does no I/O and knows nothing of registries,
//! stores or builds. JSON documents keep the fields they do not know, in their order, so that a document that
//! was read and written again has the same digest.
//!
//! Reading order: [`Digest`], [`DiffId`], [`ChainId`], [`ImageId`]; [`Platform`]; [`Reference`];
//! [`MediaType`], [`Descriptor`]; [`ImageConfig`]; [`Manifest`], [`Index`]; [`ErrorKind`].
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod config;
mod digest;
mod error_kind;
mod manifest;
mod media_type;
mod platform;
mod reference;

pub use config::{ContainerConfig, Healthcheck, HistoryEntry, ImageConfig, RootFs};
pub use digest::{ChainId, DiffId, Digest, DigestError, Hasher, ImageId};
pub use error_kind::{ErrorKind, chain};
pub use manifest::{Annotations, Descriptor, DocumentError, Index, Manifest};
pub use media_type::MediaType;
pub use platform::{Platform, PlatformError};
pub use reference::{Reference, ReferenceError};
