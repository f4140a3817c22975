use super::{alone, blob_files, image, name, names_in, new_store, put_image, put_layer, sql};
use crate::layer_rows::{self, Published};
use crate::{Compression, LayerBlob, LayerId, Store, TarOptions, Usage, UsageEntry};
use forge_image::{ChainId, Descriptor, DiffId, Digest, MediaType};
use std::collections::HashSet;

fn layer_folders(store: &Store) -> Vec<String> {
    names_in(&store.root().join("layers"))
}

/// Fails when any one of the conditions in `unneeded_layers` and `unneeded_blobs` is left out.
#[test]
fn only_what_nothing_needs_is_collected() {
    let (_folder, store) = new_store();
    let lease = store.lease("kept").unwrap();
    let passing = store.lease("passing").unwrap();
    let (of_image, _) = put_layer(&store, &passing, "of image", None);
    let (of_root, _) = put_layer(&store, &passing, "of a root", None);
    let (of_lease, _) = put_layer(&store, &lease, "of a lease", None);
    let (unneeded, _) = put_layer(&store, &passing, "unneeded", None);
    let (mut kept, config) = image("kept", std::slice::from_ref(&of_image));
    let manifest = store.blobs().write(b"manifest", &passing).unwrap();
    kept.manifest = Some(Descriptor::new(MediaType::OciManifest, manifest.clone(), 8));
    store.images().put(&kept, &config, &passing).unwrap();
    let index = store.blobs().write(b"index", &passing).unwrap();
    let target = crate::Target {
        index: Some(Descriptor::new(MediaType::OciIndex, index.clone(), 5)),
        images: vec![kept.id.clone()],
    };
    store.images().tag(&name("kept"), &target).unwrap();
    let blob_of = |layer: &LayerId, text: &str| {
        let digest = store.blobs().write(text.as_bytes(), &passing).unwrap();
        let blob = LayerBlob {
            descriptor: Descriptor::new(MediaType::OciLayer, digest.clone(), text.len() as u64),
            diff_id: DiffId::new(digest.clone()),
            compression: Compression::Gzip { level: Some(6) },
            clamp: Some(7),
            foreign: true,
        };
        layer_rows::add_blob(&store.opened, layer, &blob, &passing).unwrap();
        assert_eq!(layer_rows::get(&store.opened, layer).unwrap().unwrap().blobs, [blob]);
        digest
    };
    let layer_blob = blob_of(&of_image, "tar");
    let unneeded_blob = blob_of(&unneeded, "unneeded tar");
    let leased = store.blobs().write(b"leased", &lease).unwrap();

    let roots = HashSet::from([of_root]);
    assert_eq!(store.collect(&roots, false).unwrap().bytes, 0);
    drop(passing);
    let planned = store.collect(&roots, true).unwrap();
    assert_eq!(planned.layers, [(unneeded, 8)]);
    assert_eq!(planned.blobs, [(unneeded_blob, 12)]);
    assert_eq!(planned.bytes, 20);
    assert_eq!(layer_folders(&store).len(), 4);
    assert_eq!(store.collect(&roots, false).unwrap(), planned);
    assert_eq!(store.collect(&roots, false).unwrap().bytes, 0);

    let folders: HashSet<_> = layer_folders(&store).into_iter().collect();
    assert_eq!(folders, [&of_image, &of_root, &of_lease].iter().map(|id| id.to_string()).collect());
    let expect = [kept.id.digest(), &manifest, &index, &layer_blob, &leased].map(|digest| digest.hex().to_owned());
    let files: HashSet<_> = blob_files(store.blobs()).into_iter().collect();
    assert_eq!(files, expect.into_iter().collect());
    let other = store.lease("other").unwrap();
    assert!(!other.hold_layer(&unneeded).unwrap());
    assert!(!other.hold_layers(&[of_lease, unneeded]).unwrap());
    drop(lease);
    assert_eq!(store.collect(&roots, true).unwrap().layers.len(), 1);
    assert!(!store.lease("late").unwrap().hold_layers(&[LayerId::random()]).unwrap());
    assert!(other.hold_layer(&of_root).unwrap());
}

