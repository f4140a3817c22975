//! Hostile layers: whatever the tar says, nothing outside the layer's own tree changes.
//!
//! Each was seen to fail once, on the change that its comment names.

mod door_of_load;
mod layer_store;
mod raw_tar;

use forge_image::{DiffId, Digest};
use forge_store::{LayerError, LayerId, LayerRecord, StoreError, UnpackLimits};
use layer_store::{Fixture, Packed, chain, is_root, pack};
use raw_tar::{RawHeader, RawTar};
use std::os::unix::fs::MetadataExt;

/// Unpacks over the parents bare, with gzip and with zstd, and demands one outcome.
fn attack(fixture: &Fixture, parents: &[LayerId], tar: &[u8]) -> Result<LayerRecord, StoreError> {
    let mut results = vec![fixture.unpack_packed(parents, tar, Packed::Bare)];
    for packed in [Packed::Gzip, Packed::Zstd] {
        // In a store of their own, or the first result would be found again.
        let other = Fixture::new();
        let parents = other.stack(&fixture.bases.lock().unwrap()[..parents.len()]);
        results.push(other.unpack_packed(&parents, tar, packed));
    }
    let texts: Vec<String> = results
        .iter()
        .map(|result| match result {
            Ok(record) => record.content.to_string(),
            Err(error) => chain(error),
        })
        .collect();
    assert!(texts.iter().all(|text| *text == texts[0]), "{texts:#?}");
    let tars = [&fixture.bases.lock().unwrap()[..parents.len()], &[tar.to_vec()]].concat();
    let expected = results[0].as_ref().map(|record| record.content).map_err(|error| chain(error));
    door_of_load::attack(&tars, expected.as_ref().map_err(String::as_str));
    if parents.is_empty() {
        attack_extraction(fixture, tar, &texts[0], results[0].is_ok());
    }
    results.into_iter().next().unwrap()
}

/// The same at the door of `ADD`: an archive is refused for the same reason, or taken, and nothing outside changes either
/// way.
fn attack_extraction(fixture: &Fixture, tar: &[u8], text: &str, accepted: bool) {
    let extracted = fixture.layers().extract(&mut &tar[..], &|| tar.len() as u64);
    fixture.check_canary();
    match extracted {
        Ok(_) => assert!(accepted, "a layer is refused, an archive is not: {text}"),
        Err(error) => assert!(!accepted && chain(&error) == text, "{} instead of {text}", chain(&error)),
    }
}

fn refused(fixture: &Fixture, parents: &[LayerId], tar: &[u8]) -> String {
    let layers = || layer_store::names(&fixture.store.root().join("layers")).len();
    let before = layers();
    let error = match attack(fixture, parents, tar) {
        Err(error) => chain(&error),
        Ok(record) => panic!("accepted:\n{}", fixture.tree(&[parents, &[record.id]].concat())),
    };
    assert_eq!(layers(), before, "a refused layer leaves nothing behind");
    error
}

fn accepted(fixture: &Fixture, parents: &[LayerId], tar: &[u8]) -> String {
    let record = attack(fixture, parents, tar).unwrap_or_else(|error| panic!("{}", chain(&error)));
    fixture.tree(&[parents, &[record.id]].concat())
}

/// Seen to fail with `clean` keeping `..` as a name.
#[test]
fn privileged_a46_names_that_leave_the_root() {
    if !is_root("privileged_a46_names_that_leave_the_root") {
        return;
    }
    for name in ["../x", "a/../../x", "./../x", "a//..//..//x", "/..", "../canary/flag", "a/b/../../../canary/b"] {
        let fixture = Fixture::new();
        for tar in [RawTar::new().file(name, b"x"), RawTar::new().dir(name), RawTar::new().symlink(name, "y")] {
            let error = refused(&fixture, &[], &tar.end());
            assert!(error.contains("leads out of the layer"), "{name}: {error}");
        }
    }
    let fixture = Fixture::new();
    let tree =
        accepted(&fixture, &[], &RawTar::new().file("/x", b"1").file("a/../y", b"2").file("./z//w/.", b"3").end());
    assert_eq!(
        tree,
        "dir  0755 0:0 /\nfile 0644 0:0 /x 1\nfile 0644 0:0 /y 2\ndir  0755 0:0 /z\nfile 0644 0:0 /z/w 3\n"
    );
}

/// Seen to fail with `open_folder` following links and `Placement::folder` taking every parent literally.
#[test]
fn privileged_a47_writing_through_a_link_of_the_same_layer() {
    if !is_root("privileged_a47_writing_through_a_link_of_the_same_layer") {
        return;
    }
    let fixture = Fixture::new();
    let canary = fixture.canary_path("");
    let tar = RawTar::new().symlink("e", &canary).file("e/f", b"x").file("e/flag", b"y").end();
    let tree = accepted(&fixture, &[], &tar);
    assert!(tree.contains("/canary/f x\n") && tree.contains("/canary/flag y\n"), "inside the root: {tree}");
    let two_hops = RawTar::new()
        .symlink("one", "two/../../../..")
        .symlink("two", "/")
        .file("one/x", b"1")
        .symlink("loop", "loop")
        .end();
    let tree = accepted(&Fixture::new(), &[], &two_hops);
    assert!(tree.contains("file 0644 0:0 /x 1"), "{tree}");
    let error = refused(&Fixture::new(), &[], &RawTar::new().symlink("l", "l").file("l/x", b"").end());
    assert!(error.contains("too many symbolic links"), "{error}");
}

