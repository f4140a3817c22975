//! What steps do to file trees: real stores, real processes. Needs root; says so where it cannot run.
//!
//! An own `main`, since a program that uses the executor must call `init_if_requested` before any thread starts.

mod add;
mod attacks;
mod copy;
mod exec;
mod hostile;
mod keys;
mod made;
mod mounts;
mod packs;
mod parents;
mod properties;
#[path = "../../../store/tests/raw_tar/mod.rs"]
mod raw_tar;
mod rootless;
mod scale;
mod site;
mod sources;
mod stacks;
mod stat_index;
mod tree_text;

use libtest_mimic::{Arguments, Trial};

/// A test and its name.
type Test = (&'static str, fn());

fn main() {
    forge_executor::init_if_requested(|folder| drop(std::fs::remove_dir_all(folder)));
    if rootless::is_asked_for() {
        rootless::run();
    }
    let arguments = Arguments::from_args();
    let files = [copy::TESTS, parents::TESTS, add::TESTS, made::TESTS, stacks::TESTS].concat();
    let groups = [
        &files,
        keys::TESTS,
        properties::TESTS,
        stat_index::TESTS,
        attacks::TESTS,
        hostile::TESTS,
        scale::TESTS,
        packs::TESTS,
        exec::TESTS,
        mounts::TESTS,
        rootless::TESTS,
        &sources::tests(),
    ];
    libtest_mimic::run(&arguments, groups.concat().into_iter().map(trial).collect()).exit();
}

fn trial((name, test): Test) -> Trial {
    Trial::test(name, move || {
        if forge_testkit::privileged(name) {
            test();
        }
        Ok(())
    })
}
