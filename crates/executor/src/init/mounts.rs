//! Mounts as descriptors: made, checked and only then attached.

use super::overlay::Overlay;
use super::paths::{PROC_SUPER_MAGIC, PointKind, Root, Stub, open_in};
use super::rights::Rights;
use super::root::layout;
use super::sys::{self, MountChange};
use crate::message::{Doing, Failure};
use crate::{Hidden, MountFlags, MountSource, MountSpec, OverlayChanges};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, chmodat, chownat, fstat, fstatfs, mkdirat, openat,
};
use rustix::io::{Errno, Result};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind as bind_socket, listen, socket_with};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

/// Magic numbers of file systems through which the kernel is configured: nothing is ever mounted on them on request.
const KERNEL_FILE_SYSTEMS: [u32; 4] = [
    PROC_SUPER_MAGIC,
    0x6265_6572, // sysfs
    0x0027_e0eb, // cgroup
    0x6367_7270, // cgroup2
];

/// `nosuid,nodev,noexec`, what every kernel file system is mounted with.
pub(super) const LOCKED: MountAttrFlags =
    MountAttrFlags::MOUNT_ATTR_NOSUID.union(MountAttrFlags::MOUNT_ATTR_NODEV).union(MountAttrFlags::MOUNT_ATTR_NOEXEC);

/// One option of a new file system.
pub(super) enum FsOption<'a> {
    Flag(&'a str),
    Text(&'a str, &'a Path),
}

/// Makes a file system that is attached nowhere yet.
pub(super) fn new_filesystem(
    kind: &str,
    options: &[FsOption<'_>],
    attributes: MountAttrFlags,
) -> std::result::Result<OwnedFd, Failure> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).doing(|| format!("open file system {kind}"))?;
    configure(&context, options).map_err(|errno| Failure::System {
        action: format!("create file system {kind}{}", kernel_log(&context)),
        errno: errno.raw_os_error(),
    })?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).doing(|| format!("mount file system {kind}"))
}

fn configure(context: &OwnedFd, options: &[FsOption<'_>]) -> Result<()> {
    for option in options {
        match option {
            FsOption::Flag(name) => fsconfig_set_flag(context, *name)?,
            FsOption::Text(name, value) => fsconfig_set_string(context, *name, *value)?,
        }
    }
    fsconfig_create(context)
}

/// What the kernel wrote into the context's log: the only place that says which option it disliked.
fn kernel_log(context: &OwnedFd) -> String {
    let mut text = String::new();
    let mut line = [0; 512];
    while let Ok(count @ 1..) = rustix::io::read(context, &mut line) {
        let message = String::from_utf8_lossy(&line[..count]);
        text.push_str(if text.is_empty() { " (" } else { "; " });
        text.push_str(message.trim_start_matches("e ").trim_end());
    }
    if !text.is_empty() {
        text.push(')');
    }
    text
}

/// Attaches a mount on top of what `point` stands for.
pub(super) fn attach(mount: BorrowedFd<'_>, point: BorrowedFd<'_>) -> Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", point, "", flags)
}

/// A further mount of the tree that starts at `place`, attached nowhere.
pub(super) fn clone_tree(place: BorrowedFd<'_>, recursive: bool) -> Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(place, "", flags)
}

/// A clone of the mount at `place` with more attributes.
pub(super) fn restricted_clone(place: BorrowedFd<'_>, attributes: MountAttrFlags, recursive: bool) -> Result<OwnedFd> {
    let mount = clone_tree(place, recursive)?;
    let change = MountChange { set: u64::from(attributes.bits()), propagation: libc::MS_PRIVATE, recursive };
    sys::mount_setattr(mount.as_fd(), change)?;
    Ok(mount)
}

/// A requested mount whose source has been opened on the host's side.
pub(super) struct Prepared<'a> {
    spec: &'a MountSpec,
    mount: OwnedFd,
    kind: PointKind,
}

