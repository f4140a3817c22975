use crate::{Context, ContextEntry, ContextError, ContextPath, EntryKind, FileStamp};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// How often a lookup is tried again that the kernel gave up because something was renamed or mounted meanwhile, anywhere on
/// the machine (`openat2(2)`, EAGAIN).
const RACES: usize = 1000;

/// Opens what a path names in a tree of strangers: its root is the root, for absolute links and for `..`, and links of /proc
/// lead nowhere.
///
/// # Errors
/// As `openat2(2)`.
pub fn open_in_root(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let open = || rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve);
    let settled = |result: &Result<OwnedFd, Errno>| !matches!(result, Err(Errno::AGAIN | Errno::INTR));
    (1..RACES).map(|_| open()).find(settled).unwrap_or_else(open)
}

/// A folder of this machine as a context.
///
/// Every lookup is one `openat2` relative to the folder, with `RESOLVE_IN_ROOT`: the kernel itself takes the folder
/// for the root, so that absolute links and `..` end up inside, and no change of the tree during the lookup leads
/// out (A31). Links of /proc that lead to open files are refused. Nothing is remembered between calls.
pub struct LocalContext {
    root: OwnedFd,
    path: PathBuf,
}

impl LocalContext {
    /// Opens a folder, following links to it. The folder stays the same when it is moved later.
    ///
    /// # Errors
    /// It is not there, is no folder, or must not be read.
    pub fn open(folder: &Path) -> Result<Self, ContextError> {
        let error = |source: io::Error| ContextError::Read { path: folder.display().to_string(), source };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, folder, flags, Mode::empty()).map_err(|errno| error(errno.into()))?;
        let path = folder.canonicalize().map_err(error)?;
        Ok(Self { root, path })
    }

    /// Where the folder was when it was opened: absolute and without links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens what is at a path. A link in the last component is not followed, links before it are, in the tree.
    fn at(&self, path: &ContextPath, flags: OFlags) -> Result<OwnedFd, Errno> {
        let name = if path.is_root() { Path::new(".") } else { path.as_path() };
        open_in_root(self.root.as_fd(), name, flags | OFlags::NOFOLLOW)
    }

    fn is_link(&self, path: &ContextPath) -> bool {
        let stat = self.at(path, OFlags::PATH).and_then(rustix::fs::fstat);
        stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink)
    }
}

impl Context for LocalContext {
    fn identity(&self) -> String {
        self.path.to_str().map_or_else(|| format!("{:?}", self.path), str::to_owned)
    }

    fn stat(&self, path: &ContextPath) -> Result<Option<ContextEntry>, ContextError> {
        let found = match self.at(path, OFlags::PATH) {
            Ok(found) => found,
            // NOTDIR: a parent is a file, so there is nothing below it.
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(errno) => return Err(read_error(path, errno)),
        };
        let (kind, stat) = stat_open(&found).map_err(|errno| read_error(path, errno))?;
        Ok(Some(entry(path.clone(), kind, &stat)))
    }

    fn children(&self, path: &ContextPath) -> Result<Vec<ContextEntry>, ContextError> {
        let error = |errno| read_error(path, errno);
        let folder = self.at(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK).map_err(error)?;
        let mut children = Vec::new();
        for listed in Dir::read_from(&folder).map_err(error)? {
            let listed = listed.map_err(error)?;
            let name = listed.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let child = path.join(name.to_bytes());
            match stat_child(&folder, name) {
                Ok((kind, stat)) => children.push(entry(child, kind, &stat)),
                // Removed since it was listed: as if it had been removed before.
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(read_error(&child, errno)),
            }
        }
        children.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        Ok(children)
    }

    fn open(&self, path: &ContextPath) -> Result<File, ContextError> {
        // NONBLOCK: a pipe is opened at once instead of when somebody writes; then fstat tells that it is one.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let special = || ContextError::Special { path: path.display().into_owned() };
        let file = match self.at(path, flags) {
            Ok(file) => file,
            // Sockets, and devices without a driver, cannot be opened at all (open(2)).
            Err(Errno::NXIO | Errno::NODEV) => return Err(special()),
            Err(Errno::LOOP) if self.is_link(path) => return Err(special()),
            Err(errno) => return Err(read_error(path, errno)),
        };
        let stat = rustix::fs::fstat(&file).map_err(|errno| read_error(path, errno))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Ok(File::from(file)),
            _ => Err(special()),
        }
    }
}

