//! ADD of local archives.

use crate::Test;
use crate::site::Site;
use forge_testkit::{TarBuilder, TarEntry};
use std::io::Write as _;

pub const TESTS: &[Test] = &[
    ("privileged_archives_are_unpacked", unpacked),
    ("privileged_every_compression_is_seen_through", compressions),
    ("privileged_what_is_no_archive_is_copied", not_archives),
    ("privileged_archives_go_into_what_is_there", into_existing),
    ("privileged_damaged_archives_are_refused", damaged),
];

fn archive() -> TarBuilder {
    let file = TarEntry { data: b"F".to_vec(), ..TarEntry::new(b'0', "d/f") };
    TarBuilder::new()
        .entry(TarEntry::new(b'5', "d/").mode(0o700).owner(1, 2).mtime(5))
        .entry(file.mode(0o4755).owner(3, 4).mtime(6).xattr("user.k", b"v"))
        .hard_link("d/g", "d/f")
        .symlink("l", "d/f")
}

const UNPACKED: &str = "t/ @now\n t/d/ 0700 1:2 @5\n t/d/f =F 4755 3:4 user.k=v @6\n t/d/g == t/d/f\n t/l -> d/f @0";

fn with(name: &str, bytes: &[u8]) -> Site {
    let site = Site::new();
    std::fs::write(site.path("context").join(name), bytes).unwrap();
    crate::tree_text::set_time(&site.path("context").join(name), crate::tree_text::TIME);
    site
}

fn unpacked() {
    let site = with("a.tar", &archive().finish());
    site.check("ADD a.tar /t", UNPACKED);
    site.check("ADD a.tar /t/", UNPACKED);
    site.check("ADD *.tar /t/", UNPACKED);
    site.check("ADD a.tar /", "d/ 0700 1:2 @5\n d/f =F 4755 3:4 user.k=v @6\n d/g == d/f\n l -> d/f @0");
    site.check(
        "ADD --chown=7:8 a.tar /t",
        "t/ 7:8 @now\n t/d/ 0700 7:8 @5\n t/d/f =F 4755 7:8 user.k=v @6\n t/d/g == t/d/f\n t/l -> d/f 7:8 @0",
    );
    let copied = site.does("COPY a.tar /t");
    assert!(copied.starts_with("t =d/\\x00"), "{copied}");
    // An archive in a folder is a file like others.
    let inside = with("a.tar", &archive().finish());
    std::fs::create_dir(inside.path("context/sub")).unwrap();
    std::fs::rename(inside.path("context/a.tar"), inside.path("context/sub/a.tar")).unwrap();
    assert!(inside.does("ADD sub /t/").contains("t/a.tar =d/\\x00"));
}

fn compressions() {
    let tar = archive().finish();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar).unwrap();
    let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    bzip2.write_all(&tar).unwrap();
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
    xz.write_all(&tar).unwrap();
    let zstd = zstd::encode_all(&tar[..], 1).unwrap();
    // The name says nothing.
    for bytes in [gzip.finish().unwrap(), bzip2.finish().unwrap(), xz.finish().unwrap(), zstd] {
        with("a.txt", &bytes).check("ADD a.txt /t", UNPACKED);
    }
    // Members one after the other are one stream.
    let (start, end) = tar.split_at(700);
    let mut members = Vec::new();
    for part in [start, end] {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(part).unwrap();
        members.extend(gzip.finish().unwrap());
    }
    with("a.tgz", &members).check("ADD a.tgz /t", UNPACKED);
}

fn not_archives() {
    with("a.tar", b"no archive").check("ADD a.tar /t", "t =no archive");
    with("a.tar", b"").check("ADD a.tar /t/", "t/ @now\n t/a.tar =");
    let zipped = zstd::encode_all(&b"text"[..], 1).unwrap();
    let shown = with("a.zst", &zipped).does("ADD a.zst /t");
    assert!(shown.starts_with("t =(\\xb5/\\xfd"), "{shown}");
    // An archive without entries cannot be told from other zeros.
    let empty = with("a.tar", &TarBuilder::new().finish()).does("ADD a.tar /t");
    assert!(empty.starts_with("t =\\x00"), "{empty}");
}

fn into_existing() {
    let tar = TarBuilder::new().directory("d").file("d/f", "F").file("x", "X").finish();
    let site = with("a.tar", &tar).base("t/ 0711 @3\n t/d/ 0700 1:2 @4\n t/d/old =O\n t/l -> d\n file =\n q/x/\n q/");
    site.check("ADD a.tar /t", "(t/) 0711 @3\n t/d/ @0\n t/d/f =F @0\n t/x =X @0");
    site.check("ADD a.tar /t/l", "(t/) 0711 @3\n (t/d/) 0700 1:2 @4\n t/d/d/ @0\n t/d/d/f =F @0\n t/d/x =X @0");
    site.check("ADD a.tar /file", "UserInput: cannot copy to non-directory: /file");
    site.check("ADD a.tar /q", "UserInput: cannot replace to directory /q/x with file");
    // As docker unpacks: through a link to a folder of the image, whoever it is that the link seems to lead to.
    let tar = TarBuilder::new().file("var/run/a/f", "F").hard_link("var/run/a/g", "var/run/a/f").finish();
    let site = with("a.tar", &tar).base("run/ 0711 @3\n var/ @3\n var/run -> /run\n out -> ../../etc");
    let shown = site.does("ADD a.tar /");
    assert!(shown.contains("run/a/f =F") && shown.contains("run/a/g == run/a/f"), "{shown}");
    assert!(!shown.contains("var/run/") && !shown.contains("var/run ->"), "the link stays: {shown}");
    let tar = TarBuilder::new().file("out/f", "F").finish();
    let shown = with("a.tar", &tar).base("out -> ../../etc\n etc/ @3").does("ADD a.tar /");
    assert!(shown.contains("etc/f =F"), "links stay within the image: {shown}");
}

fn damaged() {
    let tar = TarBuilder::new().file("big", vec![7; 100_000]).unfinished();
    let site = with("a.tar", &tar[..50_000]);
    let shown = site.does("ADD a.tar /t");
    assert!(shown.starts_with("UserInput: cannot unpack a.tar: "), "{shown}");
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar).unwrap();
    let packed = gzip.finish().unwrap();
    let shown = with("a.tgz", &packed[..packed.len() / 2]).does("ADD a.tgz /t");
    assert!(shown.starts_with("UserInput: cannot unpack a.tgz: "), "{shown}");
}
