//! Where files come from: one file for each kind of source, behind one trait.
//!
//! A source is *pinned* when its cache key is made: what it is now (a manifest, a commit, the digest of a file) is found
//! out then, remembered for the build, and is what its snapshot holds, or the step fails (A111).

mod auth;
mod blob;
mod download;
pub(crate) mod error;
mod file_name;
mod git;
mod http;
mod image;
mod local;
mod single_file;
mod time;

use crate::error::WorkError;
use crate::images::ImageResolver;
use async_trait::async_trait;
use forge_cache::{OpKey, ResultRef, SqliteIndex};
use forge_executor::Executor;
use forge_image::{Digest, Platform};
use forge_llb::SourceOp;
use forge_session::Session;
use forge_solver::CacheMap;
use forge_store::{Lease, Store};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

/// What a source stands for now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceState {
    /// Files of whoever asked for the build: nobody else can tell what they were.
    Context,
    /// The manifest of an image.
    Image(Digest),
    /// The digest of a file.
    File(Digest),
    /// A commit.
    Commit(String),
}

/// What can be told of a source without its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceFacts {
    /// A file of a web server.
    File {
        /// Its digest.
        digest: Digest,
        /// Its name.
        name: String,
        /// When it was changed.
        modified: Option<SystemTime>,
    },
    /// A revision of a repository.
    Revision {
        /// What the reference leads to: a commit, or an annotated tag.
        object: String,
        /// The commit, where that is a tag.
        commit: Option<String>,
        /// The full name of the reference.
        name: String,
        /// The bytes of the commit and of the tag, where they are wanted.
        objects: Option<(Vec<u8>, Option<Vec<u8>>)>,
    },
    /// Nothing.
    Nothing,
}

/// Whether the objects of a revision are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadObjects {
    /// They are.
    Yes,
    /// They are not: no more than names is asked for.
    No,
}

/// Who asks a source, and for which vertex: progress is reported under it.
pub(crate) struct Asked<'a> {
    pub vertex: Digest,
    pub session: &'a Arc<dyn Session>,
}

/// Something that files come from.
#[async_trait]
pub(crate) trait Source: Send + Sync {
    /// Finds out what it is now, and says what that is worth as a key.
    async fn cache_map(&self, asked: &Asked<'_>) -> Result<CacheMap, WorkError>;

    /// What it stands for, found out once in a build.
    async fn state(&self, asked: &Asked<'_>) -> Result<SourceState, WorkError>;

    /// Brings in what [`Source::cache_map`] found.
    async fn snapshot(&self, asked: &Asked<'_>) -> Result<ResultRef, WorkError>;

    /// What can be told of it.
    async fn facts(&self, _objects: ReadObjects, _asked: &Asked<'_>) -> Result<SourceFacts, WorkError> {
        Ok(SourceFacts::Nothing)
    }

    /// When its files were made, where it says so (`SOURCE_DATE_EPOCH=context`).
    async fn time(&self, _asked: &Asked<'_>) -> Result<Option<SystemTime>, WorkError> {
        Ok(None)
    }
}

/// What sources work with, and what they found so far in this build.
pub(crate) struct Sources {
    pub store: Store,
    pub lease: Arc<Lease>,
    pub executor: Arc<dyn Executor>,
    pub images: Arc<ImageResolver>,
    /// Remembers downloads from build to build.
    pub index: OnceLock<Arc<SqliteIndex>>,
    downloads: http::Downloads,
    commits: git::Commits,
}

impl Sources {
    pub(crate) fn new(
        store: Store,
        lease: Arc<Lease>,
        executor: Arc<dyn Executor>,
        images: Arc<ImageResolver>,
    ) -> Self {
        let (downloads, commits) = Default::default();
        Self { store, lease, executor, images, index: OnceLock::new(), downloads, commits }
    }

    /// The source that an op names.
    pub(crate) fn get<'a>(&'a self, op: &'a SourceOp, platform: Option<&'a Platform>) -> Box<dyn Source + 'a> {
        match op {
            SourceOp::Local(op) => Box::new(local::Local { op }),
            SourceOp::Image(op) => Box::new(image::Image { sources: self, op, platform }),
            SourceOp::OciLayout(op) => Box::new(image::Layout { sources: self, op, platform }),
            SourceOp::Git(op) => Box::new(git::Git { sources: self, op }),
            SourceOp::Http(op) => Box::new(http::Http { sources: self, op }),
            SourceOp::Blob(op) => Box::new(blob::Blob { sources: self, op }),
        }
    }
}

/// The key of what was found on a server.
fn remote_key<const N: usize>(key: &str, readable: [(&str, String); N]) -> CacheMap {
    CacheMap {
        op: Some(OpKey::new(key.as_bytes())),
        inputs: Vec::new(),
        readable: readable.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        beneath: None,
        cacheable: true,
    }
}
