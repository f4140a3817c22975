//! Realistic Dockerfiles, as far as they need no servers; `cargo xtask corpus` builds the others too.

use crate::corpus_case;
use crate::fixture::{Forge, testdata};
use anyhow::ensure;
use std::path::Path;

#[test]
fn privileged_the_corpus_builds_and_runs() {
    let Some(forge) = Forge::privileged("the_corpus_builds_and_runs") else { return };
    let cases = corpus_case::read_all(Path::new(&testdata("corpus"))).unwrap();
    assert!(cases.len() >= 20, "{}", cases.len());
    let failed: Vec<String> = cases
        .iter()
        .filter(|case| !case.needs_network)
        .filter_map(|case| {
            let checked = case.check(|words| {
                let words: Vec<&str> = words.iter().map(String::as_str).collect();
                let outcome = forge.forge(&words);
                ensure!(outcome.code == 0, "forge {}\n{}", words.join(" "), outcome.stderr);
                Ok(outcome.stdout)
            });
            checked.err().map(|error| format!("{error:#}"))
        })
        .collect();
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
}
