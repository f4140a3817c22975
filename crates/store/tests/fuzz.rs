//! Random layers: P05, P06 and P08.

#[path = "../../testkit/src/fuzz.rs"]
#[allow(dead_code, reason = "targets use parts of it")]
mod fuzz;
mod layer_store;
mod raw_tar;

use forge_image::{DiffId, Digest};
use forge_store::{Compression, LayerId, LayerIndex, TarOptions, UnpackLimits};
use fuzz::Random;
use layer_store::{Fixture, Packed, is_root, pack};
use raw_tar::{RawHeader, RawTar};
use std::path::{Path, PathBuf};

const NAMES: [&str; 8] = ["a", "b", "a/b", "b/a", "a/b/a", "./a//b", "/b", "a/../b"];

/// Mostly a name that may be taken.
fn name<'a>(random: &mut Random) -> &'a str {
    if random.below(40) == 0 { "../a" } else { NAMES[random.below(NAMES.len())] }
}

/// One entry: mostly plain, often through a link, sometimes a deletion or what is refused.
fn entry(random: &mut Random, tar: RawTar, canary: &[u8]) -> RawTar {
    let at = name(random);
    let (parent, last) = at.rsplit_once('/').map_or((String::new(), at), |(parent, last)| (format!("{parent}/"), last));
    match random.below(20) {
        0..=4 => tar.file(at, &[7; 600][..random.below(600)]),
        5..=8 => tar.dir(at),
        9..=11 => tar.symlink(at, name(random)),
        12 | 13 => tar.symlink(at, canary),
        14 => tar.hard_link(at, name(random)),
        15 if random.below(4) == 0 => tar.hard_link(at, canary),
        15 | 16 => tar.file(format!("{parent}.wh.{last}"), b""),
        17 => tar.file(format!("{parent}.wh..wh..opq"), b""),
        _ => tar.header(RawHeader::new(at, b"36"[random.below(2)]).device(random.below(8) as u32, 0)),
    }
}

fn archive(random: &mut Random, canary: &[u8]) -> Vec<u8> {
    (0..=random.below(6)).fold(RawTar::new(), |tar, _| entry(random, tar, canary)).end()
}

/// Whatever the entries, the layer is refused or its tree is what its index says, and nothing outside of it changes: the
/// fixture looks at both. Bare, in gzip and in zstd the outcome is one.
#[test]
fn fuzz_p05_random_layers_stay_in_their_tree() {
    if !is_root("fuzz_p05_random_layers_stay_in_their_tree") {
        return;
    }
    let (mut taken, mut refused) = (0, 0);
    fuzz::run("P05", |random| {
        let fixture = Fixture::new();
        let canary = fixture.canary_path("flag");
        let below = archive(random, &canary);
        let Ok(base) = fixture.unpack(&[], &below) else { return refused += 1 };
        let tar = archive(random, &canary);
        match fixture.unpack(std::slice::from_ref(&base.id), &tar) {
            Err(_) => refused += 1,
            Ok(record) => {
                taken += 1;
                let other = Fixture::new();
                let parents = other.stack(&[below]);
                let again = other.unpack_packed(&parents, &tar, Packed::Zstd).unwrap();
                assert_eq!(again.content, record.content);
                assert_eq!(other.tree(&[&parents[..], &[again.id]].concat()), fixture.tree(&[base.id, record.id]));
            }
        }
    });
    assert!(
        std::env::var_os("FORGE_FUZZ_SEED").is_some() || taken + refused < 10 || (taken > 0 && refused > 0),
        "{taken} taken, {refused} refused"
    );
}

fn path(random: &mut Random, root: &Path) -> PathBuf {
    (0..=random.below(3)).fold(root.to_owned(), |path, _| path.join(["x", "y", "z"][random.below(3)]))
}

