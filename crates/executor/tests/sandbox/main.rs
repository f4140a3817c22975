//! Runs real containers. Needs root and Debian's busybox-static; says so where it cannot run.
//!
//! An own `main`, since a program that uses the executor must call `init_if_requested` before any thread starts.
#![allow(clippy::print_stdout)]

mod apparmor;
mod attacks;
mod checker;
mod fixture;
mod further;
mod lifecycle;
mod limits;
mod network;
mod oci;
mod payload;
mod probe;
mod process;
mod rootless;
mod surface;

use libtest_mimic::{Arguments, Failed, Trial};

fn main() {
    forge_executor::init_if_requested(|folder| drop(std::fs::remove_dir_all(folder)));
    payload::run_if_requested();
    let arguments = Arguments::from_args();
    if rootless::is_asked_for() {
        rootless::run();
    }
    let groups = [
        process::TESTS,
        lifecycle::TESTS,
        limits::TESTS,
        further::TESTS,
        network::TESTS,
        oci::TESTS,
        checker::TESTS,
        attacks::TESTS,
        apparmor::TESTS,
        surface::TESTS,
        probe::TESTS,
        rootless::TESTS,
    ];
    let trials = groups.concat().into_iter().map(|(name, test)| Trial::test(name, move || guarded(name, test)));
    libtest_mimic::run(&arguments, trials.collect()).exit();
}

/// Runs one test if this machine can.
fn guarded(name: &str, test: fn()) -> Result<(), Failed> {
    let missing = if !rustix::process::geteuid().is_root() {
        "root"
    } else if !std::path::Path::new("/bin/busybox").exists() {
        "busybox-static"
    } else {
        test();
        return Ok(());
    };
    if std::env::var_os("FORGE_REQUIRE_PRIVILEGED").is_some_and(|value| value == "1") {
        return Err(format!("needs {missing}").into());
    }
    println!("SKIPPED (needs {missing}): {name}");
    Ok(())
}
