//! The store itself: damage is named, taken out, and healed by the next build.

use crate::fixture::Forge;
use std::fs;
use std::path::PathBuf;

const DOCKERFILE: &str = "FROM busybox\nRUN echo one > /one\nRUN echo two > /two\n";

/// A store with a built image, or nothing where the test is skipped.
fn built(test: &str) -> Option<(Forge, String)> {
    let forge = Forge::privileged(test)?;
    let context = forge.context("context", &[("Dockerfile", DOCKERFILE)]);
    forge.build(&["-t", "app", &context]);
    Some((forge, context))
}

fn file_of_a_layer(forge: &Forge, name: &str) -> PathBuf {
    let layers = fs::read_dir(forge.store().join("layers")).unwrap();
    let files = layers.map(|layer| layer.unwrap().path().join("tree").join(name));
    files.into_iter().find(|file| file.exists()).unwrap()
}

#[test]
fn privileged_f20_a_damaged_layer_is_named_taken_out_and_built_again() {
    let Some((forge, context)) = built("f20_a_damaged_layer") else { return };
    let whole = forge.ok(&["store", "verify", "--full"]).stdout;
    assert!(whole.ends_with(": whole\n"), "{whole}");
    fs::write(file_of_a_layer(&forge, "one"), "bad\n").unwrap();
    let found = forge.fails(1, &["store", "verify", "--full"]).stdout;
    assert!(found.contains(": /one: its bytes are others\n"), "{found}");
    let repaired = forge.ok(&["store", "verify", "--full", "--repair"]).stdout;
    assert!(repaired.contains("image app:latest is gone: pull or build it again\n"), "{repaired}");
    forge.build(&["-t", "app", &context]);
    assert_eq!(forge.shell("app", "cat /one /two"), "one\ntwo\n");
}

#[test]
fn privileged_f19_a_lost_database_loses_no_image() {
    let Some((forge, context)) = built("f19_a_lost_database") else { return };
    for file in ["forge.db", "forge.db-wal", "forge.db-shm"] {
        let _ = fs::remove_file(forge.store().join(file));
    }
    let first = forge.ok(&["images", "--format", "{{.Repository}}"]);
    assert!(first.stderr.contains("the store's database was lost: found 3 layers and 2 names on disk"), "{first:?}");
    assert_eq!(first.stdout, "app\nbusybox\n");
    assert_eq!(forge.shell("app", "cat /one /two"), "one\ntwo\n");
    let steps = forge.build(&["-t", "app", &context]);
    assert!(steps.iter().all(|(_, step)| *step == crate::fixture::Step::Cached), "{steps:?}");
}
