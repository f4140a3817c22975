use super::{blob_files, names_in, new_store, sql};
use crate::{BlobWriter, Store, StoreError};
use forge_image::Digest;
use std::io::{self, Write};

/// What becomes of bytes that were announced as `expected`.
fn offer(store: &Store, expected: (&Digest, u64), bytes: &[u8]) -> String {
    let lease = store.lease("test").unwrap();
    let mut writer = store.blobs().writer(Some(expected)).unwrap();
    // In small pieces, as a network delivers them.
    let written: io::Result<()> = bytes.chunks(3).try_for_each(|chunk| writer.write_all(chunk));
    match written {
        Err(error) => error.into_inner().unwrap().downcast::<StoreError>().unwrap().to_string(),
        Ok(()) => writer.finish(&lease).map_or_else(|error| error.to_string(), |_| "stored".to_owned()),
    }
}

/// Fails when `BlobWriter::finish` skips either comparison, and when `write` takes what is too long.
#[test]
fn a67_bytes_that_are_not_what_was_announced_leave_nothing_behind() {
    let (_folder, store) = new_store();
    let good = Digest::sha256(b"hello");
    let other = Digest::sha256(b"other");
    let check = |digest: &Digest, size: u64, bytes: &[u8], expect: &str| {
        assert_eq!(offer(&store, (digest, size), bytes), expect);
        assert!(blob_files(store.blobs()).is_empty());
        assert_eq!(store.blobs().stat(digest).unwrap(), None);
        let owner = store.opened.owner_id().unwrap();
        assert!(names_in(&store.root().join("scratch").join(owner)).is_empty());
    };
    check(&good, 5, b"other", &format!("digest mismatch: expected {good}, got {other}"));
    check(&good, 5, b"hell", &format!("size mismatch for {good}: expected 5 bytes, got 4"));
    check(&good, 5, b"hello!", &format!("size mismatch for {good}: expected 5 bytes, got at least 6"));
    check(&good, 5, &[b'x'; 10_000], &format!("size mismatch for {good}: expected 5 bytes, got at least 6"));
    check(&good, 4, b"hello", &format!("size mismatch for {good}: expected 4 bytes, got at least 5"));
    check(&good, 6, b"hello", &format!("size mismatch for {good}: expected 6 bytes, got 5"));
    check(&good, 0, b"hello", &format!("size mismatch for {good}: expected 0 bytes, got at least 1"));
    assert_eq!(offer(&store, (&good, 5), b"hello"), "stored");
}

#[test]
fn a72_no_digest_leads_out_of_the_blobs() {
    let (_folder, store) = new_store();
    for bad in ["sha256:../../../etc/passwd", "sha256:", "../x", "sha1:da39a3ee5e6b4b0d3255bfef95601890afd80709"] {
        assert!(bad.parse::<Digest>().is_err());
    }
    let long: Digest = format!("sha512:{}", "ab".repeat(64)).parse().unwrap();
    for digest in [Digest::sha256(b"x"), long] {
        let expect = store.root().join("blobs").join(digest.algorithm()).join(digest.hex());
        assert_eq!(store.blobs().path(&digest), expect);
    }
}

#[test]
fn blobs_are_found_again() {
    let (_folder, store) = new_store();
    let lease = store.lease("test").unwrap();
    let digest = store.blobs().write(b"hello", &lease).unwrap();
    assert_eq!(digest, Digest::sha256(b"hello"));
    assert_eq!(store.blobs().write(b"hello", &lease).unwrap(), digest);
    let second = Store::open(store.root()).unwrap();
    assert_eq!(second.blobs().stat(&digest).unwrap(), Some(5));
    assert_eq!(second.blobs().read(&digest, 5).unwrap(), b"hello");
    assert!(matches!(second.blobs().read(&digest, 4), Err(StoreError::BlobTooLarge { size: 5, limit: 4, .. })));
    let absent = Digest::sha256(b"absent");
    assert!(matches!(second.blobs().open(&absent), Err(StoreError::BlobNotFound { .. })));
    assert!(!second.lease("test").unwrap().hold_blob(&absent).unwrap());
    assert!(second.blobs().remove(&digest).unwrap());
    assert_eq!(store.blobs().stat(&digest).unwrap(), None);
    assert!(blob_files(store.blobs()).is_empty());
}