fn stat_child(folder: impl AsFd, name: &CStr) -> Result<(EntryKind, Stat), Errno> {
    let stat = rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Symlink => {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            stat_open(rustix::fs::openat(folder, name, flags, Mode::empty())?)
        }
        _ => Ok((kind(&stat, Vec::new()), stat)),
    }
}

/// Looks at what a descriptor leads to. A link is read through the same descriptor, so that type and target belong
/// together whatever takes its name meanwhile.
fn stat_open(found: impl AsFd) -> Result<(EntryKind, Stat), Errno> {
    let stat = rustix::fs::fstat(&found)?;
    let target = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Symlink => rustix::fs::readlinkat(found, c"", Vec::new())?.into_bytes(),
        _ => Vec::new(),
    };
    Ok((kind(&stat, target), stat))
}

fn kind(stat: &Stat, target: Vec<u8>) -> EntryKind {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => EntryKind::File { size: u64::try_from(stat.st_size).unwrap_or(0) },
        FileType::Directory => EntryKind::Directory,
        FileType::Symlink => EntryKind::Symlink { target },
        _ => EntryKind::Special,
    }
}

fn entry(path: ContextPath, kind: EntryKind, stat: &Stat) -> ContextEntry {
    let (mode, uid, gid) = (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid);
    let is_linked = matches!(kind, EntryKind::File { .. }) && stat.st_nlink > 1;
    ContextEntry { path, kind, mode, uid, gid, stamp: stamp(stat), is_linked }
}

fn stamp(stat: &Stat) -> FileStamp {
    let nanoseconds = |seconds: i64, rest: u64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
    FileStamp {
        mtime_ns: nanoseconds(stat.st_mtime, stat.st_mtime_nsec),
        ctime_ns: nanoseconds(stat.st_ctime, stat.st_ctime_nsec),
        inode: stat.st_ino,
        device: stat.st_dev,
    }
}

impl FileStamp {
    /// The stamp that an open file has now, and its size in bytes.
    ///
    /// # Errors
    /// The file cannot be looked at.
    pub fn of(file: &File) -> io::Result<(Self, u64)> {
        let stat = rustix::fs::fstat(file)?;
        Ok((stamp(&stat), u64::try_from(stat.st_size).unwrap_or_default()))
    }
}

