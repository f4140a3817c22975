//! Layers as tars and blobs: the dialect, determinism, foreign bytes, other programs' readers.

#![allow(clippy::print_stderr, reason = "a skipped test says so")]

mod layer_store;
mod raw_tar;

use forge_image::{Descriptor, DiffId, Digest, MediaType};
use forge_store::{Compression, FileTimes, LayerId, TarOptions};
use layer_store::{Fixture, Packed, chain, is_root, pack};
use raw_tar::{RawHeader, RawTar};
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

const PLAIN: TarOptions = TarOptions { clamp_mtime: None };

/// One of everything that the dialect knows.
fn everything(fixture: &Fixture) -> LayerId {
    let active = fixture.layers().prepare(&[]).unwrap();
    let script = r#"
        umask 022
        mkdir d; echo data > d/file; ln d/file hard; ln -s d/file soft; ln -s "$(printf %0150d 1)" long-link
        mkfifo -m 600 pipe; mknod -m 666 null c 1 3; mknod -m 660 sda b 8 0
        mkdir -p "$(printf %0200d 2)/$(printf %0090d 3)"; : > "$(printf %0200d 2)/$(printf %0090d 3)/leaf"
        : > "$(printf %0101d 4)"; : > "$(printf 'caf\303\251')"; : > "$(printf 'raw\377')"; : > "$(printf 'new\nline')"
        : > big-id; chown 3000000:2097152 big-id; : > old; : > future; : > set-id; chmod 6755 set-id; : > attributes
        chmod 1777 d
        find . -exec touch -h -d @1000000000.75 {} +
        touch -d @-5 old; touch -d @9999999999 future
    "#;
    run(active.upper(), "bash", &["-euc", script]);
    let set = |name: &str, value: &[u8]| {
        let path = active.upper().join("attributes");
        rustix::fs::lsetxattr(path, name, value, rustix::fs::XattrFlags::empty()).unwrap();
    };
    set("user.text", b"value");
    set("user.binary", b"\x00\n=\xff");
    set("security.capability", &[&[1, 0, 0, 2][..], &[0, 4, 0, 0], &[0; 12]].concat());
    rustix::fs::utimensat(
        rustix::fs::CWD,
        active.upper().join("attributes"),
        &rustix::fs::Timestamps {
            last_access: rustix::fs::Timespec { tv_sec: 0, tv_nsec: 0 },
            last_modification: rustix::fs::Timespec { tv_sec: 1_000_000_000, tv_nsec: 0 },
        },
        rustix::fs::AtFlags::empty(),
    )
    .unwrap();
    fixture.layers().commit(active, &fixture.lease).unwrap().id
}

fn run(folder: &Path, program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

fn tar_of(fixture: &Fixture, id: &LayerId, options: &TarOptions) -> Vec<u8> {
    let mut tar = Vec::new();
    let diff_id = fixture.layers().write_tar(id, options, &mut tar).unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(*diff_id.digest(), Digest::sha256(&tar));
    tar
}

/// The output of a program that is fed; `None` where it is not installed.
fn filter(program: &str, arguments: &[&str], input: &[u8]) -> Option<Vec<u8>> {
    let child = Command::new(program).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let Ok(mut child) = child else {
        eprintln!("SKIPPED (not installed): {program}");
        return None;
    };
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let feeder = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    feeder.join().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}");
    Some(output.stdout)
}

/// The dialect, byte for byte: a change here changes every DiffId that forge makes.
#[test]
fn privileged_the_dialect_is_what_it_was() {
    if !is_root("privileged_the_dialect_is_what_it_was") {
        return;
    }
    let fixture = Fixture::new();
    let tar = tar_of(&fixture, &everything(&fixture), &PLAIN);
    assert_eq!(
        Digest::sha256(&tar).as_str(),
        "sha256:cc747760564056a600b5dc993acdeeb8c8ea119b08d34a3c7c3a2dbc68665d03"
    );
}

