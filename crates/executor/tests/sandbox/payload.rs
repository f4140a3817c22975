//! What this program does when it is not the test runner: the hostile payload inside a container, or a caller to kill.

use crate::fixture::{executor, id};
use forge_executor::{Executor, ProcessSpec, RootFs, SandboxSpec, Stdio, StdioTarget};
use std::io::Error;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Name under which this program is a caller that will be killed.
pub const CALLER: &str = "forge-test-caller";

/// Becomes the payload or the caller if this process was started as one.
pub fn run_if_requested() {
    let mut arguments = std::env::args();
    let name = arguments.next().unwrap_or_default();
    let first = arguments.next().unwrap_or_default();
    if name == CALLER {
        call(&first);
    }
    let program = name.rsplit('/').next().unwrap_or_default();
    let attack: fn() = match (program, first.as_str()) {
        ("payload", "families") => families,
        ("payload", "calls") => calls,
        ("payload", "foreign") => foreign,
        ("payload", "handle") => handle,
        ("payload", "terminal") => terminal,
        ("payload", "unknown") => unknown,
        ("payload", "identity") => || println!("{}", rustix::process::geteuid().as_raw()),
        ("payload", "eat") => eat,
        ("exe", "overwrite") => overwrite,
        _ => return,
    };
    attack();
    std::process::exit(0);
}

/// Opens files or sockets until the kernel refuses.
fn eat() {
    let sockets = std::env::args().nth(2).is_some_and(|kind| kind == "sockets");
    for _ in 0..1_000_000 {
        // SAFETY: the path is a string; the descriptors are left open on purpose.
        let result = unsafe {
            match sockets {
                true => libc::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0),
                false => libc::open(c"/dev/null".as_ptr(), libc::O_RDONLY),
            }
        };
        if result < 0 {
            let error = Error::last_os_error().raw_os_error();
            let name = if error == Some(libc::EMFILE) { "EMFILE" } else { "another error" };
            println!("{name} before 1024");
            return;
        }
        if result >= 1024 {
            println!("descriptor {result}");
            return;
        }
    }
}

fn call(directory: &str) -> ! {
    let path = |name: &str| std::path::Path::new(directory).join(name);
    let root = RootFs::Overlay { lower: vec![path("base")], upper: path("upper"), work: path("work"), volatile: false };
    let script = "(setsid sh -c 'sleep 1000' &); echo ready; sleep 1000";
    let spec = SandboxSpec::for_root(root, ProcessSpec::new(["/bin/sh", "-c", script]));
    let io = Stdio { stdout: StdioTarget::Inherit, ..Stdio::default() };
    let container = executor().create(&id(), &spec, io).expect("creates");
    container.start().expect("starts");
    container.wait().expect("ends");
    std::process::exit(0);
}

/// Name of the error a call ended with.
fn outcome(result: i64) -> String {
    match result {
        -1 => name(Error::last_os_error().raw_os_error().unwrap_or(0)),
        _ => "ok".into(),
    }
}

fn name(errno: i32) -> String {
    match errno {
        libc::EPERM => "EPERM".into(),
        libc::ENOSYS => "ENOSYS".into(),
        other => format!("errno {other}"),
    }
}

fn syscall(number: i64, arguments: [i64; 5]) -> String {
    let [a, b, c, d, e] = arguments;
    // SAFETY: the arguments are numbers that name no memory of this process; calls that would end or block it are not
    // among those tried.
    outcome(unsafe { libc::syscall(number, a, b, c, d, e) })
}

fn families() {
    // Where a kernel has these two, it asks for a capability itself.
    let asks_itself = |family: &i64| matches!(*family as i32, libc::AF_KEY | libc::AF_PHONET);
    for family in (0..46).filter(|family| !asks_itself(family)) {
        let result = syscall(libc::SYS_socket, [family, libc::SOCK_RAW.into(), 0, 0, 0]);
        // Raw packets are not for everyone, so a datagram socket gets a second chance.
        let second = syscall(libc::SYS_socket, [family, libc::SOCK_DGRAM.into(), 0, 0, 0]);
        if result == "EPERM" && second == "EPERM" {
            println!("{family} EPERM");
        }
    }
}

