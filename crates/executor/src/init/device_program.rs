//! The device policy as an eBPF program on a cgroup, version 2's replacement of the `devices` controller.

use super::bpf;
use crate::{DeviceKind, DeviceNode};
use rustix::io::Result;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Character devices that may be opened: major, first minor, last minor. Docker's set without tun.
pub(super) const ALLOWED: [(u32, u32, u32); 6] = [
    (1, 3, 3),          // null
    (1, 5, 5),          // zero
    (1, 7, 9),          // full, random, urandom
    (5, 0, 2),          // tty, console, ptmx
    (136, 0, u32::MAX), // terminals
    (137, 0, u32::MAX), // their overflow
];

// struct bpf_cgroup_dev_ctx: access and type, major, minor.
const ACCESS_AND_TYPE: i16 = 0;
const MAJOR: i16 = 4;
const MINOR: i16 = 8;
const TYPE_BLOCK: i32 = 1;
const TYPE_CHARACTER: i32 = 2;
const ACCESS_MKNOD: i32 = 1;
const ACCESS_READ: i32 = 2;
const ACCESS_WRITE: i32 = 4;

// Codes of linux/bpf.h.
const LOAD_WORD: u8 = 0x61;
const COPY: u8 = 0xbf;
const SET: u8 = 0xb7;
const AND: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const UNLESS_EQUAL: u8 = 0x55;
const IF_GREATER: u8 = 0x25;
const IF_LESS: u8 = 0xa5;
const EXIT: u8 = 0x95;

/// One instruction of an eBPF program.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct EbpfInstruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

fn instruction(code: u8, target: u8, source: u8, offset: i16, immediate: i32) -> EbpfInstruction {
    EbpfInstruction { code, registers: target | source << 4, offset, immediate }
}

/// Any node may be made, those of [`ALLOWED`] and the granted ones may be opened, nothing else.
fn program(granted: &[Option<DeviceNode>]) -> Vec<EbpfInstruction> {
    let allow = [instruction(SET, 0, 0, 0, 1), instruction(EXIT, 0, 0, 0, 0)];
    let mut program = vec![
        instruction(LOAD_WORD, 2, 1, ACCESS_AND_TYPE, 0),
        instruction(COPY, 3, 2, 0, 0),
        instruction(AND, 3, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, 2, 0, 0, 16),
        instruction(LOAD_WORD, 4, 1, MAJOR, 0),
        instruction(LOAD_WORD, 5, 1, MINOR, 0),
        instruction(SET, 0, 0, 0, 0),
        instruction(UNLESS_EQUAL, 2, 0, 2, ACCESS_MKNOD),
    ];
    program.extend(allow);
    for node in granted.iter().flatten() {
        let kind = match node.kind {
            DeviceKind::Block => TYPE_BLOCK,
            DeviceKind::Character => TYPE_CHARACTER,
        };
        let refused = if node.read { 0 } else { ACCESS_READ } | if node.write { 0 } else { ACCESS_WRITE };
        program.extend([instruction(COPY, 6, 2, 0, 0), instruction(AND, 6, 0, 0, refused)]);
        // Register and wanted value. Each skips those that follow, and the two instructions of `allow`.
        let number = |register, number: Option<u32>| number.map(|number| (register, number.cast_signed()));
        let wanted = [Some((6, 0)), Some((3, kind)), number(4, node.major), number(5, node.minor)];
        let wanted: Vec<_> = wanted.into_iter().flatten().collect();
        for ((register, value), skipped) in wanted.iter().zip((2..2 + wanted.len() as i16).rev()) {
            program.push(instruction(UNLESS_EQUAL, *register, 0, skipped, *value));
        }
        program.extend(allow);
    }
    program.extend([instruction(0x15, 3, 0, 1, TYPE_CHARACTER), instruction(EXIT, 0, 0, 0, 0)]);
    for (major, first, last) in ALLOWED {
        // Comparisons are 64 bits wide with a sign-extended immediate; minors have 20 bits.
        let last = i32::try_from(last).unwrap_or(i32::MAX);
        program.extend([
            instruction(UNLESS_EQUAL, 4, 0, 4, major as i32),
            instruction(IF_LESS, 5, 0, 3, first as i32),
            instruction(IF_GREATER, 5, 0, 2, last),
        ]);
        program.extend(allow);
    }
    program.push(instruction(EXIT, 0, 0, 0, 0));
    program
}

/// Puts the policy on a cgroup unless it is there already.
///
/// The program stays as long as the cgroup exists, for whichever process uses it next. Two processes that attach it at
/// once do no harm: both copies say the same.
pub(super) fn attach(cgroup: BorrowedFd<'_>, granted: &[Option<DeviceNode>]) -> Result<()> {
    if bpf::device_programs(cgroup)? > 0 {
        return Ok(());
    }
    add(cgroup, granted)
}

/// Attaches the program beside those that are there: what one of them refuses is refused.
pub(super) fn add(cgroup: BorrowedFd<'_>, granted: &[Option<DeviceNode>]) -> Result<()> {
    let program: OwnedFd = bpf::load_device_program(&program(granted))?;
    bpf::attach_device_program(cgroup, program.as_fd())
}
