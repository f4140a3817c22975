use super::raw_tar::{self, RawHeader, RawTar};
use super::*;
use crate::tests::fuzz;

#[test]
fn a61_numbers_are_read_whole_or_not_at_all() {
    assert_eq!(octal(b"0000644\0"), Some(0o644));
    assert_eq!(octal(b"  644 \0\0"), Some(0o644));
    assert_eq!(octal(b"\0\0\0\0\0\0\0\0"), Some(0));
    assert_eq!(octal(b"12\x0034567"), Some(0o12));
    for bad in [&b"8\0\0\0"[..], b"-1\0\0", b"1 2\0", b"0x1\0", b"+7\0\0"] {
        assert_eq!(octal(bad), None, "{}", bad.escape_ascii());
    }
    assert_eq!(binary(&[0x80, 0, 0, 1, 0, 0, 0, 0]), Some(1 << 32));
    assert_eq!(binary(&[0xff; 8]), Some(-1));
    assert_eq!(binary(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe]), Some(-2));
    assert_eq!(binary(&[0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), None, "2^80 is not cut to 0");
    assert_eq!(binary(&[0x80, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0]), None, "2^63 is not negative");
}

/// One of every kind of header, in three dialects.
fn corpus() -> Vec<u8> {
    let long = "n/".repeat(80);
    RawTar::new()
        .dir("d/")
        .file("d/f", &[7; 700])
        .symlink("l", "d/f")
        .hard_link("h", "d/f")
        .header(RawHeader::new("c", b'3').device(1, 3))
        .entry(RawHeader::new("././@LongLink", b'L').gnu(), long.as_bytes())
        .file("short", b"x")
        .pax(&[("path", b"pax"), ("mtime", b"-1.5"), ("SCHILY.xattr.user.a", b"1"), ("size", b"3")])
        .header(RawHeader::new("y", b'0'))
        .data(b"abc")
        .entry(RawHeader::new("g", b'g'), &raw_tar::record("comment", b"x"))
        .file("last", b"")
        .end()
}

fn read_all(bytes: &[u8]) -> Result<Vec<TarEntry>, ReadError> {
    let limits = UnpackLimits { header: 4096, entries: 100, ..UnpackLimits::default() };
    let mut reader = TarReader::new(bytes, limits);
    let mut entries = Vec::new();
    while let Some(entry) = reader.next()? {
        entries.push(entry);
    }
    assert_eq!(reader.drain()?, bytes.len() as u64, "every byte is seen");
    Ok(entries)
}

#[test]
fn a_valid_archive_is_read_as_it_is() {
    let entries = read_all(&corpus()).unwrap();
    let names: Vec<String> = entries.iter().map(|entry| entry.name.escape_ascii().to_string()).collect();
    let long = "n/".repeat(80);
    assert_eq!(names, ["d/", "d/f", "l", "h", "c", &long, "pax", "last"]);
    assert_eq!(entries[6].kind, TarKind::File { size: 3 });
    assert_eq!(entries[6].metadata.mtime, (-2, 500_000_000));
}

/// P04: whatever the bytes, an answer or an error, in bounded time and memory; an answer saw every byte.
#[test]
fn fuzz_p04_mutated_archives_are_read_or_refused() {
    let corpus = corpus();
    let (mut taken, mut cases) = (0, 0);
    fuzz::run("P04", |random| {
        let bytes = mutated(random, corpus.clone());
        taken += usize::from(read_all(&bytes).is_ok());
        cases += 1;
    });
    assert!(cases < 1000 || taken > cases / 60, "some mutations leave a valid archive: {taken} of {cases}");
}

fn mutated(random: &mut fuzz::Random, mut bytes: Vec<u8>) -> Vec<u8> {
    for _ in 0..1 + random.below(4) {
        let header = random.below(bytes.len() / BLOCK) * BLOCK;
        match random.below(5) {
            0 => bytes[header + random.below(BLOCK)] = random.number() as u8,
            1 => bytes.truncate(random.below(bytes.len())),
            2 => drop(bytes.drain(header..header + BLOCK)),
            3 => bytes[header + 124..header + 136]
                .copy_from_slice([b"77777777777\0", &[0xff; 12], b"00000001000\0"][random.below(3)]),
            _ => bytes[header + 156] = b"0123456xgLKSVMD7\0Z"[random.below(18)],
        }
        if bytes.len() < 2 * BLOCK {
            break;
        }
        // Most headers are sealed again: else the checksum would end every run at once.
        if random.below(8) > 0 && header + BLOCK <= bytes.len() {
            let block: [u8; BLOCK] = bytes[header..header + BLOCK].try_into().unwrap();
            bytes[header..header + BLOCK].copy_from_slice(&RawHeader(block).sealed());
        }
    }
    bytes
}
