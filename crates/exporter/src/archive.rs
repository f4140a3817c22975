//! Reads a tar archive of images that somebody else made, without ever using a name in it as a path (A33).

use crate::ExportError;
use forge_image::Digest;
use forge_registry::TransferContext;
use forge_store::ScratchDir;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::PathBuf;
use tar::{EntryType, Header};

/// How much of an archive is taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadLimits {
    /// Bytes of the uncompressed archive.
    pub bytes: u64,
    /// Entries.
    pub entries: u64,
}

impl Default for LoadLimits {
    /// More than any image that is handed around, less than what fills a disk unnoticed.
    fn default() -> Self {
        Self { bytes: 1 << 40, entries: 1 << 20 }
    }
}

const BLOCK: u64 = 512;
/// Extended headers larger than this are refused (A58).
const MAX_EXTENDED: u64 = 1 << 20;
/// As many links as are followed from one name to a file.
const MAX_LINKS: usize = 8;

/// A file of the archive, kept where the archive cannot choose the place.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Member {
    /// A blob that named its own digest; it is in the store, verified.
    Blob(Digest),
    /// Any other file, in the scratch folder under a number.
    File(PathBuf),
    /// Another name of a file of the archive: old docker archives link equal layers.
    Link(String),
}

/// The files of an archive by their cleaned names.
pub(crate) struct Archive {
    members: HashMap<String, Member>,
    /// Removed with the archive.
    _scratch: ScratchDir,
}

impl Archive {
    /// Reads an archive to its end; gzip and zstd around it are taken off, as docker does.
    pub(crate) fn read(
        context: &TransferContext,
        stream: Box<dyn Read + Send>,
        limits: LoadLimits,
    ) -> Result<Self, ExportError> {
        let scratch = context.store.scratch("load").map_err(ExportError::store("make a scratch folder"))?;
        let stream = decompressed(stream).map_err(ExportError::ReadStream)?;
        let mut reader = Reader::new(stream, limits);
        let mut members = HashMap::new();
        while let Some(entry) = reader.next()? {
            let Some((name, member)) = take_in(context, &scratch, &mut reader, entry, members.len())? else { continue };
            if members.insert(name.clone(), member).is_some() {
                return Err(invalid(format!("{name:?} is in it twice")));
            }
        }
        reader.finish()?;
        Ok(Self { members, _scratch: scratch })
    }

    /// What a name stands for, links followed.
    pub(crate) fn member(&self, name: &str) -> Result<Option<&Member>, ExportError> {
        let mut name = clean(name)?;
        for _ in 0..MAX_LINKS {
            match self.members.get(&name) {
                Some(Member::Link(target)) => name = target.clone(),
                other => return Ok(other),
            }
        }
        Err(invalid(format!("too many links from {name:?}")))
    }

    /// The bytes of a file, if there is one of that name.
    pub(crate) fn bytes(
        &self,
        context: &TransferContext,
        name: &str,
        limit: u64,
    ) -> Result<Option<Vec<u8>>, ExportError> {
        let Some(member) = self.member(name)? else { return Ok(None) };
        let mut bytes = Vec::new();
        let file = open(context, member)?;
        file.take(limit + 1).read_to_end(&mut bytes).map_err(ExportError::ReadStream)?;
        match bytes.len() as u64 > limit {
            true => Err(ExportError::TooLarge { what: "bytes in one document", limit }),
            false => Ok(Some(bytes)),
        }
    }
}

/// Opens the bytes of a member.
pub(crate) fn open(context: &TransferContext, member: &Member) -> Result<File, ExportError> {
    match member {
        Member::Blob(digest) => context.store.blobs().open(digest).map_err(ExportError::store("open a blob")),
        Member::File(path) => File::open(path).map_err(ExportError::ReadStream),
        Member::Link(_) => unreachable!("links are followed before"),
    }
}

pub(crate) fn invalid(reason: impl Into<String>) -> ExportError {
    ExportError::Archive { reason: reason.into() }
}

/// gzip or zstd around the archive, known by its first bytes.
fn decompressed(stream: Box<dyn Read + Send>) -> io::Result<Box<dyn Read + Send>> {
    let mut stream = BufReader::with_capacity(1 << 20, stream);
    let start = io::BufRead::fill_buf(&mut stream)?;
    if start.starts_with(&[0x1f, 0x8b]) {
        return Ok(Box::new(flate2::bufread::MultiGzDecoder::new(stream)));
    }
    if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        let mut decoder = zstd::stream::read::Decoder::with_buffer(stream)?;
        // 128 MiB, so that a hostile frame cannot ask for gigabytes (A59).
        decoder.window_log_max(27)?;
        return Ok(Box::new(decoder));
    }
    Ok(Box::new(stream))
}

