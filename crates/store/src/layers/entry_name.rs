//! What the names in a stranger's tar mean.

use super::commit::WHITEOUT_PREFIX;
use super::entry::MAX_PATH;
use super::error::{LayerError, shown};
use super::tar_writer::OPAQUE_NAME;

/// Names that begin like this belong to aufs itself, for which docker once wrote layers; they mean no file.
const AUFS_PREFIX: &[u8] = b".wh..wh.";

/// `NAME_MAX` of every Linux file system.
const MAX_NAME: usize = 255;

/// A name read: components without `.`, `..` and empty ones.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum EntryName<'a> {
    /// The root itself.
    Root,
    /// Something in a folder.
    Node { parent: Vec<&'a [u8]>, name: &'a [u8] },
    /// The deletion of something in a folder.
    Whiteout { parent: Vec<&'a [u8]>, name: &'a [u8] },
    /// The mark that a folder hides what lower layers have in it.
    Opaque { folder: Vec<&'a [u8]> },
    /// To be skipped, as docker does.
    Aufs,
}

impl<'a> EntryName<'a> {
    /// Reads an entry's name, whose `..` are taken literally, as docker takes them (`filepath.Clean`).
    ///
    /// # Errors
    /// A name that leaves the root (A46), or marks a deletion of nothing (A52).
    pub(super) fn parse(name: &'a [u8]) -> Result<Self, LayerError> {
        let mut parent = clean(name)?;
        let refuse = |reason| Err(LayerError::RefusedEntry { path: shown(name), reason });
        if parent.first().is_some_and(|first| first.starts_with(AUFS_PREFIX) && *first != OPAQUE_NAME) {
            return Ok(Self::Aufs);
        }
        let Some(last) = parent.pop() else { return Ok(Self::Root) };
        if parent.iter().any(|component| component.starts_with(WHITEOUT_PREFIX)) {
            return refuse("a folder on the way has the name of a deletion");
        }
        match last.strip_prefix(WHITEOUT_PREFIX) {
            None => Ok(Self::Node { parent, name: last }),
            Some(_) if last == OPAQUE_NAME => Ok(Self::Opaque { folder: parent }),
            Some(_) if last.starts_with(AUFS_PREFIX) => Ok(Self::Aufs),
            Some(b"" | b"." | b"..") => refuse("it is the deletion of no name"),
            Some(name) => Ok(Self::Whiteout { parent, name }),
        }
    }
}

/// The components of a path in an archive, absolute or not; it must stay inside the root.
pub(super) fn clean(path: &[u8]) -> Result<Vec<&[u8]>, LayerError> {
    let refuse = |reason| Err(LayerError::RefusedEntry { path: shown(path), reason });
    if path.len() > MAX_PATH {
        return Err(LayerError::PathTooLong { path: shown(path), limit: MAX_PATH });
    }
    let mut components = Vec::new();
    for component in path.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." if components.pop().is_none() => return refuse("it leads out of the layer"),
            b".." => {}
            name if name.len() > MAX_NAME => return refuse("a name in it is longer than 255 bytes"),
            name => components.push(name),
        }
    }
    Ok(components)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a46_names_stay_inside() {
        let ok = |name: &'static str| String::from_utf8(clean(name.as_bytes()).unwrap().join(&b'/')).unwrap();
        assert_eq!(ok("/x"), "x");
        assert_eq!(ok("a/../x//./y/"), "x/y");
        assert_eq!(ok("/"), "");
        for bad in ["../x", "a/../../x", "./../x", "a//..//..//x", "/..", ".."] {
            assert!(clean(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(clean(&[b'a'; 256]).is_err());
        assert!(clean(&b"ab/".repeat(2000)).is_err());
    }

    #[test]
    fn a52_deletions_have_names() {
        let parse = |name: &'static str| EntryName::parse(name.as_bytes());
        for bad in [".wh.", ".wh..", ".wh...", "d/.wh.", ".wh.d/x", "a/.wh.b/c"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert_eq!(parse("d/.wh.x").unwrap(), EntryName::Whiteout { parent: vec![b"d"], name: b"x" });
        assert_eq!(parse("d/.wh..wh..opq").unwrap(), EntryName::Opaque { folder: vec![b"d"] });
        assert_eq!(parse("./.wh..wh..opq").unwrap(), EntryName::Opaque { folder: vec![] });
        assert_eq!(parse(".wh..wh.plnk/7.9").unwrap(), EntryName::Aufs);
        assert_eq!(parse("").unwrap(), EntryName::Root);
        assert_eq!(parse("./").unwrap(), EntryName::Root);
    }
}
