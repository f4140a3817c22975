use super::new_store;
use crate::{CacheMountFound, CacheMountGuard, CacheMountKey, CacheMountUse, ContentDigest, Store};
use std::collections::HashSet;

fn key(id: &str) -> CacheMountKey {
    CacheMountKey { id: id.to_owned(), first_content: None }
}

fn made(store: &Store, key: &CacheMountKey, usage: CacheMountUse) -> CacheMountGuard {
    let scratch = store.scratch("seed").unwrap();
    let staged = scratch.path().join("tree");
    std::fs::create_dir(&staged).unwrap();
    store.cache_mounts().create(key, usage, &staged, "empty").unwrap().unwrap()
}

fn found(store: &Store, key: &CacheMountKey, usage: CacheMountUse) -> Option<CacheMountGuard> {
    match store.cache_mounts().find(key, usage).unwrap() {
        CacheMountFound::Folder(guard) => Some(guard),
        CacheMountFound::InUse | CacheMountFound::Absent => None,
    }
}

#[test]
fn what_a_step_leaves_the_next_one_finds() {
    let (_folder, store) = new_store();
    let go = key("go build\0\n");
    assert!(matches!(store.cache_mounts().find(&go, CacheMountUse::Shared).unwrap(), CacheMountFound::Absent));
    let guard = made(&store, &go, CacheMountUse::Shared);
    std::fs::write(guard.tree().join("f"), "12345").unwrap();
    std::fs::hard_link(guard.tree().join("f"), guard.tree().join("g")).unwrap();
    guard.release().unwrap();
    let again = found(&store, &go, CacheMountUse::Shared).unwrap();
    assert_eq!((again.record().bytes, &again.record().key), (5, &go));
    assert_eq!(std::fs::read(again.tree().join("g")).unwrap(), b"12345");
    // Another first content is another mount.
    let other = CacheMountKey { first_content: Some(ContentDigest::from(blake3::hash(b"x"))), ..go.clone() };
    assert!(found(&store, &other, CacheMountUse::Shared).is_none());
    drop(made(&store, &other, CacheMountUse::Shared));
    let keys: Vec<_> = store.cache_mounts().list().unwrap().into_iter().map(|(record, _)| record.key).collect();
    assert_eq!(keys, [go, other]);
}

#[test]
fn sharing_says_who_gets_a_folder() {
    use CacheMountUse::{Locked, Private, Shared};
    let (_folder, store) = new_store();
    let key = key("k");
    let first = made(&store, &key, Shared);
    let tree = first.tree().to_owned();
    let in_use = |usage| matches!(store.cache_mounts().find(&key, usage).unwrap(), CacheMountFound::InUse);
    assert_eq!(found(&store, &key, Shared).unwrap().tree(), tree);
    assert!(in_use(Locked));
    assert!(matches!(store.cache_mounts().find(&key, Private).unwrap(), CacheMountFound::Absent));
    let own = made(&store, &key, Private);
    assert_ne!(own.tree(), tree);
    drop((first, own));
    let locked = found(&store, &key, Locked).unwrap();
    assert_eq!(locked.tree(), tree);
    assert!(in_use(Locked) && in_use(Shared));
    assert_ne!(found(&store, &key, Private).unwrap().tree(), tree, "the second folder is free");
    drop(locked);
    assert_eq!(found(&store, &key, Private).unwrap().tree(), tree);
    // Who comes second with the same key finds the folder of who came first.
    let scratch = store.scratch("seed").unwrap();
    let staged = scratch.path().join("tree");
    std::fs::create_dir(&staged).unwrap();
    assert!(store.cache_mounts().create(&key, Shared, &staged, "empty").unwrap().is_none());
}

/// Seen to fail with `remove` that takes no lock.
#[test]
fn f18_nothing_in_use_is_removed() {
    let (_folder, store) = new_store();
    let guard = made(&store, &key("k"), CacheMountUse::Shared);
    let name = guard.record().name.clone();
    let another = Store::open(store.root()).unwrap();
    assert!(another.cache_mounts().list().unwrap()[0].1);
    assert!(!another.cache_mounts().remove(&name).unwrap());
    another.collect(&HashSet::new(), false).unwrap();
    assert!(guard.tree().is_dir());
    let tree = guard.tree().to_owned();
    drop(guard);
    // A collection alone leaves it too.
    another.collect(&HashSet::new(), false).unwrap();
    assert!(tree.is_dir() && !another.cache_mounts().list().unwrap()[0].1);
    assert!(another.cache_mounts().remove(&name).unwrap() && !tree.exists());
    assert!(!another.cache_mounts().remove(&name).unwrap());
    assert!(found(&store, &key("k"), CacheMountUse::Shared).is_none());
}

#[test]
fn a_folder_without_record_is_collected_and_a_record_without_folder_forgotten() {
    let (_folder, store) = new_store();
    let stray = store.root().join("cache-mounts").join("0".repeat(32));
    std::fs::create_dir_all(stray.join("tree")).unwrap();
    store.collect(&HashSet::new(), false).unwrap();
    assert!(!stray.exists());
    let guard = made(&store, &key("k"), CacheMountUse::Locked);
    std::fs::remove_dir(guard.tree()).unwrap();
    drop(guard);
    assert!(matches!(store.cache_mounts().find(&key("k"), CacheMountUse::Locked).unwrap(), CacheMountFound::Absent));
    assert_eq!(store.cache_mounts().list().unwrap(), []);
}

#[test]
fn a_store_of_the_first_format_is_brought_up_to_this_one() {
    let (_folder, store) = new_store();
    let root = store.root().to_owned();
    let drop_tables = "DROP TABLE cache_mounts; DROP TABLE selections;";
    store.opened.database().write(|transaction| Ok(transaction.execute_batch(drop_tables)?)).unwrap();
    drop(store);
    std::fs::remove_dir(root.join("cache-mounts")).unwrap();
    let format = std::fs::read_to_string(root.join("FORMAT")).unwrap();
    std::fs::write(root.join("FORMAT"), format.replace("forge-store 4", "forge-store 1")).unwrap();
    let store = Store::open(&root).unwrap();
    assert_eq!(std::fs::read_to_string(root.join("FORMAT")).unwrap(), format);
    drop(made(&store, &key("k"), CacheMountUse::Shared));
    assert_eq!(store.cache_mounts().list().unwrap().len(), 1);
}

#[test]
fn what_is_forgotten_is_found_by_nobody() {
    let (_folder, store) = new_store();
    let go = key("go");
    drop(made(&store, &go, CacheMountUse::Shared));
    store.cache_mounts().forget(&go).unwrap();
    assert!(found(&store, &go, CacheMountUse::Shared).is_none());
    // Whoever uses it goes on with it, and the next one begins anew all the same.
    let used = made(&store, &go, CacheMountUse::Shared);
    store.cache_mounts().forget(&go).unwrap();
    assert!(used.tree().exists());
    assert!(found(&store, &go, CacheMountUse::Shared).is_none());
    drop(made(&store, &go, CacheMountUse::Locked));
}