impl Prepared<'_> {
    /// Where it goes.
    pub(super) fn target(&self) -> &Path {
        &self.spec.target
    }

    /// Attaches it in a folder of our own instead.
    pub(super) fn place(&self, folder: &OwnedFd, name: &str) -> std::result::Result<(), Failure> {
        let made = match self.kind {
            PointKind::Directory => mkdirat(folder, name, Mode::from_raw_mode(0o700)),
            PointKind::File => write_file(folder.as_fd(), name, &[], 0o600),
        };
        made.and_then(|()| openat(folder, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()))
            .and_then(|point| attach(self.mount.as_fd(), point.as_fd()))
            .doing(|| format!("place what is mounted on {}", self.target().display()))
    }
}

/// What is ready before the host's tree is left.
pub(super) struct Preparation<'a> {
    pub(super) mounts: Vec<Prepared<'a>>,
    /// The listening sides of the sockets, in the order of their mounts.
    pub(super) listeners: Vec<OwnedFd>,
    /// The generated files, if there are some that are attached nowhere yet.
    pub(super) staging: Option<OwnedFd>,
}

/// Where generated files are until their mounts are attached.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Staging {
    /// On the host's side of a namespace of the caller's own. Kernels before 6.15 clone only mounts that are attached in the
    /// caller's namespace.
    Attached,
    /// Nowhere.
    Detached,
}

/// Opens the sources of all mounts. Must happen before the host's tree is left.
pub(super) fn prepare<'a>(
    mounts: &'a [MountSpec],
    runtime: &Path,
    rights: &Rights,
    staging: Staging,
) -> std::result::Result<Preparation<'a>, Failure> {
    let mut stage = Stage { runtime, rights, staging, mount: None, count: 0, listeners: Vec::new() };
    let prepared = mounts.iter().map(|spec| {
        check_target(&spec.target)?;
        let mount = open_source(spec, &mut stage)?;
        let mode = fstat(&mount).doing(|| "inspect a mount".into())?.st_mode;
        let kind = match FileType::from_raw_mode(mode) {
            FileType::Directory => PointKind::Directory,
            _ => PointKind::File,
        };
        Ok(Prepared { spec, mount, kind })
    });
    let mounts = prepared.collect::<std::result::Result<_, Failure>>()?;
    let detached = stage.mount.filter(|_| staging == Staging::Detached);
    Ok(Preparation { mounts, listeners: stage.listeners, staging: detached })
}

fn refused(target: &Path, reason: &str) -> Failure {
    Failure::MountRefused { target: target.into(), reason: reason.into() }
}

/// Judges a target by its text; links are judged when it is resolved.
fn check_target(target: &Path) -> std::result::Result<(), Failure> {
    if !target.has_root() {
        return Err(refused(target, "not an absolute path"));
    }
    if target.components().any(|part| part == Component::ParentDir) {
        return Err(refused(target, "contains \"..\""));
    }
    // Compared by components, so that "//proc/./" is "/proc" too.
    let reserved = [Path::new("/proc"), Path::new("/sys")];
    if reserved.iter().any(|path| target.starts_with(path)) {
        return Err(refused(target, "procfs and sysfs cannot be covered"));
    }
    match target.components().count() {
        1 => Err(refused(target, "the root cannot be covered")),
        2 if target.starts_with("/dev") => Err(refused(target, "/dev is forge's own")),
        _ => Ok(()),
    }
}

fn open_source(spec: &MountSpec, stage: &mut Stage<'_>) -> std::result::Result<OwnedFd, Failure> {
    let attributes = attributes(spec);
    match &spec.source {
        MountSource::Bind(path) => {
            let place = openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
            let place = place.doing(|| format!("open mount source {}", path.display()))?;
            bind(&place, attributes, path)
        }
        MountSource::BindBeneath { root, path } => {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let place = openat(CWD, root, flags, Mode::empty())
                .and_then(|root| open_in(root.as_fd(), path, OFlags::PATH, ResolveFlags::empty()))
                .doing(|| format!("open mount source {} below {}", path.display(), root.display()))?;
            bind(&place, attributes, path)
        }
        MountSource::Overlay { lower, changes, path } => {
            let overlay = stage.overlay(lower, changes.as_ref(), attributes)?;
            stage.part(overlay, path, attributes)
        }
        MountSource::Tmpfs { size, mode } => {
            let size = size.map(|bytes| bytes.to_string());
            tmpfs(size.as_deref(), *mode, attributes)
        }
        MountSource::File { content, mode } => stage.file(content, *mode, (0, 0), attributes),
        MountSource::Secret { content, mode, uid, gid } => stage.secret(content, *mode, (*uid, *gid), attributes),
        MountSource::Socket { mode, uid, gid } => stage.socket(*mode, (*uid, *gid), attributes),
    }
}