#[test]
fn what_an_image_needed_goes_with_it() {
    let (_folder, store) = new_store();
    let lease = store.lease("test").unwrap();
    let (layer, _) = put_layer(&store, &lease, "12345", None);
    let id = put_image(&store, &lease, "x", &[layer]);
    store.images().tag(&name("x"), &alone(&id)).unwrap();
    drop(lease);
    let config = store.blobs().stat(id.digest()).unwrap().unwrap();
    let entry = |count, bytes, reclaimable| UsageEntry { count, bytes, reclaimable };
    let expect = Usage { images: entry(1, 5, 0), layers: entry(1, 5, 0), blobs: entry(1, config, 0) };
    assert_eq!(store.usage().unwrap(), expect);
    store.images().untag(&name("x")).unwrap();
    assert_eq!(store.usage().unwrap().images, entry(1, 5, 5));
    assert!(store.images().delete_unnamed(&id).unwrap());
    let expect = Usage { images: entry(0, 0, 0), layers: entry(1, 5, 5), blobs: entry(1, config, config) };
    assert_eq!(store.usage().unwrap(), expect);
    assert_eq!(store.collect(&HashSet::new(), false).unwrap().bytes, 5 + config);
    assert_eq!(store.usage().unwrap(), Usage::default());
    assert!(layer_folders(&store).is_empty() && blob_files(store.blobs()).is_empty());
}

#[test]
fn files_without_a_record_are_garbage() {
    let (_folder, store) = new_store();
    let lease = store.lease("test").unwrap();
    let kept = store.blobs().write(b"kept", &lease).unwrap();
    let stray = Digest::sha256(b"stray");
    std::fs::write(store.blobs().path(&stray), b"stray").unwrap();
    std::fs::create_dir_all(store.opened.layer_path(&LayerId::random()).join("tree/a/b")).unwrap();
    std::fs::write(store.root().join("locks/free"), b"").unwrap();
    let held = store.lock("held").unwrap();
    std::fs::create_dir_all(store.root().join("scratch/dead/0-x")).unwrap();
    std::fs::write(store.root().join("leases/dead too"), b"").unwrap();
    // A collection that was interrupted between the records and the files.
    let (half, _) = put_layer(&store, &lease, "half", None);
    sql(&store, &format!("DELETE FROM layers WHERE id = '{half}'; INSERT INTO trash VALUES ('layer', '{half}')"));
    assert_eq!(store.blobs().stat(&stray).unwrap(), None);
    store.collect(&HashSet::new(), false).unwrap();
    assert_eq!(blob_files(store.blobs()), [kept.hex()]);
    assert!(layer_folders(&store).is_empty());
    assert_eq!(names_in(&store.root().join("locks")).len(), 1);
    assert!(store.try_lock("held").unwrap().is_none());
    drop(held);
    assert!(store.try_lock("held").unwrap().is_some());
    let own = store.opened.owner_id().unwrap();
    assert_eq!(names_in(&store.root().join("scratch")), std::slice::from_ref(&own));
    assert_eq!(names_in(&store.root().join("leases")), [own]);
}

#[test]
fn the_first_layer_of_a_stack_wins() {
    let (_folder, store) = new_store();
    let lease = store.lease("test").unwrap();
    let chain = ChainId::of(&[DiffId::new(Digest::sha256(b"tar"))]).unwrap();
    let (first, published) = put_layer(&store, &lease, "x", Some(&chain));
    assert_eq!(published, Published::Stored);
    let (_, published) = put_layer(&store, &lease, "x", Some(&chain));
    assert_eq!(published, Published::Existing(first));
    assert_eq!(layer_folders(&store), [first.as_str()]);
    assert_eq!(layer_rows::find_by_chain(&store.opened, &chain).unwrap(), Some(first));
    let (one, two) = (DiffId::new(Digest::sha256(b"1")), DiffId::new(Digest::sha256(b"2")));
    let clamped = TarOptions { clamp_mtime: Some(0) };
    layer_rows::set_diff_ids(&store.opened, &TarOptions::default(), &[(&first, &one)]).unwrap();
    layer_rows::set_diff_ids(&store.opened, &clamped, &[(&first, &two)]).unwrap();
    assert_eq!(layer_rows::diff_id(&store.opened, &first, &TarOptions::default()).unwrap(), Some(one.clone()));
    assert_eq!(layer_rows::diff_id(&store.opened, &first, &clamped).unwrap(), Some(two));
    assert_eq!(layer_rows::get(&store.opened, &first).unwrap().unwrap().diff_id, Some(one));
    drop(lease);
    store.collect(&HashSet::new(), false).unwrap();
    assert_eq!(layer_rows::find_by_chain(&store.opened, &chain).unwrap(), None);
}

