//! The init of containers that an OCI runtime makes (`--init`): a program of its own, since the runtime executes something
//! that is in the container, and needs nothing there, not even a dynamic linker.
//!
//! It does what [`super::reaper`] does: hands signals on, takes orphans in, and ends as its child did. Its arguments are the
//! path of the program, what that is to be called, and the rest.

use crate::message::Failure;

/// Where it lies in the container: below `/dev`, of which nothing is part of the image.
pub(super) const PATH: &str = "/dev/forge-init";

/// Where the file is mapped; any address that is not the lowest would do.
const ADDRESS: u64 = 0x40_0000;
/// The ELF header, and the one program header behind it.
const HEADERS: u64 = 64 + 56;

/// The file.
pub(super) fn program() -> Result<Vec<u8>, Failure> {
    let code = code().ok_or_else(|| Failure::Unsupported {
        what: "an init of forge's with an OCI runtime on this architecture".into(),
    })?;
    Ok([headers(HEADERS + code.len() as u64), code.to_vec()].concat())
}

/// elf(5): an executable of one segment, which is the whole file.
fn headers(length: u64) -> Vec<u8> {
    const EXECUTABLE: u16 = 2;
    const X86_64: u16 = 62;
    const LOAD: u32 = 1;
    const READ_EXECUTE: u32 = 4 | 1;
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    let mut put = |bytes: &[u8]| file.extend(bytes);
    [EXECUTABLE, X86_64].iter().for_each(|half| put(&half.to_le_bytes()));
    put(&1u32.to_le_bytes());
    // Entry, program headers, section headers.
    [ADDRESS + HEADERS, 64, 0].iter().for_each(|word| put(&word.to_le_bytes()));
    put(&0u32.to_le_bytes());
    // Sizes and numbers: the header's, the program headers', the section headers'.
    [64u16, 56, 1, 0, 0, 0].iter().for_each(|half| put(&half.to_le_bytes()));
    [LOAD, READ_EXECUTE].iter().for_each(|word| put(&word.to_le_bytes()));
    // Offset, addresses, sizes in the file and in memory, alignment.
    [0, ADDRESS, ADDRESS, length, length, 0x1000].iter().for_each(|word| put(&word.to_le_bytes()));
    file
}

#[cfg(not(target_arch = "x86_64"))]
fn code() -> Option<&'static [u8]> {
    None
}

#[cfg(target_arch = "x86_64")]
fn code() -> Option<&'static [u8]> {
    unsafe extern "C" {
        static forge_runtime_init_begin: u8;
        static forge_runtime_init_end: u8;
    }
    let (begin, end) = (&raw const forge_runtime_init_begin, &raw const forge_runtime_init_end);
    // SAFETY: both are labels of the one block of read-only data below, the second at its end.
    Some(unsafe { std::slice::from_raw_parts(begin, end.offset_from_unsigned(begin)) })
}