/// What a step might do; what cannot be done is not.
fn edit(random: &mut Random, root: &Path) {
    let at = path(random, root);
    let parent = at.parent().unwrap().to_owned();
    let _ = match random.below(7) {
        0 | 1 => std::fs::create_dir_all(&parent).and_then(|()| std::fs::write(&at, vec![b'a'; random.below(5000)])),
        2 => std::fs::create_dir_all(&at),
        3 => std::fs::remove_file(&at),
        4 => std::fs::remove_dir_all(&at).map(drop),
        5 => std::fs::create_dir_all(&parent).and_then(|()| std::os::unix::fs::symlink("../x", &at)),
        _ => std::fs::hard_link(path(random, root), &at),
    };
}

fn edited(random: &mut Random, fixture: &Fixture) -> LayerId {
    let active = fixture.layers().prepare(&[]).unwrap();
    (0..random.below(25)).for_each(|_| edit(random, active.upper()));
    fixture.layers().commit(active, &fixture.lease).unwrap().id
}

/// A layer's tar is a function of what is in it, unpacks to just that, and is the same tar again from there.
#[test]
fn fuzz_p06_layers_survive_their_tars() {
    if !is_root("fuzz_p06_layers_survive_their_tars") {
        return;
    }
    fuzz::run("P06", |random| {
        let fixture = Fixture::new();
        let layer = edited(random, &fixture);
        let options = TarOptions { clamp_mtime: Some(1_000_000_000) };
        let mut tar = Vec::new();
        fixture.layers().write_tar(&layer, &options, &mut tar).unwrap();
        let other = Fixture::new();
        let unpacked = other.unpack(&[], &tar).unwrap();
        let text = |text: String| text.lines().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(
            text(other.tree(std::slice::from_ref(&unpacked.id))),
            text(fixture.tree(std::slice::from_ref(&layer)))
        );
        let index = other.layers().index(&unpacked.id).unwrap();
        let bytes = |index: &LayerIndex| index.entries().iter().map(|entry| entry.kind.clone()).collect::<Vec<_>>();
        assert_eq!(bytes(&index), bytes(&fixture.layers().index(&layer).unwrap()));
        for compression in [Compression::Gzip { level: Some(1) }, Compression::Zstd { level: Some(1) }] {
            let blob = fixture.layers().blob(&layer, &compression, &options, &fixture.lease, &mut |_| {}).unwrap();
            assert_eq!(blob.diff_id, DiffId::new(Digest::sha256(&tar)));
        }
    });
}

/// Damaged and hostile compression: an answer or an error, within the limits.
#[test]
fn fuzz_p08_damaged_blobs_are_refused_in_bounds() {
    if !is_root("fuzz_p08_damaged_blobs_are_refused_in_bounds") {
        return;
    }
    let limits =
        UnpackLimits { bytes: 1 << 20, ratio: 50, ratio_floor: 1 << 18, entries: 100, depth: 10, header: 4096 };
    fuzz::run("P08", |random| {
        let fixture = Fixture::new();
        let size = if random.below(4) == 0 { 3 << 20 } else { 4000 };
        let tar = RawTar::new().file("a", &vec![random.below(3) as u8; size]).end();
        let whole = pack(&tar, if random.below(2) == 0 { Packed::Gzip } else { Packed::Zstd });
        let mut blob = match random.below(3) {
            0 => whole.clone(),
            1 => [&whole[..], &whole].concat(),
            _ => random.mutated(&whole, &["\u{1f}", "(\u{b5}", "\0\0", "zstd"]),
        };
        if random.below(5) == 0 {
            blob.truncate(random.below(blob.len() + 1));
        }
        let descriptor = fixture.descriptor(&blob);
        let layers = fixture.layers().with_limits(limits);
        let diff_id = DiffId::new(Digest::sha256(&tar));
        let taken = layers.unpack(&[], &descriptor, &diff_id, &fixture.lease, &mut |_| {});
        fixture.check_canary();
        match taken {
            Ok(_) => assert!(tar.len() as u64 <= limits.bytes, "beyond the limit"),
            Err(_) => assert!(blob != whole || tar.len() as u64 > limits.bytes, "a whole blob is taken"),
        }
    });
}
