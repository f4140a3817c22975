//! The default system call filter: a policy table compiled to classic BPF.
//!
//! `seccompiler` and its like have one match action per filter and no i386, where docker's policy has both EPERM and
//! ENOSYS and admits 32-bit programs; hence this small compiler. Tests run its output through an interpreter.

mod clauses;
mod docker;
mod named;
mod policy;
mod profile;
mod program;
mod table;

use crate::Capabilities;
use crate::init::sys::BpfInstruction;
use policy::Rule;
use program::Decision;
use std::sync::OnceLock;

pub(crate) use named::default_profile;
pub use profile::{SeccompAction, SeccompComparison, SeccompCondition, SeccompProfile, SeccompRule};

/// The filter of an ordinary container, compiled before the first one is cloned and inherited by all.
static COMMON: OnceLock<Vec<BpfInstruction>> = OnceLock::new();

/// Compiles the filter of containers with docker's capabilities.
pub(crate) fn compile_common() {
    COMMON.get_or_init(|| compile(Capabilities::DEFAULT));
}

/// The filter for a process that has these capabilities, or `None` on an architecture that has no table yet.
pub(crate) fn default_filter(granted: Capabilities) -> Option<Vec<BpfInstruction>> {
    if !cfg!(target_arch = "x86_64") {
        return None;
    }
    match granted == Capabilities::DEFAULT {
        true => Some(COMMON.get_or_init(|| compile(granted)).clone()),
        false => Some(compile(granted)),
    }
}

/// The filter of a policy of the caller's, or `None` as above.
pub(crate) fn profile_filter(profile: &SeccompProfile) -> Option<Vec<BpfInstruction>> {
    cfg!(target_arch = "x86_64").then(|| clauses::compile(profile))
}

fn compile(granted: Capabilities) -> Vec<BpfInstruction> {
    let of = |number: fn(&policy::Row) -> u32| {
        let rows = policy::TABLE.iter().filter(|row| number(row) != policy::NONE);
        let mut decisions: Vec<_> = rows.map(|row| (number(row), decide(row.3, granted))).collect();
        decisions.sort_by_key(|(number, _)| *number);
        decisions
    };
    program::assemble(&of(|row| row.1), &of(|row| row.2))
}

/// Settles what depends on capabilities; what depends on arguments remains a check.
fn decide(rule: Rule, granted: Capabilities) -> Decision {
    let has = |name: &str| Capabilities::from_name(name).is_some_and(|one| granted.contains(one));
    match rule {
        Rule::Allow => Decision::Allow,
        Rule::Deny => Decision::Refuse(libc::EPERM),
        Rule::With(names) if names.iter().any(|name| has(name)) => Decision::Allow,
        Rule::With(_) => Decision::Refuse(libc::EPERM),
        Rule::CloneFlags | Rule::Clone3 if has("SYS_ADMIN") => Decision::Allow,
        Rule::CloneFlags => Decision::RefuseIfBits(policy::NAMESPACE_FLAGS),
        Rule::Clone3 => Decision::Refuse(libc::ENOSYS),
        Rule::Personality => Decision::AllowOnly(&policy::PERSONALITIES),
        Rule::SocketFamily => Decision::AllowAllBut(&policy::REFUSED_FAMILIES),
    }
}

#[cfg(test)]
mod tests;