fn read_error(path: &ContextPath, errno: Errno) -> ContextError {
    let path = path.display().into_owned();
    match errno {
        // What openat2 says when a link would lead out of the root in spite of everything.
        Errno::XDEV => ContextError::Escape { path },
        errno => ContextError::Read { path, source: errno.into() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::{Duration, Instant};

    const CANARY: &str = "canary: outside of the context";

    /// A context `c` beside a file and a folder that must not be reached.
    fn tree() -> (tempfile::TempDir, LocalContext) {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        std::fs::create_dir_all(root.join("c/dir/sub")).unwrap();
        std::fs::create_dir(root.join("outside")).unwrap();
        std::fs::write(root.join("canary"), CANARY).unwrap();
        std::fs::write(root.join("outside/canary"), CANARY).unwrap();
        std::fs::write(root.join("c/dir/file"), "inside").unwrap();
        let context = LocalContext::open(&root.join("c")).unwrap();
        (folder, context)
    }

    fn read(context: &LocalContext, path: &str) -> Result<String, ContextError> {
        let mut text = String::new();
        context.open(&ContextPath::clean(path))?.read_to_string(&mut text).unwrap();
        Ok(text)
    }

    #[test]
    fn entries_are_listed_by_bytes_with_their_kinds() {
        let (folder, context) = tree();
        let root = folder.path().join("c");
        std::fs::write(root.join("b"), "12345").unwrap();
        std::fs::write(root.join("B"), "").unwrap();
        std::fs::write(root.join("dir-x"), "").unwrap();
        symlink("nowhere", root.join("a")).unwrap();
        let text: Vec<String> = context
            .children(&ContextPath::default())
            .unwrap()
            .iter()
            .map(|entry| format!("{} {:?}", entry.path.display(), entry.kind))
            .collect();
        let link = format!("a Symlink {{ target: {:?} }}", b"nowhere");
        assert_eq!(
            text,
            ["B File { size: 0 }", &link, "b File { size: 5 }", "dir Directory", "dir-x File { size: 0 }"]
        );
        assert_eq!(context.stat(&ContextPath::clean("dir/file/below")).unwrap(), None);
        assert_eq!(context.stat(&ContextPath::clean("none")).unwrap(), None);
        let file = context.stat(&ContextPath::clean("dir/file")).unwrap().unwrap();
        assert_eq!(file, context.children(&ContextPath::clean("dir")).unwrap()[0]);
        assert_ne!(file.stamp.inode, 0);
        assert_eq!(context.stat(&ContextPath::default()).unwrap().unwrap().kind, EntryKind::Directory);
    }

    #[test]
    fn names_need_not_be_utf8() {
        use std::os::unix::ffi::OsStrExt;
        let (folder, context) = tree();
        let name = std::ffi::OsStr::from_bytes(b"\xff\xfe");
        std::fs::write(folder.path().join("c/dir/sub").join(name), "x").unwrap();
        let children = context.children(&ContextPath::clean("dir/sub")).unwrap();
        assert_eq!(children[0].path.as_bytes(), b"dir/sub/\xff\xfe");
        assert!(context.open(&children[0].path).is_ok());
    }

    // Seen to fail with ResolveFlags::empty() in `at`: the canary was read.
    #[test]
    fn a31_links_that_leave_the_context_end_inside_it() {
        let (folder, context) = tree();
        let (root, outside) = (folder.path().join("c"), folder.path().join("outside"));
        symlink(&outside, root.join("absolute")).unwrap();
        symlink("../outside", root.join("relative")).unwrap();
        symlink("../../../../../../../../../..", root.join("up")).unwrap();
        symlink("absolute", root.join("nested")).unwrap();
        symlink("/proc/self/root", root.join("magic")).unwrap();
        symlink("..", root.join("dir/parent")).unwrap();
        for name in ["absolute/canary", "relative/canary", "nested/canary", "dir/parent/relative/canary"] {
            assert_eq!(context.stat(&ContextPath::clean(name)).unwrap(), None, "{name}");
            assert!(read(&context, name).is_err(), "{name}");
        }
        let canary = format!("up{}", folder.path().join("canary").display());
        assert!(read(&context, &canary).is_err());
        assert!(read(&context, &format!("magic{}", folder.path().join("canary").display())).is_err());
        // `..` of the root is the root, as in a chroot.
        assert_eq!(read(&context, "up/dir/file").unwrap(), "inside");
    }

    #[test]
    fn a31_parents_that_are_links_are_followed_inside() {
        let (folder, context) = tree();
        let root = folder.path().join("c");
        symlink("/dir", root.join("absolute")).unwrap();
        symlink("dir", root.join("relative")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        assert_eq!(read(&context, "absolute/file").unwrap(), "inside");
        assert_eq!(read(&context, "relative/file").unwrap(), "inside");
        assert!(matches!(context.stat(&ContextPath::clean("loop/x")), Err(ContextError::Read { .. })));
        // The last component is not followed: it is an entry of its own.
        assert!(matches!(read(&context, "loop"), Err(ContextError::Special { .. })));
        let link = context.stat(&ContextPath::clean("relative")).unwrap().unwrap();
        assert_eq!(link.kind, EntryKind::Symlink { target: b"dir".to_vec() });
        assert!(context.children(&ContextPath::clean("relative")).is_err());
    }

    // Seen to fail (it hung) without OFlags::NONBLOCK in `open`, and to read without the look at the type.
    #[test]
    fn a39_special_files_are_refused_at_once() {
        let (folder, context) = tree();
        let root = folder.path().join("c");
        rustix::fs::mkfifoat(CWD, root.join("fifo"), Mode::RUSR).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
        symlink("/dev/zero", root.join("zero")).unwrap();
        symlink("fifo", root.join("link")).unwrap();
        let begin = Instant::now();
        for name in ["fifo", "socket", "zero", "link", "dir"] {
            assert!(matches!(read(&context, name), Err(ContextError::Special { .. })), "{name}");
        }
        for name in ["fifo", "socket"] {
            assert_eq!(context.stat(&ContextPath::clean(name)).unwrap().unwrap().kind, EntryKind::Special);
        }
        assert!(begin.elapsed() < Duration::from_secs(1));
    }

    #[test]
    fn a39_privileged_devices_are_refused() {
        let (folder, context) = tree();
        let device = rustix::fs::makedev(1, 5);
        let zero = folder.path().join("c/zero");
        if rustix::fs::mknodat(CWD, zero, FileType::CharacterDevice, Mode::RUSR, device).is_err() {
            assert!(std::env::var_os("FORGE_REQUIRE_PRIVILEGED").is_none(), "needs root");
            return;
        }
        assert!(matches!(read(&context, "zero"), Err(ContextError::Special { .. })));
    }

    // Seen to fail with a check by `symlink_metadata` and a plain open afterwards: the canary was read.
    #[test]
    fn a40_a_file_that_becomes_a_link_is_never_followed_out() {
        let (folder, context) = tree();
        let (root, canary) = (folder.path().join("c"), folder.path().join("canary"));
        let begin = Instant::now();
        std::thread::scope(|scope| {
            // Bounded by itself, so that a failure below ends the test.
            scope.spawn(|| {
                while begin.elapsed() < Duration::from_secs(1) {
                    std::fs::write(root.join("new"), "inside").unwrap();
                    std::fs::rename(root.join("new"), root.join("flips")).unwrap();
                    symlink(&canary, root.join("new")).unwrap();
                    std::fs::rename(root.join("new"), root.join("flips")).unwrap();
                }
            });
            while begin.elapsed() < Duration::from_secs(1) {
                match read(&context, "flips") {
                    Ok(text) => assert_ne!(text, CANARY),
                    Err(ContextError::Special { .. } | ContextError::Read { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        });
    }

    #[test]
    fn a40_a_folder_is_listed_while_it_changes() {
        let (folder, context) = tree();
        let root = folder.path().join("c");
        let begin = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while begin.elapsed() < Duration::from_millis(500) {
                    symlink("nowhere", root.join("new")).unwrap();
                    std::fs::rename(root.join("new"), root.join("flips")).unwrap();
                    std::fs::write(root.join("flips-2"), "").unwrap();
                    std::fs::rename(root.join("flips-2"), root.join("flips")).unwrap();
                    std::fs::remove_file(root.join("flips")).unwrap();
                }
            });
            while begin.elapsed() < Duration::from_millis(500) {
                let children = context.children(&ContextPath::default()).unwrap();
                let dir = children.iter().find(|child| child.path.as_bytes() == b"dir");
                assert!(dir.is_some_and(|dir| dir.kind == EntryKind::Directory));
            }
        });
    }

    // Seen to fail without further tries: the kernel gave up within the first of the rounds.
    #[test]
    fn renames_elsewhere_hinder_no_way_up() {
        let (folder, _) = tree();
        let root = rustix::fs::open(folder.path().join("c"), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (one, other) = (folder.path().join("one"), folder.path().join("other"));
                std::fs::write(&one, "").unwrap();
                while !over.load(Ordering::Relaxed) {
                    std::fs::rename(&one, &other).unwrap();
                    std::fs::rename(&other, &one).unwrap();
                }
            });
            let way = "dir/../".repeat(20);
            let failed = (0..20_000).find_map(|_| open_in_root(root.as_fd(), Path::new(&way), OFlags::PATH).err());
            over.store(true, Ordering::Relaxed);
            assert_eq!(failed, None);
        });
    }

    #[test]
    fn a_folder_that_is_none_is_refused() {
        let (folder, _) = tree();
        assert!(LocalContext::open(&folder.path().join("canary")).is_err());
        assert!(LocalContext::open(&folder.path().join("none")).is_err());
    }
}
