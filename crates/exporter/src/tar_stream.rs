//! A tar writer of one dialect: ustar headers, and a PAX header where ustar cannot say it.
//!
//! Names are bytes (A62): PAX records carry them as they are, as GNU tar and Go do, though POSIX asks for UTF-8.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use tar::{EntryType, Header};

/// One entry to be written.
#[derive(Clone, Debug, Default)]
pub(crate) struct TarEntry<'a> {
    /// Relative, without `./`; folders end in `/`.
    pub(crate) path: &'a [u8],
    /// The target of a link.
    pub(crate) link: &'a [u8],
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds and nanoseconds.
    pub(crate) mtime: (i64, u32),
    pub(crate) device: (u32, u32),
    pub(crate) size: u64,
    pub(crate) xattrs: Vec<(&'a [u8], &'a [u8])>,
}

/// Writes entries one after the other.
pub(crate) struct TarStream<W> {
    out: W,
}

const BLOCK: u64 = 512;
/// The largest number in eleven octal digits.
const MAX_OCTAL: u64 = 0o77_777_777_777;
/// The largest owner in seven octal digits.
const MAX_OWNER: u32 = 0o7_777_777;

impl<W: Write> TarStream<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out }
    }

    /// A folder of an archive of ours: no owner, no time.
    pub(crate) fn plain_folder(&mut self, path: &str) -> io::Result<()> {
        let path = format!("{path}/");
        self.append(EntryType::Directory, &TarEntry { path: path.as_bytes(), mode: 0o755, ..TarEntry::default() }, None)
    }

    /// A file of an archive of ours: no owner, no time.
    pub(crate) fn plain_file(&mut self, path: &str, size: u64, data: &mut dyn Read) -> io::Result<()> {
        let entry = TarEntry { path: path.as_bytes(), mode: 0o644, size, ..TarEntry::default() };
        self.append(EntryType::Regular, &entry, Some(data))
    }

    /// Writes an entry and, for a file, exactly `size` bytes of data.
    pub(crate) fn append(&mut self, kind: EntryType, entry: &TarEntry, data: Option<&mut dyn Read>) -> io::Result<()> {
        let mut header = Header::new_ustar();
        let records = fill(&mut header, kind, entry)?;
        if !records.is_empty() {
            self.extended(&records)?;
        }
        self.out.write_all(header.as_bytes())?;
        match data {
            Some(data) => self.data(data, entry.size),
            None => Ok(()),
        }
    }

    fn extended(&mut self, records: &BTreeMap<Vec<u8>, Vec<u8>>) -> io::Result<()> {
        let body: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
        let mut header = Header::new_ustar();
        let entry = TarEntry { path: b"pax", mode: 0o644, size: body.len() as u64, ..TarEntry::default() };
        fill(&mut header, EntryType::XHeader, &entry)?;
        self.out.write_all(header.as_bytes())?;
        self.data(&mut body.as_slice(), entry.size)
    }

    fn data(&mut self, data: &mut dyn Read, size: u64) -> io::Result<()> {
        let written = io::copy(&mut data.take(size), &mut self.out)?;
        if written != size {
            let message = format!("a file became shorter while it was read: {written} of {size} bytes");
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
        }
        let rest = (BLOCK - size % BLOCK) % BLOCK;
        io::copy(&mut io::repeat(0).take(rest), &mut self.out).map(drop)
    }

    /// Ends the archive with two empty blocks.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.out.write_all(&[0; 2 * BLOCK as usize])?;
        self.out.flush()
    }
}

/// `length key=value\n`, where the length counts itself.
fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + rest.to_string().len();
    if rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

