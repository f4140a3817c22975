//! The default policy by names, for OCI runtimes, which make a filter of it themselves.

use super::policy::{self, Rule};
use super::profile::{SeccompAction, SeccompComparison, SeccompCondition, SeccompProfile, SeccompRule};
use crate::Capabilities;

const EPERM: SeccompAction = SeccompAction::Errno(libc::EPERM as u16);

/// The default policy for a process that has these capabilities.
pub(crate) fn default_profile(granted: Capabilities) -> SeccompProfile {
    let mut always = Vec::new();
    let mut rules = Vec::new();
    for (name, _, _, rule) in policy::TABLE {
        match conditions(*rule, granted) {
            Verdict::Always => always.push((*name).to_owned()),
            Verdict::Never => {}
            Verdict::Missing => rules.push(SeccompRule {
                names: vec![(*name).to_owned()],
                action: SeccompAction::Errno(libc::ENOSYS as u16),
                conditions: Vec::new(),
            }),
            // Each alone: several conditions on one argument are refused by libseccomp, and read as alternatives by runtimes.
            Verdict::Where(alternatives) => rules.extend(alternatives.into_iter().map(|one| SeccompRule {
                names: vec![(*name).to_owned()],
                action: SeccompAction::Allow,
                conditions: vec![SeccompCondition::new(0, one)],
            })),
        }
    }
    rules.insert(0, SeccompRule { names: always, action: SeccompAction::Allow, conditions: Vec::new() });
    SeccompProfile { default: EPERM, narrow: true, rules }
}

enum Verdict {
    Always,
    Never,
    Missing,
    /// Where the first argument passes one of these.
    Where(Vec<SeccompComparison>),
}

fn conditions(rule: Rule, granted: Capabilities) -> Verdict {
    let has = |name: &str| Capabilities::from_name(name).is_some_and(|one| granted.contains(one));
    match rule {
        Rule::Allow => Verdict::Always,
        Rule::With(names) if names.iter().any(|name| has(name)) => Verdict::Always,
        Rule::CloneFlags | Rule::Clone3 if has("SYS_ADMIN") => Verdict::Always,
        Rule::Deny | Rule::With(_) => Verdict::Never,
        Rule::Clone3 => Verdict::Missing,
        Rule::CloneFlags => {
            let none = SeccompComparison::MaskedEqual { mask: policy::NAMESPACE_FLAGS.into(), value: 0 };
            Verdict::Where(vec![none])
        }
        Rule::Personality => {
            Verdict::Where(policy::PERSONALITIES.iter().map(|&one| SeccompComparison::Equal(one.into())).collect())
        }
        Rule::SocketFamily => Verdict::Where(families()),
    }
}

/// All families below 64 but the refused ones, as blocks of lower halves: the kernel reads an int, so that "more than 40"
/// would let 0x1_0000_0026 through, which is AF_ALG to it.
fn families() -> Vec<SeccompComparison> {
    const BLOCKS: [(u64, u64); 7] = [(0, 32), (32, 4), (36, 2), (39, 1), (41, 1), (42, 2), (44, 4)];
    let block = |&(first, count): &(u64, u64)| SeccompComparison::MaskedEqual {
        mask: u64::from(u32::MAX) & !(count - 1),
        value: first,
    };
    BLOCKS.iter().chain(&[(48, 16)]).map(block).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(comparison: &SeccompComparison, argument: u64) -> bool {
        match comparison {
            SeccompComparison::MaskedEqual { mask, value } => argument & mask == *value,
            SeccompComparison::Equal(value) => argument == *value,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a81_families_are_judged_by_what_the_kernel_reads() {
        for family in 0..64 {
            let refused = policy::REFUSED_FAMILIES.contains(&(family as u32));
            for disguised in [family, family | 1 << 32, family | 0xffff_ffff_0000_0000] {
                let allowed = families().iter().any(|block| allows(block, disguised));
                assert_eq!(allowed, !refused, "{disguised:#x}");
            }
        }
    }

    #[test]
    fn names_follow_capabilities() {
        let allowed = |granted, name: &str| default_profile(granted).rules[0].names.iter().any(|one| one == name);
        assert!(allowed(Capabilities::DEFAULT, "openat") && allowed(Capabilities::DEFAULT, "chroot"));
        assert!(!allowed(Capabilities::DEFAULT, "mount") && allowed(Capabilities::SYS_ADMIN, "mount"));
        assert!(!allowed(Capabilities::ALL, "keyctl"));
        let clone3 = |rule: &&SeccompRule| rule.names == ["clone3"];
        let rule = default_profile(Capabilities::DEFAULT).rules.iter().find(clone3).cloned();
        assert_eq!(rule.map(|rule| rule.action), Some(SeccompAction::Errno(libc::ENOSYS as u16)));
    }
}
