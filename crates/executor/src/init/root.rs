//! The root file system and the way into it.

use super::mounts::{attach, restricted_clone};
use super::overlay::Overlay;
use super::setup::Means;
use crate::message::{Doing, Failure};
use crate::{MountSource, RootFs, SandboxSpec};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, MountPropagationFlags, UnmountFlags, mount_change, unmount};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The kernel's limit (`OVL_MAX_STACK`).
const MAX_LOWER: usize = 500;

/// Names below the runtime directory; [`crate::NamespaceExecutor::new`] makes them.
pub(crate) mod layout {
    /// Where each container attaches its root, in its own mount namespace.
    pub(crate) const ROOT: &str = "root";
    /// A lower layer for overlays of mounts that have none.
    pub(crate) const EMPTY: &str = "empty";
    /// Where a container of an OCI runtime has its bundle and the runtime's own files, likewise.
    pub(crate) const BUNDLE: &str = "bundle";
    /// Where each container attaches its generated files, likewise.
    pub(crate) const STAGING: &str = "staging";
    /// Lowest layer with the mount points every container needs.
    pub(crate) const STUBS: &str = "stubs";
    /// The same, and the network's configuration files that a step gets.
    pub(crate) const STUBS_NET: &str = "stubs-net";
    /// What [`STUBS_NET`] has beyond [`STUBS`].
    pub(crate) const NET_FILES: [&str; 2] = ["etc/hosts", "etc/resolv.conf"];
    /// The same, and those that a container gets.
    pub(crate) const STUBS_ETC: &str = "stubs-etc";
    /// What [`STUBS_ETC`] has beyond [`STUBS`].
    pub(crate) const ETC_FILES: [&str; 3] = ["etc/hosts", "etc/hostname", "etc/resolv.conf"];
    /// What both have.
    pub(crate) const DIRECTORIES: [&str; 3] = ["dev", "proc", "sys"];
}

/// Cuts the new mount namespace off from the host's: nothing propagates in or out.
pub(super) fn make_private() -> Result<(), Failure> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .doing(|| "make the mount namespace private".into())
}

/// Mounts the root, and attaches it nowhere.
pub(super) fn tree(spec: &SandboxSpec, runtime: &Path, means: &Means<'_>) -> Result<OwnedFd, Failure> {
    let attributes = means.cgroups.root_attributes(spec.devices);
    match &spec.root {
        RootFs::Overlay { .. } => overlay(spec, runtime, means, attributes),
        RootFs::Directory(path) => directory(path, attributes),
    }
}

/// Mounts the root at the runtime directory's mount point and returns it.
pub(super) fn mount_root(spec: &SandboxSpec, runtime: &Path, means: &Means<'_>) -> Result<OwnedFd, Failure> {
    let root = tree(spec, runtime, means)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, runtime.join(layout::ROOT), flags, Mode::empty())
        .and_then(|point| attach(root.as_fd(), point.as_fd()))
        .doing(|| "attach the root file system".into())?;
    Ok(root)
}

fn overlay(
    spec: &SandboxSpec,
    runtime: &Path,
    means: &Means<'_>,
    attributes: MountAttrFlags,
) -> Result<OwnedFd, Failure> {
    let RootFs::Overlay { lower, upper, work, volatile } = &spec.root else {
        return Err(Failure::InvalidSpec { reason: "not an overlay".into() });
    };
    let stubs = runtime.join(stub_layer(spec));
    let overlay = Overlay {
        lower: lower.iter().chain((lower.len() < MAX_LOWER).then_some(&stubs)).map(PathBuf::as_path).collect(),
        changes: Some((upper, work)),
        volatile: *volatile,
    };
    overlay.mount(means.rights, attributes)
}

/// Chooses the lowest layer: mount points taken from it never reach `upper`.
fn stub_layer(spec: &SandboxSpec) -> &'static str {
    let mounted = |file: &&str| {
        let target = Path::new("/").join(file);
        spec.mounts.iter().any(|mount| {
            mount.target == target && matches!(mount.source, MountSource::File { .. } | MountSource::Bind(_))
        })
    };
    match (layout::ETC_FILES.iter().all(mounted), layout::NET_FILES.iter().all(mounted)) {
        (true, _) => layout::STUBS_ETC,
        (false, true) => layout::STUBS_NET,
        (false, false) => layout::STUBS,
    }
}

fn directory(path: &Path, attributes: MountAttrFlags) -> Result<OwnedFd, Failure> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty())
        .and_then(|place| restricted_clone(place.as_fd(), attributes, false))
        .doing(|| format!("open root directory {}", path.display()))
}

/// Makes the new root the only one: the host's tree is detached and unreachable afterwards.
pub(super) fn enter(root: &OwnedFd) -> Result<(), Failure> {
    // Both ends the same directory: the old root ends up on top of the new one, where it can be detached.
    rustix::process::fchdir(root)
        .and_then(|()| rustix::process::pivot_root(".", "."))
        .and_then(|()| unmount(".", UnmountFlags::DETACH))
        .and_then(|()| rustix::process::chdir("/"))
        .doing(|| "enter the root file system".into())
}

/// Makes a folder the root of this process and those that it starts, where nothing can be mounted. Only a process that may do
/// so again gets out of it, so that right is not handed on.
pub(super) fn change(spec: &SandboxSpec) -> Result<super::paths::Root, Failure> {
    let RootFs::Directory(path) = &spec.root else {
        return Err(Failure::InvalidSpec { reason: "a root that is to be mounted".into() });
    };
    if spec.readonly_root {
        return Err(Failure::Unsupported { what: "a read-only root where forge may mount nothing".into() });
    }
    rustix::process::chdir(path)
        .and_then(|()| rustix::process::chroot("."))
        .and_then(|()| rustix::process::chdir("/"))
        .doing(|| "enter the root file system".into())?;
    super::paths::Root::current()
}

/// Refuses what cannot be an honest root.
pub(super) fn check(root: &super::paths::Root) -> Result<(), Failure> {
    for name in ["proc", "sys"] {
        match root.open_plain(Path::new(name)) {
            Err(Errno::LOOP) => {
                let reason = format!("/{name} is a symbolic link");
                return Err(Failure::RootRefused { reason });
            }
            Ok(_) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno).doing(|| format!("inspect /{name}")),
        }
    }
    Ok(())
}
