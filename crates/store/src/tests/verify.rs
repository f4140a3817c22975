//! F20, F44: what is damaged in the store is named, and taken out by a repair.

use super::{alone, image, is_root, name, new_store};
use crate::{Finding, LayerId, Lease, Store, VerifyDepth};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// A store with one image, `a:1`, of one layer that has a file in a folder and a link.
fn filled() -> (tempfile::TempDir, Store, LayerId) {
    let (folder, store) = new_store();
    let lease = store.lease("test").unwrap();
    let layer = put_tree(&store, &lease);
    let (image, config) = image("a", std::slice::from_ref(&layer));
    store.images().put(&image, &config, &lease).unwrap();
    store.images().tag(&name("a:1"), &alone(&image.id)).unwrap();
    (folder, store, layer)
}

fn put_tree(store: &Store, lease: &Lease) -> LayerId {
    let active = store.layers().prepare(&[]).unwrap();
    fs::create_dir(active.upper().join("d")).unwrap();
    fs::write(active.upper().join("d/f"), "bytes").unwrap();
    fs::hard_link(active.upper().join("d/f"), active.upper().join("d/g")).unwrap();
    std::os::unix::fs::symlink("d/f", active.upper().join("l")).unwrap();
    store.layers().commit(active, lease).unwrap().id
}

fn shown(store: &Store, finding: &Finding, layer: &LayerId) -> String {
    let root = store.root().display().to_string();
    format!("{finding:?}").replace(layer.as_str(), "LAYER").replace(&root, "ROOT")
}

/// Damages a filled store, and compares what is found and what a repair takes out.
fn check(damage: impl FnOnce(&Store, PathBuf), findings: &[&str], images_dropped: usize) {
    let (_folder, store, layer) = filled();
    damage(&store, store.root().join("layers").join(layer.as_str()));
    let found = store.verify(VerifyDepth::Bytes).unwrap();
    let texts: Vec<String> = found.findings.iter().map(|finding| shown(&store, finding, &layer)).collect();
    assert_eq!(texts.len(), findings.len(), "{texts:#?}");
    for (text, expected) in texts.iter().zip(findings) {
        assert!(text.contains(expected), "{text} lacks {expected}");
    }
    let repair = store.repair(&found.findings).unwrap();
    assert_eq!(repair.images.len(), images_dropped, "{repair:?}");
    assert_eq!(store.verify(VerifyDepth::Bytes).unwrap().findings, []);
    assert_eq!(store.images().list().unwrap().len(), 1 - images_dropped);
}

#[test]
fn f20_a_whole_store_has_no_findings() {
    let (_folder, store, _) = filled();
    let found = store.verify(VerifyDepth::Bytes).unwrap();
    assert_eq!((found.blobs, found.layers, found.images, &found.findings[..]), (1, 1, 1, &[][..]));
    assert!(found.bytes > 5, "the file's bytes and the config's were read");
    assert_eq!(store.verify(VerifyDepth::Records).unwrap().bytes, 0);
}

