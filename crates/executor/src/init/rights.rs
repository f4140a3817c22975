//! What the set-up process may do beyond what root of any user namespace may. Found once, when it starts.

use super::mounts::{attach, clone_tree, tmpfs};
use super::sys;
use crate::message::Failure;
use crate::{Capabilities, ProcessUser};
use rustix::fs::{FileType, Mode, OFlags, makedev, mknodat, openat};
use rustix::io::Result;
use rustix::mount::MountAttrFlags;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};

/// Rights and ids of this process.
pub(super) struct Rights {
    /// Whether device nodes can be made. Where they cannot, the kernel opens none of a root file system either.
    pub(super) nodes: bool,
    /// Whether `trusted.*` attributes can be set: in the first user namespace only.
    pub(super) trusted: bool,
    /// Whether anything can be mounted. Where nothing can, containers are processes in a changed root, and nothing more.
    pub(super) mounts: bool,
    /// Whether mounts that are attached nowhere can be cloned and mounted upon: since Linux 6.15.
    pub(super) detached: bool,
    /// Whether a system call filter is in force already.
    pub(super) filtered: bool,
    /// Whether groups can be chosen: not where a user mapped themselves alone (user_namespaces(7)).
    groups: bool,
    uids: Ids,
    gids: Ids,
    /// What was tried is kept: to give a mount up takes longer than to make it.
    _trial: Option<OwnedFd>,
}

impl Rights {
    /// Looks at this process.
    pub(super) fn find() -> Self {
        let (uids, gids) = (Ids::parse(&read("/proc/self/uid_map")), Ids::parse(&read("/proc/self/gid_map")));
        let groups = read("/proc/self/setgroups").trim() != "deny";
        let mounts = sys::permitted().is_ok_and(|held| held.contains(Capabilities::SYS_ADMIN));
        let filtered = read("/proc/self/status").lines().any(|line| line.split_whitespace().eq(["Seccomp:", "2"]));
        let trial = tmpfs(Some("4k"), 0o700, MountAttrFlags::empty()).ok();
        let nodes = trial.as_ref().is_some_and(|place| make_node(place).is_ok());
        let detached = trial.as_ref().is_some_and(|place| mount_in(place).is_ok());
        let trusted = uids.is_everything();
        Self { nodes, trusted, mounts, detached, filtered, groups, uids, gids, _trial: trial }
    }

    /// Whether the group exists in this namespace.
    pub(super) fn has_group(&self, gid: u32) -> bool {
        self.gids.contains(gid)
    }

    /// Whether groups may be, and so have to be, set for each process.
    pub(super) fn sets_groups(&self) -> bool {
        self.groups
    }

    /// Refuses a user whom this namespace does not have.
    pub(super) fn require(&self, user: &ProcessUser) -> std::result::Result<(), Failure> {
        let missing = |kind: &str, id: u32| {
            let what = format!("a process of {kind} {id}, which is not mapped into forge's user namespace,");
            Err(Failure::Unsupported { what })
        };
        if !self.uids.contains(user.uid) {
            return missing("user", user.uid);
        }
        let groups = std::iter::once(&user.gid).chain(&user.additional_gids);
        match groups.copied().find(|gid| !self.gids.contains(*gid)) {
            Some(gid) => missing("group", gid),
            None => Ok(()),
        }
    }
}

fn read(file: &str) -> String {
    std::fs::read_to_string(file).unwrap_or_default()
}

/// Whether this process is in the machine's first user namespace, whose root may change the host's network.
pub(crate) fn is_trusted() -> bool {
    Ids::parse(&read("/proc/self/uid_map")).is_everything()
}

fn make_node(place: &OwnedFd) -> Result<()> {
    mknodat(place, "null", FileType::CharacterDevice, Mode::RUSR, makedev(1, 3))
}

/// Mounts a file of a tree that is attached nowhere on another one there.
fn mount_in(place: &OwnedFd) -> Result<()> {
    for name in ["source", "target"] {
        mknodat(place, name, FileType::RegularFile, Mode::RUSR, 0)?;
    }
    let open = |name: &str| openat(place, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    attach(clone_tree(open("source")?.as_fd(), false)?.as_fd(), open("target")?.as_fd())
}

/// The ids of a namespace, from within.
struct Ids(Vec<Range<u64>>);

impl Ids {
    /// Reads `/proc/self/uid_map`: first id within, first id outside, count.
    fn parse(text: &str) -> Self {
        let line = |line: &str| {
            let mut fields = line.split_whitespace().map(|field| field.parse::<u64>().ok());
            let (first, _, count) = (fields.next()??, fields.next()??, fields.next()??);
            Some(first..first + count)
        };
        Self(text.lines().filter_map(line).collect())
    }

    fn contains(&self, id: u32) -> bool {
        self.0.iter().any(|range| range.contains(&u64::from(id)))
    }

    /// The first namespace has all; others are made with gaps, if only of the last id.
    fn is_everything(&self) -> bool {
        matches!(self.0.as_slice(), [range] if *range == (0..u64::from(u32::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rights(map: &str) -> Rights {
        Rights {
            nodes: false,
            trusted: false,
            mounts: true,
            detached: false,
            filtered: false,
            groups: true,
            uids: Ids::parse(map),
            gids: Ids::parse(map),
            _trial: None,
        }
    }

    #[test]
    fn users_that_are_not_mapped_are_refused() {
        let user = |uid, gid, more: &[u32]| ProcessUser { uid, gid, additional_gids: more.to_vec() };
        let some = rights("0 1000 1\n1 100000 65536\n");
        assert!(some.require(&user(65536, 5, &[7])).is_ok());
        assert!(some.require(&user(65537, 5, &[])).is_err());
        assert!(some.require(&user(5, 65537, &[])).is_err());
        assert!(some.require(&user(5, 5, &[1, 70000])).is_err());
        let single = rights("         0       1000          1\n");
        assert!(single.require(&user(0, 0, &[])).is_ok() && single.require(&user(1, 0, &[])).is_err());
        assert!(!single.uids.is_everything() && Ids::parse("0 0 4294967295").is_everything());
    }
}
