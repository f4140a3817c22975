//! Which extended attributes belong to a file, and how they are read and set without following links.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::OnceLock;

use rustix::fs::{FileType, Mode, OFlags, XattrFlags};
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, capabilities};

const CAPABILITY: &str = "security.capability";
const USER: &str = "user.overlay.";

const OVERLAYFS_SUPER_MAGIC: u64 = 0x794c_7630;

/// The longest value that Linux admits (`XATTR_SIZE_MAX`).
pub(super) const MAX_VALUE: usize = 65536;

/// The sizes of `struct vfs_cap_data` in revision 2, and of revision 3, which adds the root user of a user namespace.
const CAPABILITY_V2: usize = 20;
const CAPABILITY_V3: usize = 24;

/// Whether an extended attribute is kept in layers: file capabilities and what users set, but nothing of overlayfs.
///
/// Labels of security modules, ACLs and `trusted.*` describe the machine rather than the file; docker drops them too.
pub(super) fn keeps_xattr(name: &[u8]) -> bool {
    let is_mark = name.starts_with(USER.as_bytes()) || [WHITEOUT, OPAQUE].iter().any(|mark| name == mark.as_bytes());
    name == CAPABILITY.as_bytes() || (name.starts_with(b"user.") && !is_mark)
}

/// The value as layers hold it; `None` drops the attribute.
///
/// Capabilities are kept in revision 2. Revision 3 binds them to a user namespace of this machine: without such a
/// binding (root user 0) it says the same as revision 2, with one it means nothing elsewhere (A56).
pub(super) fn portable_value(name: &[u8], mut value: Vec<u8>) -> Option<Vec<u8>> {
    if name != CAPABILITY.as_bytes() {
        return Some(value);
    }
    let revision = *value.get(3)?;
    match (revision, value.len()) {
        (2, CAPABILITY_V2) => Some(value),
        (3, CAPABILITY_V3) if value[CAPABILITY_V2..] == [0; 4] => {
            value.truncate(CAPABILITY_V2);
            value[3] = 2;
            Some(value)
        }
        _ => None,
    }
}

/// How deletions, and folders that hide what lies below, are marked in trees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Markers {
    /// As overlayfs does.
    Trusted,
    /// As overlayfs does where it is mounted with `userxattr`.
    User,
    /// On an overlay, which keeps the above for itself, and on which no other one is mounted: by attributes of forge's own, a
    /// deletion being an empty file.
    Files,
}

const WHITEOUT: &str = "user.forge.whiteout";
const OPAQUE: &str = "user.forge.opaque";

impl Markers {
    /// Those of the trees in the file system that a folder is in.
    pub(super) fn of(folder: &Path) -> Self {
        match rustix::fs::statfs(folder) {
            // The kernel's field is signed and as wide as a word.
            Ok(found) if found.f_type as u64 & 0xffff_ffff == OVERLAYFS_SUPER_MAGIC => Self::Files,
            _ => Self::of_this_process(),
        }
    }

    /// `trusted.*` can be set only with CAP_SYS_ADMIN in the first user namespace, whose id map is the identity.
    fn of_this_process() -> Self {
        static OWN: OnceLock<Markers> = OnceLock::new();
        *OWN.get_or_init(|| if is_first_namespace() && may_mount() { Self::Trusted } else { Self::User })
    }

    pub(super) fn opaque(self) -> &'static str {
        match self {
            Self::Trusted => "trusted.overlay.opaque",
            Self::User => "user.overlay.opaque",
            Self::Files => OPAQUE,
        }
    }

    /// Marks as deleted what lower layers have under a name that is free.
    pub(super) fn put_whiteout(self, folder: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
        let place = OsStr::from_bytes(name);
        if self != Self::Files {
            return rustix::fs::mknodat(folder, place, FileType::CharacterDevice, Mode::empty(), 0);
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(folder, place, flags, Mode::RUSR | Mode::WUSR)?;
        set(folder, name, OsStr::new(WHITEOUT), b"y")
    }
}

/// Whether this process is taken for root of the machine by its ids, and yet neither sees nor sets overlayfs's own marks.
pub(crate) fn lacks_own_marks() -> bool {
    rustix::process::geteuid().is_root() && !may_mount() && is_first_namespace()
}

fn is_first_namespace() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

fn may_mount() -> bool {
    capabilities(None).is_ok_and(|own| own.effective.contains(CapabilitySet::SYS_ADMIN))
}

