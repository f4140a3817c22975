//! A policy of the caller's, compiled: for each number the rules that name it, in order.

use super::policy::{self, TABLE};
use super::profile::{SeccompAction, SeccompComparison, SeccompCondition, SeccompProfile};
use super::program::{
    AND, ARGUMENTS, JUMP_ABOVE, JUMP_AT_LEAST, JUMP_EQUAL, Leaf, Program, RETURN_ALLOW, RETURN_ERRNO, RETURN_KILL,
    RETURN_KILL_THREAD, RETURN_LOG, RETURN_TRAP, assemble_with, branch, instruction, load, ret,
};
use crate::init::sys::BpfInstruction;

/// The filter of a policy. 32-bit programs are killed where it does not admit them.
pub(super) fn compile(profile: &SeccompProfile) -> Vec<BpfInstruction> {
    let wide = clauses(profile, |row| row.1);
    let narrow = profile.narrow.then(|| clauses(profile, |row| row.2));
    assemble_with(&wide, narrow.as_deref(), &unknown(profile), &Clauses::only(SeccompAction::Errno(libc::EPERM as u16)))
}

/// What becomes of one call: the first clause whose conditions hold decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Clauses {
    all: Vec<(Vec<SeccompCondition>, SeccompAction)>,
    otherwise: SeccompAction,
}

impl Clauses {
    fn only(action: SeccompAction) -> Self {
        Self { all: Vec::new(), otherwise: action }
    }
}

/// Calls that are newer than the table fail as on an older kernel, so that libraries fall back: as runtimes have it.
fn unknown(profile: &SeccompProfile) -> Clauses {
    match profile.default {
        SeccompAction::Errno(_) => Clauses::only(SeccompAction::Errno(libc::ENOSYS as u16)),
        other => Clauses::only(other),
    }
}

fn clauses(profile: &SeccompProfile, number: fn(&policy::Row) -> u32) -> Vec<(u32, Clauses)> {
    let of = |name: &str| {
        let named = profile.rules.iter().filter(|rule| rule.names.iter().any(|other| other == name));
        let all = named.map(|rule| (rule.conditions.clone(), rule.action)).collect();
        Clauses { all, otherwise: profile.default }
    };
    let rows = TABLE.iter().filter(|row| number(row) != policy::NONE);
    let mut all: Vec<_> = rows.map(|row| (number(row), of(row.0))).collect();
    all.sort_by_key(|(number, _)| *number);
    all
}

impl Leaf for Clauses {
    fn code(&self) -> Program {
        let mut program = Program::new();
        for (conditions, action) in &self.all {
            let mut clause = vec![ret(value(*action))];
            for condition in conditions.iter().rev() {
                let mut code = compare(condition, clause.len());
                code.append(&mut clause);
                clause = code;
            }
            program.append(&mut clause);
            if conditions.is_empty() {
                return program;
            }
        }
        program.push(ret(value(self.otherwise)));
        program
    }
}

fn value(action: SeccompAction) -> u32 {
    match action {
        SeccompAction::Allow => RETURN_ALLOW,
        SeccompAction::Log => RETURN_LOG,
        // The kernel takes no more.
        SeccompAction::Errno(errno) => RETURN_ERRNO | u32::from(errno).min(4095),
        SeccompAction::Trap => RETURN_TRAP,
        SeccompAction::KillThread => RETURN_KILL_THREAD,
        SeccompAction::KillProcess => RETURN_KILL,
    }
}

/// Goes on behind itself if the condition holds, else `rest` instructions further. Arguments have 64 bits, the
/// accumulator 32: the upper half comes first.
fn compare(condition: &SeccompCondition, rest: usize) -> Program {
    let rest = u8::try_from(rest).expect("six conditions are a few dozen instructions");
    let lower = ARGUMENTS + 8 * u32::from(condition.argument);
    let (low, high) = (load(lower), load(lower + 4));
    let halves = |value: u64| (value as u32, (value >> 32) as u32);
    // Of five instructions those after the fifth, or after the clause.
    let two = |last: u16, value: u64, holds: u8, fails: u8| {
        let (below, above) = halves(value);
        vec![high, branch(JUMP_EQUAL, above, 0, 2 + rest), low, branch(last, below, holds, fails)]
    };
    let ordered = |value: u64, above_decides: [u8; 2], last: u16, [holds, fails]: [u8; 2]| {
        let (below, above) = halves(value);
        let [greater, less] = above_decides;
        vec![
            high,
            branch(JUMP_ABOVE, above, greater, 0),
            branch(JUMP_EQUAL, above, 0, less),
            low,
            branch(last, below, holds, fails),
        ]
    };
    match condition.comparison {
        SeccompComparison::Equal(value) => two(JUMP_EQUAL, value, 0, rest),
        SeccompComparison::NotEqual(value) => {
            let (below, above) = halves(value);
            vec![high, branch(JUMP_EQUAL, above, 0, 2), low, branch(JUMP_EQUAL, below, rest, 0)]
        }
        SeccompComparison::Greater(value) => ordered(value, [3, 2 + rest], JUMP_ABOVE, [0, rest]),
        SeccompComparison::GreaterOrEqual(value) => ordered(value, [3, 2 + rest], JUMP_AT_LEAST, [0, rest]),
        SeccompComparison::Less(value) => ordered(value, [3 + rest, 2], JUMP_AT_LEAST, [rest, 0]),
        SeccompComparison::LessOrEqual(value) => ordered(value, [3 + rest, 2], JUMP_ABOVE, [rest, 0]),
        SeccompComparison::MaskedEqual { mask, value } => {
            let ((mask_low, mask_high), (below, above)) = (halves(mask), halves(value));
            vec![
                high,
                instruction(AND, 0, 0, mask_high),
                branch(JUMP_EQUAL, above, 0, 3 + rest),
                low,
                instruction(AND, 0, 0, mask_low),
                branch(JUMP_EQUAL, below, 0, rest),
            ]
        }
    }
}
