//! The crates and the one allowed direction: ARCHITECTURE.md's table against `cargo metadata`.

use crate::command::{command, text};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// A row of the table.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    package: String,
    may_use: Uses,
}

#[derive(Debug, PartialEq, Eq)]
enum Uses {
    Any,
    These(BTreeSet<String>),
}

/// Compares the table with what the manifests say.
///
/// # Errors
/// One line for each difference.
pub fn check() -> Result<()> {
    let table = table(&std::fs::read_to_string("ARCHITECTURE.md").context("cannot read ARCHITECTURE.md")?)?;
    let metadata: Value =
        serde_json::from_str(&text(&mut command("cargo metadata --format-version 1 --no-deps --offline"))?)?;
    let differences = differences(&table, &dependencies(&metadata));
    if !differences.is_empty() {
        bail!("ARCHITECTURE.md and the manifests differ:\n  {}", differences.join("\n  "));
    }
    println!("crate table: {} crates, every dependency allowed", table.len());
    Ok(())
}

/// Reads the table below the heading "Crates": crate | package | purpose | may use.
fn table(document: &str) -> Result<Vec<Row>> {
    let section =
        document.split("\n## ").find(|section| section.starts_with("Crates")).context("no section \"Crates\"")?;
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    let rows: Vec<Row> = rows.map(row).collect::<Result<_>>()?;
    if rows.is_empty() {
        bail!("the section \"Crates\" has no table");
    }
    Ok(rows)
}

fn row(line: &str) -> Result<Row> {
    let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
    let [_, package, _, may_use] = cells[..] else { bail!("a row with {} cells: {line}", cells.len()) };
    let may_use = match may_use {
        "any" => Uses::Any,
        "–" => Uses::These(BTreeSet::new()),
        list => Uses::These(list.split(", ").map(|name| format!("forge-{name}")).collect()),
    };
    Ok(Row { package: package.trim_matches('`').to_owned(), may_use })
}

/// The workspace's packages and which others of it each uses outside its tests.
fn dependencies(metadata: &Value) -> BTreeMap<String, BTreeSet<String>> {
    let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let name = |value: &Value| value["name"].as_str().unwrap_or_default().to_owned();
    let members: BTreeSet<String> = packages.iter().map(name).collect();
    let uses = |package: &Value| {
        let all = package["dependencies"].as_array().map(Vec::as_slice).unwrap_or_default();
        all.iter()
            .filter(|dependency| dependency["kind"].is_null())
            .map(name)
            .filter(|name| members.contains(name))
            .collect()
    };
    packages.iter().map(|package| (name(package), uses(package))).collect()
}

fn differences(table: &[Row], dependencies: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let mut found = Vec::new();
    let listed: BTreeSet<&str> = table.iter().map(|row| row.package.as_str()).collect();
    found.extend(
        dependencies
            .keys()
            .filter(|name| !listed.contains(name.as_str()))
            .map(|name| format!("{name} is not in the table")),
    );
    let mut above = BTreeSet::new();
    for row in table {
        match (dependencies.get(&row.package), &row.may_use) {
            (None, _) => found.push(format!("{} is in the table but not in the workspace", row.package)),
            (Some(_), Uses::Any) => {}
            (Some(used), Uses::These(allowed)) => {
                found.extend(
                    used.difference(allowed)
                        .map(|name| format!("{} uses {name}, which the table does not allow", row.package)),
                );
                found.extend(
                    allowed
                        .iter()
                        .filter(|name| !above.contains(*name))
                        .map(|name| format!("{} may use {name}, which does not stand above it", row.package)),
                );
            }
        }
        above.insert(row.package.clone());
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_crate_table_is_what_the_manifests_say() {
        std::env::set_current_dir(crate::workspace()).unwrap();
        check().unwrap();
    }

    #[test]
    fn differences_are_named() {
        let document = "# A\n\n## Crates\n\n| crate | package | purpose | may use |\n|---|---|---|---|\n| `a` | `forge-a` | x | – |\n| `b` | `forge-b` | x | a, c |\n| `x` | `x` | x | any |\n\n## Next\n";
        let rows = table(document).unwrap();
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        let dependencies = BTreeMap::from([
            ("forge-a".to_owned(), set(&["forge-b"])),
            ("forge-b".to_owned(), set(&["forge-a"])),
            ("forge-new".to_owned(), set(&[])),
        ]);
        assert_eq!(
            differences(&rows, &dependencies),
            [
                "forge-new is not in the table",
                "forge-a uses forge-b, which the table does not allow",
                "forge-b may use forge-c, which does not stand above it",
                "x is in the table but not in the workspace",
            ]
        );
    }
}
