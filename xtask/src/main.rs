//! What developers and CI run: `cargo xtask demo`, `test`, `check`, `fuzz` and `bench`.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a developer's tool talks to the terminal")]

mod bench;
mod busybox;
mod check;
mod command;
mod corpus;
mod corpus_case;
mod crates;
mod demo;
mod differential;
mod fuzz;
mod kernel;
mod licences;
mod packages;
mod registry;
mod soak;
mod test_run;
mod tidy;
mod torture;

use anyhow::{Result, bail};
use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "cargo xtask COMMAND

  demo             build forge, then build, list, run and rebuild the example image
  test             run all tests and count them
  check [--fast]   what CI runs: format, lints, crate table, tidiness, licences, tests
                   (--fast: no tests that build images)
  corpus [--offline | NAME…]
                   build the realistic Dockerfiles of testdata/corpus and run their images
  differential [NAME…]
                   build the examples with forge and with Debian's buildah, and compare the images
  fuzz [--seconds N] [TARGET]...
                   random tests, a minute each
  torture [--points N] [--fault kill|enospc|eio|emfile|power] [--seed N] [NAME…]
                   kill forge, or let a call fail, at N system calls (default 200) of a build, a pull, a push and more; cut
                   the power of its disk N times (default 50); nothing may be damaged
  soak [--seconds N] [--seed N]
                   random commands, kills, clocks and collections, an hour (L12)
  load             the load tests in full, with their figures (L01, L11, L13, L15)
  bench [--quick] [CASE]...
                   forge beside the bare cost of each job, as ratios; CASE: steps, growth, cached, hundred, container,
                   contexts, curves, layer, pull (which pulls the image of layer)
  growth [--quick | --million]
                   how time and memory grow with files, layers and steps (--million: contexts up to a million files)
  kernel [bookworm|trixie] [TEST]
                   the executor's tests, and those of the whole program that depend on the kernel, under the kernels of
                   Debian's releases (6.1, 6.12), in virtual machines
  busybox FILE     write a busybox base image, as an archive for `forge load`";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Not by `Result` from `main`: that would print a backtrace where the environment asks for one.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    std::env::set_current_dir(workspace())?;
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["demo"] => demo::run(),
        ["test"] => test_run::run(test_run::Scope::All),
        ["check"] => check::run(test_run::Scope::All),
        ["check", "--fast"] => check::run(test_run::Scope::Fast),
        ["fuzz", ref words @ ..] => fuzz::run(words),
        ["torture", ref words @ ..] => torture::run_words(demo::release_binary()?, words),
        ["soak", ref words @ ..] => soak::run_words(demo::release_binary()?, words),
        ["load"] => load(),
        ["bench", "--quick", ref cases @ ..] => bench::run(bench::Size::Quick, cases),
        ["bench", ref cases @ ..] => bench::run(bench::Size::Full, cases),
        ["growth"] => bench::growth(bench::Size::Full),
        ["growth", "--quick"] => bench::growth(bench::Size::Quick),
        ["growth", "--million"] => bench::growth(bench::Size::Million),
        ["corpus"] => corpus::check(&[], false),
        ["corpus", "--offline"] => corpus::check(&[], true),
        ["corpus", ref names @ ..] => corpus::check(names, false),
        ["differential", ref names @ ..] => differential::check(names),
        ["kernel"] => kernel::run_tests(&kernel::RELEASES, None),
        ["kernel", ref release, ref filter @ ..] if kernel::RELEASES.contains(release) && filter.len() < 2 => {
            kernel::run_tests(&[*release], filter.first().copied())
        }
        ["busybox", file] => busybox::write_archive(file.as_ref()),
        [] | ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            Ok(())
        }
        _ => bail!("unknown command {:?}\n{USAGE}", words.join(" ")),
    }
}

/// The tests of load, all of it instead of a part.
fn load() -> Result<()> {
    for line in [
        "cargo test --release -p forge-engine --test load -- --nocapture --test-threads 1",
        "cargo test --release -p forge --test e2e -- --nocapture --test-threads 1 load:: l01_",
    ] {
        command::run(command::command(line).env("FORGE_LOAD_SCALE", "1"))?;
    }
    Ok(())
}

/// The folder of the workspace.
fn workspace() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().map(PathBuf::from).unwrap_or_default()
}
