//! Decisions by system call number to a BPF program: one binary search per architecture.

use crate::init::sys::BpfInstruction;

/// What becomes of one call. Arguments are judged by their lower 32 bits, which is all the kernel reads of them in the
/// calls concerned: families, flags and personalities are ints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    Allow,
    Refuse(i32),
    /// EPERM if the first argument has any of these bits.
    RefuseIfBits(u32),
    /// EPERM unless the first argument is one of these.
    AllowOnly(&'static [u32]),
    /// EPERM if the first argument is one of these.
    AllowAllBut(&'static [u32]),
}

pub(super) const ARCH_X86_64: u32 = 0xc000_003e;
pub(super) const ARCH_I386: u32 = 0x4000_0003;
/// Set in the numbers of the x32 ABI, which reports itself as x86-64.
pub(super) const X32_BIT: u32 = 0x4000_0000;

pub(super) const RETURN_ALLOW: u32 = 0x7fff_0000;
pub(super) const RETURN_ERRNO: u32 = 0x0005_0000;
pub(super) const RETURN_KILL: u32 = 0x8000_0000;
pub(super) const RETURN_KILL_THREAD: u32 = 0;
pub(super) const RETURN_TRAP: u32 = 0x0003_0000;
pub(super) const RETURN_LOG: u32 = 0x7ffc_0000;

// Offsets in struct seccomp_data, little-endian.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
/// Six of 64 bits.
pub(super) const ARGUMENTS: u32 = 16;
const FIRST_ARGUMENT: u32 = ARGUMENTS;

// Codes of linux/bpf_common.h.
pub(super) const LOAD: u16 = 0x20;
pub(super) const JUMP: u16 = 0x05;
pub(super) const JUMP_EQUAL: u16 = 0x15;
pub(super) const JUMP_ABOVE: u16 = 0x25;
pub(super) const JUMP_AT_LEAST: u16 = 0x35;
pub(super) const JUMP_BITS: u16 = 0x45;
pub(super) const RETURN: u16 = 0x06;
pub(super) const AND: u16 = 0x54;

pub(super) type Program = Vec<BpfInstruction>;

/// What is done with one call, as instructions that all end in a return.
pub(super) trait Leaf: Clone + PartialEq {
    fn code(&self) -> Program;
}

/// Builds the whole program from the decisions of both architectures, each sorted by number.
pub(super) fn assemble(x86_64: &[(u32, Decision)], i386: &[(u32, Decision)]) -> Program {
    assemble_with(x86_64, Some(i386), &Decision::Refuse(libc::ENOSYS), &Decision::Refuse(libc::EPERM))
}

/// The same for any kind of decision; `unknown` is that for numbers without one, `x32` for the numbers of that ABI. Without
/// decisions for it, the other architecture's programs are killed.
pub(super) fn assemble_with<L: Leaf>(x86_64: &[(u32, L)], i386: Option<&[(u32, L)]>, unknown: &L, x32: &L) -> Program {
    let mut wide = ranges(x86_64, unknown);
    // The same calls by other numbers: nobody needs them, and they have been a way round filters.
    wide.push((X32_BIT, x32.clone()));
    let wide = search(&wide);
    let narrow = i386.map_or_else(|| vec![ret(RETURN_KILL)], |i386| search(&ranges(i386, unknown)));
    let mut program = vec![
        load(ARCHITECTURE),
        branch(JUMP_EQUAL, ARCH_X86_64, 0, 2),
        load(NUMBER),
        jump(3),
        branch(JUMP_EQUAL, ARCH_I386, 1, 0),
        ret(RETURN_KILL),
        jump(wide.len() + 1),
    ];
    program.extend(wide);
    program.push(ret(RETURN_KILL)); // never reached; separates the two searches
    program.push(load(NUMBER));
    program.extend(narrow);
    program
}

/// Turns single numbers into ranges that cover everything: (first number, decision until the next range).
fn ranges<L: Leaf>(decisions: &[(u32, L)], unknown: &L) -> Vec<(u32, L)> {
    let mut all: Vec<(u32, L)> = Vec::new();
    let mut add = |first: u32, decision: &L| {
        if all.last().is_none_or(|(_, last)| last != decision) {
            all.push((first, decision.clone()));
        }
    };
    let mut next = 0;
    for (number, decision) in decisions {
        if *number > next {
            add(next, unknown);
        }
        add(*number, decision);
        next = number + 1;
    }
    add(next, unknown);
    all
}

/// A binary search over ranges with the number in the accumulator. Every path ends in a return.
fn search<L: Leaf>(ranges: &[(u32, L)]) -> Program {
    if let [(_, decision)] = ranges {
        return decision.code();
    }
    let (low, high) = ranges.split_at(ranges.len() / 2);
    let (below, above) = (search(low), search(high));
    let mut program = match u8::try_from(below.len()) {
        Ok(distance) => vec![branch(JUMP_AT_LEAST, high[0].0, distance, 0)],
        // Conditional jumps reach 255 instructions.
        Err(_) => vec![branch(JUMP_AT_LEAST, high[0].0, 0, 1), jump(below.len())],
    };
    program.extend(below);
    program.extend(above);
    program
}

impl Leaf for Decision {
    fn code(&self) -> Program {
        let refuse = RETURN_ERRNO | libc::EPERM as u32;
        match *self {
            Self::Allow => vec![ret(RETURN_ALLOW)],
            Self::Refuse(errno) => vec![ret(RETURN_ERRNO | errno as u32)],
            Self::RefuseIfBits(bits) => {
                vec![load(FIRST_ARGUMENT), branch(JUMP_BITS, bits, 0, 1), ret(refuse), ret(RETURN_ALLOW)]
            }
            Self::AllowOnly(values) => select(values, RETURN_ALLOW, refuse),
            Self::AllowAllBut(values) => select(values, refuse, RETURN_ALLOW),
        }
    }
}

/// Returns `listed` if the first argument is among `values`, else `other`.
fn select(values: &[u32], listed: u32, other: u32) -> Program {
    let mut program = vec![load(FIRST_ARGUMENT)];
    for value in values {
        program.extend([branch(JUMP_EQUAL, *value, 0, 1), ret(listed)]);
    }
    program.push(ret(other));
    program
}

pub(super) fn load(offset: u32) -> BpfInstruction {
    instruction(LOAD, 0, 0, offset)
}

pub(super) fn ret(value: u32) -> BpfInstruction {
    instruction(RETURN, 0, 0, value)
}

fn jump(distance: usize) -> BpfInstruction {
    let distance = u32::try_from(distance).expect("programs have at most 4096 instructions");
    instruction(JUMP, 0, 0, distance)
}

pub(super) fn branch(code: u16, value: u32, if_true: u8, if_false: u8) -> BpfInstruction {
    instruction(code, if_true, if_false, value)
}

pub(super) fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> BpfInstruction {
    BpfInstruction { code, jt, jf, k }
}
