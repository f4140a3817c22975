//! System calls that rustix does not wrap: by nix, and where that has none either, by hand.
#![allow(unsafe_code)]

use crate::Capabilities;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::io::{Errno, Result};
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::raw::{c_char, c_long, c_ulong};

/// The error number in the place of -1.
pub(super) fn check(result: c_long) -> Result<c_long> {
    match result {
        -1 => Err(last_errno()),
        value => Ok(value),
    }
}

fn last_errno() -> Errno {
    let code = std::io::Error::last_os_error().raw_os_error();
    Errno::from_raw_os_error(code.unwrap_or(libc::EIO))
}

fn from_nix(errno: nix::Error) -> Errno {
    Errno::from_raw_os_error(errno as i32)
}

/// As in linux/sched.h; libc's own constant does not fit its type.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Which side of a clone one is on.
pub(super) enum Cloned {
    Child,
    Parent { pid: i32, pidfd: OwnedFd },
}

/// clone3(2) without shared memory: a fork into new namespaces and, if given, a cgroup.
///
/// # Safety
/// The process must be single-threaded: the child gets a copy of every lock as it stands.
pub(super) unsafe fn clone3(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> Result<Cloned> {
    let mut pidfd: RawFd = -1;
    // SAFETY: clone_args is plain data for which all zeroes is valid.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = flags | libc::CLONE_PIDFD as u64;
    arguments.pidfd = &raw mut pidfd as u64;
    // A sibling has its parent's parent told as its parent does.
    let is_sibling = flags & libc::CLONE_PARENT as u64 != 0;
    arguments.exit_signal = if is_sibling { 0 } else { libc::SIGCHLD as u64 };
    if let Some(cgroup) = cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: the arguments outlive the call; without CLONE_VM the child runs on its own copy of this stack.
    let cloned = check(unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of_val(&arguments)) });
    let pid = match cloned {
        // docker's filter denies the call, whose flags it cannot see.
        Err(Errno::NOSYS) if flags == 0 && cgroup.is_none() => return fork_with_handle(),
        other => other?,
    };
    if pid == 0 {
        return Ok(Cloned::Child);
    }
    // SAFETY: the kernel stored a new descriptor that nobody else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Cloned::Parent { pid: pid as i32, pidfd })
}

fn fork_with_handle() -> Result<Cloned> {
    // SAFETY: as the caller of `clone3` promises.
    let Some(pid) = (unsafe { fork()? }) else { return Ok(Cloned::Child) };
    let child = rustix::process::Pid::from_raw(pid).ok_or(Errno::SRCH)?;
    let pidfd = rustix::process::pidfd_open(child, rustix::process::PidfdFlags::empty())?;
    Ok(Cloned::Parent { pid, pidfd })
}

/// What mount_setattr(2) shall change.
#[derive(Clone, Copy, Default)]
pub(super) struct MountChange {
    pub(super) set: u64,
    pub(super) propagation: u64,
    pub(super) recursive: bool,
}

/// mount_setattr(2) on the mount that a descriptor is the root of.
pub(super) fn mount_setattr(mount: BorrowedFd<'_>, change: MountChange) -> Result<()> {
    let attributes =
        libc::mount_attr { attr_set: change.set, attr_clr: 0, propagation: change.propagation, userns_fd: 0 };
    let recursive = if change.recursive { libc::AT_RECURSIVE } else { 0 };
    let flags = libc::AT_EMPTY_PATH | recursive;
    // SAFETY: path and attributes are valid for the call, the size is the structure's.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of_val(&attributes),
        )
    })
    .map(drop)
}

