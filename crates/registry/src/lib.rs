//! The client of the OCI distribution protocol: what forge pulls from and pushes to registries.
//!
//! Knows nothing of builds, Dockerfiles or how images are put together: it moves manifests as bytes and blobs between
//! servers and the store, and believes no server. Everything is checked against digests and sizes here.
//!
//! Reading order: [`RegistryOptions`]; [`Registry`]; [`Document`], [`Pushed`], [`LoginOutcome`]; [`select_platform`];
//! [`DockerConfig`]; [`RegistryError`].
//!
//! # Why not `oci-client`
//! That crate was looked at (0.18) and is not used: it sends credentials to whatever token realm a registry names (A74),
//! reads answers into memory without a bound (A71), follows redirects by the HTTP library's rules rather than those
//! of A75, has one scheme, trust store and proxy for all hosts, no client certificates, no mirrors, and retries nothing.
//! What was left of it for forge were its types, and those are [`forge_image`]'s.
//!
//! # HTTP
//! HTTP/1.1 only: blobs come over parallel connections anyway, and the attacks on HTTP/2 framing (A79) have nothing
//! to attack. TLS by `rustls` with `ring`, names by `hickory`, so that a static binary needs no system library.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod credential_helper;
mod docker_config;
mod error;
mod http_date;
mod message;
mod options;
mod retry;
mod select;

pub use docker_config::DockerConfig;
pub use error::RegistryError;
pub use message::ServerMessage;
pub use options::{HostOptions, ProxyOptions, RegistryOptions, RetryPolicy, Timeouts};
pub use select::select_platform;

use forge_image::Descriptor;
use forge_session::Redacted;

/// A manifest or an index as it came: its bytes, and a descriptor whose digest and size are those of the bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// Media type, digest and size.
    pub descriptor: Descriptor,
    /// The bytes, unchanged.
    pub bytes: Vec<u8>,
}

/// How a blob came to be in a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It was there.
    Existed,
    /// The registry took it from another of its repositories.
    Mounted,
    /// Its bytes were sent.
    Uploaded,
}

/// What a registry said to credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoginOutcome {
    /// The registry took them. Where it gave a refresh token for them, that is to be kept instead of the password.
    Accepted {
        /// docker's `identitytoken`.
        identity_token: Option<Redacted>,
    },
    /// The registry lets everyone in without asking.
    NotRequired,
}