/// Seen to fail with links of lower layers taken for missing folders; single-archive checks miss this one.
#[test]
fn privileged_a47_writing_through_a_link_of_a_lower_layer() {
    if !is_root("privileged_a47_writing_through_a_link_of_a_lower_layer") {
        return;
    }
    let fixture = Fixture::new();
    let canary = fixture.canary_path("");
    let base = RawTar::new().symlink("e", &canary).symlink("lib", "usr/lib").dir("usr").dir("usr/lib").end();
    let stack = fixture.stack(&[base]);
    let upper = RawTar::new().file("e/flag", b"x").file("lib/y", b"1").hard_link("lib/z", "lib/y").end();
    let tree = accepted(&fixture, &stack, &upper);
    assert!(tree.contains("/canary/flag x\n"), "{tree}");
    assert!(tree.contains("link /lib -> usr/lib\n"), "the link of the base stays: {tree}");
    assert!(tree.contains("file 0644 0:0 /usr/lib/y 1\n") && tree.contains("/usr/lib/z 1\n"), "{tree}");
}

/// Seen to fail with link targets handed to `linkat` as they are.
#[test]
fn privileged_a48_hard_links_out_of_the_root() {
    if !is_root("privileged_a48_hard_links_out_of_the_root") {
        return;
    }
    let fixture = Fixture::new();
    let flag = fixture.canary_path("flag");
    for target in [&flag[..], b"../../../canary/flag", b"flag", b"/flag", b"..", b"/", b""] {
        let error = refused(&fixture, &[], &RawTar::new().hard_link("h", target).file("h", b"overwritten").end());
        assert!(error.contains("hard link to") || error.contains("leads out"), "{error}");
    }
    let through = RawTar::new().symlink("e", fixture.canary_path("")).hard_link("h", "e/flag").end();
    refused(&fixture, &[], &through);
    let to_link = RawTar::new().symlink("e", &flag).hard_link("h", "e").file("h", b"overwritten").end();
    let tree = accepted(&fixture, &[], &to_link);
    assert!(tree.contains("file 0644 0:0 /h overwritten"), "{tree}");
    let folder = RawTar::new().dir("d").hard_link("h", "d").end();
    refused(&Fixture::new(), &[], &folder);
    let inside = RawTar::new().dir("d").file("d/f", b"x").hard_link("d", "d/f").end();
    refused(&Fixture::new(), &[], &inside);
}

#[test]
fn privileged_a48_hard_links_inside_the_root_work() {
    if !is_root("privileged_a48_hard_links_inside_the_root_work") {
        return;
    }
    let fixture = Fixture::new();
    let base = RawTar::new().dir("d").file("d/low", b"low").symlink("d/s", "low").end();
    let stack = fixture.stack(&[base]);
    let upper = RawTar::new()
        .file("a", b"A")
        .hard_link("absolute", "/a")
        .hard_link("dots", "d/../a")
        .hard_link("same", "a")
        .hard_link("a", "a")
        .hard_link("from-below", "d/low")
        .hard_link("link-itself", "d/s")
        .end();
    let record = attack(&fixture, &stack, &upper).unwrap();
    let tree = fixture.layers().lower_dirs(std::slice::from_ref(&record.id)).unwrap()[0].clone();
    let inode = |name: &str| std::fs::symlink_metadata(tree.join(name)).unwrap().ino();
    assert_eq!([inode("absolute"), inode("dots"), inode("same")], [inode("a"); 3]);
    assert_eq!(inode("from-below"), inode("d/low"), "brought up from the layer below");
    assert_eq!(inode("link-itself"), inode("d/s"));
    assert_eq!(std::fs::read(tree.join("from-below")).unwrap(), b"low");
}

/// Seen to fail with a folder entry over a link changing the mode by path.
#[test]
fn privileged_a49_metadata_through_links() {
    if !is_root("privileged_a49_metadata_through_links") {
        return;
    }
    let fixture = Fixture::new();
    let canary = fixture.canary_path("");
    let loose = |name: &str| RawHeader::new(name, b'5').mode(0o777).owner(1, 1).mtime(77);
    let xattr: (&str, &[u8]) = ("SCHILY.xattr.user.x", b"1");
    let tar = RawTar::new().symlink("d", &canary).pax(&[xattr]).header(loose("d")).symlink("x", &canary);
    let tar = tar.header(loose("later")).symlink("later", &canary).end();
    let tree = accepted(&fixture, &[], &tar);
    assert!(tree.contains("dir  0777 1:1 /d user.x=1\n"), "{tree}");
    assert!(tree.contains("link /later -> "), "{tree}");
    let stack = fixture.stack(&[RawTar::new().symlink("d", &canary).end()]);
    let tree = accepted(&fixture, &stack, &RawTar::new().header(loose("d")).end());
    assert!(tree.contains("dir  0777 1:1 /d\n"), "over a link of the layer below: {tree}");
}

