//! Takes out of a folder what an image does not have (`mode=delete`).

use crate::local::{FOLDER, is_folder, open_beneath, remove_tree};
use crate::{ExportError, StatementFile};
use forge_store::MergedTree;
use rustix::fs::{self, AtFlags, Dir, Mode};
use rustix::io::Errno;
use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Removes what none of the trees has, each below its folder. Done after everything was written: a failed export takes
/// nothing away. By descriptors, and without following a link.
pub(crate) fn remove(
    folder: &Path,
    trees: &[MergedTree],
    names: &[Option<String>],
    said: &[Vec<StatementFile>],
) -> Result<(), ExportError> {
    let failed = |path: &Path| {
        let path = folder.join(path);
        move |errno: Errno| ExportError::Write { path, source: errno.into() }
    };
    let root = fs::open(folder, FOLDER, Mode::empty()).map_err(failed(Path::new("")))?;
    let mut todo = vec![PathBuf::new()];
    while let Some(path) = todo.pop() {
        let mut wanted = wanted(&path, trees, names)?;
        wanted.extend(statements(&path, names, said));
        let at = open(&root, &path).map_err(failed(&path))?;
        for name in children(&at).map_err(failed(&path))? {
            let child = path.join(&name);
            if !wanted.contains(&name) {
                remove_one(&at, &name).map_err(failed(&child))?;
            } else if is_folder(at.as_fd(), &name).map_err(failed(&child))? {
                todo.push(child);
            }
        }
    }
    Ok(())
}

/// The names that the trees have in a folder, or the folders of platforms at the top.
fn wanted(path: &Path, trees: &[MergedTree], names: &[Option<String>]) -> Result<HashSet<OsString>, ExportError> {
    let mut wanted = HashSet::new();
    for (tree, name) in trees.iter().zip(names) {
        let inside = match name {
            None => Some(path),
            Some(name) if path.as_os_str().is_empty() => {
                wanted.insert(OsString::from(name));
                None
            }
            Some(name) => path.strip_prefix(name).ok(),
        };
        let Some(inside) = inside.map(|inside| Path::new("/").join(inside)) else { continue };
        let found = tree.lookup(&inside).map_err(ExportError::store("read the image's files"))?;
        if found.is_some_and(|entry| entry.is_directory()) {
            let children = tree.children(&inside).map_err(ExportError::store("read the image's files"))?;
            wanted.extend(children.into_iter().map(|entry| entry.name));
        }
    }
    Ok(wanted)
}

/// The names of statements in a folder: they lie at the top of what they are about.
fn statements(path: &Path, names: &[Option<String>], said: &[Vec<StatementFile>]) -> Vec<OsString> {
    let here = names.iter().zip(said).filter(|(name, _)| path == Path::new(name.as_deref().unwrap_or_default()));
    here.flat_map(|(_, files)| files.iter().map(|file| OsString::from(&file.name))).collect()
}

fn open(root: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    match path.as_os_str().is_empty() {
        true => fs::openat(root, ".", FOLDER, Mode::empty()),
        false => open_beneath(root.as_fd(), path),
    }
}

fn children(folder: &OwnedFd) -> Result<Vec<OsString>, Errno> {
    let mut names = Vec::new();
    for child in Dir::read_from(folder)? {
        let child = child?;
        let name = OsStr::from_bytes(child.file_name().to_bytes());
        if !matches!(name.as_bytes(), b"." | b"..") {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

fn remove_one(folder: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
    match is_folder(folder.as_fd(), name)? {
        true => remove_tree(folder.as_fd(), name),
        false => fs::unlinkat(folder, name, AtFlags::empty()),
    }
}
