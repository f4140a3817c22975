//! A82: the compiled filter, run by an interpreter, against the policy.

use super::policy::{NONE, TABLE};
use super::program::{
    AND, ARCH_I386, ARCH_X86_64, JUMP, JUMP_ABOVE, JUMP_AT_LEAST, JUMP_BITS, JUMP_EQUAL, LOAD, RETURN, RETURN_ALLOW,
    RETURN_ERRNO, RETURN_KILL, X32_BIT,
};
use super::*;

/// Runs a program as the kernel would, on one call.
fn run(program: &[BpfInstruction], arch: u32, number: u32, argument: u64) -> u32 {
    let mut data = [0u8; 64];
    data[..4].copy_from_slice(&number.to_le_bytes());
    data[4..8].copy_from_slice(&arch.to_le_bytes());
    data[16..24].copy_from_slice(&argument.to_le_bytes());
    let (mut at, mut accumulator) = (0, 0);
    loop {
        let BpfInstruction { code, jt, jf, k } = program[at];
        at += 1;
        let mut jump_if = |truth: bool| at += usize::from(if truth { jt } else { jf });
        match code {
            LOAD => {
                let bytes = data[k as usize..][..4].try_into().expect("four bytes");
                accumulator = u32::from_le_bytes(bytes);
            }
            JUMP => at += k as usize,
            JUMP_EQUAL => jump_if(accumulator == k),
            JUMP_AT_LEAST => jump_if(accumulator >= k),
            JUMP_ABOVE => jump_if(accumulator > k),
            JUMP_BITS => jump_if(accumulator & k != 0),
            AND => accumulator &= k,
            RETURN => return k,
            other => panic!("unknown instruction {other:#x}"),
        }
    }
}

fn verdict(granted: Capabilities, arch: u32, number: u32, argument: u64) -> &'static str {
    const EPERM: u32 = RETURN_ERRNO | libc::EPERM as u32;
    const ENOSYS: u32 = RETURN_ERRNO | libc::ENOSYS as u32;
    match run(&compile(granted), arch, number, argument) {
        RETURN_ALLOW => "allow",
        EPERM => "eperm",
        ENOSYS => "enosys",
        RETURN_KILL => "kill",
        other => panic!("unknown verdict {other:#x}"),
    }
}

fn number(name: &str, arch: u32) -> u32 {
    let row = TABLE.iter().find(|row| row.0 == name).expect("in the table");
    let number = if arch == ARCH_X86_64 { row.1 } else { row.2 };
    assert_ne!(number, NONE, "{name} on {arch:#x}");
    number
}

/// The policy in other words than the compiler's: straight from table row to verdict.
fn expected(rule: Rule, granted: Capabilities, argument: u32) -> &'static str {
    let has = |name: &str| granted.contains(Capabilities::from_name(name).expect("known capability"));
    let allow_if = |truth: bool| if truth { "allow" } else { "eperm" };
    match rule {
        Rule::Allow => "allow",
        Rule::Deny => "eperm",
        Rule::With(names) => allow_if(names.iter().any(|name| has(name))),
        Rule::CloneFlags => allow_if(has("SYS_ADMIN") || argument & policy::NAMESPACE_FLAGS == 0),
        Rule::Clone3 if has("SYS_ADMIN") => "allow",
        Rule::Clone3 => "enosys",
        Rule::Personality => allow_if(policy::PERSONALITIES.contains(&argument)),
        Rule::SocketFamily => allow_if(argument != 38 && argument != 40),
    }
}

