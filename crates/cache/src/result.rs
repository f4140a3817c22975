use crate::{CacheError, Listing};
use async_trait::async_trait;
use forge_session::Session;
use forge_store::{ContentDigest, LayerId};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A handle to a result: a file tree that somebody keeps. Plain data, the same in every process.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResultRef {
    /// A stack of layers, lowest first; no layer at all is the empty file system.
    Layers(Vec<LayerId>),
    /// Files of the session, read where they are. Never kept beyond the build.
    Context {
        /// The context's name.
        name: String,
        /// Patterns of what there is at all; none for everything.
        include: Vec<String>,
        /// Patterns of what is left out.
        exclude: Vec<String>,
        /// The paths that a client was asked for, which sent no more; none for everything.
        #[serde(default)]
        follow: Vec<String>,
        /// Where set, the client sent only these files, and of others what they are.
        #[serde(default)]
        metadata_only: Option<Vec<String>>,
    },
}

impl ResultRef {
    /// The empty file system.
    pub fn scratch() -> Self {
        Self::Layers(Vec::new())
    }

    /// The layers that it needs.
    pub fn layers(&self) -> &[LayerId] {
        match self {
            Self::Layers(layers) => layers,
            Self::Context { .. } => &[],
        }
    }
}

/// What the top-most layer of a result amounts to, when it was made just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MadeLayer {
    /// Its content.
    pub content: ContentDigest,
    /// The bytes of its files.
    pub bytes: u64,
}

/// A path of a result that an op reads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SelectedPath {
    /// The path, or a pattern where `wildcard` is set.
    pub path: String,
    /// Whether `path` is a pattern of Go's `filepath.Match`.
    pub wildcard: bool,
    /// Whether a symbolic link in the last component is followed.
    pub follow: bool,
    /// Patterns of what is read below it, as in an ignore file; none for everything.
    pub include: Vec<String>,
    /// Patterns of what is left out below it, as in an ignore file.
    pub exclude: Vec<String>,
    /// Patterns of which each must be matched by something below it.
    pub required: Vec<String>,
}

impl SelectedPath {
    /// Everything at and below one path, a link in its last component followed.
    pub fn new(path: impl Into<String>) -> Self {
        let (include, exclude, required) = (Vec::new(), Vec::new(), Vec::new());
        Self { path: path.into(), wildcard: false, follow: true, include, exclude, required }
    }
}

/// What an op can see of an input.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Selector {
    /// The paths that are read; none for the whole tree.
    pub paths: Vec<SelectedPath>,
    /// Whether owners make no difference, because the op overrides them.
    pub ignore_owner: bool,
    /// Whether permission bits make no difference, because the op overrides them.
    pub ignore_mode: bool,
}

impl Selector {
    /// The whole tree.
    pub fn all() -> Self {
        Self::default()
    }
}

/// Answers for results: whether they are still there, and what is in them.
#[async_trait]
pub trait ResultStore: Send + Sync {
    /// Keeps a result from being collected until the build has ended; `false` if it is gone (then a record that
    /// names it is no hit). A result of an earlier boot is verified first. Idempotent.
    ///
    /// # Errors
    /// The store cannot be read.
    async fn acquire(&self, result: &ResultRef) -> Result<bool, CacheError>;

    /// Gives up a result that was made just now and that nobody else knows: an earlier one takes its place. What cannot
    /// be removed at once is left to the next collection.
    ///
    /// # Errors
    /// The store cannot be written.
    async fn discard(&self, _result: &ResultRef) -> Result<(), CacheError> {
        Ok(())
    }

    /// What a selector with paths shows of a result, entry by entry: for saying later what changed. Cheap where
    /// [`ResultStore::content_digest`] was asked for the same before. `None` where the store keeps no such lists.
    ///
    /// # Errors
    /// The result cannot be read.
    async fn listing(
        &self,
        _result: &ResultRef,
        _selector: &Selector,
        _session: &Arc<dyn Session>,
    ) -> Result<Option<Listing>, CacheError> {
        Ok(None)
    }

    /// The digest of what a selector shows of a result: names, types, modes, owners, link targets, attributes,
    /// bytes, and the times that steps set. Ends soon after the session is cancelled, with [`CacheError::Cancelled`].
    ///
    /// # Errors
    /// The result cannot be read.
    async fn content_digest(
        &self,
        result: &ResultRef,
        selector: &Selector,
        session: &Arc<dyn Session>,
    ) -> Result<ContentDigest, CacheError>;
}