/// Seen to fail with `open_folder` following links and `Placement::folder` taking every parent literally.
#[test]
fn privileged_a50_folders_through_links() {
    if !is_root("privileged_a50_folders_through_links") {
        return;
    }
    let fixture = Fixture::new();
    let tree = accepted(&fixture, &[], &RawTar::new().symlink("s", "..").file("s/s/s/new/file", b"x").end());
    assert_eq!(tree, "dir  0755 0:0 /\ndir  0755 0:0 /new\nfile 0644 0:0 /new/file x\nlink /s -> ..\n");
    let canary = fixture.canary_path("sub/deep");
    let tree = accepted(&fixture, &[], &RawTar::new().symlink("s", &canary).file("s/new/file", b"x").end());
    assert!(tree.contains("/canary/sub/deep/new/file x"), "{tree}");
}

/// Seen to fail without the refusal in `root_entry`.
#[test]
fn privileged_a51_the_root_stays_a_folder() {
    if !is_root("privileged_a51_the_root_stays_a_folder") {
        return;
    }
    let fixture = Fixture::new();
    for name in [".", "/", "", "./", "a/.."] {
        for tar in [
            RawTar::new().symlink(name, fixture.canary_path("")),
            RawTar::new().file(name, b"x"),
            RawTar::new().file("x", b"").hard_link(name, "x"),
            RawTar::new().header(RawHeader::new(name, b'3').device(1, 3)),
        ] {
            let error = refused(&fixture, &[], &tar.end());
            assert!(error.contains("root"), "{name:?}: {error}");
        }
    }
    let root = RawTar::new().header(RawHeader::new("./", b'5').mode(0o711).owner(3, 4)).end();
    assert_eq!(accepted(&fixture, &[], &root), "dir  0711 3:4 /\n");
}

#[test]
fn privileged_a51_later_entries_replace_earlier_ones() {
    if !is_root("privileged_a51_later_entries_replace_earlier_ones") {
        return;
    }
    let fixture = Fixture::new();
    let stack = fixture.stack(&[RawTar::new().dir("d").file("d/low", b"low").dir("keep").file("keep/low", b"k").end()]);
    let tar = RawTar::new()
        .dir("d")
        .file("d/x", b"1")
        .file("d", b"a file now")
        .dir("d")
        .file("d/y", b"2")
        .symlink("l", "keep")
        .dir("l")
        .file("l/z", b"3")
        .dir("keep")
        .end();
    assert_eq!(
        accepted(&fixture, &stack, &tar),
        "dir  0755 0:0 /\ndir  0755 0:0 /d\nfile 0644 0:0 /d/y 2\ndir  0755 0:0 /keep\nfile 0644 0:0 /keep/low k\n\
         dir  0755 0:0 /l\nfile 0644 0:0 /l/z 3\n"
    );
    let through_file = RawTar::new().file("f", b"").file("f/x", b"").end();
    assert!(refused(&fixture, &stack, &through_file).contains("not a folder"));
}

/// Seen to fail without the last refusal in `EntryName::parse`.
#[test]
fn privileged_a52_deletions_of_no_name() {
    if !is_root("privileged_a52_deletions_of_no_name") {
        return;
    }
    let fixture = Fixture::new();
    let stack = fixture.stack(&[RawTar::new().dir("d").file("d/x", b"1").end()]);
    for name in [".wh.", ".wh..", ".wh...", "d/.wh.", "d/.wh..", "d/.wh...", ".wh.d/x", "d/.wh.x/y"] {
        refused(&fixture, &stack, &RawTar::new().file(name, b"").end());
    }
    let aufs = RawTar::new().file(".wh..wh.aufs", b"").dir(".wh..wh.plnk").file(".wh..wh.plnk/1.2", b"x").end();
    assert!(!accepted(&fixture, &stack, &aufs).contains(".wh."));
}