#[test]
fn sha512_is_verified_as_such() {
    let (_folder, store) = new_store();
    let text = "sha512:cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce47d0d13c5d85f2b0ff8318d2877eec2f63b931bd47417a81a538327af927da3e";
    let empty: Digest = text.parse().unwrap();
    assert_eq!(offer(&store, (&empty, 0), b""), "stored");
    assert_eq!(store.blobs().read(&empty, 0).unwrap(), b"");
}

#[test]
fn a_download_can_begin_again() {
    let (_folder, store) = new_store();
    let lease = store.lease("test").unwrap();
    let digest = Digest::sha256(b"hello");
    let mut writer: BlobWriter = store.blobs().writer(Some((&digest, 5))).unwrap();
    writer.write_all(b"hexx").unwrap();
    writer.restart().unwrap();
    assert_eq!(writer.written(), 0);
    writer.write_all(b"hello").unwrap();
    writer.finish(&lease).unwrap();
    assert_eq!(store.blobs().read(&digest, 99).unwrap(), b"hello");
}

#[test]
fn f20_a_damaged_blob_is_a_missing_one_and_heals() {
    let (_folder, store) = new_store();
    let lease = store.lease("test").unwrap();
    let digest = store.blobs().write(b"hello", &lease).unwrap();
    let path = store.blobs().path(&digest);
    let store_again = || Store::open(store.root()).unwrap();

    std::fs::write(&path, b"jello").unwrap();
    assert!(matches!(store.blobs().read(&digest, 99), Err(StoreError::DamagedBlob { .. })));
    assert_eq!(store.blobs().stat(&digest).unwrap(), None);
    for damage in [b"hell".as_slice(), b"hello!", b""] {
        let other = store_again();
        other.blobs().write(b"hello", &other.lease("test").unwrap()).unwrap();
        assert_eq!(store.blobs().read(&digest, 99).unwrap(), b"hello");
        std::fs::write(&path, damage).unwrap();
        assert_eq!(store.blobs().stat(&digest).unwrap(), None);
    }
    std::fs::remove_file(&path).unwrap();
    assert_eq!(store.blobs().stat(&digest).unwrap(), None);
    let other = store_again();
    other.blobs().write(b"hello", &other.lease("test").unwrap()).unwrap();
    assert_eq!(store.blobs().stat(&digest).unwrap(), Some(5));
}

/// Fails when `BlobRow::is_suspect` says no.
#[test]
fn f06_a_blob_of_another_boot_is_hashed_before_it_is_believed() {
    let (_folder, store) = new_store();
    let lease = store.lease("test").unwrap();
    let whole = store.blobs().write(b"whole", &lease).unwrap();
    let torn = store.blobs().write(b"torn!", &lease).unwrap();
    let synced = store.blobs().write(b"synced", &lease).unwrap();
    sql(&store, "UPDATE blobs SET boot_id = 'earlier'");
    sql(&store, &format!("UPDATE blobs SET boot_id = NULL WHERE digest = '{synced}'"));
    std::fs::write(store.blobs().path(&torn), b"\0\0\0\0\0").unwrap();
    assert_eq!(store.blobs().stat(&whole).unwrap(), Some(5));
    assert_eq!(store.blobs().stat(&torn).unwrap(), None);
    assert_eq!(store.blobs().stat(&synced).unwrap(), Some(6));
    let suspects: i64 = store
        .opened
        .database()
        .read(|c| Ok(c.query_row("SELECT count(*) FROM blobs WHERE boot_id IS NOT NULL", [], |row| row.get(0))?))
        .unwrap();
    assert_eq!(suspects, 0);
}