#[test]
fn privileged_everything_comes_back() {
    if !is_root("privileged_everything_comes_back") {
        return;
    }
    let fixture = Fixture::new();
    let id = everything(&fixture);
    let tar = tar_of(&fixture, &id, &PLAIN);
    let again = fixture.unpack(&[], &tar).unwrap();
    let (before, after) = (fixture.layers().index(&id).unwrap(), fixture.layers().index(&again.id).unwrap());
    assert_eq!(before.entries().len(), after.entries().len());
    for (mut before, after) in before.entries().iter().cloned().zip(after.entries()).skip(1) {
        before.metadata.mtime.1 = 0;
        assert_eq!(before, *after);
    }
    assert_eq!(before.content_digest(&FileTimes::Ignored), after.content_digest(&FileTimes::Ignored));
}

/// GNU tar and Python's tarfile see the same names, kinds, numbers and links.
#[test]
fn privileged_other_readers_agree() {
    if !is_root("privileged_other_readers_agree") {
        return;
    }
    let fixture = Fixture::new();
    let id = everything(&fixture);
    let tar = tar_of(&fixture, &id, &PLAIN);
    let index = fixture.layers().index(&id).unwrap();
    let expected: Vec<String> = index.entries()[1..]
        .iter()
        .map(|entry| {
            let meta = &entry.metadata;
            format!("{} {:o} {} {} {}", entry.path.escape_ascii(), meta.mode, meta.uid, meta.gid, meta.mtime.0)
        })
        .collect();
    let script = r#"
import sys, tarfile
for m in tarfile.open(fileobj=sys.stdin.buffer, mode='r|'):
    name = m.name.encode('utf-8', 'surrogateescape')
    out = ''.join(chr(b) if 32 <= b < 127 else '\\n' if b == 10 else '\\x%02x' % b for b in name)
    print(out, '%o' % m.mode, m.uid, m.gid, int(m.mtime))
"#;
    if let Some(listed) = filter("python3", &["-c", script], &tar) {
        let listed = String::from_utf8(listed).unwrap();
        assert_eq!(listed.lines().collect::<Vec<_>>(), expected);
    }
    let folder = tempfile::tempdir().unwrap();
    let arguments =
        ["-xpf", "-", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-C", folder.path().to_str().unwrap()];
    if filter("tar", &arguments, &tar).is_some() {
        let ours = fixture.layers().lower_dirs(std::slice::from_ref(&id)).unwrap()[0].clone();
        let normal = |path: &Path| -> Vec<String> {
            let text = layer_store::disk(path).replace(path.to_str().unwrap(), "");
            // The root's own line, and fractions of seconds, are not in the tar.
            text.lines().skip(1).map(|line| line.replace(".750000000", ".0")).collect()
        };
        assert_eq!(normal(folder.path()), normal(&ours));
    }
}

#[test]
fn privileged_clamped_times() {
    if !is_root("privileged_clamped_times") {
        return;
    }
    let fixture = Fixture::new();
    let id = everything(&fixture);
    let clamped = TarOptions { clamp_mtime: Some(500) };
    let again = fixture.unpack(&[], &tar_of(&fixture, &id, &clamped)).unwrap();
    for entry in &fixture.layers().index(&again.id).unwrap().entries()[1..] {
        let expected = if entry.path == b"old" { -5 } else { 500 };
        assert_eq!(entry.metadata.mtime, (expected, 0), "{}", entry.path.escape_ascii());
    }
    let of = |tar| fixture.layers().diff_id(&id, tar).unwrap();
    assert_ne!(of(&PLAIN), of(&clamped));
    assert_eq!(of(&clamped), fixture.layers().diff_id(&id, &clamped).unwrap());
}

/// Some megabytes that are not all alike, and a file that is cut inside.
fn large(fixture: &Fixture) -> LayerId {
    let active = fixture.layers().prepare(&[]).unwrap();
    let mut bytes = vec![0; 7 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes.iter_mut().for_each(|byte| *byte = b'a' + *byte % 16);
    std::fs::write(active.upper().join("big"), &bytes).unwrap();
    for number in 0..600_usize {
        let from = number * 7919 % 4_000_000;
        std::fs::write(active.upper().join(format!("f{number:04}")), &bytes[from..from + 100 + number * 50]).unwrap();
    }
    run(active.upper(), "find", &[".", "-exec", "touch", "-d", "@1", "{}", "+"]);
    fixture.layers().commit(active, &fixture.lease).unwrap().id
}

const COMPRESSIONS: [Compression; 3] =
    [Compression::None, Compression::Gzip { level: None }, Compression::Zstd { level: None }];

/// Seen to fail with chunks written in the order in which they are done.
#[test]
fn blobs_are_the_same_on_any_number_of_threads() {
    let fixture = Fixture::new();
    let id = large(&fixture);
    for compression in COMPRESSIONS {
        let digests: Vec<Descriptor> = [1, 4]
            .into_iter()
            .map(|threads| {
                let other = Fixture::new();
                let id = large(&other);
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let blob = || other.layers().blob(&id, &compression, &PLAIN, &other.lease, &mut |_| {}).unwrap();
                pool.install(blob).descriptor
            })
            .collect();
        let here = fixture.layers().blob(&id, &compression, &PLAIN, &fixture.lease, &mut |_| {}).unwrap();
        assert_eq!(digests, vec![here.descriptor.clone(), here.descriptor], "{compression:?}");
    }
}

#[test]
fn blobs_hold_the_tar_and_are_found_again() {
    let fixture = Fixture::new();
    let id = large(&fixture);
    let tar = tar_of(&fixture, &id, &PLAIN);
    let decompress: [(&str, &[&str]); 3] = [("cat", &[]), ("gzip", &["-dc"]), ("zstd", &["-dcq"])];
    let types = [MediaType::OciLayer, MediaType::OciLayerGzip, MediaType::OciLayerZstd];
    for ((compression, program), media_type) in COMPRESSIONS.into_iter().zip(decompress).zip(types) {
        let mut progress = Vec::new();
        let make = |progress: &mut dyn FnMut(u64)| {
            fixture.layers().blob(&id, &compression, &PLAIN, &fixture.lease, progress).unwrap()
        };
        let blob = make(&mut |total| progress.push(total));
        assert!(progress.is_sorted() && *progress.last().unwrap() > 7 << 20);
        assert_eq!((blob.descriptor.media_type.clone(), blob.diff_id.digest()), (media_type, &Digest::sha256(&tar)));
        let bytes = fixture.store.blobs().read(&blob.descriptor.digest, 1 << 30).unwrap();
        assert_eq!(bytes.len() as u64, blob.descriptor.size);
        for (program, arguments) in [program, ("pigz", &["-dc"][..])] {
            if program != "pigz" || matches!(compression, Compression::Gzip { .. }) {
                let plain = filter(program, arguments, &bytes);
                assert!(plain.is_none_or(|plain| plain == tar), "{program}");
            }
        }
        let mut again = 0;
        assert_eq!(make(&mut |_| again += 1), blob);
        assert_eq!(again, 0, "found, not made");
    }
    let record = fixture.layers().get(&id).unwrap().unwrap();
    assert_eq!(record.blobs.len(), 3);
    assert_eq!(record.diff_id.unwrap().digest(), &Digest::sha256(&tar));
    let wrong = Compression::Gzip { level: Some(23) };
    let error = fixture.layers().blob(&id, &wrong, &PLAIN, &fixture.lease, &mut |_| {}).unwrap_err();
    assert_eq!(error.to_string(), "gzip has no compression level 23");
}

#[test]
fn a_changed_tree_is_noticed() {
    let fixture = Fixture::new();
    let id = large(&fixture);
    let tree = fixture.layers().lower_dirs(std::slice::from_ref(&id)).unwrap()[0].clone();
    let diff_id = fixture.layers().diff_id(&id, &PLAIN).unwrap();
    std::fs::write(tree.join("f0000"), [b'x'; 100]).unwrap();
    let error = fixture.layers().write_tar(&id, &PLAIN, &mut std::io::sink()).unwrap_err();
    assert!(error.to_string().contains("does not match its index"), "{error}");
    std::fs::write(tree.join("f0000"), b"shorter").unwrap();
    let error = fixture.layers().write_tar(&id, &PLAIN, &mut std::io::sink()).unwrap_err();
    assert!(error.to_string().contains("size changed"), "{error}");
    assert_eq!(fixture.layers().diff_id(&id, &PLAIN).unwrap(), diff_id);
}

/// A layer as no writer of ours makes it: unsorted, GNU headers, no entry for `tmp`, two gzip members, garbage behind.
fn foreign_tar() -> Vec<u8> {
    let long = "tmp/".to_owned() + &"n".repeat(120);
    RawTar::new()
        .file("z-last", b"1")
        .entry(RawHeader::new("././@LongLink", b'L').gnu(), format!("{long}\0").as_bytes())
        .entry(RawHeader::new("tmp/nnn", b'0').gnu().field(265, b"builder"), b"2")
        .file("./tmp//x", b"3")
        .file("missing/parent/y", b"4")
        .bytes(&[0; 1024])
        .bytes(b"bytes behind the end")
        .0
}

/// Trial 1 of the design notes at the level of the store: pull, run, push, save.
#[test]
fn privileged_a_foreign_layer_keeps_its_bytes() {
    if !is_root("privileged_a_foreign_layer_keeps_its_bytes") {
        return;
    }
    let fixture = Fixture::new();
    let base = RawTar::new().header(RawHeader::new("tmp/", b'5').mode(0o1777).owner(7, 8).mtime(99)).end();
    let stack = fixture.stack(std::slice::from_ref(&base));
    let tar = foreign_tar();
    let (head, tail) = tar.split_at(1000);
    let bytes = [pack(head, Packed::Gzip), pack(tail, Packed::Gzip)].concat();
    let descriptor = fixture.descriptor(&bytes);
    let diff_id = DiffId::new(Digest::sha256(&tar));
    let mut read = 0;
    let unpack = |progress: &mut dyn FnMut(u64)| {
        fixture.layers().unpack(&stack, &descriptor, &diff_id, &fixture.lease, progress).unwrap()
    };
    let layer = unpack(&mut |total| read = total);
    assert_eq!(read, bytes.len() as u64);
    let both = [&stack[..], std::slice::from_ref(&layer.id)].concat();
    let tree = fixture.tree(&both);
    assert!(tree.contains("dir  1777 7:8 /tmp\n"), "the implied parent keeps its mode: {tree}");
    assert!(tree.contains("dir  0755 0:0 /missing\n") && tree.contains("/tmp/nnnn"), "{tree}");

    // Run: a step on top leaves it alone. Push and save: the same bytes, digest and DiffId.
    let active = fixture.layers().prepare(&both).unwrap();
    std::fs::write(active.upper().join("made-by-a-step"), "").unwrap();
    fixture.layers().commit(active, &fixture.lease).unwrap();
    assert_eq!(fixture.layers().diff_id(&layer.id, &PLAIN).unwrap(), diff_id);
    assert_eq!(tar_of(&fixture, &layer.id, &PLAIN), tar);
    let pushed = fixture.layers().blob(&layer.id, &COMPRESSIONS[1], &PLAIN, &fixture.lease, &mut |_| {}).unwrap();
    assert_eq!((&pushed.descriptor, &pushed.diff_id, pushed.foreign), (&descriptor, &diff_id, true));
    assert_eq!(fixture.store.blobs().read(&pushed.descriptor.digest, 1 << 20).unwrap(), bytes);
    assert_eq!(fixture.layers().foreign_blob(&layer.id).unwrap(), Some(pushed));

    // Another compression carries the same tar; a clamp cannot.
    let zstd = fixture.layers().blob(&layer.id, &COMPRESSIONS[2], &PLAIN, &fixture.lease, &mut |_| {}).unwrap();
    let repacked = fixture.store.blobs().read(&zstd.descriptor.digest, 1 << 20).unwrap();
    assert_eq!((zstd::decode_all(&repacked[..]).unwrap(), zstd.diff_id), (tar, diff_id.clone()));
    let clamp = TarOptions { clamp_mtime: Some(0) };
    let clamped = fixture.layers().blob(&layer.id, &COMPRESSIONS[1], &clamp, &fixture.lease, &mut |_| {}).unwrap();
    assert!(clamped.diff_id != diff_id && !clamped.foreign && clamped.clamp == Some(0));
    assert_eq!(fixture.layers().diff_id(&layer.id, &PLAIN).unwrap(), diff_id, "the clamp is on the side");

    // The same stack is unpacked once.
    assert_eq!(unpack(&mut |_| panic!("nothing is read")).id, layer.id);
    let stack_ids = [DiffId::new(Digest::sha256(&base)), diff_id];
    assert_eq!(fixture.layers().find_chain(&stack_ids, &fixture.lease).unwrap(), Some(both));
    assert_eq!(fixture.layers().find_chain(&stack_ids[1..], &fixture.lease).unwrap(), None, "another chain");
}

/// The member that begins at an offset, inflated alone as a lazy puller does it.
fn member_at(blob: &[u8], offset: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut flate2::bufread::GzDecoder::new(&blob[offset..]), &mut bytes).unwrap();
    bytes
}

/// Reads the footer, the table and every file by its place in it, by the rules of `estargz.md` and no code of the writer's.
// Meant to fail with offsets one member early, and with the landmark left out.
#[test]
fn privileged_files_are_found_by_the_table_of_contents() {
    if !is_root("privileged_files_are_found_by_the_table_of_contents") {
        return;
    }
    let fixture = Fixture::new();
    let active = fixture.layers().prepare(&[]).unwrap();
    let script = "umask 022; mkdir d; echo data > d/file; ln d/file hard; ln -s d/file soft; mknod null c 1 3; : > empty
                  head -c 9000000 /dev/zero > big; head -c 4194304 /dev/zero > piece; setfattr -n user.x -v y d/file || true";
    run(active.upper(), "bash", &["-euc", script]);
    let layer = fixture.layers().commit(active, &fixture.lease).unwrap().id;
    let estargz = Compression::Estargz { level: None };
    let made = fixture.layers().blob(&layer, &estargz, &PLAIN, &fixture.lease, &mut |_| {}).unwrap();
    let blob = std::fs::read(fixture.store.blobs().path(&made.descriptor.digest)).unwrap();

    let footer = &blob[blob.len() - 51..];
    assert_eq!(
        (&footer[..4], &footer[12..16], &footer[32..38]),
        (&b"\x1f\x8b\x08\x04"[..], &b"SG\x16\0"[..], &b"STARGZ"[..])
    );
    let table_at = usize::from_str_radix(std::str::from_utf8(&footer[16..32]).unwrap(), 16).unwrap();
    let table = member_at(&blob, table_at);
    assert_eq!(&table[..18], b"stargz.index.json\0");
    let size = usize::from_str_radix(std::str::from_utf8(&table[124..135]).unwrap(), 8).unwrap();
    let json = &table[512..512 + size];
    let annotation = |key: &str| made.descriptor.annotations[key].as_str().unwrap().to_owned();
    assert_eq!(annotation("containerd.io/snapshot/stargz/toc.digest"), Digest::sha256(json).to_string());
    let rows: serde_json::Value = serde_json::from_slice(json).unwrap();
    let rows = rows["entries"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row["name"].as_str().unwrap()).collect();
    let expect =
        [".no.prefetch.landmark", "big", "big", "big", "d/", "d/file", "empty", "hard", "null", "piece", "soft"];
    assert_eq!(names, expect);

    let mut files = std::collections::BTreeMap::<&str, Vec<u8>>::new();
    for row in rows.iter().filter(|row| row["offset"].is_u64()) {
        let member = member_at(&blob, row["offset"].as_u64().unwrap() as usize);
        let name = row["name"].as_str().unwrap();
        let whole = rows.iter().find(|it| it["name"] == name && it["type"] == "reg").unwrap()["size"].as_u64().unwrap();
        let at = row["chunkOffset"].as_u64().unwrap_or(0);
        let length = row["chunkSize"].as_u64().filter(|size| *size > 0).unwrap_or(whole - at);
        let piece = &member[..length as usize];
        assert_eq!(row["chunkDigest"], Digest::sha256(piece).to_string().as_str(), "{name}");
        files.entry(name).or_default().extend_from_slice(piece);
    }
    for (name, bytes) in &files {
        let row = rows.iter().find(|row| row["name"] == *name && row["type"] == "reg").unwrap();
        assert_eq!(row["digest"], Digest::sha256(bytes).to_string().as_str(), "{name}");
    }
    assert_eq!(
        (files["d/file"].as_slice(), files["big"].len(), files["piece"].len()),
        (&b"data\n"[..], 9_000_000, 4 << 20)
    );
    assert_eq!(files[".no.prefetch.landmark"], [0xf]);
    let row = |name: &str| rows.iter().find(|row| row["name"] == name).unwrap();
    assert_eq!((&row("hard")["type"], &row("hard")["linkName"]), (&"hardlink".into(), &"d/file".into()));
    assert_eq!((&row("null")["type"], &row("null")["devMajor"]), (&"char".into(), &1.into()));

    // To everybody else it is a layer as any other.
    let mut tar = Vec::new();
    std::io::Read::read_to_end(&mut flate2::bufread::MultiGzDecoder::new(&blob[..]), &mut tar).unwrap();
    assert_eq!(made.diff_id, DiffId::new(Digest::sha256(&tar)));
    assert_eq!(annotation("io.containers.estargz.uncompressed-size"), tar.len().to_string());
    let other = Fixture::new();
    let unpacked = other.unpack(&[], &tar).unwrap();
    assert!(other.tree(&[unpacked.id]).contains("/stargz.index.json"));
    let again = Fixture::new();
    assert!(
        again.layers().blob(&again.unpack(&[], &tar).unwrap().id, &estargz, &PLAIN, &again.lease, &mut |_| {}).is_err()
    );
}

/// Reads the last frame, the table and every file by its place in it, as containers/storage describes them.
// Meant to fail with the padding left in the frame of the file before it.
#[test]
fn privileged_files_are_found_by_podmans_table() {
    if !is_root("privileged_files_are_found_by_podmans_table") {
        return;
    }
    let fixture = Fixture::new();
    let active = fixture.layers().prepare(&[]).unwrap();
    let script = "umask 022; mkdir d; echo data > d/file; ln d/file hard; : > empty; head -c 9000000 /dev/zero > big";
    run(active.upper(), "bash", &["-euc", script]);
    let layer = fixture.layers().commit(active, &fixture.lease).unwrap().id;
    let chunked = Compression::ZstdChunked { level: None };
    let made = fixture.layers().blob(&layer, &chunked, &PLAIN, &fixture.lease, &mut |_| {}).unwrap();
    let blob = std::fs::read(fixture.store.blobs().path(&made.descriptor.digest)).unwrap();
    let annotation = |key: &str| {
        made.descriptor.annotations[&format!("io.github.containers.zstd-chunked.{key}")].as_str().unwrap().to_owned()
    };
    let footer = &blob[blob.len() - 64..];
    let number = |at: usize| u64::from_le_bytes(footer[at..at + 8].try_into().unwrap()) as usize;
    let (at, length, size) = (number(0), number(8), number(16));
    assert_eq!((annotation("manifest-position"), &footer[56..]), (format!("{at}:{length}:{size}:1"), &b"GNUlInUx"[..]));
    let compressed = &blob[at..at + length];
    assert_eq!(annotation("manifest-checksum"), Digest::sha256(compressed).to_string());
    let table = zstd::decode_all(compressed).unwrap();
    assert_eq!(table.len(), size);
    let table: serde_json::Value = serde_json::from_slice(&table).unwrap();
    let rows = table["entries"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["big", "big", "big", "d/", "d/file", "empty", "hard"]);
    let range = |row: &serde_json::Value, end: &serde_json::Value| {
        let place = |value: &serde_json::Value| value.as_u64().unwrap_or(0) as usize;
        zstd::decode_all(&blob[place(&row["offset"])..place(end)]).unwrap()
    };
    let file = &rows[4];
    assert_eq!(range(file, &file["endOffset"]), b"data\n", "nothing but the file");
    assert_eq!(file["digest"], Digest::sha256(b"data\n").to_string().as_str());
    let ends = [&rows[1]["offset"], &rows[2]["offset"], &rows[0]["endOffset"]];
    let pieces: Vec<Vec<u8>> = rows[..3].iter().zip(ends).map(|(row, end)| range(row, end)).collect();
    for (row, piece) in rows.iter().zip(&pieces) {
        assert_eq!(row["chunkDigest"], Digest::sha256(piece).to_string().as_str());
        assert_eq!(row["chunkSize"], piece.len());
    }
    assert_eq!(pieces.concat(), vec![0; 9_000_000]);
    assert_eq!(
        (&rows[1]["type"], &rows[1]["chunkOffset"], &rows[0]["size"]),
        (&"chunk".into(), &(4 << 20).into(), &9_000_000.into())
    );
    let tar = zstd::decode_all(&blob[..]).unwrap();
    assert_eq!(made.diff_id, DiffId::new(Digest::sha256(&tar)));
    assert_eq!(made.diff_id, fixture.layers().diff_id(&layer, &PLAIN).unwrap(), "the plain layer's tar");
}