/// An entry whose data comes next in the stream.
#[derive(Debug)]
pub(crate) struct Entry {
    pub name: String,
    pub kind: EntryType,
    link: String,
    pub size: u64,
}

/// Reads entry by entry.
pub(crate) struct Reader<R> {
    stream: io::Take<R>,
    limits: LoadLimits,
    entries: u64,
}

impl<R: Read> Reader<R> {
    pub(crate) fn new(stream: R, limits: LoadLimits) -> Self {
        Self { stream: stream.take(limits.bytes), limits, entries: 0 }
    }

    /// Reads what stands behind the last entry: whoever writes into a pipe pads archives, and gzip's checksum comes last.
    pub(crate) fn finish(mut self) -> Result<(), ExportError> {
        io::copy(&mut self.stream, &mut io::sink()).map(drop).map_err(ExportError::ReadStream)
    }

    /// The next entry; `None` at the end. Its data must have been read.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, ExportError> {
        let mut extended = Extended::default();
        loop {
            let Some(header) = self.header()? else {
                return match extended.is_empty() {
                    true => Ok(None),
                    false => Err(invalid("it ends after an extended header")),
                };
            };
            let size = header.entry_size().map_err(ExportError::ReadStream)?;
            match header.entry_type() {
                EntryType::XHeader => extended.pax(&self.extension(size)?)?,
                EntryType::XGlobalHeader => drop(self.extension(size)?),
                EntryType::GNULongName => extended.name = Some(self.long_text(size)?),
                EntryType::GNULongLink => extended.link = Some(self.long_text(size)?),
                kind => return extended.entry(&header, kind, size).map(Some),
            }
        }
    }

    fn header(&mut self) -> Result<Option<Header>, ExportError> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(ExportError::TooLarge { what: "entries", limit: self.limits.entries });
        }
        let mut header = Header::new_old();
        let mut filled = 0;
        let block = header.as_mut_bytes();
        while filled < block.len() {
            match self.stream.read(&mut block[filled..]).map_err(ExportError::ReadStream)? {
                0 if filled == 0 => return self.end().map(|()| None),
                0 => return Err(self.cut()),
                count => filled += count,
            }
        }
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        check_sum(&header)?;
        Ok(Some(header))
    }

    /// An archive may end without empty blocks, but not at the limit.
    fn end(&self) -> Result<(), ExportError> {
        match self.stream.limit() {
            0 => Err(self.cut()),
            _ => Ok(()),
        }
    }

    fn cut(&self) -> ExportError {
        match self.stream.limit() {
            0 => ExportError::TooLarge { what: "bytes", limit: self.limits.bytes },
            _ => ExportError::ReadStream(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>, ExportError> {
        if size > MAX_EXTENDED {
            return Err(ExportError::TooLarge { what: "bytes in an extended header", limit: MAX_EXTENDED });
        }
        let mut bytes = Vec::new();
        self.data(size, &mut bytes)?;
        Ok(bytes)
    }

    fn long_text(&mut self, size: u64) -> Result<String, ExportError> {
        let bytes = self.extension(size)?;
        text(bytes.split(|byte| *byte == 0).next().unwrap_or_default())
    }

    /// Reads exactly `size` bytes of data and the padding behind them.
    pub(crate) fn data(&mut self, size: u64, into: &mut dyn io::Write) -> Result<(), ExportError> {
        let copied = io::copy(&mut (&mut self.stream).take(size), into).map_err(ExportError::ReadStream)?;
        let padding = (BLOCK - size % BLOCK) % BLOCK;
        let skipped =
            io::copy(&mut (&mut self.stream).take(padding), &mut io::sink()).map_err(ExportError::ReadStream)?;
        match (copied, skipped) == (size, padding) {
            true => Ok(()),
            false => Err(self.cut()),
        }
    }
}

fn check_sum(header: &Header) -> Result<(), ExportError> {
    let stated = header.cksum().map_err(|_| invalid("it is no tar archive"))?;
    let bytes = header.as_bytes();
    let sum: u32 =
        bytes.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) }).sum();
    match sum == stated {
        true => Ok(()),
        false => Err(invalid("a header has a wrong checksum, or it is no tar archive")),
    }
}