/// Seen to fail with deletions that remove what this layer has there, as docker's do.
#[test]
fn privileged_a52_deletions_act_below_and_in_any_order() {
    if !is_root("privileged_a52_deletions_act_below_and_in_any_order") {
        return;
    }
    let fixture = Fixture::new();
    let base = RawTar::new()
        .dir("d")
        .file("d/x", b"1")
        .file("d/y", b"2")
        .dir("o")
        .file("o/low", b"3")
        .dir("o/sub")
        .file("o/sub/low", b"")
        .symlink("lib", "d")
        .file("own", b"low")
        .dir("gone")
        .file("gone/x", b"")
        .dir("new")
        .header(RawHeader::new("mode", b'5').mode(0o1777));
    let base_tar = base.file("mode/x", b"").end();
    let stack = fixture.stack(&[base_tar]);
    let entries: Vec<RawTar> = vec![
        RawTar::new().file("lib/.wh.x", b""),
        RawTar::new().file("o/.wh..wh..opq", b""),
        RawTar::new().file("o/sub/new", b"4"),
        RawTar::new().file(".wh.own", b""),
        RawTar::new().file("own", b"new"),
        RawTar::new().file(".wh.gone", b""),
        RawTar::new().file(".wh.new", b""),
        RawTar::new().dir("new"),
        RawTar::new().file("new/x", b"5"),
        RawTar::new().file(".wh.mode", b""),
        RawTar::new().file("mode/y", b"6"),
        RawTar::new().file(".wh.never", b""),
        RawTar::new().file("never/.wh.there", b""),
    ];
    let expected = "dir  0755 0:0 /\ndir  0755 0:0 /d\nfile 0644 0:0 /d/y 2\nlink /lib -> d\ndir  0755 0:0 /mode\n\
                    file 0644 0:0 /mode/y 6\ndir  0755 0:0 /new\nfile 0644 0:0 /new/x 5\ndir  0755 0:0 /o\n\
                    dir  0755 0:0 /o/sub\nfile 0644 0:0 /o/sub/new 4\nfile 0644 0:0 /own new\n";
    let mut forwards = RawTar::new();
    let mut backwards = RawTar::new();
    for (first, last) in entries.iter().zip(entries.iter().rev()) {
        forwards = forwards.bytes(&first.0);
        backwards = backwards.bytes(&last.0);
    }
    assert_eq!(accepted(&fixture, &stack, &forwards.end()), expected);
    assert_eq!(accepted(&fixture, &stack, &backwards.end()), expected);
}

/// Seen to fail without the check in `hide`.
#[test]
fn privileged_a52_opaque_root_and_links_that_go_away() {
    if !is_root("privileged_a52_opaque_root_and_links_that_go_away") {
        return;
    }
    let fixture = Fixture::new();
    let stack = fixture.stack(&[RawTar::new().dir("d").file("d/x", b"1").file("y", b"2").symlink("l", "d").end()]);
    let opaque = RawTar::new().file(".wh..wh..opq", b"").dir("d").file("z", b"3").end();
    let expected = "dir  0755 0:0 /\ndir  0755 0:0 /d\nfile 0644 0:0 /z 3\n";
    assert_eq!(accepted(&fixture, &stack, &opaque), expected);
    let opaque_last = RawTar::new().dir("d").file("z", b"3").file(".wh..wh..opq", b"").end();
    assert_eq!(accepted(&fixture, &stack, &opaque_last), expected);
    let cut_off = RawTar::new().file("l/new", b"").file(".wh.l", b"").end();
    assert!(Fixture::new().unpack(&[], &cut_off).is_ok(), "nothing below");
    let fixture = Fixture::new();
    let stack = fixture.stack(&[RawTar::new().dir("d").symlink("l", "d").end()]);
    assert!(refused(&fixture, &stack, &cut_off).contains("deletes a link after"));
    let in_order = RawTar::new().file(".wh.l", b"").file("l/new", b"").end();
    let tree = accepted(&fixture, &stack, &in_order);
    assert_eq!(tree, "dir  0755 0:0 /\ndir  0755 0:0 /d\ndir  0755 0:0 /l\nfile 0644 0:0 /l/new \n");
}

/// Seen to fail with `keeps_xattr` true for all names, and without the arm for 0:0.
#[test]
fn privileged_a53_markers_of_overlayfs() {
    if !is_root("privileged_a53_markers_of_overlayfs") {
        return;
    }
    let fixture = Fixture::new();
    let stack = fixture.stack(&[RawTar::new().dir("etc").file("etc/passwd", b"root").end()]);
    let device = RawTar::new().header(RawHeader::new("etc/passwd", b'3').device(0, 0)).end();
    assert!(refused(&fixture, &stack, &device).contains("0:0"));
    let markers: [(&str, &[u8]); 6] = [
        ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ("SCHILY.xattr.trusted.overlay.redirect", b"/../x"),
        ("SCHILY.xattr.trusted.overlay.metacopy", b""),
        ("SCHILY.xattr.trusted.overlay.origin", b"\x00"),
        ("SCHILY.xattr.user.overlay.opaque", b"y"),
        ("SCHILY.xattr.user.kept", b"1"),
    ];
    let tree =
        accepted(&fixture, &stack, &RawTar::new().pax(&markers).dir("etc").pax(&markers).file("etc/new", b"").end());
    assert!(tree.contains("dir  0755 0:0 /etc user.kept=1\n"), "{tree}");
    assert!(tree.contains("/etc/passwd root") && tree.contains("/etc/new  user.kept=1\n"), "{tree}");
}

#[test]
fn privileged_a54_devices_are_nodes_with_their_numbers() {
    if !is_root("privileged_a54_devices_are_nodes_with_their_numbers") {
        return;
    }
    let fixture = Fixture::new();
    let tar = RawTar::new()
        .header(RawHeader::new("b", b'4').device(8, 0).mode(0o666))
        .header(RawHeader::new("c", b'3').device(1, 1).mode(0o666))
        .header(RawHeader::new("p", b'6').mode(0o600))
        .end();
    assert_eq!(
        accepted(&fixture, &[], &tar),
        "dir  0755 0:0 /\nblk  0666 0:0 /b 8:0\nchar 0666 0:0 /c 1:1\nfifo 0600 0:0 /p\n"
    );
    refused(&Fixture::new(), &[], &RawTar::new().header(RawHeader::new("c", b'3').device(0o7777777, 1)).end());
    refused(&Fixture::new(), &[], &RawTar::new().header(RawHeader::new("c", b'3').device(1, 0o7777777)).end());
}

