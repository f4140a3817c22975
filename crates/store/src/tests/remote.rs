//! Layers that a registry has and the store has not.

use crate::{Finding, LayerId, Lease, RemoteLayer, Store, StoreError, VerifyDepth};
use forge_image::{Descriptor, DiffId, Digest, MediaType};
use std::collections::HashSet;
use std::io::Write;
use std::path::Path;

/// A tar with one file.
fn tar(name: &str) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(1);
    header.set_mode(0o644);
    archive.append_data(&mut header, name, &b"x"[..]).unwrap();
    archive.into_inner().unwrap()
}

fn open(root: &Path) -> (Store, Lease) {
    let store = Store::open(root).unwrap();
    let lease = store.lease("test").unwrap();
    (store, lease)
}

fn entry(tar: &[u8]) -> (Descriptor, DiffId) {
    (Descriptor::of(MediaType::OciLayer, tar), DiffId::new(Digest::sha256(tar)))
}

fn bring(store: &Store, lease: &Lease, tar: &[u8], parents: &[LayerId]) -> LayerId {
    store.blobs().write(tar, lease).unwrap();
    let (blob, diff_id) = entry(tar);
    store.layers().unpack(parents, &blob, &diff_id, lease, &mut |_| {}).unwrap().id
}

#[test]
fn a_layer_is_known_before_it_is_here() {
    let folder = tempfile::tempdir().unwrap();
    let (store, lease) = open(folder.path());
    let (a, b) = (tar("a"), tar("b"));
    let repository = "r.test/base".parse().unwrap();
    let known = store.layers().know(&[entry(&a), entry(&b)], &repository, &lease).unwrap();
    assert_eq!(store.layers().know(&[entry(&a), entry(&b)], &repository, &lease).unwrap(), known, "known once");
    let absent = store.layers().absent(&known).unwrap();
    let of = |remote: &RemoteLayer| (remote.layer, remote.parent, remote.repository.to_string());
    let place = repository.to_string();
    assert_eq!(
        absent.iter().map(of).collect::<Vec<_>>(),
        [(known[0], None, place.clone()), (known[1], Some(known[0]), place)]
    );
    assert_eq!(store.layers().diff_id(&known[1], &Default::default()).unwrap(), entry(&b).1);
    assert!(matches!(store.layers().tree(&known), Err(StoreError::LayerAbsent { .. })));
    assert!(matches!(store.layers().lower_dirs(&known), Err(StoreError::LayerAbsent { .. })));
    assert!(matches!(store.layers().index(&known[0]), Err(StoreError::LayerAbsent { .. })));
    assert!(lease.hold_layers(&known).unwrap() && store.verify_layer(&known[0]).unwrap());
    assert_eq!(store.verify(VerifyDepth::Bytes).unwrap().findings, []);
    let content = store.layers().get(&known[1]).unwrap().unwrap().content;
    assert_eq!(bring(&store, &lease, &a, &[]), known[0]);
    assert_eq!(bring(&store, &lease, &b, &known[..1]), known[1], "it is the same layer, and now here");
    assert!(store.layers().absent(&known).unwrap().is_empty());
    store.layers().tree(&known).unwrap();
    assert_eq!(store.layers().index(&known[1]).unwrap().changes(), 1);
    assert_eq!(store.layers().get(&known[1]).unwrap().unwrap().content, content, "keys stay what they were");
    assert_eq!(store.verify(VerifyDepth::Bytes).unwrap().findings, []);
}

#[test]
fn a_layer_that_is_here_is_not_fetched_again() {
    let folder = tempfile::tempdir().unwrap();
    let (store, lease) = open(folder.path());
    let a = tar("a");
    let here = bring(&store, &lease, &a, &[]);
    let repository = "r.test/base".parse().unwrap();
    assert_eq!(store.layers().know(&[entry(&a)], &repository, &lease).unwrap(), std::slice::from_ref(&here));
    assert!(store.layers().absent(std::slice::from_ref(&here)).unwrap().is_empty());
    assert_eq!(store.layers().remote(&here).unwrap().unwrap().repository, repository, "for mounts");
}

// Meant to fail with `lose` forgetting at once: the layer was gone.
#[test]
fn f20_a_layer_whose_files_are_gone_can_be_had_again() {
    let folder = tempfile::tempdir().unwrap();
    let (store, lease) = open(folder.path());
    let a = tar("a");
    let known = store.layers().know(&[entry(&a)], &"r.test/base".parse().unwrap(), &lease).unwrap();
    bring(&store, &lease, &a, &[]);
    drop((store, lease));
    std::fs::remove_dir_all(folder.path().join("layers").join(known[0].as_str()).join("tree")).unwrap();
    let (store, lease) = open(folder.path());
    assert!(lease.hold_layers(&known).unwrap());
    assert_eq!(store.layers().absent(&known).unwrap().len(), 1);
    assert_eq!(bring(&store, &lease, &a, &[]), known[0]);
    store.layers().tree(&known).unwrap();
}