/// Seen to fail with the two branches of `JUMP_BITS` swapped in `Decision::code`, and with `low` and `high` swapped in `search`.
#[test]
fn a82_every_number_on_both_architectures_gets_the_policy_s_verdict() {
    let arguments = [0, 1, 8, 16, 37, 38, 39, 40, 41, 0x11, 0x2_0000, 0x2_0008, 0x1000_0000, 0x7e02_0000, u32::MAX];
    for granted in [Capabilities::DEFAULT, Capabilities::NONE, Capabilities::ALL] {
        let program = compile(granted);
        for (arch, column) in [(ARCH_X86_64, 1), (ARCH_I386, 2)] {
            for number in 0..1024 {
                let row = TABLE.iter().find(|row| [0, row.1, row.2][column] == number);
                for argument in arguments {
                    let expected = row.map_or("enosys", |row| expected(row.3, granted, argument));
                    let wide = u64::from(argument) | 0xdead_beef << 32;
                    for argument in [u64::from(argument), wide] {
                        let raw = run(&program, arch, number, argument);
                        let got = match raw {
                            RETURN_ALLOW => "allow",
                            raw if raw == RETURN_ERRNO | libc::EPERM as u32 => "eperm",
                            raw if raw == RETURN_ERRNO | libc::ENOSYS as u32 => "enosys",
                            _ => "other",
                        };
                        assert_eq!(got, expected, "arch {arch:#x} number {number} argument {argument:#x}");
                    }
                }
            }
        }
    }
}

#[test]
fn a82_names_of_interest() {
    let check =
        |name: &str, arch: u32, argument: u64| verdict(Capabilities::DEFAULT, arch, number(name, arch), argument);
    let wide = |name: &str, argument: u64| check(name, ARCH_X86_64, argument);
    for name in [
        "io_uring_setup",
        "userfaultfd",
        "keyctl",
        "add_key",
        "bpf",
        "perf_event_open",
        "kexec_load",
        "init_module",
        "swapon",
        "quotactl",
        "open_by_handle_at",
        "mount",
        "move_mount",
        "open_tree",
        "fsopen",
        "setns",
        "unshare",
        "pidfd_getfd",
        "kcmp",
        "nfsservctl",
        "lookup_dcookie",
        "pivot_root",
        "settimeofday",
        "syslog",
        "mbind",
    ] {
        assert_eq!(wide(name, 0), "eperm", "{name}");
    }
    for name in ["chroot", "ptrace", "process_vm_readv", "mknodat", "capset", "seccomp", "execve", "fanotify_mark"] {
        assert_eq!(wide(name, 0), "allow", "{name}");
    }
    assert_eq!(wide("clone3", 0), "enosys");
    assert_eq!(wide("clone", 17), "allow");
    assert_eq!(wide("clone", libc::CLONE_NEWUSER as u64), "eperm");
    assert_eq!(wide("personality", 0xffff_ffff), "allow");
    assert_eq!(wide("personality", 0x0040_0000), "eperm"); // READ_IMPLIES_EXEC
    assert_eq!(check("vm86", ARCH_I386, 0), "eperm");
    assert_eq!(check("socketcall", ARCH_I386, 1), "allow");
}

#[test]
fn a81_socket_families() {
    for arch in [ARCH_X86_64, ARCH_I386] {
        let socket = number("socket", arch);
        for family in 0..=64 {
            let refused = family == 38 || family == 40;
            let expected = if refused { "eperm" } else { "allow" };
            assert_eq!(verdict(Capabilities::DEFAULT, arch, socket, family), expected, "{family}");
        }
    }
}

/// Seen to fail without the `X32_BIT` range: number 0x40000000 + 1 was answered as unknown.
#[test]
fn a83_foreign_entries_are_refused() {
    for name in ["mount", "keyctl", "io_uring_setup", "read"] {
        let x32 = number(name, ARCH_X86_64) | X32_BIT;
        assert_eq!(verdict(Capabilities::ALL, ARCH_X86_64, x32, 0), "eperm", "{name}");
    }
    let aarch64 = 0xc000_00b7;
    assert_eq!(verdict(Capabilities::ALL, aarch64, 0, 0), "kill");
}

