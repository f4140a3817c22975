//! What a build is handed by whoever asked for it: files, secrets, credentials, a place for events, a way to stop.
//!
//! The crate knows nothing of graphs, images in stores or terminals. A session may be in this process or at the
//! far end of a connection; nothing in these traits lets a caller tell.
//!
//! Reading order: [`Session`], [`ContextSelection`]; [`Context`], [`ContextEntry`], [`ContextPath`], [`LocalContext`]; [`Credentials`], [`TokenRequest`]; [`Secret`];
//! [`BlobFolder`]; [`SingleFlight`]; [`at_once`]; [`Event`], [`EventSink`]; [`PatternMatcher`].
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod at_once;
mod blob_folder;
mod context;
mod credentials;
mod event;
mod local_context;
mod patterns;
mod secret;
mod single_flight;

pub use at_once::at_once;
pub use blob_folder::BlobFolder;
pub use context::{Context, ContextEntry, ContextError, ContextPath, EntryKind, FileStamp};
pub use credentials::{CredentialError, Credentials, Redacted, RegistryToken, TokenRequest};
pub use event::{Event, EventSink, LogStream, ProgressGroup, SourceSpan, StatusUpdate, VertexUpdate, WarningNotice};
pub use local_context::{LocalContext, open_in_root};
pub use patterns::{PatternError, PatternMatcher};
pub use secret::{Secret, SecretError};
pub use single_flight::{SingleFlight, Turn};

use async_trait::async_trait;
use forge_image::Digest;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// A part of a file tree, by patterns as `.dockerignore` has them.
#[derive(Clone, Copy, Debug)]
pub struct ContextSelection<'a> {
    /// The name of the tree.
    pub name: &'a str,
    /// Only what matches is read; everything where empty.
    pub include: &'a [String],
    /// What matches is not read.
    pub exclude: &'a [String],
    /// Only these paths will be read, and what links among them lead to; everything that is selected where empty.
    pub follow: &'a [String],
    /// Where set, what files there are is told by one file, and only those that match come themselves.
    pub metadata_only: Option<&'a [String]>,
    /// Whether files that look the same as what came for an earlier build are the same.
    pub trusts_stamps: bool,
    /// Whom progress is reported for.
    pub vertex: Option<&'a Digest>,
}

impl<'a> ContextSelection<'a> {
    /// All of a tree.
    pub fn all(name: &'a str) -> Self {
        let (include, exclude, follow, metadata_only, vertex) = Default::default();
        Self { name, include, exclude, follow, metadata_only, trusts_stamps: true, vertex }
    }
}

/// Everything that a build may ask of whoever started it.
#[async_trait]
pub trait Session: Send + Sync {
    /// The file tree of that name: `context` is the main build context, others are named contexts.
    fn context(&self, name: &str) -> Option<Arc<dyn Context>>;

    /// Brings in what a step reads of a file tree that is elsewhere; [`Session::selected_context`] has it then. Nothing is
    /// to be done where files are read where they lie.
    ///
    /// # Errors
    /// There is no such tree, or it cannot be brought in.
    async fn fetch_context(&self, _wanted: &ContextSelection<'_>) -> Result<(), ContextError> {
        Ok(())
    }

    /// The file tree of that name, of which no more is read than what is selected.
    fn selected_context(&self, wanted: &ContextSelection<'_>) -> Option<Arc<dyn Context>> {
        self.context(wanted.name)
    }

    /// A folder with the OCI layout of that name, which has everything that a digest stands for; `None` where the session
    /// has no such layout. The folder stays until the session ends.
    ///
    /// # Errors
    /// It is there and cannot be brought in.
    async fn layout(&self, _name: &str, _digest: &Digest) -> Result<Option<PathBuf>, ContextError> {
        Ok(None)
    }

    /// The bytes that the session has for an address that is its own (`http://buildkit-session/…`), to be read on a thread that may
    /// block; `None` where it has none. They may be there once only.
    ///
    /// # Errors
    /// The address is none.
    fn upload(&self, _address: &str) -> std::io::Result<Option<Box<dyn std::io::Read + Send>>> {
        Ok(None)
    }

    /// The credentials for a registry's host (with port, as in a reference); `None` means anonymous.
    ///
    /// # Errors
    /// A credential helper failed, or the configuration cannot be read.
    async fn credentials(&self, registry: &str) -> Result<Option<Credentials>, CredentialError>;

    /// A token that whoever has the credentials fetches, so that nobody else needs to know these; `None` where they are to be
    /// asked for themselves. Asked only for where the credentials may be sent.
    ///
    /// # Errors
    /// The credentials cannot be read, or are refused.
    async fn token(&self, _wanted: &TokenRequest<'_>) -> Result<Option<RegistryToken>, CredentialError> {
        Ok(None)
    }

    /// Whose credentials these are: what a registry granted is shown for sessions of the same owner only.
    fn owner(&self) -> &str {
        ""
    }

    /// The secret of that id; `None` where the session has none.
    ///
    /// # Errors
    /// It is there and cannot be had.
    async fn secret(&self, id: &str) -> Result<Option<Secret>, SecretError>;

    /// A new connection to the SSH agent of that id (`default` is the usual one), speaking the agent protocol
    /// (draft-miller-ssh-agent); `None` where the session has none. What crosses it is not filtered here.
    ///
    /// # Errors
    /// It is there and does not answer.
    async fn ssh_agent(&self, id: &str) -> Result<Option<OwnedFd>, SecretError>;

    /// Whether [`ssh_agent`](Self::ssh_agent) may lead to what is no agent, a socket that speaks any language: whoever
    /// serves the session then guards its agents itself.
    fn has_raw_sockets(&self) -> bool {
        false
    }

    /// Where progress goes.
    fn events(&self) -> &dyn EventSink;

    /// Cancelled when the build is to stop: everything that runs for it must then end soon.
    fn cancellation(&self) -> &CancellationToken;

    /// Gives up the place that a step has among those that run at once, while it waits for what another one holds.
    /// Nothing where places are not counted.
    async fn leave_place(&self) {}

    /// Waits for a place again, or until the build is to stop.
    async fn take_place(&self) {}
}