/// Joins a fresh session keyring. A kernel without keyrings has none to share, and the filter of a container that forge is
/// in keeps everything in it from using one.
pub(super) fn new_session_keyring() -> Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: c_long = 1;
    // SAFETY: a null name asks for an anonymous keyring.
    let joined = check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0, 0) });
    match joined {
        Ok(_) | Err(Errno::NOSYS | Errno::PERM) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Resets every signal to its default action and unblocks all. Rust's runtime ignores SIGPIPE, and glibc's `posix_spawn` the two
/// signals (32 and 33) that its functions keep to themselves; the payload must not.
pub(super) fn reset_signals() {
    /// The kernel's, not the C library's.
    #[repr(C)]
    #[derive(Default)]
    struct Action {
        handler: usize,
        flags: c_ulong,
        restorer: usize,
        mask: u64,
    }
    const { assert!(libc::SIG_DFL == 0) }
    let default = Action::default();
    for signal in 1..=64 {
        let before = std::ptr::null_mut::<Action>();
        // SAFETY: the default is a valid action for every signal; those that cannot be changed fail harmlessly.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, &raw const default, before, size_of::<u64>()) };
    }
    SigSet::empty().thread_set_mask().expect("any set is a valid mask");
}

/// Has a write to whom nobody listens fail, and not end this process. Containers do without, see [`reset_signals`].
pub(super) fn survive_broken_pipes() {
    // SAFETY: SIG_IGN is a valid action for this signal.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// Blocks SIGCHLD and returns a descriptor that becomes readable when a child ends.
pub(super) fn child_signal_descriptor() -> Result<OwnedFd> {
    let children = SigSet::from(Signal::SIGCHLD);
    children.thread_block().map_err(from_nix)?;
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    SignalFd::with_flags(&children, flags).map(OwnedFd::from).map_err(from_nix)
}

/// A child that has ended, and what it and everything it waited for used.
pub(super) struct Ended {
    pub(super) pid: i32,
    pub(super) status: i32,
    pub(super) user_us: u64,
    pub(super) system_us: u64,
    pub(super) peak_kib: u64,
}

/// wait4(2) for any child; `None` if none has ended and the call need not block.
pub(super) fn wait_any(block: bool) -> Result<Option<Ended>> {
    let mut status = 0;
    // SAFETY: rusage is plain data for which all zeroes is valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    let flags = if block { 0 } else { libc::WNOHANG };
    // SAFETY: both results are valid for writes.
    let pid = check(unsafe { libc::wait4(-1, &raw mut status, flags, &raw mut usage) }.into())?;
    let micros = |time: libc::timeval| (time.tv_sec as u64) * 1_000_000 + time.tv_usec as u64;
    Ok((pid != 0).then(|| Ended {
        pid: pid as i32,
        status,
        user_us: micros(usage.ru_utime),
        system_us: micros(usage.ru_stime),
        peak_kib: usage.ru_maxrss as u64,
    }))
}

/// Waits until this child has ended.
pub(super) fn wait_for(pid: i32) {
    // It fails for one that was reaped already.
    let _ = rustix::io::retry_on_intr(|| {
        rustix::process::waitpid(rustix::process::Pid::from_raw(pid), rustix::process::WaitOptions::empty())
    });
}

/// fork(2): the child's number in the parent, `None` in the child.
///
/// # Safety
/// The process must be single-threaded: the child gets a copy of every lock as it stands.
pub(super) unsafe fn fork() -> Result<Option<i32>> {
    // SAFETY: as the caller promises.
    let pid = check(unsafe { libc::fork() }.into())?;
    Ok((pid != 0).then_some(pid as i32))
}

/// fork(2) for a program that has not started a thread, before anything else; `None` in the child.
///
/// The safe face of [`fork`]: what is asked for can be seen, and is.
pub(crate) fn fork_alone() -> Result<Option<rustix::process::Pid>> {
    let threads = std::fs::read_dir("/proc/self/task").map_err(|_| Errno::SRCH)?.count();
    if threads != 1 {
        return Err(Errno::DEADLK);
    }
    // SAFETY: this is the only thread.
    let child = unsafe { fork() }?;
    Ok(child.and_then(rustix::process::Pid::from_raw))
}

/// Moves this process, which must have one thread, into a user namespace and a mount namespace of its own.
pub(crate) fn new_user_namespace() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS).map_err(from_nix)
}

