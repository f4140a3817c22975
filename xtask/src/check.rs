//! What CI runs.

use crate::command::{self, command};
use crate::test_run::{self, Scope};
use crate::{crates, licences, tidy, torture};
use anyhow::Result;

/// Cheap checks first, so that a slip is told within seconds.
///
/// # Errors
/// The first check that fails.
pub fn run(scope: Scope) -> Result<()> {
    command::run(&mut command("cargo fmt --all --check"))?;
    crates::check()?;
    tidy::check()?;
    licences::check()?;
    command::run(&mut command("cargo clippy --workspace --all-targets -- -D warnings"))?;
    if scope == Scope::All {
        command::run(&mut command("cargo build --package forge"))?;
        torture::run_sampled()?;
    }
    test_run::run(scope)
}
