//! A mount namespace with nothing in it, made before the container is known.
//!
//! Leaving the host's tree behind (`umount2(MNT_DETACH)`) waits until every processor has noticed, longer than all mounts of a
//! container take together. So it is done ahead, in a namespace in which the container's root then has to be attached
//! only. Until that moment the init stays in the server's namespace, where paths mean what the caller meant, and attaches
//! nothing.

use super::mounts::{LOCKED, attach, tmpfs};
use super::{root, sys};
use crate::message::{Doing, Failure};
use rustix::fs::{CWD, Mode, OFlags, open, openat};
use rustix::mount::MountAttrFlags;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A mount namespace whose only tree is an empty folder that cannot be written to.
pub(super) struct Room(OwnedFd);

impl Room {
    /// Makes one, and comes back to where the process was.
    pub(super) fn make() -> Result<Self, Failure> {
        let here = Place::current()?;
        let made = Self::build();
        here.go_back()?;
        made
    }

    /// Leaves this process in it.
    fn build() -> Result<Self, Failure> {
        sys::new_mount_namespace().doing(|| "make a mount namespace".into())?;
        let room = Self(current_namespace()?);
        root::make_private()?;
        let floor = tmpfs(Some("0"), 0o555, LOCKED | MountAttrFlags::MOUNT_ATTR_RDONLY)?;
        cover_root(floor.as_fd())?;
        root::enter(&floor)?;
        Ok(room)
    }

    /// The namespace, for whoever is to keep it. It is taken apart when nobody does, which whoever was last waits for.
    pub(super) fn namespace(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Moves this process there, and makes this mount, which is attached nowhere, its root. What is to go with the namespace
    /// is attached `beneath`; a process that unmounts its own root finds it there.
    pub(super) fn enter_with(&self, tree: BorrowedFd<'_>, beneath: Option<BorrowedFd<'_>>) -> Result<(), Failure> {
        let doing = || "enter the root file system".to_owned();
        sys::enter_mounts(self.0.as_fd()).doing(doing)?;
        beneath.map_or(Ok(()), cover_root)?;
        cover_root(tree)?;
        change_root(tree).doing(doing)
    }
}

/// Where a process is: its namespace, and its root in that, which another one's need not be.
struct Place {
    namespace: OwnedFd,
    root: OwnedFd,
}

impl Place {
    fn current() -> Result<Self, Failure> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = open("/", flags, Mode::empty()).doing(|| "open the root".into())?;
        Ok(Self { namespace: current_namespace()?, root })
    }

    fn go_back(self) -> Result<(), Failure> {
        let back = sys::enter_mounts(self.namespace.as_fd()).and_then(|()| change_root(self.root.as_fd()));
        back.doing(|| "go back to the host's mounts".into())
    }
}

fn current_namespace() -> Result<OwnedFd, Failure> {
    let namespace = open("/proc/self/ns/mnt", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    namespace.doing(|| "open the mount namespace".into())
}

/// Attaches a tree on top of everything.
fn cover_root(tree: BorrowedFd<'_>) -> Result<(), Failure> {
    openat(CWD, "/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .and_then(|point| attach(tree, point.as_fd()))
        .doing(|| "attach the root file system".into())
}

fn change_root(tree: BorrowedFd<'_>) -> rustix::io::Result<()> {
    rustix::process::fchdir(tree)?;
    rustix::process::chroot(".")?;
    rustix::process::chdir("/")
}