/// Moves this process into a mount namespace of its own.
pub(crate) fn new_mount_namespace() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(from_nix)
}

/// Covers the root with itself, in a mount namespace of this process's own: what counts are paths that are looked up later.
pub(crate) fn can_attach() -> Result<()> {
    use rustix::mount::{UnmountFlags, unmount};
    unmount(descriptor_path(cover_root()?.as_fd()), UnmountFlags::DETACH)
}

fn cover_root() -> Result<OwnedFd> {
    use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let root = open_tree(rustix::fs::CWD, "/", flags)?;
    let point =
        rustix::fs::open("/", rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC, rustix::fs::Mode::empty())?;
    let places = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(&root, "", &point, "", places)?;
    Ok(root)
}

/// Makes a root of the same tree this process's own, in a mount namespace of its own, by each kind of call that containers take:
/// of the newer ones AppArmor knows nothing before Linux 6.8.
pub(crate) fn can_change_root() -> Result<()> {
    use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let root = cover_root()?;
    rustix::process::fchdir(&root)?;
    rustix::process::pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)
}

/// Leaves all supplementary groups.
pub(crate) fn forget_groups() -> Result<()> {
    rustix::thread::set_thread_groups(&[])
}

/// Makes a file system that is attached nowhere and goes at once.
pub(crate) fn can_mount() -> Result<()> {
    use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).map(drop)
}

/// Has a program killed when this process ends.
pub(super) fn end_with_parent(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    let work = || Ok(rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?);
    // SAFETY: the closure makes one system call and allocates nothing.
    unsafe { command.pre_exec(work) };
}

/// Sends a signal, if its process is still there.
pub(super) fn send_signal(process: i32, signal: i32) {
    // SAFETY: no memory is involved; a process that has ended is an error that changes nothing.
    unsafe { libc::kill(process, signal) };
}

/// Leaves the init's process group, and takes the terminal over where there is one.
pub(super) fn new_foreground_session() -> Result<()> {
    // SAFETY: no memory is involved.
    check(unsafe { libc::setpgid(0, 0) }.into())?;
    if !rustix::termios::isatty(rustix::stdio::stdin()) {
        return Ok(());
    }
    // A process of the background that does this is stopped unless it ignores the signal.
    // SAFETY: SIG_IGN and SIG_DFL are valid actions.
    unsafe { libc::signal(libc::SIGTTOU, libc::SIG_IGN) };
    let taken = rustix::termios::tcsetpgrp(rustix::stdio::stdin(), rustix::process::getpgrp());
    // SAFETY: as above.
    unsafe { libc::signal(libc::SIGTTOU, libc::SIG_DFL) };
    taken
}

/// execve(2); returns only the reason for which it failed.
pub(super) fn execve(program: &CStr, arguments: &[CString], environment: &[CString]) -> Errno {
    match nix::unistd::execve(program, arguments, environment) {
        Ok(never) => match never {},
        Err(errno) => from_nix(errno),
    }
}

/// Marks every descriptor from `first` on to be closed by execve(2).
pub(super) fn close_on_exec_from(first: u32) -> Result<()> {
    close_range(first, libc::CLOSE_RANGE_CLOEXEC)
}

/// Closes every descriptor from `first` on.
///
/// # Safety
/// No owned descriptor of that range may be used again.
pub(super) unsafe fn close_from(first: u32) -> Result<()> {
    close_range(first, 0)
}

fn close_range(first: u32, flags: u32) -> Result<()> {
    // SAFETY: no memory is involved.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, flags) }).map(drop)
}

/// Makes `target` (0, 1 or 2) a copy of `source` that survives execve(2).
pub(super) fn replace_standard_stream(source: BorrowedFd<'_>, target: RawFd) -> Result<()> {
    let replaced = match target {
        libc::STDIN_FILENO => dup2_stdin(source),
        libc::STDOUT_FILENO => dup2_stdout(source),
        libc::STDERR_FILENO => dup2_stderr(source),
        _ => Err(nix::Error::EBADF),
    };
    replaced.map_err(from_nix)
}