/// Fills in a header; what does not fit comes back as PAX records.
fn fill(header: &mut Header, kind: EntryType, entry: &TarEntry) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut records = BTreeMap::new();
    let mut extend = |key: &str, value: &[u8]| drop(records.insert(key.as_bytes().to_vec(), value.to_vec()));
    let ustar = header.as_ustar_mut().expect("made as ustar");
    ustar.typeflag = [kind.as_byte()];
    if !set_name(&mut ustar.name, entry.path) {
        extend("path", entry.path);
    }
    if !set_name(&mut ustar.linkname, entry.link) {
        extend("linkpath", entry.link);
    }
    header.set_mode(entry.mode & 0o7777);
    header.set_uid(entry.uid.min(MAX_OWNER).into());
    header.set_gid(entry.gid.min(MAX_OWNER).into());
    for (key, id) in [("uid", entry.uid), ("gid", entry.gid)].iter().filter(|(_, id)| *id > MAX_OWNER) {
        extend(key, id.to_string().as_bytes());
    }
    header.set_size(entry.size.min(MAX_OCTAL));
    if entry.size > MAX_OCTAL {
        extend("size", entry.size.to_string().as_bytes());
    }
    let whole = u64::try_from(entry.mtime.0).unwrap_or(0).min(MAX_OCTAL);
    header.set_mtime(whole);
    if i64::try_from(whole) != Ok(entry.mtime.0) || entry.mtime.1 != 0 {
        extend("mtime", decimal(entry.mtime).as_bytes());
    }
    header.set_device_major(entry.device.0)?;
    header.set_device_minor(entry.device.1)?;
    for (name, value) in &entry.xattrs {
        records.insert([b"SCHILY.xattr.", *name].concat(), value.to_vec());
    }
    header.set_cksum();
    Ok(records)
}

/// Whether the name fits and is plain ASCII; else the field holds as much of it as fits, for readers without PAX.
fn set_name(field: &mut [u8; 100], name: &[u8]) -> bool {
    let length = name.len().min(field.len());
    field[..length].copy_from_slice(&name[..length]);
    name.len() <= field.len() && name.is_ascii()
}

/// A time as PAX writes it. Nanoseconds count upwards, also before 1970: -1.5 s is second -2 and 5·10⁸ ns.
fn decimal((seconds, nanos): (i64, u32)) -> String {
    let total = i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    let sign = if total < 0 { "-" } else { "" };
    let (whole, fraction) = (total.unsigned_abs() / 1_000_000_000, total.unsigned_abs() % 1_000_000_000);
    match fraction {
        0 => format!("{sign}{whole}"),
        _ => format!("{sign}{whole}.{fraction:09}").trim_end_matches('0').to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ustar_cannot_say_is_said_in_pax() {
        let check = |entry: TarEntry, expect: &str| {
            let records = fill(&mut Header::new_ustar(), EntryType::Regular, &entry).unwrap();
            let text: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
            assert_eq!(text.escape_ascii().to_string(), expect);
        };
        check(TarEntry { path: b"a/b", mtime: (5, 0), ..TarEntry::default() }, "");
        check(TarEntry { path: b"\xff\n", ..TarEntry::default() }, "11 path=\\xff\\n\\n");
        check(TarEntry { mtime: (-2, 500_000_000), ..TarEntry::default() }, "14 mtime=-1.5\\n");
        check(TarEntry { uid: 3_000_000_000, ..TarEntry::default() }, "18 uid=3000000000\\n");
        check(TarEntry { size: 1 << 40, ..TarEntry::default() }, "22 size=1099511627776\\n");
        let xattrs = vec![(b"user.a".as_slice(), b"\0".as_slice())];
        check(TarEntry { xattrs, ..TarEntry::default() }, "25 SCHILY.xattr.user.a=\\x00\\n");
    }

    #[test]
    fn record_lengths_count_themselves() {
        for length in 0..2000 {
            let record = record(b"k", &vec![b'x'; length]);
            let text = std::str::from_utf8(&record).unwrap();
            assert_eq!(text.split(' ').next().unwrap().parse::<usize>().unwrap(), record.len());
        }
    }

    #[test]
    fn a_short_file_is_an_error() {
        let mut tar = TarStream::new(Vec::new());
        assert!(tar.plain_file("a", 3, &mut b"xy".as_slice()).is_err());
    }
}
