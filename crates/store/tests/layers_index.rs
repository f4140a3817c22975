//! The layer index as a file: round trip, damage.

use forge_store::{EntryKind, FileTimes, LayerEntry, LayerIndex, Metadata};
use std::collections::BTreeMap;

fn sample() -> LayerIndex {
    let metadata = |mode, mtime| Metadata {
        mode,
        uid: 1000,
        gid: u32::MAX - 1,
        mtime,
        xattrs: BTreeMap::from([("user.\u{e9}".into(), vec![0, 255]), ("user.empty".into(), vec![])]),
    };
    let entry = |path: &[u8], kind, link| LayerEntry {
        path: path.to_vec(),
        kind,
        metadata: metadata(0o4755, (-1, 999_999_999)),
        link,
    };
    let file = EntryKind::File { size: u64::MAX, blake3: [7; 32] };
    let entries = vec![
        entry(b"", EntryKind::Directory { opaque: false, implied: true }, None),
        entry(b"a", EntryKind::Directory { opaque: true, implied: false }, None),
        entry(b"a/b", file.clone(), None),
        entry(b"a/\xff\n", file, Some(2)),
        entry(b"a-b", EntryKind::Symlink { target: "../x".into() }, None),
        entry(b"c", EntryKind::CharDevice { major: 4095, minor: 1 << 19 }, None),
        entry(b"d", EntryKind::BlockDevice { major: 8, minor: 0 }, None),
        entry(b"f", EntryKind::Fifo, None),
        LayerEntry { path: b"gone".to_vec(), kind: EntryKind::Whiteout, metadata: Metadata::default(), link: None },
    ];
    LayerIndex::new(entries).unwrap()
}

#[test]
fn an_index_survives_its_file() {
    let index = sample();
    assert_eq!(LayerIndex::decode(&index.encode()).unwrap(), index);
    assert_eq!(index.get(b"a/b").unwrap().kind, index.get(b"a/\xff\n").unwrap().kind);
    assert_eq!(index.changes(), 8);
    assert_eq!(index.get(b"nothing"), None);
}

/// A digest that changes here changes every cache key that a layer is part of.
#[test]
fn the_content_digest_is_what_it_was() {
    assert_eq!(
        sample().content_digest(&FileTimes::Ignored).to_string(),
        "c526700f1a20f564a59ff7e470335c0441aed7a6f016db12ce2b9d0a361e4986"
    );
}

#[test]
fn only_times_that_are_content_change_the_digest() {
    let digest = |times: FileTimes, mtime: (i64, u32)| {
        let mut entries = sample().entries().to_vec();
        entries.iter_mut().filter(|entry| entry.path == b"f").for_each(|entry| entry.metadata.mtime = mtime);
        LayerIndex::new(entries).unwrap().content_digest(&times)
    };
    let step = FileTimes::ContentOutside { from: 10_000_000_000, until: 20_500_000_000 };
    assert_eq!(digest(step, (10, 0)), digest(step, (20, 500_000_000)));
    assert_ne!(digest(step, (10, 0)), digest(step, (20, 500_000_001)));
    assert_ne!(digest(step, (7, 0)), digest(step, (8, 0)), "what `touch -d` sets is content");
    assert_ne!(digest(FileTimes::Content, (10, 0)), digest(FileTimes::Content, (11, 0)));
    // The first moment there is, and no time at all.
    assert_ne!(digest(FileTimes::Content, (0, 0)), digest(FileTimes::Ignored, (0, 0)));
}

#[test]
fn times_and_implied_folders_are_not_content() {
    let index = sample();
    let change = |change: &dyn Fn(&mut LayerEntry)| {
        let mut entries = index.entries().to_vec();
        entries.iter_mut().for_each(change);
        LayerIndex::new(entries).unwrap().content_digest(&FileTimes::Ignored)
    };
    assert_eq!(change(&|entry| entry.metadata.mtime = (5, 5)), index.content_digest(&FileTimes::Ignored));
    assert_eq!(
        change(&|entry| if entry.is_implied() {
            entry.metadata.mode = 0
        }),
        index.content_digest(&FileTimes::Ignored)
    );
    assert_ne!(
        change(&|entry| if entry.path == b"f" {
            entry.metadata.mode = 0
        }),
        index.content_digest(&FileTimes::Ignored)
    );
    assert_ne!(
        change(&|entry| if entry.path == b"f" {
            entry.metadata.uid = 0
        }),
        index.content_digest(&FileTimes::Ignored)
    );
    assert_ne!(
        change(&|entry| if entry.path == b"f" {
            entry.metadata.xattrs.clear()
        }),
        index.content_digest(&FileTimes::Ignored)
    );
    assert_ne!(
        change(&|entry| if entry.path == b"a/\xff\n" {
            entry.link = None
        }),
        index.content_digest(&FileTimes::Ignored)
    );
}

/// Every flipped byte and every cut is an error: the checksum sees to the file, the checks to what has a right checksum.
#[test]
fn damage_is_an_error_and_never_a_panic() {
    let bytes = sample().encode();
    for at in 0..bytes.len() {
        assert!(LayerIndex::decode(&bytes[..at]).is_err());
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (at % 8);
        assert!(LayerIndex::decode(&flipped).is_err(), "byte {at}");
    }
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random as usize
    };
    let content = &bytes[..bytes.len() - 32];
    for _ in 0..200_000 {
        let mut sealed = content.to_vec();
        for _ in 0..1 + next() % 3 {
            let at = 12 + next() % (sealed.len() - 12);
            match next() % 3 {
                0 => sealed[at] = next() as u8,
                1 => drop(sealed.remove(at)),
                _ => sealed.insert(at, [0, 0x7f, 0x80, 0xff][next() % 4]),
            }
        }
        let checksum = blake3::hash(&sealed);
        sealed.extend_from_slice(checksum.as_bytes());
        if let Ok(index) = LayerIndex::decode(&sealed) {
            assert_eq!(LayerIndex::decode(&index.encode()).unwrap(), index);
        }
    }
}

#[test]
fn a_count_does_not_take_memory() {
    let mut bytes = b"forge-index\x01\xff\xff\xff\xff\xff\xff\xff\xff\x7f".to_vec();
    let checksum = blake3::hash(&bytes);
    bytes.extend_from_slice(checksum.as_bytes());
    assert!(LayerIndex::decode(&bytes).is_err());
    let newer = [&b"forge-index\x02"[..], &[0; 40]].concat();
    assert!(LayerIndex::decode(&newer).unwrap_err().to_string().contains("version"));
}