#[test]
fn rows_are_sorted_and_unique() {
    assert!(TABLE.is_sorted_by_key(|row| row.0));
    for column in [|row: &policy::Row| row.1, |row: &policy::Row| row.2] {
        let mut numbers: Vec<_> = TABLE.iter().map(column).filter(|&number| number != NONE).collect();
        let count = numbers.len();
        numbers.sort();
        numbers.dedup();
        assert_eq!(numbers.len(), count);
    }
}

/// Short programs are checked and compiled fast when a container starts; the kernel's limit is 4096.
#[test]
fn the_program_is_small() {
    assert!(compile(Capabilities::DEFAULT).len() < 600);
}

#[test]
fn p15_comparisons_of_a_file_s_policy_are_those_of_64_bit_numbers() {
    let edges =
        [0, 1, 5, u64::from(u32::MAX), 1 << 32, (1 << 32) + 5, (5 << 32) + 1, (5 << 32) + 5, u64::MAX - 1, u64::MAX];
    type Make = fn(u64) -> SeccompComparison;
    type Holds = fn(u64, u64) -> bool;
    let kinds: [(Make, Holds); 7] = [
        (SeccompComparison::NotEqual, |argument, value| argument != value),
        (SeccompComparison::Less, |argument, value| argument < value),
        (SeccompComparison::LessOrEqual, |argument, value| argument <= value),
        (SeccompComparison::Equal, |argument, value| argument == value),
        (SeccompComparison::GreaterOrEqual, |argument, value| argument >= value),
        (SeccompComparison::Greater, |argument, value| argument > value),
        (
            |value| SeccompComparison::MaskedEqual { mask: 0xff_0000_00ff, value: value & 0xff_0000_00ff },
            |argument, value| argument & 0xff_0000_00ff == value & 0xff_0000_00ff,
        ),
    ];
    for ((make, holds), value) in kinds.iter().flat_map(|kind| edges.map(|value| (kind, value))) {
        let one = SeccompCondition::new(0, make(value));
        let first =
            SeccompRule { names: vec!["getpid".into()], action: SeccompAction::Allow, conditions: vec![one, one] };
        let second =
            SeccompRule { names: first.names.clone(), action: SeccompAction::Errno(7), conditions: Vec::new() };
        let profile = SeccompProfile { default: SeccompAction::KillProcess, narrow: false, rules: vec![first, second] };
        let program = profile_filter(&profile).expect("a filter");
        for argument in edges {
            let expect = if holds(argument, value) { RETURN_ALLOW } else { RETURN_ERRNO | 7 };
            assert_eq!(run(&program, ARCH_X86_64, 39, argument), expect, "{argument:#x} {:?}", one.comparison);
        }
        assert_eq!(run(&program, ARCH_X86_64, 40, 0), RETURN_KILL);
        assert_eq!(run(&program, ARCH_I386, 20, 0), RETURN_KILL, "32-bit programs are not admitted");
    }
}

/// The default policy by names, as runtimes get it, compiled again: the same verdicts as the table's own filter.
#[test]
fn a82_the_policy_by_names_says_what_the_table_says() {
    let arguments =
        [0, 1, 8, 37, 38, 39, 40, 41, 63, 0x2_0008, 0x1000_0000, 0x7e02_0000, u64::from(u32::MAX), 1 << 32 | 38];
    for granted in [Capabilities::DEFAULT, Capabilities::NONE, Capabilities::ALL] {
        let own = compile(granted);
        let named = profile_filter(&default_profile(granted)).expect("a filter");
        for (arch, number) in [ARCH_X86_64, ARCH_I386].into_iter().flat_map(|arch| (0..600).map(move |n| (arch, n))) {
            // Families that no kernel has fail either way.
            let socket = [(ARCH_X86_64, 41), (ARCH_I386, 359)].contains(&(arch, number));
            for argument in arguments.into_iter().filter(|argument| !socket || argument & 0xffff_ffff < 64) {
                let (own, named) = (run(&own, arch, number, argument), run(&named, arch, number, argument));
                assert_eq!(own, named, "{arch:#x} {number} {argument:#x}");
            }
        }
    }
}
