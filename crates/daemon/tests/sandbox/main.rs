//! A daemon whose builds run processes, and clients that steer them. Needs root and Debian's busybox-static; says so where it
//! cannot run.
//!
//! An own `main`, since a program that runs containers must call `init_if_requested` before any thread starts.

#[path = "../it/account.rs"]
#[allow(dead_code, reason = "the other tests use the rest of it")]
mod account;
#[path = "../it/chosen_outputs.rs"]
#[allow(dead_code, reason = "the other tests use the rest of it")]
mod chosen_outputs;
#[path = "../it/client.rs"]
#[allow(dead_code, reason = "the other tests use the rest of it")]
mod client;
mod containers;
mod failed;
mod front_end;
mod front_end_program;
#[path = "../it/keys.rs"]
mod keys;
mod limits;
mod steered;
mod steps;

use libtest_mimic::{Arguments, Trial};

/// A test and its name.
type Test = (&'static str, fn());

fn main() {
    forge_engine::init_if_requested();
    front_end_program::run_if_requested();
    let arguments = Arguments::from_args();
    let trials = [containers::TESTS, failed::TESTS, front_end::TESTS, limits::TESTS, steps::TESTS];
    let trials = trials.concat().into_iter().map(trial).collect();
    libtest_mimic::run(&arguments, trials).exit();
}

fn trial((name, test): Test) -> Trial {
    Trial::test(name, move || {
        if forge_testkit::privileged(name) && forge_testkit::installed("busybox", name) {
            test();
        }
        Ok(())
    })
}

/// Runs a test within bounds.
fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(std::time::Duration::from_secs(60), test).await.unwrap() });
    runtime.shutdown_timeout(std::time::Duration::from_secs(5));
}

/// How many processes of this machine have that word among their arguments.
fn processes_with(word: &str) -> usize {
    let has = |entry: std::fs::DirEntry| {
        front_end_program::run_if_requested();
        let arguments = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        arguments.split(|byte| *byte == 0).any(|argument| argument == word.as_bytes())
    };
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter(|entry| entry.file_name() != "self")
        .filter_map(|entry| has(entry).then_some(()))
        .count()
}

/// Waits until no process has that word among its arguments.
async fn gone(word: &str) {
    let search = async {
        while processes_with(word) > 0 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let found = tokio::time::timeout(std::time::Duration::from_secs(10), search).await;
    assert!(found.is_ok(), "{word} still runs");
}