/// Seen to fail with attributes set before the owner: the kernel then takes the capability off.
#[test]
fn privileged_a56_capabilities_survive_without_their_namespace() {
    if !is_root("privileged_a56_capabilities_survive_without_their_namespace") {
        return;
    }
    let fixture = Fixture::new();
    let v2 = [&[1, 0, 0, 2][..], &[0, 4, 0, 0], &[0; 12]].concat();
    let v3 = [&[1, 0, 0, 3][..], &[0, 4, 0, 0], &[0; 12], &[0xe8, 3, 0, 0]].concat();
    let key = "SCHILY.xattr.security.capability";
    let file = |name: &str| RawHeader::new(name, b'0').owner(5, 6).mode(0o4755);
    let tar = RawTar::new()
        .pax(&[(key, &v2)])
        .entry(file("v2"), b"x")
        .pax(&[(key, &v3), ("SCHILY.xattr.security.ima", b"1"), ("SCHILY.xattr.security.selinux", b"1")])
        .entry(file("v3"), b"x")
        .end();
    let record = attack(&fixture, &[], &tar).unwrap();
    let tree = fixture.tree(std::slice::from_ref(&record.id));
    assert!(tree.contains(&format!("file 4755 5:6 /v2 x security.capability={}\n", v2.escape_ascii())), "{tree}");
    assert!(tree.contains("file 4755 5:6 /v3 x\n"), "{tree}");
    // Through forge's own tar and back nothing changes.
    let mut own = Vec::new();
    fixture.layers().write_tar(&record.id, &forge_store::TarOptions { clamp_mtime: Some(i64::MAX) }, &mut own).unwrap();
    let again = fixture.unpack(&[], &own).unwrap();
    assert_eq!(fixture.tree(std::slice::from_ref(&again.id)), tree);
}

/// Seen to fail with the size of the header winning over PAX: the smuggled entry shows.
#[test]
fn privileged_a57_sizes_that_disagree() {
    if !is_root("privileged_a57_sizes_that_disagree") {
        return;
    }
    let inner = RawTar::new().file("smuggled", b"x").0;
    let size = inner.len().to_string();
    // PAX says there is data, the header says there is none.
    let tar =
        RawTar::new().pax(&[("size", size.as_bytes())]).header(RawHeader::new("f", b'0')).bytes(&inner).file("g", b"");
    let tree = accepted(&Fixture::new(), &[], &tar.end());
    assert!(!tree.contains("smuggled\n") && !tree.contains("/smuggled") && tree.contains("/g "), "{tree}");
    // The reverse: what follows is the next header.
    let tar =
        RawTar::new().pax(&[("size", b"0")]).header(RawHeader::new("f", b'0').size(inner.len() as u64)).bytes(&inner);
    let tree = accepted(&Fixture::new(), &[], &tar.end());
    assert!(tree.contains("/smuggled x"), "as Go and GNU tar read it: {tree}");
    // Kinds without data have none, whatever their size says; so do Go's reader and libarchive.
    let tar = RawTar::new().header(RawHeader::new("d", b'5').size(512)).file("x", b"1").file("y", b"");
    let tree = accepted(&Fixture::new(), &[], &tar.end());
    assert!(tree.contains("/x 1"), "{tree}");
}

