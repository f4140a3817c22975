use crate::environment::Environment;
use crate::sanitise;
use anyhow::Context;
use forge_engine::SourcePolicy;

const VARIABLE: &str = "EXPERIMENTAL_BUILDKIT_SOURCE_POLICY";

/// The rules in the file that the variable names, as buildx reads it.
///
/// # Errors
/// The file cannot be read, or is no list of rules.
pub(super) fn source_policies(environment: &Environment) -> anyhow::Result<Vec<SourcePolicy>> {
    let Some(path) = environment.filled(VARIABLE) else { return Ok(Vec::new()) };
    let bytes = std::fs::read(path).with_context(|| format!("{VARIABLE}: cannot read {path}"))?;
    let policy = SourcePolicy::from_json(&bytes);
    policy
        .map(|policy| vec![policy])
        .map_err(|error| anyhow::anyhow!("{VARIABLE}: {}", sanitise::line(&error.to_string())))
}
