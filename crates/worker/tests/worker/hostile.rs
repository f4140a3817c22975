//! ADD of every hostile archive that layers are attacked with, compared with what the layer's own unpacking makes of it.

use crate::Test;
use crate::raw_tar::{self, RawHeader, RawTar};
use crate::site::Site;
use crate::stacks::shown;
use forge_cache::ResultRef;
use forge_image::{Descriptor, DiffId, Digest, MediaType};

pub const TESTS: &[Test] = &[
    ("privileged_a38_archives_are_added_as_layers_are_unpacked", a38_as_layers),
    ("privileged_a38_extended_headers_are_read_as_in_layers", a38_extended_headers),
];

/// What ADD makes of an archive on an empty file system, or that it refuses.
fn added(site: &Site, tar: &[u8]) -> Result<String, String> {
    std::fs::write(site.path("context/a.tar"), tar).unwrap();
    let record = site.execute("ADD a.tar /");
    site.check_canary();
    record.map(|record| shown(site, &ResultRef::Layers(vec![record.id]))).map_err(|error| error.to_string())
}

/// What the same bytes are as a layer.
fn unpacked(site: &Site, tar: &[u8]) -> Result<String, String> {
    let digest = site.store.blobs().write(tar, &site.lease).unwrap();
    let descriptor = Descriptor::new(MediaType::OciLayer, digest, tar.len() as u64);
    let diff_id = DiffId::new(Digest::sha256(tar));
    let record = site.store.layers().unpack(&[], &descriptor, &diff_id, &site.lease, &mut |_| {});
    site.check_canary();
    record.map(|record| shown(site, &ResultRef::Layers(vec![record.id]))).map_err(|error| error.to_string())
}

/// Whether ADD takes a file for an archive is told by its first header.
fn is_archive(tar: &[u8]) -> bool {
    tar.len() >= 512 && tar[0] != 0 && tar[..512].iter().any(|byte| *byte != 0)
}

#[track_caller]
fn agree(what: &str, tar: RawTar) {
    let site = Site::new();
    let tar = tar.end();
    let (add, layer) = (added(&site, &tar), unpacked(&site, &tar));
    if !is_archive(&tar) {
        return;
    }
    match (&add, &layer) {
        (Ok(add), Ok(layer)) => assert_eq!(add, layer, "{what}"),
        (Err(_), Err(_)) => {}
        _ => panic!("{what}: ADD {add:?}, layer {layer:?}"),
    }
}

/// Seen to fail with archives that cannot be unpacked copied as they are.
fn a38_as_layers() {
    let site = Site::new();
    let canary = site.path("canary").display().to_string();
    let flag = format!("{canary}/flag");
    let file = |name: &str| RawTar::new().file(name, b"x");
    for name in [
        "../x",
        "a/../../x",
        "./../x",
        "a//..//..//x",
        "/..",
        "../canary/flag",
        "/x",
        "a/../y",
        "./z//w/.",
        ".",
        "/",
        "",
    ] {
        agree(name, file(name));
        agree(name, RawTar::new().dir(name));
        agree(name, RawTar::new().symlink(name, "y"));
        agree(name, RawTar::new().file("x", b"").hard_link(name, "x"));
        agree(name, file("first").file(name, b"second"));
    }
    agree("through a link", RawTar::new().symlink("e", &canary).file("e/f", b"x").file("e/flag", b"y"));
    agree("two hops", RawTar::new().symlink("one", "two/../../../..").symlink("two", "/").file("one/x", b"1"));
    agree("a loop", RawTar::new().symlink("l", "l").file("l/x", b""));
    agree("parents through links", RawTar::new().symlink("s", "..").file("s/s/s/new/file", b"x"));
    for target in [&flag[..], "../../../canary/flag", "flag", "/flag", "..", "/", ""] {
        agree(target, RawTar::new().hard_link("h", target).file("h", b"overwritten"));
    }
    agree("a link to a link", RawTar::new().symlink("e", &flag).hard_link("h", "e").file("h", b"overwritten"));
    agree("a link to a folder", RawTar::new().dir("d").hard_link("h", "d"));
    agree("a link into what it replaces", RawTar::new().dir("d").file("d/f", b"x").hard_link("d", "d/f"));
    agree("links inside", file("a").hard_link("b", "/a").hard_link("c", "d/../a").hard_link("a", "a"));
    let loose = |name: &str| RawHeader::new(name, b'5').mode(0o777).owner(1, 1).mtime(77);
    agree("metadata through a link", RawTar::new().symlink("d", &canary).header(loose("d")).symlink("d2", &canary));
    agree("later entries", RawTar::new().dir("d").file("d/x", b"1").file("d", b"now").dir("d").file("d/y", b"2"));
    agree("a file as parent", file("f").file("f/x", b""));
    for name in [".wh.", ".wh..", ".wh...", "d/.wh.", ".wh.d/x", "d/.wh.x/y", ".wh..wh.aufs"] {
        agree(name, RawTar::new().dir("d").file(name, b""));
    }
    agree("deletions", RawTar::new().dir("d").file("d/x", b"1").file("d/.wh.y", b"").file(".wh..wh..opq", b""));
    agree("a mark of overlayfs", RawTar::new().header(RawHeader::new("w", b'3').device(0, 0)));
    agree(
        "devices",
        RawTar::new()
            .header(RawHeader::new("disk", b'4').device(8, 0))
            .header(RawHeader::new("null", b'3').device(1, 3)),
    );
    agree("a pipe", RawTar::new().header(RawHeader::new("p", b'6')));
    agree(
        "owners at their edges",
        RawTar::new().header(RawHeader::new("n", b'0').owner(2_097_151, 2_097_151).mode(0o7777)),
    );
    agree("type bits in the mode", RawTar::new().header(RawHeader::new("n", b'0').mode(0o104_755)));
    agree("bytes in names", RawTar::new().file([b'a', 0xff, b'\n', 0x1b], b"x").file(vec![b'n'; 99], b""));
    agree("a long way down", RawTar::new().file("d/".repeat(45) + "f", b"deep"));
    agree("much announced", RawTar::new().header(RawHeader::new("huge", b'0').size(1 << 32)));
    agree("ends early", RawTar::new().header(RawHeader::new("f", b'0').size(2048)).bytes(&[b'x'; 512]));
}