#[test]
fn privileged_a57_archives_on_which_readers_disagree() {
    if !is_root("privileged_a57_archives_on_which_readers_disagree") {
        return;
    }
    let long = |kind: u8, name: &str| RawTar::new().entry(RawHeader::new("././@LongLink", kind).gnu(), name.as_bytes());
    let file = RawTar::new().file("f", b"").0;
    let pax = |records: &[(&str, &[u8])]| RawTar::new().pax(records);
    let global = |records: &[(&str, &[u8])]| {
        let data: Vec<u8> = records.iter().flat_map(|(key, value)| raw_tar::record(key, value)).collect();
        RawTar::new().entry(RawHeader::new("g", b'g'), &data)
    };
    let bad = [
        ("doubled key", RawTar::new().pax_bytes(b"8 size=\n8 size=\n").bytes(&file)),
        ("malformed", RawTar::new().pax_bytes(b"7 a=bcd\n").bytes(&file)),
        ("no newline", RawTar::new().pax_bytes(b"10 path=ab").bytes(&file)),
        ("negative size", pax(&[("size", b"-1")]).bytes(&file)),
        ("NUL in path", pax(&[("path", b"a\0b")]).bytes(&file)),
        ("two PAX headers", pax(&[("path", b"a")]).pax(&[("path", b"b")]).bytes(&file)),
        ("PAX and GNU", long(b'L', "x").pax(&[("path", b"b")]).bytes(&file)),
        ("two long names", long(b'L', "x").bytes(&long(b'L', "y").0).bytes(&file)),
        ("empty long name", long(b'L', "\0").bytes(&file)),
        ("PAX at the end", pax(&[("path", b"a")])),
        ("long name at the end", long(b'K', "a")),
        ("global between", pax(&[("path", b"a")]).bytes(&global(&[("comment", b"x")]).0).bytes(&file)),
        ("global path", global(&[("path", b"a")]).bytes(&file)),
        ("global size", global(&[("size", b"9")]).bytes(&file)),
        ("global xattr", global(&[("SCHILY.xattr.user.a", b"9")]).bytes(&file)),
        ("one zero block", RawTar::new().bytes(&file).bytes(&[0; 512]).bytes(&file)),
        ("checksum", RawTar::new().bytes(&RawHeader::new("f", b'0').field(148, b"0000001\0").0)),
        ("sparse", RawTar::new().header(RawHeader::new("f", b'S').gnu())),
        ("PAX sparse", pax(&[("GNU.sparse.major", b"1")]).bytes(&file)),
        ("unknown kind", RawTar::new().header(RawHeader::new("f", b'Z'))),
        ("incremental", RawTar::new().header(RawHeader::new("f", b'D').gnu())),
    ];
    for (what, tar) in bad {
        let fixture = Fixture::new();
        let result = attack(&fixture, &[], &tar.end());
        assert!(matches!(result, Err(StoreError::Layer(_))), "{what}: {result:?}");
    }
    let good = global(&[("comment", b"made by git")]).bytes(&long(b'L', "long").0).file("short", b"1");
    let good = good.pax(&[("path", b""), ("comment", b"x")]).file("kept", b"2").end();
    let tree = accepted(&Fixture::new(), &[], &good);
    assert!(tree.contains("/long 1") && tree.contains("/kept 2"), "{tree}");
}

/// Seen to fail without the cap in `TarReader::extension`: an allocation of 8 GiB.
#[test]
fn privileged_a58_headers_that_declare_gigabytes() {
    if !is_root("privileged_a58_headers_that_declare_gigabytes") {
        return;
    }
    for kind in [b'x', b'g', b'L', b'K'] {
        let mut size = [0_u8; 12];
        size[0] = 0x80;
        size[7] = 2;
        let tar = RawTar::new().header(RawHeader::new("h", kind).field(124, &size)).end();
        let error = refused(&Fixture::new(), &[], &tar);
        assert!(error.contains("limit of 1048576 bytes in an extended header"), "{error}");
    }
    let pax = RawTar::new().pax_bytes(b"4294967296 path=x\n").file("f", b"").end();
    assert!(refused(&Fixture::new(), &[], &pax).contains("malformed record"));
}

/// Seen to fail without the checks in `Tar::next`; the limits are small here so that the test is quick.
#[test]
fn privileged_a59_bombs_stop_at_the_limits() {
    if !is_root("privileged_a59_bombs_stop_at_the_limits") {
        return;
    }
    let zeros = vec![0; 64 << 20];
    let tar = RawTar::new().file("zeros", &zeros).end();
    let fixture = Fixture::new();
    let unpack = |packed, limits: UnpackLimits| {
        let descriptor = fixture.descriptor(&pack(&tar, packed));
        let layers = fixture.layers().with_limits(limits);
        let error = layers.unpack(&[], &descriptor, &DiffId::new(Digest::sha256(&tar)), &fixture.lease, &mut |_| {});
        chain(&error.unwrap_err())
    };
    let small = UnpackLimits { bytes: 8 << 20, ..UnpackLimits::default() };
    let narrow = UnpackLimits { ratio_floor: 1 << 20, ratio: 100, ..UnpackLimits::default() };
    for packed in [Packed::Gzip, Packed::Zstd] {
        assert!(unpack(packed, small).contains("uncompressed bytes"), "{packed:?}");
        assert!(unpack(packed, narrow).contains("per compressed byte"), "{packed:?}");
    }
    for (limits, reason) in [(small, "uncompressed bytes"), (narrow, "per compressed byte")] {
        let refused = fixture.layers().with_limits(limits).extract(&mut &tar[..], &|| 1000).map(drop);
        assert!(chain(&refused.unwrap_err()).contains(reason), "an archive of ADD");
    }
    // A frame that asks for a window of 2 GiB: magic, descriptor without content size, window descriptor.
    let window = [&[0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3][..], &[1, 0, 0]].concat();
    let descriptor = fixture.descriptor(&window);
    let result =
        fixture.layers().unpack(&[], &descriptor, &DiffId::new(Digest::sha256(b"")), &fixture.lease, &mut |_| {});
    assert!(chain(&result.unwrap_err()).contains("decompress"), "2 GiB window");
    fixture.check_canary();
}

