//! Attacks and mounts again, as an ordinary user. Root runs this program again as one made for it.

use crate::{Test, attacks, exec, mounts, stacks};
use forge_executor::NamespaceIds;
use libtest_mimic::Arguments;

pub const TESTS: &[Test] = &[("rootless_attacks_and_steps_again_as_a_user", again)];

const ASKED: &str = "FORGE_TEST_ROOTLESS";

/// What cannot be so for a user.
const OTHERWISE: [&str; 2] = [
    "privileged_insecure_steps_may_everything", // opens a device that it makes
    "privileged_exit_codes_limits_and_devices", // the same
];

/// Whether this is the program that root has started again.
pub fn is_asked_for() -> bool {
    std::env::var_os(ASKED).is_some()
}

/// Runs as the user, in place of all else.
pub fn run() -> ! {
    assert!(!rustix::process::geteuid().is_root());
    let ids = forge_executor::enter_user_namespace().expect("a user namespace");
    assert_eq!(ids, NamespaceIds::Subordinate);
    let groups = [attacks::TESTS, mounts::TESTS, stacks::TESTS, exec::TESTS];
    let here = |(name, _): &Test| !OTHERWISE.iter().any(|other| name.starts_with(other));
    let trials = groups.concat().into_iter().filter(here).map(crate::trial);
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}

fn again() {
    let folder = env!("CARGO_TARGET_TMPDIR");
    let Some(text) = forge_testkit::run_again_as_user("rootless_attacks", ASKED, folder) else { return };
    assert!(text.contains("test privileged_a37_hostile_destinations"), "{text}");
}
