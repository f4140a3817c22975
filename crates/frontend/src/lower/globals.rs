//! The variables that FROM sees: those that every build sets, and the ARGs before the first FROM.

use super::environment::Environment;
use crate::command::ArgDefinition;
use crate::expand::{Budget, Expander, Quotes, Unset};
use crate::program::Program;
use crate::span::At;
use crate::{FrontendError, LowerOptions};
use forge_image::Platform;
use std::collections::BTreeMap;

/// Proxy settings, in upper and lower case. They reach RUN without being declared, and stay out of history and
/// cache keys.
pub(super) const PROXY_ARGS: [[&str; 2]; 5] = [
    ["HTTP_PROXY", "http_proxy"],
    ["HTTPS_PROXY", "https_proxy"],
    ["FTP_PROXY", "ftp_proxy"],
    ["NO_PROXY", "no_proxy"],
    ["ALL_PROXY", "all_proxy"],
];

/// Build arguments that steer the build and are no variables of RUN.
pub(super) const NOT_EXPORTED: [&str; 2] = ["BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"];

/// The platform variables and `TARGETSTAGE`, unless build arguments say otherwise.
pub(super) fn automatic(options: &LowerOptions, program: &Program) -> Environment {
    let mut variables = Environment::default();
    let target = [("TARGET", &options.platform), ("BUILD", &options.build_platform)];
    for (name, value) in target.into_iter().flat_map(|(prefix, platform)| platform_variables(prefix, platform)) {
        variables.set(&name, options.build_args.get(&name).cloned().unwrap_or(value));
    }
    let last = program.stages.last().and_then(|stage| stage.name.as_ref());
    let stage = options.build_args.get("TARGETSTAGE").or(options.target.as_ref()).or(last);
    variables.set("TARGETSTAGE", stage.cloned().unwrap_or_else(|| "default".to_owned()));
    variables
}

fn platform_variables(prefix: &str, platform: &Platform) -> [(String, String); 5] {
    let variant = platform.variant.clone().unwrap_or_default();
    let version = platform.os_version.clone().unwrap_or_default();
    [
        (format!("{prefix}PLATFORM"), whole(platform)),
        (format!("{prefix}OS"), platform.os.clone()),
        (format!("{prefix}OSVERSION"), version),
        (format!("{prefix}ARCH"), platform.architecture.clone()),
        (format!("{prefix}VARIANT"), variant),
    ]
}

/// A platform with the version of its operating system: `windows(10.0)/amd64`.
fn whole(platform: &Platform) -> String {
    let plain = platform.to_string();
    match (&platform.os_version, plain.split_once('/')) {
        (Some(version), Some((os, rest))) => format!("{os}({version})/{rest}"),
        _ => plain,
    }
}

/// Adds the ARGs before the first FROM. A later one sees the earlier ones.
///
/// # Errors
/// A default cannot be expanded.
pub(super) fn declared(
    mut variables: Environment,
    definitions: &[ArgDefinition],
    build_args: &BTreeMap<String, String>,
    escape: char,
    budget: &Budget,
) -> Result<Environment, FrontendError> {
    for definition in definitions {
        let expand = |token: &crate::Token| {
            let (quotes, unset) = (Quotes::Removed, Unset::Empty);
            let expander = Expander { variables: &variables, escape, quotes, unset, budget };
            expander.expand(&token.text).at(token.span).map(|expanded| expanded.text)
        };
        let key = expand(&definition.key)?;
        let value = match (build_args.get(&key), &definition.default) {
            (Some(value), _) => Some(value.clone()),
            (None, Some(default)) => Some(expand(default)?),
            (None, None) => None,
        };
        if let Some(value) = value {
            variables.set(&key, value);
        }
    }
    Ok(variables)
}
