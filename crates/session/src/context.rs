use std::borrow::Cow;
use std::fmt;
use std::fs::File;

/// How many links a path may lead through, as in the kernel.
const MAX_LINKS: usize = 40;

/// A path within a context: relative, `/`-separated bytes, no empty component, no `.` and no `..`.
///
/// The empty path is the context's root. Bytes need not be UTF-8.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ContextPath(Box<[u8]>);

impl ContextPath {
    /// Cleans a path as a COPY source is cleaned: `/a//b/../c/` is `a/c`, and `..` never leaves the root.
    pub fn clean(path: impl AsRef<[u8]>) -> Self {
        let mut parts: Vec<&[u8]> = Vec::new();
        for part in path.as_ref().split(|byte| *byte == b'/') {
            match part {
                b"" | b"." => {}
                b".." => drop(parts.pop()),
                part => parts.push(part),
            }
        }
        Self(parts.join(&b'/').into())
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The path as the operating system takes it.
    pub fn as_path(&self) -> &std::path::Path {
        use std::os::unix::ffi::OsStrExt;
        std::path::Path::new(std::ffi::OsStr::from_bytes(&self.0))
    }

    /// Whether this is the root.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The path of a child.
    pub fn join(&self, name: &[u8]) -> Self {
        // Most names are names: a walk of a large tree asks for nothing else.
        if !name.contains(&b'/') && !matches!(name, b"" | b"." | b"..") {
            let slash: &[u8] = if self.is_root() { b"" } else { b"/" };
            return Self([&self.0, slash, name].concat().into());
        }
        match self.is_root() {
            true => Self::clean(name),
            false => Self::clean([&*self.0, b"/".as_slice(), name].concat()),
        }
    }

    /// The components from the root down.
    pub fn components(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|byte| *byte == b'/').filter(|part| !part.is_empty())
    }

    /// For messages: lossy where the bytes are not UTF-8.
    pub fn display(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.0)
    }
}

impl fmt::Debug for ContextPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.display())
    }
}

/// What an entry of a context is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file of that many bytes.
    File {
        /// The size in bytes.
        size: u64,
    },
    /// A folder.
    Directory,
    /// A symbolic link; never followed while listing.
    Symlink {
        /// Where it points.
        target: Vec<u8>,
    },
    /// A device, socket or pipe: never read (A39).
    Special,
}

/// What tells cheaply whether a file changed (git's stat cache, `racy-git.txt`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct FileStamp {
    /// Modification time in nanoseconds since the epoch.
    pub mtime_ns: i128,
    /// Change time in nanoseconds since the epoch.
    pub ctime_ns: i128,
    /// The inode number.
    pub inode: u64,
    /// The device number.
    pub device: u64,
}

/// One entry of a context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContextEntry {
    /// Where it is.
    pub path: ContextPath,
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits, `0o7777` at most.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The stamp; all zero where the far end has none.
    pub stamp: FileStamp,
    /// Whether a file has further names, in the tree or elsewhere: the stamps of all of them have its number.
    pub is_linked: bool,
}

/// Why a context could not be read. The message names the path; [`std::io::Error`] is the cause.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// An entry could not be read.
    #[error("cannot read {path:?} in the build context")]
    Read {
        /// The path within the context.
        path: String,
        /// The cause.
        source: std::io::Error,
    },
    /// A symbolic link leads out of the context (A31).
    #[error("{path:?} leads out of the build context")]
    Escape {
        /// The path within the context.
        path: String,
    },
    /// Too many links on the way.
    #[error("too many levels of symbolic links at {path:?} in the build context")]
    LinkLoop {
        /// The path within the context.
        path: String,
    },
    /// The file is not a regular one (A39).
    #[error("{path:?} in the build context is not a regular file")]
    Special {
        /// The path within the context.
        path: String,
    },
}

/// A tree of files that a build may read.
///
/// All methods block; call them off the async threads. No method follows a symbolic link out of the tree.
pub trait Context: Send + Sync {
    /// What stays the same when the same tree is handed over again, e.g. the absolute path of a folder.
    fn identity(&self) -> String;

    /// The entry at a path, without following a link in its last component; parents that are links are
    /// followed inside the tree. `None` where there is nothing.
    ///
    /// # Errors
    /// The tree cannot be read, or a parent leads out of it.
    fn stat(&self, path: &ContextPath) -> Result<Option<ContextEntry>, ContextError>;

    /// The children of a folder, sorted by name in byte order.
    ///
    /// # Errors
    /// The folder cannot be read, or is none.
    fn children(&self, path: &ContextPath) -> Result<Vec<ContextEntry>, ContextError>;

    /// The entry that a path leads to when links are followed, all inside the tree: an absolute target starts at the
    /// tree's root, and `..` never leaves it (A31). `None` where there is nothing.
    ///
    /// # Errors
    /// The tree cannot be read, or links lead in a circle.
    fn follow(&self, path: &ContextPath) -> Result<Option<ContextEntry>, ContextError> {
        let mut path = path.clone();
        for _ in 0..MAX_LINKS {
            let Some(entry) = self.stat(&path)? else { return Ok(None) };
            let EntryKind::Symlink { target } = &entry.kind else { return Ok(Some(entry)) };
            path = match target.starts_with(b"/") {
                true => ContextPath::clean(target),
                false => ContextPath::clean([path.as_bytes(), b"/../", target].concat()),
            };
        }
        Err(ContextError::LinkLoop { path: path.display().into_owned() })
    }

    /// Opens a regular file for reading. Never blocks on pipes or devices.
    ///
    /// # Errors
    /// The file cannot be read, is no regular file, or lies behind a link that leaves the tree.
    fn open(&self, path: &ContextPath) -> Result<File, ContextError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_and_never_leave_the_root() {
        let check = |text: &str, expect: &str| assert_eq!(ContextPath::clean(text).display(), expect);
        check("/a//b/./../c/", "a/c");
        check("../../x", "x");
        check("", "");
        check(".", "");
        check("a/..", "");
    }
}