/// Seen to fail without the check in `count_entry`.
#[test]
fn privileged_a60_entries_and_depth_are_bounded() {
    if !is_root("privileged_a60_entries_and_depth_are_bounded") {
        return;
    }
    let fixture = Fixture::new();
    let mut tar = RawTar::new();
    for number in 0..2000 {
        tar = tar.file(format!("f{number}"), b"");
    }
    let tar = tar.end();
    let descriptor = fixture.descriptor(&pack(&tar, Packed::Gzip));
    let layers = fixture.layers().with_limits(UnpackLimits { entries: 1000, ..UnpackLimits::default() });
    let result = layers.unpack(&[], &descriptor, &DiffId::new(Digest::sha256(&tar)), &fixture.lease, &mut |_| {});
    assert!(matches!(result, Err(StoreError::Layer(LayerError::LimitExceeded { what: "entries", limit: 1000 }))));
    let narrow = fixture.layers().with_limits(UnpackLimits { depth: 3, ..UnpackLimits::default() });
    for (name, fits) in [("a/b/c", true), ("a/b/c/d", false), ("l/d", false)] {
        let tar = RawTar::new().dir("a/b/c").symlink("l", "a/b/c").file(name, b"").end();
        let descriptor = fixture.descriptor(&pack(&tar, Packed::Gzip));
        let diff_id = DiffId::new(Digest::sha256(&tar));
        let result = narrow.unpack(&[], &descriptor, &diff_id, &fixture.lease, &mut |_| {});
        assert_eq!(result.is_ok(), fits, "{name}");
        let text = result.err().map(|error| chain(&error)).unwrap_or_default();
        assert!(fits || text.contains("limit of 3 folders above one another"), "{text}");
    }
    let deep = RawTar::new().pax(&[("path", &b"d/".repeat(1900))]).header(RawHeader::new("d", b'5')).end();
    let record = attack(&fixture, &[], &deep).unwrap();
    assert_eq!(fixture.layers().index(&record.id).unwrap().entries().len(), 1901);
    let deeper = RawTar::new().pax(&[("path", &b"d/".repeat(100_000))]).header(RawHeader::new("d", b'5')).end();
    assert!(Fixture::new().unpack(&[], &deeper).is_err());
    // Symbolic links do not lengthen paths beyond the limit either.
    let mut tar = RawTar::new();
    let mut name = String::from("d");
    for _ in 0..40 {
        let folder = format!("{name}/{}", "x".repeat(200));
        tar = tar.pax(&[("path", folder.as_bytes())]).header(RawHeader::new("d", b'5'));
        tar = tar.pax(&[("linkpath", format!("/{folder}").as_bytes())]).symlink(format!("l{}", folder.len()), "x");
        name = format!("l{}", folder.len());
    }
    assert!(Fixture::new().unpack(&[], &tar.end()).is_err());
}

#[test]
fn privileged_a61_numbers_at_their_edges() {
    if !is_root("privileged_a61_numbers_at_their_edges") {
        return;
    }
    let file = |pax: &[(&str, &[u8])]| RawTar::new().pax(pax).file("f", b"").end();
    for (key, value) in [
        ("mtime", "9223372036854775808"),
        ("mtime", "NaN"),
        ("mtime", "inf"),
        ("uid", "4294967295"),
        ("uid", "4294967296"),
        ("uid", "-2"),
        ("gid", "99999999999999999999"),
        ("size", "-1"),
        ("size", "18446744073709551616"),
        ("size", "1e3"),
    ] {
        refused(&Fixture::new(), &[], &file(&[(key, value.as_bytes())]));
    }
    refused(&Fixture::new(), &[], &RawTar::new().header(RawHeader::new("f", b'0').field(108, &[0xff; 8])).end());
    refused(&Fixture::new(), &[], &RawTar::new().header(RawHeader::new("f", b'0').field(124, &[0xff; 12])).end());
    refused(&Fixture::new(), &[], &RawTar::new().header(RawHeader::new("f", b'0').field(100, b"9999999\0")).end());
    for mtime in ["-1.5", "-62135596800", "253402300800", "9223372036854775807"] {
        let fixture = Fixture::new();
        let descriptor = fixture.descriptor(&file(&[("mtime", mtime.as_bytes())]));
        let diff_id = DiffId::new(descriptor.digest.clone());
        // The file system may cut the time; the index keeps it.
        let record = fixture.layers().unpack(&[], &descriptor, &diff_id, &fixture.lease, &mut |_| {}).unwrap();
        let index = fixture.layers().index(&record.id).unwrap();
        let seconds = mtime.parse::<i64>().unwrap_or(-2);
        assert_eq!(index.get(b"f").unwrap().metadata.mtime.0, seconds);
    }
    let bits = RawTar::new().header(RawHeader::new("f", b'0').field(100, b"0104755\0")).end();
    assert!(accepted(&Fixture::new(), &[], &bits).contains("file 4755 0:0 /f"), "type bits are not permissions");
    let ids = file(&[("uid", b"4294967294"), ("gid", b"2097152")]);
    assert!(accepted(&Fixture::new(), &[], &ids).contains("4294967294:2097152 /f"));
}

