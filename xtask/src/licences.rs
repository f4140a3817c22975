//! The licences of everything that is linked in.

use crate::command::{command, text};
use anyhow::{Result, bail};
use serde_json::Value;

/// Licences that ask for no more than their text to be kept.
const ALLOWED: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "BSD-1-Clause",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
    "bzip2-1.0.6",
];

/// Checks every package of the dependency graph.
///
/// # Errors
/// Names the packages whose licences are not allowed.
pub fn check() -> Result<()> {
    let line = "cargo metadata --format-version 1 --locked --filter-platform x86_64-unknown-linux-gnu";
    let metadata: Value = serde_json::from_str(&text(&mut command(line))?)?;
    let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let licence = |package: &Value| package["license"].as_str().unwrap_or("none").to_owned();
    let bad = packages.iter().filter(|package| !is_allowed(&licence(package)));
    let bad: Vec<String> =
        bad.map(|package| format!("{} {}: {}", package["name"], package["version"], licence(package))).collect();
    if !bad.is_empty() {
        bail!("licences that are not allowed:\n  {}", bad.join("\n  "));
    }
    println!("licences: {} packages, all allowed", packages.len());
    Ok(())
}

/// Whether one of the alternatives of an SPDX expression consists of allowed licences.
fn is_allowed(expression: &str) -> bool {
    let expression = expression.replace('/', " OR ").replace(['(', ')'], "");
    expression.split(" OR ").any(|alternative| alternative.split(" AND ").all(is_allowed_name))
}

fn is_allowed_name(name: &str) -> bool {
    let name = name.split(" WITH ").next().unwrap_or(name).trim();
    ALLOWED.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions() {
        for good in [
            "MIT",
            "MIT OR Apache-2.0",
            "MIT/Apache-2.0",
            "GPL-3.0 OR MIT",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception",
        ] {
            assert!(is_allowed(good), "{good}");
        }
        for bad in ["none", "GPL-3.0", "MIT AND GPL-3.0", "MPL-2.0"] {
            assert!(!is_allowed(bad), "{bad}");
        }
    }
}
