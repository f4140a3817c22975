//! `/proc`, `/dev` and `/sys`, made by forge and never taken from the image.

use super::early::Early;
use super::mounts::{
    FsOption, LOCKED, attach, clone_tree, new_filesystem, refuse_kernel_file_system, restricted_clone, tmpfs,
};
use super::paths::{PointKind, Root, Stub};
use super::rights::Rights;
use crate::message::{Doing, Failure};
use crate::{NetworkMode, SandboxSpec};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, chownat, fstat, fstatfs, major, makedev, minor,
    mkdirat, mknodat, openat, symlinkat, unlinkat,
};
use rustix::io::{Errno, Result as SysResult};
use rustix::mount::MountAttrFlags;
use rustix::process::ioctl_tiocsctty;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

pub(crate) const NODES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// `f_type` of devpts.
const DEVPTS_SUPER_MAGIC: u32 = 0x1cd1;

/// `tty` in every distribution.
pub(super) const TERMINAL_GROUP: u32 = 5;

const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// What comes from the kernel or the host, made ready while the host's tree is in sight: in a user namespace the kernel
/// mounts procfs and sysfs only for those who see them in full already (`mount_too_revealing`).
pub(super) struct SystemMounts {
    proc: OwnedFd,
    sys: OwnedFd,
    sys_attributes: MountAttrFlags,
    /// Bound from the host where nodes cannot be made, in the order of [`NODES`].
    nodes: Option<Vec<OwnedFd>>,
    /// The tree of control groups, where it is the host's.
    cgroups: Option<OwnedFd>,
    /// `/dev/shm` and `/dev/mqueue`, where they are the host's.
    communication: Option<[OwnedFd; 2]>,
    /// The group of terminals, where it exists.
    terminal_group: bool,
    /// What had to do in place of a file system of the container's own.
    pub(super) notices: Vec<&'static str>,
}

/// Where forge is in a container that hides parts of its own, the kernel mounts none that would show them.
const HOST_PROC: &str = "processes outside of a container are listed in its /proc, and its task limit is not enforced: parts \
                         of /proc are hidden from forge, as in most containers, so the kernel lets it mount none";

impl SystemMounts {
    /// `tasks` bounds the namespace's process numbers, and so the number of its tasks, without a cgroup.
    pub(super) fn prepare(
        spec: &SandboxSpec,
        tasks: Option<u32>,
        rights: &Rights,
        early: &mut Early,
    ) -> Result<Self, Failure> {
        let sys_attributes = match spec.writable_sys {
            true => LOCKED,
            false => LOCKED | MountAttrFlags::MOUNT_ATTR_RDONLY,
        };
        let nodes = match rights.nodes {
            true => None,
            false => Some(host_nodes()?),
        };
        let mut notices = Vec::new();
        let proc = match new_proc(early.proc.take(), tasks) {
            Err(failure) if failure.is_refusal() => {
                notices.push(HOST_PROC);
                bind_host("/proc", LOCKED)?
            }
            other => other?,
        };
        let sys = match early.sys.take_if(|_| !spec.writable_sys) {
            Some(made) => made,
            None => sysfs(spec, rights, sys_attributes)?,
        };
        let communication = match spec.shared.ipc {
            true => Some([bind_host("/dev/shm", LOCKED)?, host_queues()?]),
            false => None,
        };
        let cgroups = match spec.shared.cgroup {
            true => Some(bind_host("/sys/fs/cgroup", sys_attributes)?),
            false => None,
        };
        let terminal_group = rights.has_group(TERMINAL_GROUP);
        let this = Self { proc, sys, sys_attributes, nodes, cgroups, communication, terminal_group, notices };
        for sysctl in &spec.sysctls {
            this.write(sysctl.path(), sysctl.value())?;
        }
        Ok(this)
    }