#[test]
fn a_layer_is_verified_against_its_record() {
    let (_folder, store) = new_store();
    let lease = store.lease("test").unwrap();
    let damaged = |damage: &dyn Fn(&std::path::Path)| {
        let (id, _) = put_layer(&store, &lease, "x", None);
        assert!(store.verify_layer(&id).unwrap());
        damage(&store.opened.layer_path(&id));
        assert!(!store.verify_layer(&id).unwrap());
        assert!(!store.lease("other").unwrap().hold_layer(&id).unwrap());
        assert!(!layer_folders(&store).contains(&id.to_string()));
    };
    damaged(&|path| std::fs::write(path.join("index"), "f X").unwrap());
    damaged(&|path| std::fs::remove_file(path.join("index")).unwrap());
    damaged(&|path| std::fs::remove_dir_all(path.join("tree")).unwrap());
    damaged(&|path| std::fs::remove_dir_all(path).unwrap());
    assert!(!store.verify_layer(&LayerId::random()).unwrap());
}

/// Fails when `settle` takes layers of any boot.
#[test]
fn f06_a_layer_of_another_boot_that_was_never_synced_is_dropped() {
    let (_folder, store) = new_store();
    let lease = store.lease("test").unwrap();
    let (synced, _) = put_layer(&store, &lease, "synced", None);
    store.sync().unwrap();
    let (lost, _) = put_layer(&store, &lease, "lost", None);
    let (of_image, _) = put_layer(&store, &lease, "of a nameless image", None);
    let image = put_image(&store, &lease, "x", std::slice::from_ref(&of_image));
    sql(&store, "UPDATE layers SET boot_id = 'earlier' WHERE boot_id IS NOT NULL");
    std::fs::write(store.opened.layer_path(&lost).join("tree/f"), b"").unwrap();
    let after = store.lease("after the boot").unwrap();
    assert!(after.hold_layer(&synced).unwrap());
    assert!(!after.hold_layer(&lost).unwrap());
    assert!(!store.verify_layer(&of_image).unwrap());
    assert_eq!(store.images().get(&image).unwrap(), None);
    assert_eq!(layer_folders(&store), [synced.as_str()]);
}

/// Whoever stops a collection does not wait for the files, and the next collection finds them.
#[test]
fn a_collection_that_is_stopped_anywhere_is_completed_by_the_next() {
    let (_folder, store) = new_store();
    for calls in 0..40_usize {
        let lease = store.lease("test").unwrap();
        let (kept, _) = put_layer(&store, &lease, "kept", None);
        for number in 0..3 {
            let passing = store.lease("passing").unwrap();
            let (id, _) = put_layer(&store, &passing, "gone", None);
            let deep = store.opened.layer_path(&id).join("tree/a/b/c");
            std::fs::create_dir_all(&deep).unwrap();
            (0..4).for_each(|file| std::fs::write(deep.join(file.to_string()), "x").unwrap());
            store.blobs().write(format!("blob {calls} {number}").as_bytes(), &passing).unwrap();
        }
        let left = std::cell::Cell::new(calls);
        let go_on = || left.replace(left.get().saturating_sub(1)) > 0;
        store.collect_while(&HashSet::new(), &go_on).unwrap();
        assert!(store.verify_layer(&kept).unwrap());
        // Nothing waits in the folder that is removed when this process ends.
        let scratch = store.root().join("scratch").join(store.opened.owner_id().unwrap());
        let waiting = names_in(&scratch).into_iter().filter(|name| name.ends_with("trash"));
        assert_eq!(waiting.count(), 0, "after {calls} steps");
        store.collect(&HashSet::new(), false).unwrap();
        assert_eq!(layer_folders(&store), [kept.as_str()], "after {calls} steps");
        assert!(blob_files(store.blobs()).is_empty());
        drop(lease);
        store.collect(&HashSet::new(), false).unwrap();
    }
}