/// What extended headers say about the entry that follows.
#[derive(Default)]
struct Extended {
    name: Option<String>,
    link: Option<String>,
    size: Option<u64>,
}

impl Extended {
    fn is_empty(&self) -> bool {
        self.name.is_none() && self.link.is_none() && self.size.is_none()
    }

    /// Reads PAX records; a malformed one is an error, never skipped (A57).
    fn pax(&mut self, mut bytes: &[u8]) -> Result<(), ExportError> {
        let malformed = || invalid("an extended header is malformed");
        while !bytes.is_empty() {
            let space = bytes.iter().take(20).position(|byte| *byte == b' ').ok_or_else(malformed)?;
            let length: usize = text(&bytes[..space])?.parse().map_err(|_| malformed())?;
            let record = bytes.get(space + 1..length).ok_or_else(malformed)?;
            let record = record.strip_suffix(b"\n").ok_or_else(malformed)?;
            let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(malformed)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            match key {
                b"path" => self.name = Some(text(value)?),
                b"linkpath" => self.link = Some(text(value)?),
                b"size" => self.size = Some(text(value)?.parse().map_err(|_| malformed())?),
                _ => {}
            }
            bytes = &bytes[length..];
        }
        Ok(())
    }

    fn entry(self, header: &Header, kind: EntryType, size: u64) -> Result<Entry, ExportError> {
        let name = match self.name {
            Some(name) => name,
            None => text(&header.path_bytes())?,
        };
        let link = match (self.link, header.link_name_bytes()) {
            (Some(link), _) => link,
            (None, Some(link)) => text(&link)?,
            (None, None) => String::new(),
        };
        let size = if kind.is_file() { self.size.unwrap_or(size) } else { 0 };
        Ok(Entry { name, kind, link, size })
    }
}

/// Names in image archives are made of digests, ids and words: what is not UTF-8 is no image archive.
fn text(bytes: &[u8]) -> Result<String, ExportError> {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Ok(text.to_owned()),
        _ => Err(invalid(format!("bad name \"{}\"", bytes.escape_ascii()))),
    }
}

/// A name without `./` and doubled slashes; one that leads out of the archive is refused.
pub(crate) fn clean(name: &str) -> Result<String, ExportError> {
    let parts: Vec<&str> = name.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    match name.starts_with('/') || parts.contains(&"..") {
        true => Err(invalid(format!("{name:?} leads out of it"))),
        false => Ok(parts.join("/")),
    }
}

/// Where a link in a folder of the archive points, within the archive.
fn link_target(name: &str, target: &str) -> Result<String, ExportError> {
    let out = || invalid(format!("the link {name:?} leads out of it"));
    let mut parts: Vec<&str> = name.split('/').collect();
    parts.pop();
    if target.starts_with('/') {
        return Err(out());
    }
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop().ok_or_else(out)?),
            part => parts.push(part),
        }
    }
    Ok(parts.join("/"))
}

/// Takes one entry in; `None` for folders.
fn take_in<R: Read>(
    context: &TransferContext,
    scratch: &ScratchDir,
    reader: &mut Reader<R>,
    entry: Entry,
    number: usize,
) -> Result<Option<(String, Member)>, ExportError> {
    let name = clean(&entry.name)?;
    match entry.kind {
        EntryType::Directory => return Ok(None),
        EntryType::Symlink => {
            let target = link_target(&name, &entry.link)?;
            return Ok(Some((name, Member::Link(target))));
        }
        EntryType::Link => return Ok(Some((name, Member::Link(clean(&entry.link)?)))),
        EntryType::Regular | EntryType::Continuous => {}
        kind => return Err(invalid(format!("{name:?} is neither file, folder nor link, but of type {kind:?}"))),
    }
    let member = match blob_digest(&name) {
        Some(digest) => take_blob(context, reader, digest, entry.size)?,
        None => take_file(scratch, reader, number, entry.size)?,
    };
    Ok(Some((name, member)))
}

pub(crate) fn blob_digest(name: &str) -> Option<Digest> {
    let (algorithm, hex) = name.strip_prefix("blobs/")?.split_once('/')?;
    format!("{algorithm}:{hex}").parse().ok()
}

