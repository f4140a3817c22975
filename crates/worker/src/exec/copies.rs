//! Copies of selected paths as trees of their own: what mounts show of a context, and what caches begin with.

use crate::WorkError;
use crate::content;
use crate::context_files::ContextFiles;
use crate::file::{self, FileError, Made};
use crate::results::{digested_tree, source_tree};
use crate::source_tree::{SourceKind, SourceTree, Stop};
use forge_cache::{ResultRef, SelectedPath, Selector};
use forge_llb::{CopyAction, FileAction, FileInput, FileKind, FileOp};
use forge_session::{ContextPath, Session};
use forge_store::{ActiveLayer, ContentDigest, LayerId, Lease, Store};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::SystemTime;

/// The name under which a copy lies in its layer.
pub(super) const ROOT: &str = "selected";

/// What is copied.
pub(super) struct Source<'a> {
    pub store: &'a Store,
    pub lease: &'a Lease,
    pub session: &'a Arc<dyn Session>,
    pub contexts: &'a ContextFiles,
    pub input: &'a ResultRef,
    pub path: &'a str,
}

impl Source<'_> {
    /// What the path holds, links at its end followed.
    pub(super) fn digest(&self) -> Result<ContentDigest, WorkError> {
        let tree = digested_tree(self.store, self.input, self.session)?;
        let selector = Selector { paths: vec![SelectedPath::new(self.path)], ..Selector::all() };
        let selection = self.contexts.select(self.input, &tree, &selector.paths[0])?;
        Ok(content::digest(std::iter::once(&*selection), &selector, tree.keeps_owners()))
    }

    /// A layer in which [`ROOT`] is a copy of the path.
    pub(super) fn copy(&self) -> Result<ActiveLayer, WorkError> {
        Ok(self.make()?.active)
    }

    fn make(&self) -> Result<Made, WorkError> {
        let tree = source_tree(self.store, self.input, self.session)?;
        let root = RootMetadata::of(&tree, self.path)?;
        let copy = CopyAction {
            allow_wildcard: false,
            ..CopyAction::new(FileInput::Input(0), vec![self.path.to_owned()], format!("/{ROOT}"))
        };
        let op = FileOp { actions: vec![FileAction { base: FileInput::Scratch, kind: FileKind::Copy(copy) }] };
        let (results, stop) = (vec![self.input.clone()], Stop(self.session.clone()));
        let inputs = file::Inputs { results, trees: vec![tree], contexts: self.contexts, stop };
        let made = file::execute(&op, self.store, self.lease, &inputs, SystemTime::now())?;
        root.apply(&made.active)?;
        Ok(made)
    }

    /// The layer that [`Source::copy`] makes, kept, and made only once for the same content.
    pub(super) fn layer(&self) -> Result<LayerId, WorkError> {
        let digest = self.digest()?;
        if let Some(layer) = self.store.selection(&digest, self.lease)? {
            return Ok(layer);
        }
        let layer = self.make()?.commit(self.store, self.lease)?.id;
        self.store.keep_selection(&digest, &layer)?;
        Ok(layer)
    }
}

/// Owner and permissions of the folder that is selected: copying gives its children only.
enum RootMetadata {
    Folder { mode: u32, uid: u32, gid: u32 },
    Other,
}

impl RootMetadata {
    fn of(tree: &SourceTree, path: &str) -> Result<Self, WorkError> {
        let entry = tree.follow(&ContextPath::clean(path)).map_err(FileError::from)?;
        Ok(match entry {
            Some(entry) if entry.kind == SourceKind::Directory => {
                Self::Folder { mode: entry.mode & 0o7777, uid: entry.uid, gid: entry.gid }
            }
            _ => Self::Other,
        })
    }

    fn apply(&self, active: &ActiveLayer) -> Result<(), WorkError> {
        let Self::Folder { mode, uid, gid } = self else { return Ok(()) };
        let folder = active.upper().join(ROOT);
        let failed = |source| super::ExecError::Seed { source };
        // An empty selection makes no folder.
        std::fs::create_dir_all(&folder).map_err(failed)?;
        std::os::unix::fs::lchown(&folder, Some(*uid), Some(*gid)).map_err(failed)?;
        std::fs::set_permissions(&folder, Permissions::from_mode(*mode)).map_err(failed)?;
        Ok(())
    }
}
