//! `/proc`, `/dev` and `/sys`, made by forge and never taken from the image.

use super::mounts::{FsOption, LOCKED, attach, new_filesystem, refuse_kernel_file_system, tmpfs};
use super::paths::{PointKind, Root, Stub};
use crate::SandboxSpec;
use crate::message::{Doing, Failure};
use rustix::fs::{
    FileType, Gid, Mode, OFlags, Uid, chownat, fstat, major, makedev, minor, mkdirat, mknodat, openat, symlinkat,
};
use rustix::io::Result as SysResult;
use rustix::mount::MountAttrFlags;
use rustix::process::ioctl_tiocsctty;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

const NODES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Mounts a fresh procfs of the container's own PID namespace.
///
/// `tasks` bounds the namespace's process numbers, and so the number of its tasks, without a cgroup.
pub(super) fn mount_proc(root: &Root, tasks: Option<u32>, stubs: &mut Vec<Stub>) -> Result<(), Failure> {
    let proc = new_filesystem("proc", &[], LOCKED)?;
    if let Some(count) = tasks {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        openat(&proc, "sys/kernel/pid_max", flags, Mode::empty())
            .and_then(|file| rustix::io::write(&file, count.to_string().as_bytes()))
            .doing(|| "bound the number of tasks".into())?;
    }
    place(root, "/proc", &proc, stubs)
}

fn place(root: &Root, path: &str, mount: &OwnedFd, stubs: &mut Vec<Stub>) -> Result<(), Failure> {
    let point = root.open_or_create(Path::new(path), PointKind::Directory, stubs)?;
    refuse_kernel_file_system(&point, Path::new(path))?;
    attach(mount.as_fd(), point.as_fd()).doing(|| format!("mount {path}"))
}

/// The container's `/dev`.
pub(super) struct Devices {
    /// Root of the tmpfs.
    directory: OwnedFd,
    /// Verified `/dev/null`.
    pub(super) null: OwnedFd,
    terminals: OwnedFd,
}

impl Devices {
    /// Builds the tree on a tmpfs that is attached only when it is complete, and what is mounted in it.
    pub(super) fn mount(spec: &SandboxSpec, root: &Root, stubs: &mut Vec<Stub>) -> Result<Self, Failure> {
        let directory = tmpfs(Some("65536k"), 0o755, MountAttrFlags::MOUNT_ATTR_NOSUID)?;
        populate(&directory, spec.process.terminal).doing(|| "make device nodes".into())?;
        let null = open_null(&directory)?;
        place(root, "/dev", &directory, stubs)?;
        let terminals = new_filesystem(
            "devpts",
            &[
                FsOption::Text("mode", Path::new("0620")),
                FsOption::Text("ptmxmode", Path::new("0666")),
                FsOption::Text("gid", Path::new("5")),
            ],
            MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC,
        )?;
        let size = spec.shm_size.to_string();
        let shared_memory = tmpfs(Some(&size), 0o1777, LOCKED)?;
        let queues = new_filesystem("mqueue", &[], LOCKED)?;
        for (name, mount) in [("pts", &terminals), ("shm", &shared_memory), ("mqueue", &queues)] {
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            openat(&directory, name, flags, Mode::empty())
                .and_then(|point| attach(mount.as_fd(), point.as_fd()))
                .doing(|| format!("mount /dev/{name}"))?;
        }
        Ok(Self { directory, null, terminals })
    }

    /// Allocates a terminal; returns its controlling and its process side.
    ///
    /// The process side comes from the kernel by ioctl, not by name, and is put on `/dev/console`.
    pub(super) fn terminal(&self) -> Result<(OwnedFd, OwnedFd), Failure> {
        self.allocate().doing(|| "allocate a terminal".into())
    }

    fn allocate(&self) -> SysResult<(OwnedFd, OwnedFd)> {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let controlling = openat(&self.terminals, "ptmx", flags, Mode::empty())?;
        unlockpt(&controlling)?;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let process = ioctl_tiocgptpeer(&controlling, flags)?;
        let console = openat(&self.directory, "console", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let mount = super::mounts::clone_tree(process.as_fd(), false)?;
        attach(mount.as_fd(), console.as_fd())?;
        Ok((controlling, process))
    }
}

fn populate(directory: &OwnedFd, terminal: bool) -> SysResult<()> {
    let everyone = Mode::from_raw_mode(0o666);
    for (name, major, minor) in NODES {
        mknodat(directory, name, FileType::CharacterDevice, everyone, makedev(major, minor))?;
    }
    for (name, target) in LINKS {
        symlinkat(target, directory, name)?;
    }
    for name in ["pts", "shm", "mqueue"] {
        mkdirat(directory, name, Mode::from_raw_mode(0o755))?;
    }
    if terminal {
        mknodat(directory, "console", FileType::RegularFile, Mode::from_raw_mode(0o600), 0)?;
    }
    Ok(())
}

/// Opens the node just made and makes sure that it is what masks are made of.
fn open_null(directory: &OwnedFd) -> Result<OwnedFd, Failure> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let null = openat(directory, "null", flags, Mode::empty()).doing(|| "open /dev/null".into())?;
    let stat = fstat(&null).doing(|| "inspect /dev/null".into())?;
    let device = (major(stat.st_rdev), minor(stat.st_rdev));
    if FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && device == (1, 3) {
        return Ok(null);
    }
    Err(Failure::RootRefused { reason: "/dev/null is not the null device".into() })
}

/// Makes a terminal the user's and the session's.
pub(super) fn adopt_terminal(terminal: &OwnedFd, uid: u32) -> Result<(), Failure> {
    chownat(terminal, "", Some(Uid::from_raw(uid)), None::<Gid>, rustix::fs::AtFlags::EMPTY_PATH)
        .and_then(|()| ioctl_tiocsctty(terminal))
        .doing(|| "take the terminal over".into())
}

/// Mounts sysfs, and in it the container's own part of the cgroup tree.
pub(super) fn mount_sys(spec: &SandboxSpec, root: &Root, stubs: &mut Vec<Stub>) -> Result<(), Failure> {
    let attributes = match spec.writable_sys {
        true => LOCKED,
        false => LOCKED | MountAttrFlags::MOUNT_ATTR_RDONLY,
    };
    let sysfs = new_filesystem("sysfs", &[], attributes)?;
    place(root, "/sys", &sysfs, stubs)?;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let Ok(point) = openat(&sysfs, "fs/cgroup", flags, Mode::empty()) else {
        return Ok(()); // a kernel without cgroups
    };
    // Always version 2, whatever the host mounts: of version 1 there would be ten mounts, each showing the host's tree.
    let cgroups = new_filesystem("cgroup2", &[], attributes)?;
    attach(cgroups.as_fd(), point.as_fd()).doing(|| "mount /sys/fs/cgroup".into())
}