/// Takes standard input over.
///
/// # Safety
/// Nothing else may own descriptor 0.
pub(super) unsafe fn take_standard_input() -> OwnedFd {
    // SAFETY: as the caller promises.
    unsafe { OwnedFd::from_raw_fd(0) }
}

/// Switches the loopback interface of this network namespace on.
pub(super) fn loopback_up() -> Result<()> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: ifreq is plain data for which all zeroes is valid, and the name is null-terminated by them.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as c_char;
    request.ifr_name[1] = b'o' as c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    // SAFETY: SIOCSIFFLAGS reads an ifreq.
    check(unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) }.into()).map(drop)
}

/// Sets one resource limit, clamped to the hard limit in force when raising that is not permitted.
pub(super) fn set_rlimit(resource: Resource, soft: u64, hard: u64) -> Result<()> {
    let set = match setrlimit(resource, soft, hard) {
        Err(nix::Error::EPERM) => {
            getrlimit(resource).and_then(|(_, highest)| setrlimit(resource, soft.min(highest), hard.min(highest)))
        }
        other => other,
    };
    set.map_err(from_nix)
}

/// The hard limit, after trying to raise it as far as this.
pub(super) fn raised_limit(resource: Resource, wanted: u64) -> u64 {
    let limits = || getrlimit(resource).unwrap_or((u64::MAX, u64::MAX));
    let (soft, hard) = limits();
    if wanted > hard {
        // What the kernel refuses is found in the answer.
        let _ = setrlimit(resource, soft, wanted);
    }
    limits().1
}

/// One instruction of a classic BPF program.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BpfInstruction {
    pub(crate) code: u16,
    pub(crate) jt: u8,
    pub(crate) jf: u8,
    pub(crate) k: u32,
}

/// Installs a seccomp filter on this process. Needs CAP_SYS_ADMIN or no_new_privs.
pub(super) fn install_filter(program: &[BpfInstruction]) -> Result<()> {
    let filter = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| Errno::INVAL)?,
        filter: program.as_ptr().cast_mut().cast(),
    };
    // SAFETY: BpfInstruction has the layout of sock_filter, and the kernel copies the program.
    check(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const filter) }).map(drop)
}

/// Sets this process's capability sets; inheritable and ambient become empty.
pub(crate) fn set_capabilities(effective: u64) -> Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    const VERSION_3: u32 = 0x2008_0522;
    let header = Header { version: VERSION_3, pid: 0 };
    let half = |bits: u32| Data { effective: bits, permitted: bits, inheritable: 0 };
    let data = [half(effective as u32), half((effective >> 32) as u32)];
    // SAFETY: version 3 reads a header and two data records.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) })?;
    // SAFETY: no memory is involved.
    check(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) }.into()).map(drop)
}

/// Drops one capability from the bounding set; `false` when the kernel does not know the number.
pub(super) fn drop_bounding(number: u32) -> Result<bool> {
    // SAFETY: no memory is involved.
    match check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) }.into()) {
        Ok(_) => Ok(true),
        Err(Errno::INVAL) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// The permitted set of this process.
pub(crate) fn permitted() -> Result<Capabilities> {
    #[repr(C)]
    #[derive(Default, Clone, Copy)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    let header: [u32; 2] = [0x2008_0522, 0];
    let mut data = [Data::default(); 2];
    // SAFETY: version 3 reads a header and writes two data records.
    check(unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), data.as_mut_ptr()) })?;
    let bits = u64::from(data[0].permitted) | u64::from(data[1].permitted) << 32;
    Ok(Capabilities::from_bits(bits))
}

/// Ends the process at once, without running destructors or exit handlers of the program it was cloned from.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit takes any code and does not return.
    unsafe { libc::_exit(code) }
}

