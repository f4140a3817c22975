use forge_session::{Context, ContextEntry, ContextError, ContextPath, EntryKind};
use std::fs::File;
use std::sync::Arc;

/// Where the permission bits of context files come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ContextModes {
    /// From the disk, as in docker: two checkouts under another umask are two contexts.
    #[default]
    Disk,
    /// As git keeps them: 0755 for folders and programs, 0644 for everything else, owned by root.
    Git,
}

impl ContextModes {
    /// The files of a context as steps are to see them.
    pub(crate) fn of(self, context: Arc<dyn Context>) -> Arc<dyn Context> {
        match self {
            Self::Disk => context,
            Self::Git => Arc::new(GitModes(context)),
        }
    }
}

/// A context with the modes and owners that git keeps.
struct GitModes(Arc<dyn Context>);

/// git looks at the owner's bit alone (`create_ce_mode`).
fn as_in_git(entry: ContextEntry) -> ContextEntry {
    let mode = match entry.kind {
        EntryKind::File { .. } if entry.mode & 0o100 == 0 => 0o644,
        EntryKind::Symlink { .. } => 0o777,
        _ => 0o755,
    };
    ContextEntry { mode, uid: 0, gid: 0, ..entry }
}

impl Context for GitModes {
    fn identity(&self) -> String {
        // What files hashed to does not depend on their modes.
        self.0.identity()
    }

    fn stat(&self, path: &ContextPath) -> Result<Option<ContextEntry>, ContextError> {
        Ok(self.0.stat(path)?.map(as_in_git))
    }

    fn follow(&self, path: &ContextPath) -> Result<Option<ContextEntry>, ContextError> {
        Ok(self.0.follow(path)?.map(as_in_git))
    }

    fn children(&self, path: &ContextPath) -> Result<Vec<ContextEntry>, ContextError> {
        Ok(self.0.children(path)?.into_iter().map(as_in_git).collect())
    }

    fn open(&self, path: &ContextPath) -> Result<File, ContextError> {
        self.0.open(path)
    }
}
