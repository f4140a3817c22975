//! BuildKit's wire types, and the build graph to and from BuildKit's `pb.Definition`.
//!
//! A definition is a list of serialised ops, each known by the SHA-256 of its bytes, and what is known of them
//! besides (names, source positions, capabilities). [`encode`] writes a [`Graph`](forge_llb::Graph) as one, so that
//! BuildKit's tools can read it; [`decode`] reads one that a client of BuildKit made, and takes its bytes for hostile.
//! The crate opens nothing, solves nothing and knows no protocol: the messages of services are only passed on as
//! types. [`Serving`] alone answers: what everybody who serves says of that.
//!
//! What the two formats see differently:
//! - a copy in a definition has one source: [`encode`] writes a copy of several as a chain of copies;
//! - a path that a copy requires is below the root there, below the copy's source here;
//! - times are nanoseconds there and seconds here: fractions are cut off;
//! - an owner's name is looked up in an input there, in the changed tree here: another input is refused;
//! - user information of addresses is not written;
//! - passthrough operations, which are younger than the wire types, are read and not written;
//! - limits of steps, which are younger too, are a description of the vertex while they are in those types
//!   ([`with_described_resources`]);
//! - nested builds are replaced by what they make before a definition is read ([`nested_build`]);
//! - what forge cannot do (signatures, …) is refused by name.
//!
//! Reading order: [`pb`], [`encode`], [`SourceFile`]; [`decode`], [`Decoded`], [`DecodeError`]; [`json_lines`],
//! [`dot`].
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod attributes;
mod capabilities;
pub mod content;
mod decode;
mod dump;
mod encode;
mod error;
mod nested;
mod places;
mod resources;
#[cfg(feature = "grpc")]
mod serving;
pub mod telemetry;

pub use bollard_buildkit_proto::{fsutil, google, health, moby, pb};
pub use decode::{Decoded, check_in_place, decode, decode_exec, decode_source, definition, source_ops};
pub use dump::{StepList, dot, json_lines, step_list};
pub use encode::{EncodeError, EncodedGraph, encode, encode_named, encode_platform, encode_source, encode_vertex};
pub use error::DecodeError;
pub use nested::{NestedBuild, nested_build};
pub use places::without_empty_places;
pub use resources::{Holder, definition_bytes, limits_steps, with_described_resources};
#[cfg(feature = "grpc")]
pub use serving::Serving;

/// A file that steps of a definition come from, a Dockerfile.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceFile {
    /// The name, as the user knows it.
    pub name: String,
    /// The text; empty where it is not known.
    pub data: Vec<u8>,
    /// The language, `Dockerfile`.
    pub language: String,
    /// The result that it is read from, as the bytes of a definition; empty where it is none.
    pub definition: Vec<u8>,
}

/// The capabilities that a definition may ask for.
pub fn capabilities() -> &'static [&'static str] {
    capabilities::all()
}