#[test]
fn privileged_a62_names_are_bytes() {
    if !is_root("privileged_a62_names_are_bytes") {
        return;
    }
    let fixture = Fixture::new();
    let names: [&[u8]; 7] =
        [b"\xff\xfe", b"new\nline", b"esc\x1b[31m", b"case", b"CASE", "e\u{301}".as_bytes(), "\u{e9}".as_bytes()];
    let mut tar = RawTar::new();
    for name in names {
        tar = tar.file(name, b"").pax(&[("path", &[b"pax-", name].concat())]).file("x", b"");
    }
    let record = attack(&fixture, &[], &tar.end()).unwrap();
    let index = fixture.layers().index(&record.id).unwrap();
    for name in names {
        assert!(index.get(name).is_some() && index.get(&[b"pax-", name].concat()).is_some(), "{}", name.escape_ascii());
    }
    let long = RawTar::new().pax(&[("path", &[b'x'; 256])]).file("x", b"").end();
    let error = refused(&Fixture::new(), &[], &long);
    assert!(error.contains("longer than 255"), "{error}");
    let escape = refused(&Fixture::new(), &[], &RawTar::new().file("../\x1b[31m", b"").end());
    assert!(!escape.contains('\x1b'), "messages are escaped");
}

/// Seen to fail without `drain`.
#[test]
fn privileged_a63_ends_of_streams() {
    if !is_root("privileged_a63_ends_of_streams") {
        return;
    }
    let whole = RawTar::new().file("f", &[7; 1000]).0;
    for cut in [1, 511, 513, 512 + 999] {
        let fixture = Fixture::new();
        assert!(refused(&fixture, &[], &whole[..cut]).contains("cut off"), "{cut}");
    }
    let ends: [Vec<u8>; 6] = [
        whole.clone(),
        whole[..512 + 1000].to_vec(),
        [&whole[..], &[0; 512]].concat(),
        [&whole[..], &[0; 1024]].concat(),
        [&whole[..], &[0; 1024], b"garbage"].concat(),
        [&whole[..], &[0; 1024], &RawTar::new().file("second", b"").end()].concat(),
    ];
    for tar in ends {
        let tree = accepted(&Fixture::new(), &[], &tar);
        assert_eq!(tree.lines().count(), 2, "{tree}");
    }
    for packed in [Packed::Gzip, Packed::Zstd] {
        let fixture = Fixture::new();
        let bytes = pack(&RawTar::new().file("f", &[7; 1000]).end(), packed);
        for broken in [bytes[..bytes.len() - 1].to_vec(), [&bytes[..], b"garbage"].concat(), bytes[..20].to_vec()] {
            let descriptor = fixture.descriptor(&broken);
            let diff_id = DiffId::new(Digest::sha256(&RawTar::new().file("f", &[7; 1000]).end()));
            let result = fixture.layers().unpack(&[], &descriptor, &diff_id, &fixture.lease, &mut |_| {});
            assert!(matches!(result, Err(StoreError::Layer(_))), "{packed:?}: {result:?}");
        }
    }
    assert_eq!(accepted(&Fixture::new(), &[], b""), "dir  0755 0:0 /\n", "an empty stream is an empty archive");
}

/// Seen to fail without the comparison at the end of `unpack_into`.
#[test]
fn privileged_a64_another_tar_than_announced() {
    if !is_root("privileged_a64_another_tar_than_announced") {
        return;
    }
    let fixture = Fixture::new();
    let tar = RawTar::new().file("f", b"x").end();
    let descriptor = fixture.descriptor(&tar);
    let other = DiffId::new(Digest::sha256(b"something else"));
    let result = fixture.layers().unpack(&[], &descriptor, &other, &fixture.lease, &mut |_| {});
    assert!(matches!(result, Err(StoreError::Layer(LayerError::DiffIdMismatch { .. }))), "{result:?}");
    assert_eq!(fixture.store.usage().unwrap().layers.count, 0);
    assert_eq!(layer_store::names(&fixture.store.root().join("layers")), Vec::<String>::new());
    assert!(fixture.layers().find_chain(&[other], &fixture.lease).unwrap().is_none());
}

#[test]
fn privileged_a65_nobody_can_enter_what_is_being_unpacked() {
    if !is_root("privileged_a65_nobody_can_enter_what_is_being_unpacked") {
        return;
    }
    let fixture = Fixture::new();
    let tar = RawTar::new().header(RawHeader::new("./", b'5').mode(0o777)).file("f", &vec![1; 1 << 20]).end();
    let descriptor = fixture.descriptor(&tar);
    let mut modes = Vec::new();
    let scratch = fixture.store.root().join("scratch");
    let mut look = |_| {
        for owner in std::fs::read_dir(&scratch).unwrap() {
            for folder in std::fs::read_dir(owner.unwrap().path()).unwrap() {
                modes.push(folder.unwrap().metadata().unwrap().mode() & 0o777);
            }
        }
    };
    let diff_id = DiffId::new(descriptor.digest.clone());
    fixture.layers().unpack(&[], &descriptor, &diff_id, &fixture.lease, &mut look).unwrap();
    assert!(!modes.is_empty() && modes.iter().all(|mode| mode & 0o077 == 0), "{modes:?}");
}