/// Closes one descriptor, whether it is open or not.
///
/// # Safety
/// No object may own it.
pub(super) unsafe fn close_only(descriptor: RawFd) {
    // SAFETY: as the caller promises; a closed number gives EBADF.
    unsafe { libc::close(descriptor) };
}

/// Moves a descriptor to number 3 and closes all above it, whoever in the copied program thought to own them.
pub(super) fn keep_only(descriptor: BorrowedFd<'_>) -> Result<OwnedFd> {
    // SAFETY: the numbers closed here belong to objects of the program this process is a copy of; nothing of it runs
    // again, and this process ends by execve(2) or _exit(2) without dropping them.
    unsafe {
        let kept = if descriptor.as_raw_fd() == 3 {
            3
        } else {
            check(libc::dup3(descriptor.as_raw_fd(), 3, libc::O_CLOEXEC).into())? as RawFd
        };
        close_from(4)?;
        Ok(OwnedFd::from_raw_fd(kept))
    }
}

/// The running program as a file no container can write to, also through `/proc/<pid>/exe` (CVE-2019-5736): a detached
/// read-only mount of it, or where that cannot be had a sealed copy in memory.
pub(crate) fn shielded_binary() -> Result<OwnedFd> {
    readonly_binary().or_else(|_| sealed_copy())
}

fn readonly_binary() -> Result<OwnedFd> {
    use rustix::mount::{MountAttrFlags, OpenTreeFlags, open_tree};
    let path = rustix::fs::readlink("/proc/self/exe", Vec::new())?;
    let running = rustix::fs::stat("/proc/self/exe")?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = open_tree(rustix::fs::CWD, path, flags)?;
    let found = rustix::fs::fstat(&mount)?;
    // The file may have been replaced since it was started.
    if (running.st_dev, running.st_ino) != (found.st_dev, found.st_ino) {
        return Err(Errno::STALE);
    }
    let change = MountChange {
        set: u64::from((MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOSUID).bits()),
        ..Default::default()
    };
    mount_setattr(mount.as_fd(), change)?;
    Ok(mount)
}

/// Copies the running program into memory and seals the copy.
fn sealed_copy() -> Result<OwnedFd> {
    use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
    let source = rustix::fs::open("/proc/self/exe", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let copy = rustix::fs::memfd_create(c"forge-init", flags | MemfdFlags::EXEC)
        .or_else(|_| rustix::fs::memfd_create(c"forge-init", flags))?;
    while rustix::io::retry_on_intr(|| rustix::fs::sendfile(&copy, &source, None, 1 << 30))? > 0 {}
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&copy, seals)?;
    Ok(copy)
}

/// The path under which the process that holds a descriptor can execute it.
pub(crate) fn descriptor_path(descriptor: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", descriptor.as_raw_fd())
}

/// This process's number as the host sees it, in its procfs, which must still be in sight.
pub(super) fn pid_outside() -> Result<u32> {
    let link = rustix::fs::readlink("/proc/self", Vec::new())?;
    let number = link.to_str().ok().and_then(|text| text.parse().ok());
    number.ok_or(Errno::NOENT)
}

/// Moves this thread into a network namespace.
pub(crate) fn enter_network(namespace: BorrowedFd<'_>) -> Result<()> {
    setns(namespace, CloneFlags::CLONE_NEWNET).map_err(from_nix)
}

/// Moves this process, which must have one thread, into a mount namespace; its root and working directory become that's.
pub(super) fn enter_mounts(namespace: BorrowedFd<'_>) -> Result<()> {
    setns(namespace, CloneFlags::CLONE_NEWNS).map_err(from_nix)
}

/// Moves this process into a new network namespace.
pub(super) fn new_network_namespace() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(from_nix)
}

/// Moves into new names of host and domain, which are copies of the old ones.
pub(super) fn new_host_namespace() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWUTS).map_err(from_nix)
}

/// Makes the cgroups this process is in the roots of what it and its children see.
pub(super) fn new_cgroup_namespace() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWCGROUP).map_err(from_nix)
}
