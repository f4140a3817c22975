//! Where a copy goes, and what it is given there.

use super::FileError;
use super::editor::EntryMetadata;
use super::mode::apply_symbolic;
use crate::selection::SelectedRoot;
use crate::source_tree::{SourceEntry, SourceKind};
use forge_llb::{CopyAction, ModeChange};
use forge_store::{MergedTree, TreeKind};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What an action says of the places and the metadata of what it copies.
#[derive(Clone, Copy)]
pub(super) struct Placing<'a> {
    pub action: &'a CopyAction,
    /// What `--chown` came to.
    pub owner: Option<(u32, u32)>,
    /// The time of folders that are made on the way.
    pub now: (i64, u32),
}

/// Where something that is not a folder goes.
pub(super) enum Place {
    /// Into a folder, under its own name.
    Within(PathBuf),
    /// Into a folder, under another name.
    Named(PathBuf, Box<OsStr>),
}

impl Placing<'_> {
    /// Where what is in a folder goes: to the destination, or to a folder of that name in it.
    pub(super) fn folder_destination(&self, tree: &MergedTree, root: &SelectedRoot) -> Result<PathBuf, FileError> {
        let resolved = tree.resolve(Path::new(&self.action.destination))?;
        let goes_inside = self.destination_is_folder() || tree.lookup(&resolved)?.is_some();
        match self.action.contents_only || root.name.is_empty() || !goes_inside {
            true => Ok(resolved),
            false => Ok(resolved.join(OsStr::from_bytes(&root.name))),
        }
    }

    /// Where a file goes: into the destination where that is a folder, else to that very name.
    pub(super) fn single_destination(&self, tree: &MergedTree) -> Result<Place, FileError> {
        let resolved = tree.resolve(Path::new(&self.action.destination))?;
        let is_folder = tree.lookup(&resolved)?.is_some_and(|entry| entry.kind == TreeKind::Directory);
        match (resolved.parent(), resolved.file_name()) {
            (Some(parent), Some(name)) if !is_folder && !self.destination_is_folder() => {
                Ok(Place::Named(parent.to_owned(), name.into()))
            }
            _ => Ok(Place::Within(resolved)),
        }
    }

    /// Whether the destination is written as a folder.
    pub(super) fn destination_is_folder(&self) -> bool {
        self.action.destination.ends_with('/') || self.action.destination.ends_with("/.")
    }

    /// What a folder that is copied gives the destination where that is made now: all it has, or its time alone where
    /// only what is in it is copied.
    pub(super) fn destination_metadata(&self, root: &SelectedRoot) -> Result<EntryMetadata, FileError> {
        let copied = self.metadata(&root.entry)?;
        match self.action.contents_only {
            true => Ok(EntryMetadata { mtime: copied.mtime, ..self.made_on_the_way() }),
            false => Ok(copied),
        }
    }

    /// What a copied entry is given.
    pub(super) fn metadata(&self, entry: &SourceEntry) -> Result<EntryMetadata, FileError> {
        let is_directory = entry.kind == SourceKind::Directory;
        let mode = match &self.action.mode {
            None => entry.mode,
            Some(ModeChange::Octal(bits)) => *bits,
            Some(ModeChange::Symbolic(text)) => apply_symbolic(text, entry.mode, is_directory)?,
        };
        let (uid, gid) = self.owner.unwrap_or((entry.uid, entry.gid));
        let mtime = self.action.timestamp.map_or(entry.mtime, |seconds| (seconds, 0));
        Ok(EntryMetadata { mode, uid, gid, mtime, xattrs: entry.xattrs().clone() })
    }

    /// What folders are given that the destination lacks.
    pub(super) fn made_on_the_way(&self) -> EntryMetadata {
        let (uid, gid) = self.owner.unwrap_or((0, 0));
        let mtime = self.action.timestamp.map_or(self.now, |seconds| (seconds, 0));
        let mode = match &self.action.mode {
            // Bits beside the permissions are for what is copied.
            Some(ModeChange::Octal(bits)) => bits & 0o777,
            Some(ModeChange::Symbolic(_)) | None => 0o755,
        };
        EntryMetadata { mode, uid, gid, mtime, xattrs: BTreeMap::new() }
    }
}
