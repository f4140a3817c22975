//! All tests, counted.

use crate::command::command;
use crate::packages;
use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

/// Which tests run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All of them.
    All,
    /// Those within the sources; not those that drive the binary.
    Fast,
}

/// Runs the tests and prints the counts last.
///
/// # Errors
/// A test failed, or one that CI must run was skipped.
pub fn run(scope: Scope) -> Result<()> {
    if let (true, Err(error)) = (scope == Scope::All, packages::ensure(packages::TESTS)) {
        println!("note: {error}");
    }
    let mut report = Report::default();
    let mut good = report.follow(command(match scope {
        Scope::All => "cargo test --workspace --no-fail-fast -- --show-output",
        Scope::Fast => "cargo test --workspace --no-fail-fast --lib --bins -- --show-output",
    }))?;
    if scope == Scope::All && Path::new(RUNC).exists() {
        println!("\nonce more through runc: {THROUGH_RUNC}");
        let mut again = command(THROUGH_RUNC);
        again.env("FORGE_OCI_RUNTIME", RUNC);
        good &= report.follow(again)?;
    }
    println!("{}", report.summary());
    if !good || report.failed > 0 {
        bail!("tests failed");
    }
    Ok(())
}

/// Where Debian has it.
const RUNC: &str = "/usr/sbin/runc";
/// What of the binary's tests says most of the sandbox, in half a minute, without those that use `--init` or
/// `--total-resource`, which are refused there.
const THROUGH_RUNC: &str = "cargo test --workspace --test e2e --no-fail-fast -- --show-output run:: sandbox:: mounts::";

/// How long cargo may be silent before it is looked whether it has ended.
const PATIENCE: Duration = Duration::from_secs(10);

/// In CI, a skipped test is a failed one.
fn must_be_privileged() -> bool {
    rustix::process::geteuid().is_root() && std::env::var("CI").is_ok_and(|value| value == "true")
}

/// The counts so far, and whether the output is inside the section that repeats what good tests printed.
#[derive(Default)]
struct Report {
    passed: usize,
    failed: usize,
    ignored: usize,
    skipped: Vec<String>,
    in_successes: bool,
}

impl Report {
    /// Runs cargo and takes its output; says whether it was content.
    fn follow(&mut self, mut cargo: Command) -> Result<bool> {
        if must_be_privileged() {
            cargo.env("FORGE_REQUIRE_PRIVILEGED", "1");
        }
        let mut child = cargo.stdout(Stdio::piped()).spawn().context("cannot run cargo")?;
        let output = child.stdout.take().context("cargo's output was not kept")?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            BufReader::new(output).split(b'\n').map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        loop {
            match lines.recv_timeout(PATIENCE) {
                Ok(line) => {
                    let line = String::from_utf8_lossy(&line).into_owned();
                    if self.take(&line) {
                        println!("{line}");
                    }
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) if child.try_wait()?.is_none() => {}
                Err(RecvTimeoutError::Timeout) => {
                    println!("error: a program that a test started runs on, and holds cargo's output");
                    return Ok(false);
                }
            }
        }
        Ok(child.wait()?.success())
    }

    /// Takes a line of libtest's output; says whether the reader wants to see it.
    fn take(&mut self, line: &str) -> bool {
        match line {
            "successes:" => self.in_successes = true,
            "failures:" => self.in_successes = false,
            _ => {}
        }
        if let Some(counts) = line.strip_prefix("test result: ") {
            self.in_successes = false;
            self.passed += count(counts, "passed");
            self.failed += count(counts, "failed");
            self.ignored += count(counts, "ignored");
        }
        if line.starts_with("SKIPPED") {
            self.skipped.push(line.to_owned());
        }
        !self.in_successes && !line.ends_with(" ... ok") && !line.is_empty()
    }

    fn summary(&self) -> String {
        let skipped: String = self.skipped.iter().map(|line| format!("{line}\n")).collect();
        let (passed, failed, ignored) = (self.passed, self.failed, self.ignored);
        format!("\n{skipped}tests: {passed} passed, {failed} failed, {ignored} ignored, {} skipped", self.skipped.len())
    }
}

/// The number before a word, as in `3 passed; 0 failed`.
fn count(counts: &str, word: &str) -> usize {
    let words: Vec<&str> = counts.split([' ', ';', '.']).filter(|word| !word.is_empty()).collect();
    words.windows(2).find(|pair| pair[1] == word).and_then(|pair| pair[0].parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_summed_and_skips_are_named() {
        let mut report = Report::default();
        let lines = "test a ... ok\ntest b ... FAILED\nsuccesses:\n---- a stdout ----\nSKIPPED (needs root): a\nsuccesses:\n    a\nfailures:\nwhy b\ntest result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s\ntest result: ok. 41 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.1s";
        let shown: Vec<&str> = lines.lines().filter(|line| report.take(line)).collect();
        assert_eq!(shown[0], "test b ... FAILED");
        assert!(shown.contains(&"why b") && !shown.contains(&"---- a stdout ----"));
        assert_eq!(report.summary(), "\nSKIPPED (needs root): a\ntests: 42 passed, 1 failed, 2 ignored, 1 skipped");
    }
}