fn bind(place: &OwnedFd, attributes: MountAttrFlags, path: &Path) -> std::result::Result<OwnedFd, Failure> {
    restricted_clone(place.as_fd(), attributes, true).doing(|| format!("bind {}", path.display()))
}

fn attributes(spec: &MountSpec) -> MountAttrFlags {
    let MountFlags { nosuid, nodev, noexec } = spec.flags;
    let chosen = [
        (spec.readonly, MountAttrFlags::MOUNT_ATTR_RDONLY),
        (nosuid, MountAttrFlags::MOUNT_ATTR_NOSUID),
        (nodev, MountAttrFlags::MOUNT_ATTR_NODEV),
        (noexec, MountAttrFlags::MOUNT_ATTR_NOEXEC),
    ];
    let set = chosen.iter().filter(|(wanted, _)| *wanted).map(|(_, flag)| *flag);
    set.fold(MountAttrFlags::empty(), MountAttrFlags::union)
}

/// A new tmpfs.
pub(super) fn tmpfs(
    size: Option<&str>,
    mode: u32,
    attributes: MountAttrFlags,
) -> std::result::Result<OwnedFd, Failure> {
    let mode = format!("{mode:o}");
    let mut options = vec![FsOption::Text("mode", Path::new(&mode))];
    if let Some(size) = size {
        options.push(FsOption::Text("size", Path::new(size)));
    }
    new_filesystem("tmpfs", &options, attributes)
}

/// One tmpfs for all generated files of a container, which is also where overlays are attached to take parts of them. It goes
/// away with a namespace of the container's: to give it up by itself would take longer than to make it.
struct Stage<'a> {
    runtime: &'a Path,
    rights: &'a Rights,
    staging: Staging,
    mount: Option<OwnedFd>,
    count: u32,
    listeners: Vec<OwnedFd>,
}