    /// Writes to a file of the container's `/proc`.
    pub(super) fn write(&self, path: impl AsRef<Path>, text: &str) -> Result<(), Failure> {
        let path = path.as_ref();
        openat(&self.proc, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
            .and_then(|file| rustix::io::write(&file, text.as_bytes()))
            .map(drop)
            .doing(|| format!("write {text:?} to /proc/{}", path.display()))
    }

    /// Mounts the procfs of the container's own PID namespace.
    pub(super) fn mount_proc(&self, root: &Root, stubs: &mut Vec<Stub>) -> Result<(), Failure> {
        place(root, "/proc", &self.proc, stubs)
    }

    /// Mounts sysfs, and in it the container's own part of the cgroup tree.
    pub(super) fn mount_sys(&self, root: &Root, stubs: &mut Vec<Stub>) -> Result<(), Failure> {
        place(root, "/sys", &self.sys, stubs)?;
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let Ok(point) = openat(&self.sys, "fs/cgroup", flags, Mode::empty()) else {
            return Ok(()); // a kernel without cgroups
        };
        // Of its own always version 2, whatever the host mounts: of version 1 there would be ten mounts, each showing the host's tree.
        let own;
        let cgroups = match &self.cgroups {
            Some(host) => host,
            None => {
                own = new_filesystem("cgroup2", &[], self.sys_attributes)?;
                &own
            }
        };
        attach(cgroups.as_fd(), point.as_fd()).doing(|| "mount /sys/fs/cgroup".into())
    }
}

/// Those of this process's IPC namespace.
pub(super) fn queues() -> Result<OwnedFd, Failure> {
    new_filesystem("mqueue", &[], LOCKED)
}

/// Those of the host's, which only root of the machine may mount; where the host shows none there is an empty folder.
fn host_queues() -> Result<OwnedFd, Failure> {
    let nothing = || tmpfs(Some("0"), 0o555, LOCKED | MountAttrFlags::MOUNT_ATTR_RDONLY);
    queues().or_else(|_| bind_host("/dev/mqueue", LOCKED)).or_else(|_| nothing())
}

fn new_proc(made: Option<OwnedFd>, tasks: Option<u32>) -> Result<OwnedFd, Failure> {
    let proc = match made {
        Some(made) => made,
        None => new_filesystem("proc", &[], LOCKED)?,
    };
    if let Some(count) = tasks {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        openat(&proc, "sys/kernel/pid_max", flags, Mode::empty())
            .and_then(|file| rustix::io::write(&file, count.to_string().as_bytes()))
            .doing(|| "bound the number of tasks".into())?;
    }
    Ok(proc)
}

/// A sysfs shows the devices of a network namespace, and can be mounted by the root of that only: whoever shares the
/// host's network without being root there gets the host's. So does whom the kernel lets mount none, as with procfs.
fn sysfs(spec: &SandboxSpec, rights: &Rights, attributes: MountAttrFlags) -> Result<OwnedFd, Failure> {
    if spec.network == NetworkMode::Host && !rights.trusted {
        return bind_host("/sys", attributes);
    }
    match new_filesystem("sysfs", &[], attributes) {
        Err(failure) if failure.is_refusal() => bind_host("/sys", attributes),
        other => other,
    }
}

/// A mount of what is there, with all that covers parts of it.
fn bind_host(path: &str, attributes: MountAttrFlags) -> Result<OwnedFd, Failure> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty())
        .and_then(|host| restricted_clone(host.as_fd(), attributes, true))
        .doing(|| format!("bind {path}"))
}

/// Mounts of the host's nodes.
fn host_nodes() -> Result<Vec<OwnedFd>, Failure> {
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let node = |(name, major_number, minor_number): (&str, u32, u32)| {
        let path = Path::new("/dev").join(name);
        let doing = || format!("bind {}", path.display());
        let host = openat(CWD, &path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()).doing(doing)?;
        match is_node(&host, (major_number, minor_number)).doing(doing)? {
            true => restricted_clone(host.as_fd(), attributes, false).doing(doing),
            false => Err(Failure::Unsupported { what: format!("{}, which is not the usual device,", path.display()) }),
        }
    };
    NODES.into_iter().map(node).collect()
}

