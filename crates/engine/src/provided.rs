//! A session with contexts of the builder's own beside those of whoever asked for the build.

use crate::EngineError;
use async_trait::async_trait;
use forge_image::{Digest, ErrorKind};
use forge_session::{
    Context, ContextEntry, ContextError, ContextPath, ContextSelection, CredentialError, Credentials, EntryKind,
    EventSink, FileStamp, RegistryToken, Secret, SecretError, Session, TokenRequest,
};
use forge_store::{MergedTree, TreeEntry, TreeKind};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Answers for some contexts itself, and hands everything else on.
pub(crate) struct ProvidedContexts {
    pub session: Arc<dyn Session>,
    pub contexts: BTreeMap<String, Arc<dyn Context>>,
}

#[async_trait]
impl Session for ProvidedContexts {
    fn context(&self, name: &str) -> Option<Arc<dyn Context>> {
        self.contexts.get(name).cloned().or_else(|| self.session.context(name))
    }

    async fn fetch_context(&self, wanted: &ContextSelection<'_>) -> Result<(), ContextError> {
        match self.contexts.contains_key(wanted.name) {
            true => Ok(()),
            false => self.session.fetch_context(wanted).await,
        }
    }

    fn selected_context(&self, wanted: &ContextSelection<'_>) -> Option<Arc<dyn Context>> {
        self.contexts.get(wanted.name).cloned().or_else(|| self.session.selected_context(wanted))
    }

    async fn layout(&self, name: &str, digest: &Digest) -> Result<Option<PathBuf>, ContextError> {
        self.session.layout(name, digest).await
    }

    fn upload(&self, address: &str) -> std::io::Result<Option<Box<dyn std::io::Read + Send>>> {
        self.session.upload(address)
    }

    async fn credentials(&self, registry: &str) -> Result<Option<Credentials>, CredentialError> {
        self.session.credentials(registry).await
    }

    async fn token(&self, wanted: &TokenRequest<'_>) -> Result<Option<RegistryToken>, CredentialError> {
        self.session.token(wanted).await
    }

    fn owner(&self) -> &str {
        self.session.owner()
    }

    async fn secret(&self, id: &str) -> Result<Option<Secret>, SecretError> {
        self.session.secret(id).await
    }

    async fn ssh_agent(&self, id: &str) -> Result<Option<OwnedFd>, SecretError> {
        self.session.ssh_agent(id).await
    }

    fn has_raw_sockets(&self) -> bool {
        self.session.has_raw_sockets()
    }

    fn events(&self) -> &dyn EventSink {
        self.session.events()
    }

    fn cancellation(&self) -> &CancellationToken {
        self.session.cancellation()
    }
}

/// The files of a result as a context. They never change.
pub(crate) struct TreeContext {
    pub tree: MergedTree,
    /// Of its layers, so that the same files are known again.
    pub identity: String,
}

impl TreeContext {
    fn failed(path: &ContextPath, error: impl std::error::Error + Send + Sync + 'static) -> ContextError {
        ContextError::Read { path: path.display().into_owned(), source: io::Error::other(error) }
    }
}

/// A folder of a context.
pub(crate) struct Below {
    whole: Arc<dyn Context>,
    folder: ContextPath,
}

impl Below {
    /// The folder at a path, links followed inside the context.
    pub(crate) fn open(whole: Arc<dyn Context>, path: &str) -> Result<Self, EngineError> {
        let refused =
            |what: &str| EngineError::new(ErrorKind::UserInput, format!("the context's folder {path:?} {what}"));
        let found = whole.follow(&ContextPath::clean(path));
        let found = found.map_err(|error| EngineError::caused(ErrorKind::UserInput, error))?;
        match found {
            Some(entry) if entry.kind == EntryKind::Directory => Ok(Self { whole, folder: entry.path }),
            Some(_) => Err(refused("is no folder")),
            None => Err(refused("is not there")),
        }
    }

    fn whole_path(&self, path: &ContextPath) -> ContextPath {
        ContextPath::clean([self.folder.as_bytes(), b"/", path.as_bytes()].concat())
    }

    fn shown(&self, entry: ContextEntry) -> ContextEntry {
        let path = entry.path.as_bytes();
        let path = ContextPath::clean(path.strip_prefix(self.folder.as_bytes()).unwrap_or(path));
        ContextEntry { path, ..entry }
    }
}

impl Context for Below {
    fn identity(&self) -> String {
        format!("{}/{}", self.whole.identity(), self.folder.display())
    }

    fn stat(&self, path: &ContextPath) -> Result<Option<ContextEntry>, ContextError> {
        Ok(self.whole.stat(&self.whole_path(path))?.map(|entry| self.shown(entry)))
    }

    fn children(&self, path: &ContextPath) -> Result<Vec<ContextEntry>, ContextError> {
        let children = self.whole.children(&self.whole_path(path))?;
        Ok(children.into_iter().map(|entry| self.shown(entry)).collect())
    }

    fn open(&self, path: &ContextPath) -> Result<File, ContextError> {
        self.whole.open(&self.whole_path(path))
    }
}

fn absolute(path: &ContextPath) -> PathBuf {
    Path::new("/").join(path.as_path())
}

fn entry(entry: &TreeEntry) -> ContextEntry {
    let kind = match &entry.kind {
        TreeKind::File { size } => EntryKind::File { size: *size },
        TreeKind::Directory => EntryKind::Directory,
        TreeKind::Symlink { target } => EntryKind::Symlink { target: target.as_bytes().to_vec() },
        TreeKind::CharDevice { .. } | TreeKind::BlockDevice { .. } | TreeKind::Fifo | TreeKind::Socket => {
            EntryKind::Special
        }
    };
    let (seconds, nanos) = entry.mtime;
    let stamp = FileStamp {
        mtime_ns: i128::from(seconds) * 1_000_000_000 + i128::from(nanos),
        ctime_ns: 0,
        inode: entry.inode.1,
        device: entry.inode.0,
    };
    let path = ContextPath::clean(entry.path.as_os_str().as_bytes());
    let is_linked = matches!(kind, EntryKind::File { .. }) && entry.links > 1;
    ContextEntry { path, kind, mode: entry.mode, uid: entry.uid, gid: entry.gid, stamp, is_linked }
}

impl Context for TreeContext {
    fn identity(&self) -> String {
        self.identity.clone()
    }

    fn stat(&self, path: &ContextPath) -> Result<Option<ContextEntry>, ContextError> {
        let found = self.tree.lookup(&absolute(path)).map_err(|error| Self::failed(path, error))?;
        Ok(found.as_ref().map(entry))
    }

    fn children(&self, path: &ContextPath) -> Result<Vec<ContextEntry>, ContextError> {
        let children = self.tree.children(&absolute(path)).map_err(|error| Self::failed(path, error))?;
        Ok(children.iter().map(entry).collect())
    }

    fn open(&self, path: &ContextPath) -> Result<File, ContextError> {
        let resolved = self.tree.resolve(&absolute(path)).map_err(|error| Self::failed(path, error))?;
        self.tree.open(&resolved).map_err(|error| Self::failed(path, error))
    }
}