#[test]
fn f20_a_damaged_file_of_a_layer_is_named_and_the_layer_dropped() {
    let write = |text: &'static str| move |_: &Store, layer: PathBuf| fs::write(layer.join("tree/d/f"), text).unwrap();
    check(
        write("other"),
        &[r#"path: "d/f", reason: "its time is another" }, TreeFault { path: "d/f", reason: "its bytes"#],
        1,
    );
    check(write("longer than before"), &["its size is another"], 1);
    check(|_, layer| fs::remove_file(layer.join("tree/d/f")).unwrap(), &[r#"path: "d/f", reason: "it is missing"#], 1);
    check(
        |_, layer| fs::write(layer.join("tree/n"), "").unwrap(),
        &[r#"path: "n", reason: "it is not in the index"#],
        1,
    );
    let mode = |_: &Store, layer: PathBuf| {
        fs::set_permissions(layer.join("tree/d"), fs::Permissions::from_mode(0o701)).unwrap();
    };
    check(mode, &[r#"path: "d", reason: "its mode is another"#], 1);
    let unlinked = |_: &Store, layer: PathBuf| {
        let file = layer.join("tree/d/g");
        let time = fs::metadata(&file).unwrap().modified().unwrap();
        let parent = fs::metadata(layer.join("tree/d")).unwrap().modified().unwrap();
        fs::remove_file(&file).unwrap();
        fs::write(&file, "bytes").unwrap();
        fs::File::options().write(true).open(&file).unwrap().set_modified(time).unwrap();
        fs::File::open(layer.join("tree/d")).unwrap().set_modified(parent).unwrap();
    };
    check(unlinked, &["no longer linked"], 1);
    check(|_, layer| fs::remove_dir_all(layer.join("tree")).unwrap(), &["NoTree"], 1);
    check(|_, layer| fs::write(layer.join("index"), "x").unwrap(), &["fault: Index"], 1);
}

#[test]
fn f20_a_damaged_owner_is_found() {
    if !is_root("f20_a_damaged_owner_is_found") {
        return;
    }
    let chown = |_: &Store, layer: PathBuf| std::os::unix::fs::lchown(layer.join("tree/l"), Some(7), None).unwrap();
    check(chown, &[r#"path: "l", reason: "its owner is another"#], 1);
}

#[test]
fn f20_a_damaged_blob_is_named_and_its_image_dropped() {
    let config = |store: &Store| {
        let (_, target) = store.images().list().unwrap().remove(0);
        store.blobs().path(target.images[0].digest())
    };
    check(|store, _| fs::remove_file(config(store)).unwrap(), &["fault: Missing"], 1);
    check(|store, _| fs::write(config(store), "short").unwrap(), &["fault: Size"], 1);
    let flip = |store: &Store, _: PathBuf| {
        let mut bytes = fs::read(config(store)).unwrap();
        bytes[0] ^= 1;
        fs::write(config(store), bytes).unwrap();
    };
    check(flip, &["fault: Bytes"], 1);
}

#[test]
fn f44_what_has_no_record_is_named_and_removed() {
    let stray = |store: &Store, _: PathBuf| {
        fs::create_dir(store.root().join("layers").join("0".repeat(32))).unwrap();
        fs::write(store.root().join("blobs/sha256").join("0".repeat(64)), "").unwrap();
        fs::create_dir(store.root().join("scratch").join("1".repeat(32))).unwrap();
    };
    check(stray, &["blobs/sha256/0000", "layers/0000", "scratch/1111"], 0);
}

#[test]
fn f20_verify_holds_what_it_looks_at() {
    let (_folder, store, _) = filled();
    let running = store.scratch("of a running build").unwrap();
    assert_eq!(store.verify(VerifyDepth::Bytes).unwrap().findings, []);
    assert!(running.path().is_dir());
}

/// Loses the database in some way, and compares what a new one is made of.
fn check_rebuilt(lose: impl FnOnce(&std::path::Path), names: usize, lost: usize) {
    let (_folder, store, layer) = filled();
    let root = store.root().to_owned();
    drop(store);
    lose(&root);
    let store = Store::open(&root).unwrap();
    let rebuilt = store.rebuilt().expect("the database was lost").clone();
    assert_eq!((rebuilt.names.len(), rebuilt.lost.len()), (names, lost), "{rebuilt:?}");
    assert_eq!(store.verify(VerifyDepth::Bytes).unwrap().findings.len(), lost, "what was lost is a stray now");
    if names == 1 {
        let found = store.images().resolve("a:1").unwrap();
        let image = store.images().get(&found.target.images[0]).unwrap().unwrap();
        assert_eq!(image.layers, [layer]);
    }
    drop(store);
    assert!(Store::open(&root).unwrap().rebuilt().is_none(), "once is enough");
}

#[test]
fn f19_a_lost_database_is_made_anew_from_what_is_on_disk() {
    let remove = |root: &std::path::Path| {
        for file in ["forge.db", "forge.db-wal", "forge.db-shm"] {
            let _ = fs::remove_file(root.join(file));
        }
    };
    check_rebuilt(remove, 1, 0);
    let zeros = |root: &std::path::Path| {
        let _ = fs::remove_file(root.join("forge.db-wal"));
        fs::write(root.join("forge.db"), vec![0; 8192]).unwrap();
    };
    check_rebuilt(zeros, 1, 0);
    let truncate = |root: &std::path::Path| {
        let _ = fs::remove_file(root.join("forge.db-wal"));
        fs::write(root.join("forge.db"), "").unwrap();
    };
    check_rebuilt(truncate, 1, 0);
    let with_damaged_layer = |root: &std::path::Path| {
        remove(root);
        let layer = fs::read_dir(root.join("layers")).unwrap().next().unwrap().unwrap().path();
        fs::write(layer.join("tree/d/f"), "x").unwrap();
    };
    check_rebuilt(with_damaged_layer, 0, 1);
}

#[test]
fn f19_a_lost_database_is_left_alone_while_others_use_the_store() {
    let (_folder, store, _) = filled();
    let _lease = store.lease("of a running build").unwrap();
    fs::write(store.root().join("forge.db"), "").unwrap();
    fs::write(store.root().join("forge.db-wal"), "").unwrap();
    let error = Store::open(store.root()).err().expect("refused").to_string();
    assert!(error.ends_with("forge.db is damaged, and another forge uses the store"), "{error}");
}

#[test]
fn f19_a_repair_sets_a_damaged_database_aside() {
    let (_folder, store, _) = filled();
    let root = store.root().to_owned();
    let damaged = Finding::Database { report: "malformed".to_owned() };
    let repair = store.repair(&[damaged]).unwrap();
    assert_eq!(repair.database, Some(root.join("forge.db.damaged")));
    drop(store);
    assert_eq!(Store::open(&root).unwrap().rebuilt().unwrap().names.len(), 1);
}

/// The second place follows what names stand for.
#[test]
fn f19_files_of_names_come_and_go_with_them() {
    let (_folder, store, _) = filled();
    let files = || super::names_in(&store.root().join("names")).len();
    assert_eq!(files(), 1);
    let target = store.images().target(&name("a:1")).unwrap().unwrap();
    store.images().tag(&name("b:1"), &target).unwrap();
    assert_eq!(files(), 2);
    store.images().untag(&name("b:1")).unwrap();
    assert_eq!(files(), 1);
    store.images().untag(&name("a:1")).unwrap();
    assert_eq!(files(), 0);
}

#[test]
fn f41_a_store_of_an_earlier_format_gets_its_files_of_names() {
    let (_folder, store, _) = filled();
    let root = store.root().to_owned();
    drop(store);
    fs::remove_dir_all(root.join("names")).unwrap();
    let format = fs::read_to_string(root.join("FORMAT")).unwrap();
    fs::write(root.join("FORMAT"), format.replace("forge-store 4", "forge-store 2")).unwrap();
    let store = Store::open(&root).unwrap();
    assert_eq!(super::names_in(&root.join("names")).len(), 1);
    assert_eq!(store.verify(VerifyDepth::Bytes).unwrap().findings, []);
}