fn is_node(place: &OwnedFd, device: (u32, u32)) -> SysResult<bool> {
    let stat = fstat(place)?;
    let found = (major(stat.st_rdev), minor(stat.st_rdev));
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && found == device)
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
    pub(super) fn mount(
        spec: &SandboxSpec,
        root: &Root,
        system: &SystemMounts,
        early: &mut Early,
        stubs: &mut Vec<Stub>,
    ) -> Result<Self, Failure> {
        let directory = match (early.devices.take(), &system.nodes) {
            (Some(made), None) => made,
            (_, None) => populated(FileType::CharacterDevice)?,
            (_, Some(_)) => populated(FileType::RegularFile)?,
        };
        if spec.process.terminal {
            mknodat(&directory, "console", FileType::RegularFile, Mode::from_raw_mode(0o600), 0)
                .doing(|| "make /dev/console".into())?;
        }
        place(root, "/dev", &directory, stubs)?;
        for ((name, ..), node) in NODES.into_iter().zip(system.nodes.iter().flatten()) {
            openat(&directory, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
                .and_then(|point| attach(node.as_fd(), point.as_fd()))
                .doing(|| format!("bind /dev/{name}"))?;
        }
        let null = open_null(&directory)?;
        let terminals = match early.terminals.take() {
            Some(made) => made,
            None => new_terminals(system.terminal_group)?,
        };
        let (own_memory, own_queues);
        let (shared_memory, queues) = match &system.communication {
            Some([memory, queues]) => (Some(memory), queues),
            None => {
                (own_memory, own_queues) = own_communication(spec.shm_size, early)?;
                (own_memory.as_ref(), &own_queues)
            }
        };
        if shared_memory.is_none() {
            unlinkat(&directory, "shm", AtFlags::REMOVEDIR).doing(|| "remove /dev/shm".into())?;
        }
        let shared_memory = shared_memory.map(|memory| ("shm", memory));
        for (name, mount) in [("pts", &terminals), ("mqueue", queues)].into_iter().chain(shared_memory) {
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
        let (controlling, process) = pair(self.terminals.as_fd(), "ptmx")?;
        let console = openat(&self.directory, "console", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let mount = clone_tree(process.as_fd(), false)?;
        attach(mount.as_fd(), console.as_fd())?;
        Ok((controlling, process))
    }
}

/// Both sides of a new terminal.
fn pair(folder: BorrowedFd<'_>, name: &str) -> SysResult<(OwnedFd, OwnedFd)> {
    both_sides(openat(folder, name, TERMINAL_FLAGS | OFlags::CLOEXEC, Mode::empty())?)
}

const TERMINAL_FLAGS: OFlags = OFlags::RDWR.union(OFlags::NOCTTY);

fn both_sides(controlling: OwnedFd) -> SysResult<(OwnedFd, OwnedFd)> {
    unlockpt(&controlling)?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let process = ioctl_tiocgptpeer(&controlling, flags)?;
    Ok((controlling, process))
}

/// A terminal of those that forge itself sees: a process in a changed root has no name for it.
pub(super) fn outer_terminal() -> Result<(OwnedFd, OwnedFd), Failure> {
    pair(CWD, "/dev/ptmx").doing(|| "allocate a terminal".into())
}

/// A terminal of those of a container that runs, if what it has at their place is the kernel's.
pub(super) fn inner_terminal(root: &Root) -> Result<(OwnedFd, OwnedFd), Failure> {
    let allocate = || {
        let controlling = root.resolve(Path::new("/dev/pts/ptmx"), TERMINAL_FLAGS, ResolveFlags::NO_SYMLINKS)?;
        match fstatfs(&controlling)?.f_type as u32 == DEVPTS_SUPER_MAGIC {
            true => both_sides(controlling),
            false => Err(Errno::NODEV),
        }
    };
    allocate().doing(|| "allocate a terminal".into())
}

pub(super) fn new_terminals(with_group: bool) -> Result<OwnedFd, Failure> {
    let group = TERMINAL_GROUP.to_string();
    let mut options = vec![FsOption::Text("mode", Path::new("0620")), FsOption::Text("ptmxmode", Path::new("0666"))];
    if with_group {
        options.push(FsOption::Text("gid", Path::new(&group)));
    }
    new_filesystem("devpts", &options, MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC)
}

/// `/dev/shm`, if it has a size, and `/dev/mqueue` of the container's own IPC namespace.
fn own_communication(size: Option<u64>, early: &mut Early) -> Result<(Option<OwnedFd>, OwnedFd), Failure> {
    let memory = match (size, size.and_then(|size| early.take_shared_memory(size))) {
        (None, _) => None,
        (Some(_), Some(made)) => Some(made),
        (Some(size), None) => Some(tmpfs(Some(&size.to_string()), 0o1777, LOCKED)?),
    };
    let queues = match early.queues.take() {
        Some(made) => made,
        None => queues()?,
    };
    Ok((memory, queues))
}

/// A `/dev` that is attached nowhere; the nodes are of that kind, files being places to bind them on.
pub(super) fn populated(kind: FileType) -> Result<OwnedFd, Failure> {
    let directory = tmpfs(Some("65536k"), 0o755, MountAttrFlags::MOUNT_ATTR_NOSUID)?;
    populate(&directory, kind).doing(|| "make device nodes".into())?;
    Ok(directory)
}

fn populate(directory: &OwnedFd, kind: FileType) -> SysResult<()> {
    let everyone = Mode::from_raw_mode(0o666);
    for (name, major, minor) in NODES {
        mknodat(directory, name, kind, everyone, makedev(major, minor))?;
    }
    for (name, target) in LINKS {
        symlinkat(target, directory, name)?;
    }
    for name in ["pts", "shm", "mqueue"] {
        mkdirat(directory, name, Mode::from_raw_mode(0o755))?;
    }
    Ok(())
}

/// Opens the node just placed and makes sure that it is what masks are made of.
fn open_null(directory: &OwnedFd) -> Result<OwnedFd, Failure> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let null = openat(directory, "null", flags, Mode::empty()).doing(|| "open /dev/null".into())?;
    if is_node(&null, (1, 3)).doing(|| "inspect /dev/null".into())? {
        return Ok(null);
    }
    Err(Failure::RootRefused { reason: "/dev/null is not the null device".into() })
}

/// Makes a terminal the user's and the session's.
pub(super) fn adopt_terminal(terminal: &OwnedFd, uid: u32) -> Result<(), Failure> {
    chownat(terminal, "", Some(Uid::from_raw(uid)), None::<Gid>, AtFlags::EMPTY_PATH)
        .and_then(|()| ioctl_tiocsctty(terminal))
        .doing(|| "take the terminal over".into())
}
