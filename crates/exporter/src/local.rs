//! A file tree written onto a folder.

use crate::surplus;
use crate::tree::{self, BuiltTree, PlatformFolders, TreeVisitor, walk};
use crate::work::blocking;
use crate::{ExportError, Exported, StatementFile};
use forge_registry::TransferContext;
use forge_store::{MergedTree, TreeEntry, TreeKind};
use rustix::fs::{self, AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What becomes of what is in a folder already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FolderMode {
    /// It stays, unless the image has something of the same name.
    #[default]
    Copy,
    /// What the image does not have is removed.
    Delete,
}

/// Writes merged file trees onto a folder.
///
/// Everything is written relative to the folder opened once, and no symbolic link is ever followed, neither one of
/// the image nor one that was there (A30). Files belong to whoever runs forge, as with docker; devices and extended
/// attributes that this user may not make are left out and told in [`Exported::remarks`]. With an epoch every
/// file has that time.
///
/// # Errors
/// A layer is gone, or the folder cannot be written; it may then be half written.
pub async fn to_local(
    context: &TransferContext,
    trees: &[BuiltTree],
    source_date_epoch: Option<i64>,
    folders: PlatformFolders,
    mode: FolderMode,
    folder: &Path,
) -> Result<Exported, ExportError> {
    let (context, trees, folder) = (context.clone(), trees.to_vec(), folder.to_owned());
    blocking(move || {
        if mode == FolderMode::Delete && is_root(&folder) {
            return Err(ExportError::WouldEmptyRoot);
        }
        let mut remarks = Vec::new();
        let merged = tree::open_all(&context, &trees, folders)?;
        let names = tree::folders(&trees, folders)?;
        let said = tree::statements(&trees, &merged, folders)?;
        for ((tree, name), said) in merged.iter().zip(&names).zip(&said) {
            let path = name.as_ref().map_or_else(|| folder.clone(), |name| folder.join(name));
            let mut writer = FolderWriter::open(&path, source_date_epoch)?;
            walk(tree, &mut writer)?;
            said.iter().try_for_each(|file| writer.statement(file))?;
            remarks.append(&mut writer.remarks);
        }
        if mode == FolderMode::Delete {
            surplus::remove(&folder, &merged, &names, &said)?;
        }
        Ok(Exported { descriptor: None, images: Vec::new(), names: Vec::new(), remarks })
    })
    .await
}

struct FolderWriter {
    /// For messages only.
    path: PathBuf,
    root: OwnedFd,
    /// The folder that was written to last, opened: entries of one folder mostly follow each other.
    parent: (PathBuf, OwnedFd),
    epoch: Option<i64>,
    /// The first path of each link group.
    links: HashMap<(u64, u64), PathBuf>,
    partial: u64,
    remarks: Vec<String>,
}

pub(crate) const FOLDER: OFlags = OFlags::DIRECTORY.union(OFlags::RDONLY).union(OFlags::CLOEXEC);

impl FolderWriter {
    fn open(path: &Path, epoch: Option<i64>) -> Result<Self, ExportError> {
        let failed = |source| ExportError::Write { path: path.to_owned(), source };
        std::fs::create_dir_all(path).map_err(failed)?;
        let root = fs::open(path, FOLDER, Mode::empty()).map_err(|errno| failed(errno.into()))?;
        let parent = root.try_clone().map_err(failed)?;
        Ok(Self {
            path: path.to_owned(),
            root,
            parent: (PathBuf::new(), parent),
            epoch,
            links: HashMap::new(),
            partial: 0,
            remarks: Vec::new(),
        })
    }

    /// Opens a folder below the root. The kernel refuses every symbolic link on the way and every way out.
    fn folder(&self, relative: &Path) -> Result<OwnedFd, Errno> {
        if relative.as_os_str().is_empty() {
            return fs::openat(&self.root, ".", FOLDER, Mode::empty());
        }
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        fs::openat2(&self.root, relative, FOLDER, Mode::empty(), resolve)
    }

    fn parent_of(&mut self, relative: &Path) -> Result<BorrowedFd<'_>, Errno> {
        let parent = relative.parent().unwrap_or(Path::new(""));
        if self.parent.0 != parent {
            self.parent = (parent.to_owned(), self.folder(parent)?);
        }
        Ok(self.parent.1.as_fd())
    }

    fn partial_name(&mut self) -> OsString {
        self.partial += 1;
        format!(".forge-{}-{}.partial", std::process::id(), self.partial).into()
    }

    fn times(&self, entry: &TreeEntry) -> Timestamps {
        let (seconds, nanos) = self.epoch.map_or(entry.mtime, |epoch| (epoch, 0));
        let time = Timespec { tv_sec: seconds, tv_nsec: nanos.into() };
        Timestamps { last_access: time, last_modification: time }
    }

    fn write(&mut self, relative: &Path, entry: &TreeEntry, tree: &MergedTree) -> Result<(), ExportError> {
        if let TreeKind::Directory = entry.kind {
            return self.make_folder(relative).map_err(self.failed(relative));
        }
        let first = tree::link_group(entry).and_then(|group| self.links.get(&group).cloned());
        if let Some(first) = first {
            return self.link(&first, relative).map_err(self.failed(relative));
        }
        let partial = self.partial_name();
        let made = match &entry.kind {
            TreeKind::File { .. } => self.make_file(relative, &partial, entry, tree)?,
            _ => self.make_special(relative, &partial, entry).map_err(self.failed(relative))?,
        };
        if made {
            self.place(&partial, relative).map_err(self.failed(relative))?;
            tree::link_group(entry).map(|group| self.links.insert(group, relative.to_owned()));
        }
        Ok(())
    }

    fn failed(&self, relative: &Path) -> impl FnOnce(Errno) -> ExportError + use<> {
        let path = self.path.join(relative);
        move |errno| ExportError::Write { path, source: errno.into() }
    }

    /// Only this user may enter a folder until it is complete; its own mode comes when it is left.
    fn make_folder(&mut self, relative: &Path) -> Result<(), Errno> {
        let name = file_name(relative).to_owned();
        let parent = self.parent_of(relative)?;
        let private = Mode::RWXU;
        match fs::mkdirat(parent, &name, private) {
            Err(Errno::EXIST) if is_folder(parent, &name)? => {
                let folder = fs::openat(parent, &name, FOLDER | OFlags::NOFOLLOW, Mode::empty())?;
                fs::fchmod(&folder, private)
            }
            Err(Errno::EXIST) => {
                fs::unlinkat(parent, &name, AtFlags::empty())?;
                fs::mkdirat(parent, &name, private)
            }
            made => made,
        }
    }

    fn statement(&mut self, statement: &StatementFile) -> Result<(), ExportError> {
        let (relative, partial) = (Path::new(&statement.name), self.partial_name());
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let failed = self.failed(relative);
        let parent = self.parent_of(relative);
        let created = parent.and_then(|parent| fs::openat(parent, &partial, flags, Mode::RUSR | Mode::WUSR));
        let mut file: File = created.map_err(failed)?.into();
        let written = file.write_all(&statement.bytes);
        written.map_err(|source| ExportError::Write { path: self.path.join(relative), source })?;
        if let Some(seconds) = self.epoch {
            let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
            let times = Timestamps { last_access: time, last_modification: time };
            fs::futimens(&file, &times).map_err(self.failed(relative))?;
        }
        self.place(&partial, relative).map_err(self.failed(relative))
    }

    fn make_file(
        &mut self,
        relative: &Path,
        partial: &OsStr,
        entry: &TreeEntry,
        tree: &MergedTree,
    ) -> Result<bool, ExportError> {
        let mut source = tree.open(&entry.path).map_err(ExportError::store("read the image's files"))?;
        let times = self.times(entry);
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let failed = self.failed(relative);
        let parent = self.parent_of(relative);
        let created = parent.and_then(|parent| fs::openat(parent, partial, flags, Mode::RUSR | Mode::WUSR));
        let mut file: File = created.map_err(failed)?.into();
        let copied = std::io::copy(&mut source, &mut file);
        copied.map_err(|source| ExportError::Write { path: self.path.join(relative), source })?;
        self.set_xattrs(file.as_fd(), entry);
        let settled = fs::fchmod(&file, Mode::from_raw_mode(entry.mode & 0o7777));
        settled.and_then(|()| fs::futimens(&file, &times)).map_err(self.failed(relative))?;
        Ok(true)
    }

    /// Makes what is neither file nor folder; `false` for what is left out.
    fn make_special(&mut self, relative: &Path, partial: &OsStr, entry: &TreeEntry) -> Result<bool, Errno> {
        let times = self.times(entry);
        let parent = self.parent_of(relative)?;
        let mode = Mode::from_raw_mode(entry.mode & 0o7777);
        let node = |kind, major, minor| fs::mknodat(parent, partial, kind, mode, fs::makedev(major, minor));
        let made = match entry.kind {
            TreeKind::Symlink { ref target } => fs::symlinkat(target, parent, partial),
            TreeKind::Fifo => node(FileType::Fifo, 0, 0),
            TreeKind::CharDevice { major, minor } => node(FileType::CharacterDevice, major, minor),
            TreeKind::BlockDevice { major, minor } => node(FileType::BlockDevice, major, minor),
            // A socket without its process is of no use; the kernel makes none here that could be one.
            TreeKind::Socket => Err(Errno::PERM),
            TreeKind::File { .. } | TreeKind::Directory => unreachable!("made by functions of their own"),
        };
        match made {
            Err(Errno::PERM) => {
                self.remarks.push(format!("{} was left out: not permitted", entry.path.display()));
                return Ok(false);
            }
            made => made?,
        }
        if !matches!(entry.kind, TreeKind::Symlink { .. }) {
            fs::chmodat(parent, partial, mode, AtFlags::empty())?;
        }
        fs::utimensat(parent, partial, &times, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(true)
    }

    fn set_xattrs(&mut self, file: BorrowedFd<'_>, entry: &TreeEntry) {
        for (name, value) in &entry.xattrs {
            if let Err(error) = fs::fsetxattr(file, name, value, XattrFlags::empty()) {
                let (path, name) = (entry.path.display(), name.display());
                self.remarks.push(format!("{path}: extended attribute {name} was left out: {error}"));
            }
        }
    }

    fn link(&mut self, first: &Path, relative: &Path) -> Result<(), Errno> {
        let partial = self.partial_name();
        let from = self.folder(first.parent().unwrap_or(Path::new("")))?;
        let parent = self.parent_of(relative)?;
        fs::linkat(&from, file_name(first), parent, &partial, AtFlags::empty())?;
        self.place(&partial, relative)
    }

    /// Moves a finished file to its name. A folder of that name gives way.
    fn place(&mut self, partial: &OsStr, relative: &Path) -> Result<(), Errno> {
        let name = file_name(relative).to_owned();
        let parent = self.parent_of(relative)?;
        match fs::renameat(parent, partial, parent, &name) {
            Err(Errno::ISDIR | Errno::NOTEMPTY | Errno::EXIST) => {
                remove_tree(parent, &name)?;
                fs::renameat(parent, partial, parent, &name)?;
            }
            renamed => renamed?,
        }
        // Two names of one file: rename(2) does nothing then and leaves the first in place.
        match fs::unlinkat(parent, partial, AtFlags::empty()) {
            Err(Errno::NOENT) => Ok(()),
            removed => removed,
        }
    }
}

impl TreeVisitor for FolderWriter {
    fn enter(&mut self, entry: &TreeEntry, tree: &MergedTree) -> Result<(), ExportError> {
        let relative = relative(entry).to_owned();
        self.write(&relative, entry, tree)
    }

    fn leave(&mut self, entry: &TreeEntry) -> Result<(), ExportError> {
        let folder = self.folder(relative(entry)).map_err(self.failed(relative(entry)))?;
        self.set_xattrs(folder.as_fd(), entry);
        let settled = fs::fchmod(&folder, Mode::from_raw_mode(entry.mode & 0o7777));
        settled.and_then(|()| fs::futimens(&folder, &self.times(entry))).map_err(self.failed(relative(entry)))
    }
}

fn is_root(folder: &Path) -> bool {
    folder.canonicalize().is_ok_and(|folder| folder == Path::new("/"))
}

fn relative(entry: &TreeEntry) -> &Path {
    entry.path.strip_prefix("/").unwrap_or(&entry.path)
}

fn file_name(path: &Path) -> &OsStr {
    path.file_name().expect("entries below the root have a name")
}

pub(crate) fn is_folder(parent: BorrowedFd<'_>, name: &OsStr) -> Result<bool, Errno> {
    let stat = fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

/// Removes a folder and all that is in it, by descriptors and without following a link (A66). Not recursive: a
/// folder that is not empty yet is put back before its children.
pub(crate) fn remove_tree(parent: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
    let mut todo = vec![PathBuf::from(name)];
    while let Some(path) = todo.pop() {
        let above = match path.parent() {
            Some(above) if !above.as_os_str().is_empty() => open_beneath(parent, above)?,
            _ => fs::openat(parent, ".", FOLDER, Mode::empty())?,
        };
        match fs::unlinkat(&above, file_name(&path), AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            removed => {
                removed?;
                continue;
            }
        }
        let folders = remove_files(&open_beneath(parent, &path)?)?;
        todo.push(path.clone());
        todo.extend(folders.iter().map(|name| path.join(name)));
    }
    Ok(())
}

pub(crate) fn open_beneath(parent: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    fs::openat2(parent, path, FOLDER, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)
}

/// Removes what is not a folder; the names of what is one.
fn remove_files(folder: &OwnedFd) -> Result<Vec<OsString>, Errno> {
    let mut folders = Vec::new();
    for child in Dir::read_from(folder)? {
        let child = child?;
        let name = OsStr::from_bytes(child.file_name().to_bytes());
        if matches!(name.as_bytes(), b"." | b"..") {
            continue;
        }
        match is_folder(folder.as_fd(), name)? {
            true => folders.push(name.to_owned()),
            false => fs::unlinkat(folder, name, AtFlags::empty())?,
        }
    }
    Ok(folders)
}
