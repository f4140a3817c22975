//! BuildKit's own parser cases: what its parser accepts, ours accepts with the same words, and the reverse.

use std::fs;
use std::path::{Path, PathBuf};

/// Not part of the project: the folder is given by `FORGE_SHARED`, or lies beside the workspace.
fn cases(kind: &str) -> Option<Vec<PathBuf>> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    let shared = std::env::var_os("FORGE_SHARED").map_or(beside, PathBuf::from);
    let folder = shared.join("conformance/dockerfile-parser").join(kind);
    let Ok(entries) = fs::read_dir(&folder) else {
        #[allow(clippy::print_stdout, reason = "a skipped test says so")]
        {
            println!("SKIPPED (no conformance data): {kind}");
        }
        return None;
    };
    let mut cases: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    Some(cases)
}

#[test]
fn accepted_files_have_the_same_words() {
    let Some(cases) = cases("testfiles") else { return };
    assert_eq!(cases.len(), 33);
    for case in cases {
        let text = fs::read(case.join("Dockerfile")).unwrap();
        let expected = fs::read_to_string(case.join("result")).unwrap();
        let dockerfile = forge_frontend::parse("Dockerfile", &text).unwrap_or_else(|error| panic!("{case:?}: {error}"));
        assert_eq!(dockerfile.to_sexpr().trim(), expected.trim(), "{case:?}");
    }
}

#[test]
fn refused_files_are_refused() {
    let Some(cases) = cases("testfiles-negative") else { return };
    assert_eq!(cases.len(), 4);
    for case in cases {
        let text = fs::read(case.join("Dockerfile")).unwrap();
        assert!(forge_frontend::parse("Dockerfile", &text).is_err(), "{case:?}");
    }
}
