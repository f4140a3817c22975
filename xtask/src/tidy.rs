//! What the compiler does not see.

use crate::command::{command, text};
use anyhow::{Result, bail};
use std::path::Path;

/// Source files beyond this are listed, as a reminder to look for the second idea in them.
const LONG_FILE: usize = 800;
/// Marks of unfinished work.
const MARKS: &[&str] = &["todo!(", "unimplemented!(", "dbg!(", "#[ignore", "FIXME", "XXX"];
/// Modules that would collect what has no home.
const HOMELESS: &[&str] = &["util.rs", "utils.rs", "common.rs", "helper.rs", "helpers.rs", "misc.rs"];

/// Looks through all source files of the project.
///
/// # Errors
/// One line for each finding.
pub fn check() -> Result<()> {
    let files = text(&mut command("git ls-files --cached --others --exclude-standard -- *.rs"))?;
    let (mut findings, mut long) = (Vec::new(), 0);
    for path in files.lines().filter(|path| !path.ends_with("xtask/src/tidy.rs")) {
        // A file that was deleted but not committed yet is still listed.
        let Ok(source) = std::fs::read_to_string(path) else { continue };
        findings.extend(marks(path, &source));
        findings.extend(name(path));
        if source.lines().count() > LONG_FILE {
            println!("note: {path} has {} lines", source.lines().count());
            long += 1;
        }
    }
    if !findings.is_empty() {
        bail!("untidy:\n  {}", findings.join("\n  "));
    }
    println!("tidy: {} source files, {long} longer than {LONG_FILE} lines", files.lines().count());
    Ok(())
}

fn marks(path: &str, source: &str) -> Vec<String> {
    let lines = source.lines().enumerate();
    let found = lines.flat_map(|(number, line)| {
        MARKS.iter().filter(move |mark| line.contains(**mark)).map(move |mark| (number + 1, mark))
    });
    found.map(|(number, mark)| format!("{path}:{number}: {mark}")).collect()
}

fn name(path: &str) -> Option<String> {
    let file = Path::new(path).file_name()?.to_str()?;
    HOMELESS.contains(&file).then(|| format!("{path}: name the module after what it holds"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_have_a_place() {
        assert_eq!(marks("a.rs", "fn f() {}\nfn g() { todo!() }\n"), ["a.rs:2: todo!("]);
        assert!(name("crates/x/src/util.rs").is_some() && name("crates/x/src/layer.rs").is_none());
    }
}
