//! What CI runs.

use crate::command::{self, command};
use crate::test_run::{self, Scope};
use crate::{crates, licences, soak, tidy, torture};
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
        // As the tests need it: a build of one package would turn on fewer features of what it uses, and compile that twice.
        command::run(&mut command("cargo test --workspace --no-run"))?;
        torture::run_sampled()?;
        soak::run_sampled()?;
    }
    test_run::run(scope)
}