/// A blob goes straight into the store, which refuses bytes that do not have the digest.
fn take_blob<R: Read>(
    context: &TransferContext,
    reader: &mut Reader<R>,
    digest: Digest,
    size: u64,
) -> Result<Member, ExportError> {
    let writer = context.store.blobs().writer(Some((&digest, size)));
    let mut writer = writer.map_err(ExportError::store("make a blob"))?;
    reader.data(size, &mut writer)?;
    writer.finish(&context.lease).map_err(ExportError::store("keep a blob of the archive"))?;
    Ok(Member::Blob(digest))
}

fn take_file<R: Read>(
    scratch: &ScratchDir,
    reader: &mut Reader<R>,
    number: usize,
    size: u64,
) -> Result<Member, ExportError> {
    let path = scratch.path().join(number.to_string());
    let mut file = File::create_new(&path).map_err(|source| ExportError::Write { path: path.clone(), source })?;
    reader.data(size, &mut file)?;
    Ok(Member::File(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    // Seen to fail with `clean` returning the name as it is.
    #[test]
    fn a33_names_that_lead_out_are_refused() {
        for bad in ["../x", "/x", "a/../../x", "a/..", "blobs/../../x"] {
            assert!(clean(bad).is_err(), "{bad:?}");
        }
        assert_eq!(clean("./a//b/./c").unwrap(), "a/b/c");
        for bad in ["/etc/passwd", "../../x", "a/../../../x"] {
            assert!(link_target("id/layer.tar", bad).is_err(), "{bad:?}");
        }
        assert_eq!(link_target("id/layer.tar", "../other/layer.tar").unwrap(), "other/layer.tar");
    }

    fn entries(bytes: &[u8], limits: LoadLimits) -> Result<Vec<String>, ExportError> {
        let mut reader = Reader { stream: bytes.take(limits.bytes), limits, entries: 0 };
        let mut found = Vec::new();
        while let Some(entry) = reader.next()? {
            reader.data(entry.size, &mut io::sink())?;
            found.push(format!("{} {}", entry.name, entry.size));
        }
        Ok(found)
    }

    fn header(name: &str, kind: u8, size: u64) -> Vec<u8> {
        let mut header = Header::new_ustar();
        header.as_ustar_mut().unwrap().typeflag = [kind];
        header.as_ustar_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(size);
        header.set_cksum();
        header.as_bytes().to_vec()
    }

    fn padded(bytes: &[u8]) -> Vec<u8> {
        [bytes, &vec![0; (512 - bytes.len() % 512) % 512]].concat()
    }

    #[test]
    fn extended_headers_win_and_malformed_ones_are_errors() {
        let limits = LoadLimits::default();
        let pax = |records: &str, rest: &[u8]| {
            [header("pax", b'x', records.len() as u64), padded(records.as_bytes()), rest.to_vec()].concat()
        };
        let file = [header("short", b'0', 5), padded(b"12345")].concat();
        assert_eq!(entries(&pax("11 path=ab\n", &file), limits).unwrap(), ["ab 5"]);
        // A57: the size of the PAX header counts, so that both readers see the same entries.
        let smuggled = [header("outer", b'0', 0), padded(&file)].concat();
        assert_eq!(entries(&pax("13 size=1024\n", &smuggled), limits).unwrap(), ["outer 1024"]);
        for bad in ["10 path=ab\n", "11 path=ab", "x", "99 path=ab\n", "0 a=b\n", "11 pathhab\n", "12 size=1x9\n"] {
            assert!(entries(&pax(bad, &file), limits).is_err(), "{bad:?}");
        }
        assert!(entries(&pax("11 path=ab\n", &[]), limits).is_err());
    }

    #[test]
    fn limits_and_cuts_are_errors() {
        let limits = LoadLimits::default();
        let file = [header("a", b'0', 5), padded(b"12345")].concat();
        assert_eq!(entries(&file, limits).unwrap(), ["a 5"]);
        assert!(entries(&file[..700], limits).is_err());
        assert!(entries(&file[..100], limits).is_err());
        let too_large = |result| matches!(result, Err(ExportError::TooLarge { .. }));
        assert!(too_large(entries(&file, LoadLimits { bytes: 600, ..limits })));
        assert!(too_large(entries(&[file.clone(), file.clone()].concat(), LoadLimits { entries: 1, ..limits })));
        assert!(too_large(entries(&header("x", b'x', 2 << 20), limits)));
        assert!(entries(&[7; 512], limits).is_err());
        assert!(entries(b"not an archive", limits).is_err());
    }
}