/// What the attributes of a node say.
#[derive(Default)]
pub(super) struct Xattrs {
    pub(super) kept: BTreeMap<OsString, Vec<u8>>,
    pub(super) opaque: bool,
    pub(super) whiteout: bool,
}

/// Reads the attributes of `name` in a folder, without following it.
pub(super) fn read(folder: BorrowedFd<'_>, name: &[u8], markers: Markers) -> Result<Xattrs, Errno> {
    let path = by_descriptor(folder, name);
    let mut found = Xattrs::default();
    for attribute in list(&path)?.split(|byte| *byte == 0).filter(|attribute| !attribute.is_empty()) {
        if attribute == markers.opaque().as_bytes() {
            found.opaque = value(&path, attribute)?.as_deref() == Some(b"y");
        } else if markers == Markers::Files && attribute == WHITEOUT.as_bytes() {
            found.whiteout = true;
        } else if keeps_xattr(attribute)
            && let Some(value) = value(&path, attribute)?
            && let Some(value) = portable_value(attribute, value)
        {
            found.kept.insert(OsStr::from_bytes(attribute).to_owned(), value);
        }
    }
    Ok(found)
}

/// All names, for callers that must know what else is there.
pub(super) fn list(path: &CString) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0; 1024];
    loop {
        match rustix::fs::llistxattr(path, &mut buffer[..]) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            Err(Errno::RANGE) => buffer.resize(buffer.len() * 4, 0),
            Err(Errno::NOTSUP) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        }
    }
}

fn value(path: &CString, name: &[u8]) -> Result<Option<Vec<u8>>, Errno> {
    let mut buffer = vec![0; 256];
    loop {
        match rustix::fs::lgetxattr(path, name, &mut buffer[..]) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(Some(buffer));
            }
            Err(Errno::RANGE) => buffer.resize(MAX_VALUE, 0),
            // Gone since it was listed, or not readable in this namespace: then it is not ours to keep.
            Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}

/// Sets an attribute of `name` in a folder, without following it.
pub(super) fn set(folder: BorrowedFd<'_>, name: &[u8], attribute: &OsStr, value: &[u8]) -> Result<(), Errno> {
    rustix::fs::lsetxattr(by_descriptor(folder, name), attribute, value, XattrFlags::empty())
}

/// Removes an attribute of `name` in a folder, without following it.
pub(super) fn remove(folder: BorrowedFd<'_>, name: &[u8], attribute: &str) -> Result<(), Errno> {
    match rustix::fs::lremovexattr(by_descriptor(folder, name), attribute) {
        Err(Errno::NODATA) => Ok(()),
        other => other,
    }
}

/// There is no `getxattrat` before Linux 6.13: the folder is named through its descriptor, so that only the last
/// component is looked up, and that is not followed.
pub(super) fn by_descriptor(folder: BorrowedFd<'_>, name: &[u8]) -> CString {
    let mut path = format!("/proc/self/fd/{}/", folder.as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    CString::new(path).expect("names come from directory entries or were checked: they hold no zero byte")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a56_capabilities_are_kept_without_their_namespace() {
        let v2 = [&[1, 0, 0, 2][..], &[7; 16]].concat();
        let v3_of_root = [&[1, 0, 0, 3][..], &[7; 16], &[0; 4]].concat();
        let v3_of_another = [&[1, 0, 0, 3][..], &[7; 16], &[0xe8, 3, 0, 0]].concat();
        let name = b"security.capability";
        assert_eq!(portable_value(name, v2.clone()), Some(v2.clone()));
        assert_eq!(portable_value(name, v3_of_root), Some(v2));
        assert_eq!(portable_value(name, v3_of_another), None);
        for malformed in [vec![], vec![1, 0, 0], vec![1, 0, 0, 2], vec![1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]] {
            assert_eq!(portable_value(name, malformed), None);
        }
    }

    #[test]
    fn a53_markers_are_not_attributes_of_files() {
        let dropped: [&[u8]; 8] = [
            b"user.forge.whiteout",
            b"user.forge.opaque",
            b"trusted.overlay.redirect",
            b"user.overlay.opaque",
            b"security.ima",
            b"security.selinux",
            b"system.posix_acl_access",
            b"trusted.x",
        ];
        for name in dropped {
            assert!(!keeps_xattr(name), "{}", name.escape_ascii());
        }
        assert!(keeps_xattr(b"user.x") && keeps_xattr(b"user.forge") && keeps_xattr(b"security.capability"));
    }
}