// System calls keep all registers but rax, rcx and r11. The stack begins with the number of arguments, the arguments, a null,
// the environment.
#[cfg(target_arch = "x86_64")]
std::arch::global_asm!(
    ".pushsection .rodata",
    ".globl forge_runtime_init_begin",
    ".globl forge_runtime_init_end",
    "forge_runtime_init_begin:",
    "mov rbx, [rsp]",
    "lea r12, [rsp + 16]",           // r12: arguments from the program's path on
    "lea r13, [rsp + rbx * 8 + 16]", // r13: environment
    // Every signal but those of faults (ILL, TRAP, ABRT, BUS, FPE, SEGV) is blocked before the fork, so that none is lost.
    "mov rax, -1273", // !(1<<3 | 1<<4 | 1<<5 | 1<<6 | 1<<7 | 1<<10)
    "push rax",
    "push rax",           // for a status
    "lea r14, [rsp + 8]", // r14: the set
    "call 7f",
    "mov eax, 57", // fork
    "syscall",
    "test eax, eax",
    "jz 5f",
    "js 6f",
    "mov ebp, eax", // ebp: the child
    "2:",
    "mov rdi, r14",
    "xor esi, esi",
    "xor edx, edx",
    "mov r10d, 8",
    "mov eax, 128", // rt_sigtimedwait
    "syscall",
    "test eax, eax",
    "js 2b",
    "cmp eax, 17", // SIGCHLD
    "je 3f",
    "mov edi, ebp",
    "mov esi, eax",
    "mov eax, 62", // kill; it fails for a child that has just ended
    "syscall",
    "jmp 2b",
    "3:",
    "mov rdi, -1",
    "mov rsi, rsp",
    "mov edx, 1", // WNOHANG
    "xor r10d, r10d",
    "mov eax, 61", // wait4
    "syscall",
    "test eax, eax",
    "jle 2b",
    "cmp eax, ebp",
    "jne 3b",
    // As shells report it.
    "mov edi, [rsp]",
    "mov eax, edi",
    "and eax, 127",
    "jz 4f",
    "lea edi, [rax + 128]",
    "jmp 8f",
    "4:",
    "shr edi, 8",
    "and edi, 255",
    "jmp 8f",
    // The child: a process group of its own, in the foreground of the terminal if there is one; SIGTTOU is blocked still.
    "5:",
    "xor edi, edi",
    "xor esi, esi",
    "mov eax, 109", // setpgid
    "syscall",
    "mov eax, 39", // getpid
    "syscall",
    "mov [rsp], eax",
    "xor edi, edi",
    "mov esi, 0x5410", // TIOCSPGRP
    "mov rdx, rsp",
    "mov eax, 16", // ioctl
    "syscall",
    "mov edi, 1", // PR_SET_PDEATHSIG
    "mov esi, 9",
    "mov eax, 157", // prctl
    "syscall",
    "mov qword ptr [r14], 0",
    "call 7f",
    "mov rdi, [r12]",
    "lea rsi, [r12 + 8]",
    "mov rdx, r13",
    "mov eax, 59", // execve
    "syscall",
    "mov edi, 126",
    "cmp eax, -2", // ENOENT
    "jne 8f",
    "inc edi",
    "jmp 8f",
    "6:",
    "mov edi, 125",
    "jmp 8f",
    // Blocks the signals of the set, and no others.
    "7:",
    "mov edi, 2", // SIG_SETMASK
    "mov rsi, r14",
    "xor edx, edx",
    "mov r10d, 8",
    "mov eax, 14", // rt_sigprocmask
    "syscall",
    "ret",
    "8:",
    "mov eax, 231", // exit_group
    "syscall",
    "forge_runtime_init_end:",
    ".popsection",
);

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    fn run(words: &[&str]) -> (Option<i32>, String) {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("init");
        std::fs::write(&file, program().expect("program")).expect("file");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o555)).expect("mode");
        let output = Command::new(&file).args(words).env("A", "b").output().expect("runs");
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Meant to fail with the status not looked at, and with the environment taken from one word too far.
    #[test]
    fn the_child_gets_its_words_and_its_end_is_that_of_the_init() {
        assert_eq!(run(&["/bin/sh", "name", "-c", "echo $0 $1 $A; exit 7", "x", "y"]), (Some(7), "x y b\n".into()));
        assert_eq!(run(&["/bin/sh", "sh", "-c", "kill -TERM $$"]).0, Some(128 + 15));
        // The child ends by a signal that its parent was sent.
        assert_eq!(run(&["/bin/sh", "sh", "-c", "kill -HUP $PPID; sleep 5"]).0, Some(128 + 1));
        assert_eq!(run(&["/nosuch", "x"]).0, Some(127));
        assert_eq!(run(&["/etc/passwd", "x"]).0, Some(126));
        let blocked = run(&["/bin/grep", "grep", "SigBlk", "/proc/self/status"]).1;
        assert_eq!(blocked.trim_start_matches("SigBlk:").trim(), "0000000000000000");
    }
}