/// A84: the kernel's surface, each with arguments that are invalid beyond the filter.
fn calls() {
    let all = [
        ("io_uring_setup", 425),
        ("io_uring_enter", 426),
        ("io_uring_register", 427),
        ("userfaultfd", libc::SYS_userfaultfd),
        ("add_key", libc::SYS_add_key),
        ("request_key", libc::SYS_request_key),
        ("keyctl", libc::SYS_keyctl),
        ("bpf", libc::SYS_bpf),
        ("perf_event_open", libc::SYS_perf_event_open),
        ("kexec_load", libc::SYS_kexec_load),
        ("kexec_file_load", 320),
        ("init_module", libc::SYS_init_module),
        ("finit_module", libc::SYS_finit_module),
        ("delete_module", libc::SYS_delete_module),
        ("swapon", libc::SYS_swapon),
        ("swapoff", libc::SYS_swapoff),
        ("quotactl", libc::SYS_quotactl),
        ("open_by_handle_at", libc::SYS_open_by_handle_at),
        ("mount", libc::SYS_mount),
        ("umount2", libc::SYS_umount2),
        ("pivot_root", libc::SYS_pivot_root),
        ("open_tree", 428),
        ("move_mount", 429),
        ("fsopen", 430),
        ("fsconfig", 431),
        ("fsmount", 432),
        ("fspick", 433),
        ("mount_setattr", 442),
        ("setns", libc::SYS_setns),
        ("unshare", libc::SYS_unshare),
        ("pidfd_getfd", 438),
        ("process_madvise", 440),
        ("kcmp", libc::SYS_kcmp),
        ("nfsservctl", libc::SYS_nfsservctl),
        ("lookup_dcookie", libc::SYS_lookup_dcookie),
        ("ustat", libc::SYS_ustat),
        ("sysfs", libc::SYS_sysfs),
        ("uselib", libc::SYS_uselib),
        ("acct", libc::SYS_acct),
        ("settimeofday", libc::SYS_settimeofday),
        ("clock_settime", libc::SYS_clock_settime),
        ("iopl", libc::SYS_iopl),
        ("ioperm", libc::SYS_ioperm),
        ("reboot", libc::SYS_reboot),
        ("sethostname", libc::SYS_sethostname),
        ("syslog", libc::SYS_syslog),
        ("vhangup", libc::SYS_vhangup),
        ("move_pages", libc::SYS_move_pages),
        ("migrate_pages", libc::SYS_migrate_pages),
        ("fanotify_init", libc::SYS_fanotify_init),
        ("clone3", 435),
    ];
    for (name, number) in all {
        println!("{name} {}", syscall(number, [-1; 5]));
    }
    let clone = i64::from(libc::CLONE_NEWUSER | libc::SIGCHLD);
    println!("clone-newuser {}", syscall(libc::SYS_clone, [clone, 0, 0, 0, 0]));
    println!("personality {}", syscall(libc::SYS_personality, [0x0040_0000, 0, 0, 0, 0]));
    println!("ptrace {}", syscall(libc::SYS_ptrace, [-1; 5]));
    println!("chroot {}", syscall(libc::SYS_chroot, [0; 5]));
}

fn unknown() {
    for number in [335 + 5, 400, 467, 470, 500, 1000, 0x3fff_ffff] {
        println!("{number} {}", syscall(number, [-1; 5]));
    }
}

/// A83: the same calls by the numbers of i386 and x32.
fn foreign() {
    for (name, number) in [("mount", 21), ("keyctl", 288), ("io_uring_setup", 425), ("bpf", 357), ("unshare", 310)] {
        println!("i386 {name} {}", i386(number));
    }
    println!("i386 getpid {}", if i386(20) == "ok" { "ok" } else { "refused" });
    for (name, number) in [("mount", 165), ("keyctl", 250), ("io_uring_setup", 425), ("getpid", 39)] {
        println!("x32 {name} {}", syscall(0x4000_0000 | number, [-1; 5]));
    }
}

/// A call through the 32-bit entry of the kernel.
fn i386(number: i32) -> String {
    let result: i32;
    // SAFETY: rbx is restored; the kernel changes no other register but eax and r8 to r11. Arguments are -1.
    unsafe {
        std::arch::asm!(
            "push rbx", "mov ebx, -1", "int 0x80", "pop rbx",
            inlateout("eax") number => result,
            in("ecx") -1, in("edx") -1, in("esi") -1, in("edi") -1,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    if result < 0 { name(-result) } else { "ok".into() }
}

/// A85: opens the root of the file system by handle.
fn handle() {
    let mut handle = [8u32, 1, 2, 0, 0, 0]; // 8 bytes of type 1: inode 2, generation 0
    // SAFETY: the structure is larger than what its header says.
    let result = unsafe { libc::syscall(libc::SYS_open_by_handle_at, libc::AT_FDCWD, handle.as_mut_ptr(), 0) };
    println!("{}", outcome(result));
}

/// A90: pushes keys into the terminal.
fn terminal() {
    let key = b'x';
    // SAFETY: TIOCSTI reads one byte, TIOCLINUX a subcode.
    let (push, linux) =
        unsafe { (libc::ioctl(0, libc::TIOCSTI, &raw const key), libc::ioctl(0, libc::TIOCLINUX, &raw const key)) };
    println!("TIOCSTI {}", if push == -1 { "refused" } else { "ACCEPTED" });
    println!("TIOCLINUX {}", if linux == -1 { "refused" } else { "ACCEPTED" });
}

/// A03: keeps a handle on the program this is, which forge executed as `/proc/self/exe`, leaves it, and writes to it.
fn overwrite() {
    // SAFETY: the path is a string literal, the descriptor is new.
    let file = unsafe {
        let descriptor = libc::open(c"/proc/self/exe".as_ptr(), libc::O_PATH);
        std::fs::File::from_raw_fd(descriptor)
    };
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let script = format!("(echo overwritten >{path}) 2>&1; (echo overwritten >>{path}) 2>&1; exit 0");
    let error = Command::new("/bin/sh").args(["-c", &script]).exec();
    panic!("{error}");
}