/// Seen to fail with archives that cannot be unpacked copied as they are.
fn a38_extended_headers() {
    let file = RawTar::new().file("f", b"").0;
    let first = || RawTar::new().file("first", b"1");
    let pax = |records: &[(&str, &[u8])]| first().pax(records);
    let long = |kind: u8, name: &str| RawTar::new().entry(RawHeader::new("././@LongLink", kind).gnu(), name.as_bytes());
    let global = |records: &[(&str, &[u8])]| {
        let data: Vec<u8> = records.iter().flat_map(|(key, value)| raw_tar::record(key, value)).collect();
        first().entry(RawHeader::new("g", b'g'), &data)
    };
    let inner = RawTar::new().file("smuggled", b"x").0;
    let size = inner.len().to_string();
    let cases = [
        ("data by PAX only", pax(&[("size", size.as_bytes())]).header(RawHeader::new("f", b'0')).bytes(&inner)),
        (
            "no data by PAX",
            pax(&[("size", b"0")]).header(RawHeader::new("f", b'0').size(inner.len() as u64)).bytes(&inner),
        ),
        ("a folder with data", first().header(RawHeader::new("d", b'5').size(512)).file("x", b"1").file("y", b"")),
        ("doubled key", first().pax_bytes(b"8 size=\n8 size=\n").bytes(&file)),
        ("malformed", first().pax_bytes(b"7 a=bcd\n").bytes(&file)),
        ("negative size", pax(&[("size", b"-1")]).bytes(&file)),
        ("path out", pax(&[("path", b"../../canary/flag")]).bytes(&file)),
        ("absolute path", pax(&[("path", b"/abs/f")]).bytes(&file)),
        ("zero byte", pax(&[("path", b"a\0b")]).bytes(&file)),
        ("two headers", pax(&[("path", b"a")]).pax(&[("path", b"b")]).bytes(&file)),
        ("link target", pax(&[("linkpath", b"/canary")]).header(RawHeader::new("l", b'2'))),
        ("long name", first().bytes(&long(b'L', &"n".repeat(200)).0).bytes(&file)),
        ("empty long name", first().bytes(&long(b'L', "\0").0).bytes(&file)),
        ("two long names", first().bytes(&long(b'L', "x").0).bytes(&long(b'L', "y").0).bytes(&file)),
        ("at the end", pax(&[("path", b"a")])),
        ("global path", global(&[("path", b"a")]).bytes(&file)),
        ("global comment", global(&[("comment", b"made by git")]).bytes(&file)),
        ("one zero block", first().bytes(&[0; 512]).bytes(&file)),
        ("checksum", first().bytes(&RawHeader::new("f", b'0').field(148, b"0000001\0").0)),
        ("sparse", first().header(RawHeader::new("f", b'S').gnu())),
        ("PAX sparse", pax(&[("GNU.sparse.major", b"1")]).bytes(&file)),
        ("unknown kind", first().header(RawHeader::new("f", b'Z'))),
        ("mtime out of range", pax(&[("mtime", b"99999999999999999999")]).bytes(&file)),
        ("mtime that is none", pax(&[("mtime", b"NaN")]).bytes(&file)),
        ("uid out of range", pax(&[("uid", b"4294967296")]).bytes(&file)),
        ("a header that declares gigabytes", first().header(RawHeader::new("x", b'x').size(4 << 30))),
    ];
    for (what, tar) in cases {
        agree(what, tar);
    }
}
