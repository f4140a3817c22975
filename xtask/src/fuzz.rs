//! Random tests for as long as one likes. What a target is, `forge_testkit::fuzz` says; more are added to the table.

use crate::command::command;
use anyhow::{Context, Result, bail};

/// A target: the row that it is known by, the package that its test lies in, and the beginning of the test's name.
struct Target {
    name: &'static str,
    package: &'static str,
    test: &'static str,
}

const TARGETS: [Target; 12] = [
    Target { name: "p01", package: "forge-frontend", test: "fuzz_p01_" },
    Target { name: "p02", package: "forge-frontend", test: "fuzz_p02_" },
    Target { name: "p03", package: "forge-session", test: "fuzz_p03_" },
    Target { name: "p03", package: "forge-worker", test: "fuzz_p03_" },
    Target { name: "p04", package: "forge-store", test: "fuzz_p04_" },
    Target { name: "p05", package: "forge-store", test: "fuzz_p05_" },
    Target { name: "p06", package: "forge-store", test: "fuzz_p06_" },
    Target { name: "p08", package: "forge-store", test: "fuzz_p08_" },
    Target { name: "p09", package: "forge-image", test: "fuzz_p09_" },
    Target { name: "p10", package: "forge-image", test: "fuzz_p10_" },
    Target { name: "p18", package: "forge-store", test: "fuzz_p18_" },
    Target { name: "p19", package: "forge-store", test: "fuzz_p19_" },
];

/// A smoke run gives each target a minute.
const SECONDS: u64 = 60;

/// Runs `[--seconds N] [TARGET]…`; all targets where none is named.
///
/// # Errors
/// A target is not known, or found a fault.
pub fn run(words: &[&str]) -> Result<()> {
    let (seconds, names) = match words {
        ["--seconds", seconds, names @ ..] => (seconds.parse().context("--seconds: expected a number")?, names),
        names => (SECONDS, names),
    };
    let known = |name: &&&str| TARGETS.iter().any(|target| target.name == **name);
    if let Some(unknown) = names.iter().find(|name| !known(name)) {
        let known: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        bail!("unknown target {unknown:?}: there are {}", known.join(", "));
    }
    let wanted = |target: &&Target| names.is_empty() || names.contains(&target.name);
    let mut failed = Vec::new();
    for target in TARGETS.iter().filter(wanted) {
        let line = format!("cargo test -p {} -- --nocapture {}", target.package, target.test);
        println!("{} in {}: {seconds} seconds", target.name, target.package);
        let mut cargo = command(&line);
        let status = cargo.env("FORGE_FUZZ_SECONDS", seconds.to_string()).status().context("cannot run cargo")?;
        if !status.success() {
            failed.push(target.name);
        }
    }
    match failed.is_empty() {
        true => Ok(()),
        false => bail!("faults were found by {}: keep the input in testdata/fuzz and mend them", failed.join(", ")),
    }
}