#[test]
fn what_nobody_needs_is_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let (store, lease) = open(folder.path());
    let known = store.layers().know(&[entry(&tar("a"))], &"r.test/base".parse().unwrap(), &lease).unwrap();
    assert!(store.collect(&HashSet::new(), false).unwrap().layers.is_empty());
    drop(lease);
    assert_eq!(store.collect(&HashSet::new(), false).unwrap().layers, [(known[0], 0)]);
    assert!(store.layers().remote(&known[0]).unwrap().is_none());
}

#[test]
fn a_blob_is_read_while_it_arrives() {
    let folder = tempfile::tempdir().unwrap();
    let (store, lease) = open(folder.path());
    let a = tar("a");
    let (blob, diff_id) = entry(&a);
    let mut writer = store.blobs().writer(Some((&blob.digest, blob.size))).unwrap();
    let arriving = writer.follow().unwrap();
    let (reader, held) = (store.clone(), store.lease("reader").unwrap());
    let (about, expected) = (blob.clone(), diff_id.clone());
    let unpacking = std::thread::spawn(move || {
        reader.layers().unpack_arriving(&[], (&about, &expected), arriving, &held, &mut |_| {}).unwrap()
    });
    for piece in a.chunks(100) {
        writer.write_all(piece).unwrap();
        assert!(!unpacking.is_finished(), "the end is not reached before the blob was verified");
    }
    writer.finish(&lease).unwrap();
    assert_eq!(unpacking.join().unwrap().entries, 1);
}

#[test]
fn whoever_reads_along_is_told_that_the_blob_broke() {
    let folder = tempfile::tempdir().unwrap();
    let (store, lease) = open(folder.path());
    let a = tar("a");
    let (blob, diff_id) = entry(&a);
    let ends: [fn(crate::BlobWriter) -> Option<crate::BlobWriter>; 2] = [
        |_| None,
        |mut writer| {
            writer.restart().unwrap();
            Some(writer)
        },
    ];
    for end in ends {
        let mut writer = store.blobs().writer(Some((&blob.digest, blob.size))).unwrap();
        let arriving = writer.follow().unwrap();
        writer.write_all(&a[..700]).unwrap();
        let kept = end(writer);
        let unpacked = store.layers().unpack_arriving(&[], (&blob, &diff_id), arriving, &lease, &mut |_| {});
        assert!(unpacked.is_err());
        drop(kept);
    }
    assert_eq!(store.verify(VerifyDepth::Bytes).unwrap().findings, Vec::<Finding>::new());
}

/// F19 for images whose layers were never brought. Fails when names' files do not say where layers can be had.
#[test]
fn f19_a_lost_database_keeps_names_of_images_that_lie_in_a_registry() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (tar("a"), tar("b"));
    let repository = "r.test/base".parse().unwrap();
    let (known, id) = {
        let (store, lease) = open(folder.path());
        let stack = [entry(&a), entry(&b)];
        let mut known = store.layers().know(&stack, &repository, &lease).unwrap();
        // One layer was brought in the meantime, one was made here.
        bring(&store, &lease, &a, &[]);
        let active = store.layers().prepare(&[]).unwrap();
        std::fs::write(active.upper().join("own"), "x").unwrap();
        known.push(store.layers().commit(active, &lease).unwrap().id);
        let id = super::put_image(&store, &lease, "lazy", &known);
        store.images().tag(&super::name("lazy"), &super::alone(&id)).unwrap();
        (known, id)
    };
    std::fs::write(folder.path().join("forge.db"), "no database at all").unwrap();
    let _ = std::fs::remove_file(folder.path().join("forge.db-wal"));
    let (store, lease) = open(folder.path());
    let rebuilt = store.rebuilt().unwrap();
    assert_eq!((rebuilt.names.as_slice(), rebuilt.lost.as_slice()), (&[super::name("lazy")][..], &[][..]));
    assert_eq!(store.images().get(&id).unwrap().unwrap().layers, known);
    let absent: Vec<LayerId> = store.layers().absent(&known).unwrap().into_iter().map(|it| it.layer).collect();
    assert_eq!(absent, known[1..2]);
    assert_eq!(bring(&store, &lease, &b, &known[..1]), known[1], "the stack is known by its DiffIds");
    assert_eq!(store.verify(VerifyDepth::Bytes).unwrap().findings, []);
}