impl Stage<'_> {
    /// The tmpfs and a name in it that is free.
    fn place(&mut self) -> std::result::Result<(BorrowedFd<'_>, String), Failure> {
        let name = self.count.to_string();
        self.count += 1;
        let mount = match self.mount.take() {
            Some(mount) => mount,
            None => self.open()?,
        };
        Ok((OwnedFd::as_fd(self.mount.insert(mount)), name))
    }

    fn open(&self) -> std::result::Result<OwnedFd, Failure> {
        let mount = tmpfs(Some("256m"), 0o755, LOCKED)?;
        if self.staging == Staging::Detached {
            return Ok(mount);
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(CWD, self.runtime.join(layout::STAGING), flags, Mode::empty())
            .and_then(|point| attach(mount.as_fd(), point.as_fd()))
            .doing(|| "attach generated files".into())?;
        Ok(mount)
    }

    fn file(
        &mut self,
        content: &[u8],
        mode: u32,
        owner: (u32, u32),
        attributes: MountAttrFlags,
    ) -> std::result::Result<OwnedFd, Failure> {
        let (folder, name) = self.place()?;
        write_file(folder, &name, content, mode)
            .and_then(|()| give(folder, &name, mode, owner))
            .and_then(|()| openat(folder, &name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()))
            .and_then(|place| restricted_clone(place.as_fd(), attributes, false))
            .doing(|| "make a generated file".into())
    }

    /// A tmpfs of its own, since only a whole one is kept out of swap. Kernels before 6.4 cannot.
    fn secret(
        &mut self,
        content: &Hidden,
        mode: u32,
        owner: (u32, u32),
        attributes: MountAttrFlags,
    ) -> std::result::Result<OwnedFd, Failure> {
        // Whether it may be executed is the mount's own affair: a clone only takes more away.
        let given = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        let memory = new_filesystem("tmpfs", &[FsOption::Flag("noswap")], given)
            .or_else(|_| new_filesystem("tmpfs", &[], given))?;
        let (folder, name) = self.place()?;
        mkdirat(folder, &name, Mode::from_raw_mode(0o700))
            .and_then(|()| openat(folder, &name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()))
            .and_then(|point| attach(memory.as_fd(), point.as_fd()))
            .and_then(|()| write_file(memory.as_fd(), "secret", content.reveal(), mode))
            .and_then(|()| give(memory.as_fd(), "secret", mode, owner))
            .and_then(|()| openat(&memory, "secret", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()))
            .and_then(|place| restricted_clone(place.as_fd(), attributes, false))
            .doing(|| "keep a secret in memory".into())
    }

    fn socket(
        &mut self,
        mode: u32,
        owner: (u32, u32),
        attributes: MountAttrFlags,
    ) -> std::result::Result<OwnedFd, Failure> {
        let (folder, name) = self.place()?;
        let (listener, place) = listening_socket(folder, &name)
            .and_then(|listener| {
                give(folder, &name, mode, owner)?;
                Ok((listener, openat(folder, &name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?))
            })
            .doing(|| "make a socket".into())?;
        self.listeners.push(listener);
        restricted_clone(place.as_fd(), attributes, false).doing(|| "make a socket".into())
    }

    /// An overlay that is attached nowhere. Without changes it takes two layers at least: the kernel's rule.
    fn overlay(
        &mut self,
        lower: &[PathBuf],
        changes: Option<&OverlayChanges>,
        attributes: MountAttrFlags,
    ) -> std::result::Result<OwnedFd, Failure> {
        let padding = [self.runtime.join(layout::EMPTY), self.runtime.join(layout::ROOT)];
        let missing = 2usize.saturating_sub(lower.len() + usize::from(changes.is_some()));
        let overlay = Overlay {
            lower: lower.iter().chain(padding.iter().take(missing)).map(PathBuf::as_path).collect(),
            changes: changes.map(|OverlayChanges { upper, work }| (upper.as_path(), work.as_path())),
            volatile: changes.is_some(),
        };
        overlay.mount(self.rights, attributes)
    }

    /// What a path names in a file system that is attached nowhere.
    fn part(
        &mut self,
        whole: OwnedFd,
        path: &Path,
        attributes: MountAttrFlags,
    ) -> std::result::Result<OwnedFd, Failure> {
        if !path.components().any(|part| matches!(part, Component::Normal(_))) {
            return Ok(whole);
        }
        let (folder, name) = self.place()?;
        mkdirat(folder, &name, Mode::from_raw_mode(0o700))
            .and_then(|()| openat(folder, &name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()))
            .and_then(|point| attach(whole.as_fd(), point.as_fd()))
            .doing(|| "attach a mount's source".into())?;
        open_in(whole.as_fd(), path, OFlags::PATH, ResolveFlags::empty())
            .and_then(|place| restricted_clone(place.as_fd(), attributes, false))
            .doing(|| format!("open mount source {}", path.display()))
    }
}

/// A socket of that name that accepts connections. By way of procfs, since an address holds 107 bytes at most.
fn listening_socket(folder: BorrowedFd<'_>, name: &str) -> Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let address = SocketAddrUnix::new(format!("{}/{name}", sys::descriptor_path(folder)))?;
    bind_socket(&socket, &address)?;
    listen(&socket, 16)?;
    Ok(socket)
}

/// Sets owner and permissions, whatever the umask was.
fn give(folder: BorrowedFd<'_>, name: &str, mode: u32, (uid, gid): (u32, u32)) -> Result<()> {
    chownat(folder, name, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::SYMLINK_NOFOLLOW)?;
    chmodat(folder, name, Mode::from_raw_mode(mode), AtFlags::empty())
}

fn write_file(directory: BorrowedFd<'_>, name: &str, content: &[u8], mode: u32) -> Result<()> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = openat(directory, name, flags, Mode::from_raw_mode(mode))?;
    let mut rest = content;
    while !rest.is_empty() {
        rest = &rest[rustix::io::retry_on_intr(|| rustix::io::write(&file, rest))?..];
    }
    Ok(())
}

/// Attaches the requested mounts in order. The standard ones must be in place already.
pub(super) fn attach_all(
    prepared: &[Prepared<'_>],
    root: &Root,
    stubs: &mut Vec<Stub>,
) -> std::result::Result<(), Failure> {
    for Prepared { spec, mount, kind } in prepared {
        let target = &spec.target;
        let point = root.open_or_create(target, *kind, stubs)?;
        check_point(&point, *kind, target)?;
        attach(mount.as_fd(), point.as_fd()).doing(|| format!("mount on {}", target.display()))?;
    }
    Ok(())
}

/// Refuses a place in a file system through which the kernel is configured.
pub(super) fn refuse_kernel_file_system(point: &OwnedFd, target: &Path) -> std::result::Result<(), Failure> {
    let system = fstatfs(point).doing(|| format!("inspect {}", target.display()))?;
    match KERNEL_FILE_SYSTEMS.contains(&(system.f_type as u32)) {
        true => Err(refused(target, "it leads into procfs or sysfs")),
        false => Ok(()),
    }
}

/// Judges a target by what it turned out to be.
fn check_point(point: &OwnedFd, kind: PointKind, target: &Path) -> std::result::Result<(), Failure> {
    let stat = fstat(point).doing(|| format!("inspect {}", target.display()))?;
    refuse_kernel_file_system(point, target)?;
    let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    match (directory, kind) {
        (true, PointKind::File) => Err(refused(target, "a file cannot be mounted on a directory")),
        (false, PointKind::Directory) => Err(refused(target, "a directory cannot be mounted on a file")),
        _ => Ok(()),
    }
}

/// Covers paths so that they look empty. What does not exist needs no mask.
pub(super) struct Masks<'a> {
    root: &'a Root,
    null: BorrowedFd<'a>,
    /// One read-only tmpfs for all directories: a file system each costs thousands of mounts on big machines.
    empty: Option<OwnedFd>,
}

impl<'a> Masks<'a> {
    /// `null` must be the verified `/dev/null` of the container.
    pub(super) fn new(root: &'a Root, null: BorrowedFd<'a>) -> Self {
        Self { root, null, empty: None }
    }

    /// Masks one path.
    pub(super) fn add(&mut self, path: &Path) -> std::result::Result<(), Failure> {
        let point = match self.root.open(path) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            other => other.doing(|| format!("open {}", path.display()))?,
        };
        let mode = fstat(&point).doing(|| format!("inspect {}", path.display()))?.st_mode;
        let cover = match FileType::from_raw_mode(mode) {
            FileType::Directory => self.empty_directory()?,
            _ => restricted_clone(self.null, MountAttrFlags::MOUNT_ATTR_RDONLY, false)
                .doing(|| "clone /dev/null".into())?,
        };
        attach(cover.as_fd(), point.as_fd()).doing(|| format!("mask {}", path.display()))
    }

    fn empty_directory(&mut self) -> std::result::Result<OwnedFd, Failure> {
        if let Some(attached) = &self.empty {
            return clone_tree(attached.as_fd(), false).doing(|| "clone the empty directory".into());
        }
        let attributes = LOCKED | MountAttrFlags::MOUNT_ATTR_RDONLY;
        let mount = tmpfs(Some("0"), 0o555, attributes)?;
        self.empty = Some(rustix::io::fcntl_dupfd_cloexec(&mount, 3).doing(|| "duplicate a descriptor".into())?);
        Ok(mount)
    }
}

/// Makes a path and all below it read-only by a mount of itself.
pub(super) fn make_readonly(root: &Root, path: &Path) -> std::result::Result<(), Failure> {
    let point = match root.open(path) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        other => other.doing(|| format!("open {}", path.display()))?,
    };
    restricted_clone(point.as_fd(), MountAttrFlags::MOUNT_ATTR_RDONLY, true)
        .and_then(|mount| attach(mount.as_fd(), point.as_fd()))
        .doing(|| format!("make {} read-only", path.display()))
}
