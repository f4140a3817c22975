//! The changes that need no source: folders, files, links, deletions.

use super::FileError;
use super::editor::{EditError, Editor, EntryMetadata, OnExisting};
use crate::selection::{self, SelectError};
use crate::source_tree::{SourceTree, Stop};
use crate::users;
use forge_llb::{MkdirAction, MkfileAction, Owner, RmAction, SymlinkAction};
use forge_session::ContextPath;
use forge_store::MergedTree;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// A moment, as seconds and nanoseconds.
pub(super) type Moment = (i64, u32);

pub(super) fn mkdir(editor: &mut Editor<'_>, action: &MkdirAction, now: Moment) -> Result<(), FileError> {
    let path = editor.tree().resolve(Path::new(&action.path))?;
    let metadata = made(editor, action.owner.as_ref(), action.mode, action.timestamp, now)?;
    let Some((parent, name)) = path.parent().zip(path.file_name()) else { return Ok(()) };
    if !action.make_parents {
        require(editor, parent)?;
    }
    let mut parent = editor.folder(parent, &metadata)?;
    editor.child_folder(&mut parent, name, &metadata, OnExisting::Keep)?;
    Ok(())
}

pub(super) fn mkfile(editor: &mut Editor<'_>, action: &MkfileAction, now: Moment) -> Result<(), FileError> {
    let path: PathBuf = editor.tree().resolve(Path::new(&action.path))?;
    let metadata = made(editor, action.owner.as_ref(), action.mode, action.timestamp, now)?;
    let Some((parent, name)) = path.parent().zip(path.file_name()) else {
        return Err(EditError::IsADirectory { path: action.path.clone() }.into());
    };
    require(editor, parent)?;
    let mut parent = editor.folder(parent, &EntryMetadata { mode: 0o755, ..metadata.clone() })?;
    Ok(editor.bytes(&mut parent, name, &action.data, &metadata)?)
}

/// The link itself is made where the path says: only links among its parents are followed.
pub(super) fn symlink(editor: &mut Editor<'_>, action: &SymlinkAction, now: Moment) -> Result<(), FileError> {
    let path = ContextPath::clean(&action.path);
    let metadata = made(editor, action.owner.as_ref(), 0o777, action.timestamp, now)?;
    let Some((parent, name)) = split(editor, &path)? else {
        return Err(EditError::IsADirectory { path: action.path.clone() }.into());
    };
    require(editor, &parent)?;
    let mut parent = editor.folder(&parent, &metadata)?;
    Ok(editor.symlink(&mut parent, OsStr::new(&name), action.target.as_bytes(), &metadata)?)
}

/// Removes a path, or what a pattern matches. A link is removed itself, and nothing that it leads to.
pub(super) fn rm(editor: &mut Editor<'_>, action: &RmAction, stop: &Stop) -> Result<(), FileError> {
    let path = ContextPath::clean(&action.path);
    let paths = match action.allow_wildcard {
        true => selection::expand(&SourceTree::of_layers(editor.tree(), stop.clone()), &path)?,
        false => vec![path],
    };
    for path in paths {
        stop.check()?;
        remove(editor, &path, action)?;
    }
    Ok(())
}

fn remove(editor: &mut Editor<'_>, path: &ContextPath, action: &RmAction) -> Result<(), FileError> {
    let shown = format!("/{}", path.display());
    let Some((parent, name)) = split(editor, path)? else {
        return Err(FileError::RootRemoved);
    };
    if editor.tree().lookup(&parent.join(&name))?.is_none() {
        return match action.allow_not_found {
            true => Ok(()),
            false => Err(SelectError::NotFound { path: shown }.into()),
        };
    }
    let mut parent = editor.folder(&parent, &EntryMetadata::default())?;
    Ok(editor.remove(&mut parent, OsStr::new(&name))?)
}

/// The folder of a path with its links followed, and the last component; nothing for the root.
fn split(editor: &Editor<'_>, path: &ContextPath) -> Result<Option<(PathBuf, std::ffi::OsString)>, FileError> {
    let path = Path::new("/").join(path.as_path());
    let Some((parent, name)) = path.parent().zip(path.file_name()) else { return Ok(None) };
    Ok(Some((editor.tree().resolve(parent)?, name.to_owned())))
}

/// A parent that is not made on the way must be there.
pub(super) fn require(editor: &Editor<'_>, folder: &Path) -> Result<(), FileError> {
    match folder == Path::new("/") || editor.tree().lookup(folder)?.is_some() {
        true => Ok(()),
        false => Err(EditError::NotFound { path: folder.display().to_string() }.into()),
    }
}

fn made(
    editor: &Editor<'_>,
    owner: Option<&Owner>,
    mode: u32,
    timestamp: Option<i64>,
    now: Moment,
) -> Result<EntryMetadata, FileError> {
    made_in(&editor.tree(), owner, mode, timestamp, now)
}

/// What something new is given in a tree.
pub(super) fn made_in(
    tree: &MergedTree,
    owner: Option<&Owner>,
    mode: u32,
    timestamp: Option<i64>,
    now: Moment,
) -> Result<EntryMetadata, FileError> {
    let (uid, gid) = find_owner_in(tree, owner)?.unwrap_or((0, 0));
    let mtime = timestamp.map_or(now, |seconds| (seconds, 0));
    Ok(EntryMetadata { mode, uid, gid, mtime, xattrs: BTreeMap::new() })
}

pub(super) fn find_owner(editor: &Editor<'_>, owner: Option<&Owner>) -> Result<Option<(u32, u32)>, FileError> {
    find_owner_in(&editor.tree(), owner)
}

/// Whom an owner's name means in a tree.
pub(super) fn find_owner_in(tree: &MergedTree, owner: Option<&Owner>) -> Result<Option<(u32, u32)>, FileError> {
    owner.map(|owner| Ok(users::owner(tree, &owner.user, owner.group.as_deref())?)).transpose()
}
