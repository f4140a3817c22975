//! Reads tars that strangers made.
//!
//! Where the format leaves room, this reader sees what Go's `archive/tar` sees, since docker, containerd and podman
//! unpack with it; where readers disagree, or a field is malformed, the archive is refused instead of repaired (A57).
//! The `tar` crate knows where the fields of a header lie; nothing else of it is used.
//!
//! - A size from an extended header wins over the header's own. Kinds that have no data have none, whatever their size
//!   field says.
//! - Long names of GNU and of PAX for one entry, doubled extended headers, and such headers without an entry are errors.
//! - Global headers are ignored as docker does, unless they would change which entries there are.
//! - Sparse files are refused: no builder writes them into layers.
//! - Two zero blocks, or the end of the stream after an entry, end the archive; what follows is not looked at, but
//!   belongs to the bytes that the DiffId covers (A63).

use super::commit::fill;
use super::entry::Metadata;
use super::error::{LayerError, shown};
use super::limits::UnpackLimits;
use super::pax::PaxRecords;
use super::tar_writer::{BLOCK, padding};
use std::io::{self, Read};
use tar::{EntryType, Header};

/// An entry as the archive has it: its name unchecked, its numbers in range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TarEntry {
    pub(super) name: Vec<u8>,
    pub(super) kind: TarKind,
    /// Extended attributes are as in the archive, none dropped.
    pub(super) metadata: Metadata,
}

/// What the entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TarKind {
    File { size: u64 },
    Directory,
    Symlink { target: Vec<u8> },
    HardLink { target: Vec<u8> },
    CharDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
    Fifo,
}

/// Walks an archive once. After each file its data is read with [`TarReader::data`], or skipped by the next call.
pub(super) struct TarReader<R> {
    source: R,
    offset: u64,
    /// Where the header lies that is being read.
    header_at: u64,
    left: u64,
    padding: usize,
    limits: UnpackLimits,
    entries: u64,
}

/// What headers before an entry said of it.
#[derive(Default)]
struct Prelude {
    pax: Option<PaxRecords>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl Prelude {
    fn is_empty(&self) -> bool {
        self.pax.is_none() && self.long_name.is_none() && self.long_link.is_none()
    }
}

impl<R: Read> TarReader<R> {
    pub(super) fn new(source: R, limits: UnpackLimits) -> Self {
        Self { source, offset: 0, header_at: 0, left: 0, padding: 0, limits, entries: 0 }
    }

    /// The next entry; `None` at the end of the archive.
    pub(super) fn next(&mut self) -> Result<Option<TarEntry>, ReadError> {
        self.skip_data()?;
        let mut prelude = Prelude::default();
        while let Some(header) = self.header()? {
            match header.entry_type() {
                EntryType::XHeader => {
                    let records = self.pax(&header)?;
                    self.once(&mut prelude.pax, records)?;
                }
                EntryType::GNULongName => {
                    let name = self.long_value(&header)?;
                    self.once(&mut prelude.long_name, name)?;
                }
                EntryType::GNULongLink => {
                    let name = self.long_value(&header)?;
                    self.once(&mut prelude.long_link, name)?;
                }
                EntryType::XGlobalHeader => self.global(&header, &prelude)?,
                _ => return self.entry(&header, prelude).map(Some),
            }
        }
        if prelude.is_empty() { Ok(None) } else { Err(self.malformed("an extended header has no entry")) }
    }

    /// The rest of the current file's data.
    pub(super) fn data(&mut self, buffer: &mut [u8]) -> Result<usize, ReadError> {
        let wanted = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let count = self.read(&mut buffer[..wanted])?;
        if count < wanted {
            return Err(LayerError::Truncated { offset: self.offset }.into());
        }
        self.left -= count as u64;
        Ok(count)
    }

    /// Reads what follows the archive, so that all bytes of the blob are seen.
    pub(super) fn drain(&mut self) -> Result<u64, ReadError> {
        let mut buffer = vec![0; 1 << 16];
        while self.read(&mut buffer)? > 0 {}
        Ok(self.offset)
    }

    /// What the archive may ask for.
    pub(super) fn limits(&self) -> &UnpackLimits {
        &self.limits
    }

    /// What the archive is read from.
    pub(super) fn source(&self) -> &R {
        &self.source
    }

    fn once<T>(&self, place: &mut Option<T>, value: T) -> Result<(), ReadError> {
        match place.replace(value) {
            None => Ok(()),
            Some(_) => Err(self.malformed("two extended headers of one kind precede an entry")),
        }
    }

    fn skip_data(&mut self) -> Result<(), ReadError> {
        let mut buffer = [0; 1 << 14];
        while self.left > 0 {
            self.data(&mut buffer)?;
        }
        let padding = std::mem::take(&mut self.padding);
        // Writers may leave out the padding at the very end, and Go's reader does not miss it.
        self.read(&mut buffer[..padding]).map(drop)
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, ReadError> {
        let count = fill(&mut self.source, buffer)?;
        self.offset += count as u64;
        Ok(count)
    }

    /// One header block with a right checksum; `None` at the end of the archive.
    fn header(&mut self) -> Result<Option<Header>, ReadError> {
        let mut zero_blocks = 0;
        loop {
            self.header_at = self.offset;
            let mut block = [0; BLOCK];
            match self.read(&mut block)? {
                0 => return Ok(None),
                BLOCK => {}
                _ => return Err(LayerError::Truncated { offset: self.offset }.into()),
            }
            if block != [0; BLOCK] {
                return if zero_blocks == 0 {
                    self.checked(block).map(Some)
                } else {
                    Err(self.malformed("one zero block"))
                };
            }
            zero_blocks += 1;
            if zero_blocks == 2 {
                return Ok(None);
            }
        }
    }

    fn checked(&self, block: [u8; BLOCK]) -> Result<Header, ReadError> {
        let mut header = Header::new_old();
        header.as_mut_bytes().copy_from_slice(&block);
        let stored = self.number(&header.as_old().cksum, "its checksum is no number")?;
        let (mut unsigned, mut signed) = (0_i64, 0_i64);
        for (position, byte) in block.iter().enumerate() {
            let byte = if (148..156).contains(&position) { b' ' } else { *byte };
            unsigned += i64::from(byte);
            signed += i64::from(byte.cast_signed());
        }
        match stored == unsigned || stored == signed {
            true => Ok(header),
            false => Err(self.malformed("its checksum is wrong")),
        }
    }

    fn pax(&mut self, header: &Header) -> Result<PaxRecords, ReadError> {
        let bytes = self.extension(header)?;
        PaxRecords::parse(&bytes).map_err(|reason| self.malformed(reason))
    }

    fn global(&mut self, header: &Header, prelude: &Prelude) -> Result<(), ReadError> {
        if !prelude.is_empty() {
            return Err(self.malformed("a global header stands between an extended header and its entry"));
        }
        match self.pax(header)?.changes_entries() {
            true => Err(self.malformed("a global header changes entries, which readers do not agree on")),
            false => Ok(()),
        }
    }

    /// A name in the data of its own entry, up to the first zero byte.
    fn long_value(&mut self, header: &Header) -> Result<Vec<u8>, ReadError> {
        let mut bytes = self.extension(header)?;
        bytes.truncate(bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len()));
        if bytes.is_empty() { Err(self.malformed("a long name is empty")) } else { Ok(bytes) }
    }

    /// The data of an entry that describes another; what its size claims is bounded before memory is taken (A58).
    fn extension(&mut self, header: &Header) -> Result<Vec<u8>, ReadError> {
        self.count_entry()?;
        let size = self.size(header)?;
        if size > self.limits.header {
            return Err(
                LayerError::LimitExceeded { what: "bytes in an extended header", limit: self.limits.header }.into()
            );
        }
        let mut bytes = vec![0; size as usize];
        self.left = size;
        self.padding = padding(size);
        if size > 0 {
            self.data(&mut bytes)?;
        }
        self.skip_data()?;
        Ok(bytes)
    }

    fn count_entry(&mut self) -> Result<(), ReadError> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(LayerError::LimitExceeded { what: "entries", limit: self.limits.entries }.into());
        }
        Ok(())
    }

    fn entry(&mut self, header: &Header, prelude: Prelude) -> Result<TarEntry, ReadError> {
        self.count_entry()?;
        let Prelude { pax, long_name, long_link } = prelude;
        let pax = pax.unwrap_or_default();
        let name = self.choose(pax.path.clone(), long_name, header_name(header))?;
        let link = self.choose(pax.linkpath.clone(), long_link, cut(&header.as_old().linkname).to_vec())?;
        if pax.sparse {
            return Err(unsupported(&name, "a sparse file"));
        }
        let own_size = self.size(header)?;
        let size = pax.size.unwrap_or(own_size);
        let metadata = self.metadata(header, pax)?;
        let kind = self.kind(header, &name, link, size)?;
        if let TarKind::File { size } = kind {
            self.left = size;
            self.padding = padding(size);
        }
        Ok(TarEntry { name, kind, metadata })
    }

    fn choose(&self, pax: Option<Vec<u8>>, long: Option<Vec<u8>>, short: Vec<u8>) -> Result<Vec<u8>, ReadError> {
        match (pax, long) {
            (Some(_), Some(_)) => Err(self.malformed("an entry has a name of PAX and one of GNU")),
            (pax, long) => Ok(pax.or(long).unwrap_or(short)),
        }
    }

    fn kind(&self, header: &Header, name: &[u8], link: Vec<u8>, size: u64) -> Result<TarKind, ReadError> {
        let typeflag = header.as_old().linkflag[0];
        Ok(match typeflag {
            // The oldest format has no kind for folders, but a slash at the end of their names.
            0 if name.ends_with(b"/") => TarKind::Directory,
            0 | b'0' | b'7' => TarKind::File { size },
            b'1' => TarKind::HardLink { target: link },
            b'2' => TarKind::Symlink { target: link },
            b'3' => {
                let (major, minor) = self.device(header)?;
                TarKind::CharDevice { major, minor }
            }
            b'4' => {
                let (major, minor) = self.device(header)?;
                TarKind::BlockDevice { major, minor }
            }
            b'5' => TarKind::Directory,
            b'6' => TarKind::Fifo,
            b'S' => return Err(unsupported(name, "a sparse file")),
            b'M' => return Err(unsupported(name, "a continuation of another volume")),
            b'D' => return Err(unsupported(name, "a list of a folder (incremental backup)")),
            b'V' => return Err(unsupported(name, "a volume label")),
            _ => return Err(unsupported(name, "of a kind that is not in the tar standard")),
        })
    }

    fn metadata(&self, header: &Header, pax: PaxRecords) -> Result<Metadata, ReadError> {
        let old = header.as_old();
        // Some writers put the kind of the file into the upper bits, as in `st_mode`.
        let mode = self.number(&old.mode, "its mode is no number")?;
        let mode = u32::try_from(mode).map_err(|_| self.malformed("its mode is out of range"))? & 0o7777;
        let uid = self.id(pax.uid, &old.uid)?;
        let gid = self.id(pax.gid, &old.gid)?;
        let mtime = match pax.mtime {
            Some(mtime) => mtime,
            None => (self.number(&old.mtime, "its time is no number")?, 0),
        };
        let os_string = |name| std::os::unix::ffi::OsStringExt::from_vec(name);
        let xattrs = pax.xattrs.into_iter().map(|(name, value)| (os_string(name), value)).collect();
        Ok(Metadata { mode, uid, gid, mtime, xattrs })
    }

    /// The largest id means "no change" to the kernel and is nobody's.
    fn id(&self, pax: Option<u64>, field: &[u8]) -> Result<u32, ReadError> {
        let id = match pax {
            Some(id) => i64::try_from(id).unwrap_or(i64::MAX),
            None => self.number(field, "its owner is no number")?,
        };
        match u32::try_from(id) {
            Ok(id) if id != u32::MAX => Ok(id),
            _ => Err(self.malformed("its owner is out of range")),
        }
    }

    fn device(&self, header: &Header) -> Result<(u32, u32), ReadError> {
        let ustar = header.as_ustar().map(|ustar| (&ustar.dev_major, &ustar.dev_minor));
        let fields = ustar.or_else(|| header.as_gnu().map(|gnu| (&gnu.dev_major, &gnu.dev_minor)));
        let (major, minor) = fields.ok_or_else(|| self.malformed("a device has no numbers"))?;
        let range = |value: i64, bits: u32| {
            u32::try_from(value).ok().filter(|value| value >> bits == 0).ok_or("its device number is out of range")
        };
        // Linux has 12 and 20 bits for them.
        let major = range(self.number(major, "its device number is no number")?, 12);
        let minor = range(self.number(minor, "its device number is no number")?, 20);
        Ok((major.map_err(|reason| self.malformed(reason))?, minor.map_err(|reason| self.malformed(reason))?))
    }

    fn size(&self, header: &Header) -> Result<u64, ReadError> {
        let size = self.number(&header.as_old().size, "its size is no number")?;
        u64::try_from(size).map_err(|_| self.malformed("its size is negative"))
    }

    /// Octal digits between spaces and zero bytes, or GNU's big-endian binary with the top bit set.
    fn number(&self, field: &[u8], reason: &'static str) -> Result<i64, ReadError> {
        let parsed = if field[0] & 0x80 != 0 { binary(field) } else { octal(field) };
        parsed.ok_or_else(|| self.malformed(reason))
    }

    fn malformed(&self, reason: &'static str) -> ReadError {
        LayerError::MalformedTar { offset: self.header_at, reason }.into()
    }
}

/// Why the archive could not be read on: its own fault, or that of what it is read from.
#[derive(Debug)]
pub(super) enum ReadError {
    Archive(LayerError),
    Source(io::Error),
}

impl From<LayerError> for ReadError {
    fn from(error: LayerError) -> Self {
        Self::Archive(error)
    }
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        match error.downcast::<LayerError>() {
            Ok(error) => Self::Archive(error),
            Err(error) => Self::Source(error),
        }
    }
}

fn unsupported(name: &[u8], what: &'static str) -> ReadError {
    LayerError::UnsupportedEntry { path: shown(name), what }.into()
}

/// Only POSIX archives have a prefix; in GNU's format other fields lie there.
fn header_name(header: &Header) -> Vec<u8> {
    let name = cut(&header.as_old().name);
    match header.as_ustar().map(|ustar| cut(&ustar.prefix)) {
        Some(prefix) if !prefix.is_empty() => [prefix, b"/", name].concat(),
        _ => name.to_vec(),
    }
}

fn cut(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|byte| *byte == 0).unwrap_or(field.len())]
}

fn octal(field: &[u8]) -> Option<i64> {
    let blank = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|byte| !blank(byte)).unwrap_or(field.len());
    let digits = cut(&field[start..]);
    let digits = &digits[..digits.iter().rposition(|byte| !blank(byte)).map_or(0, |last| last + 1)];
    digits.iter().try_fold(0_i64, |sum, digit| match digit {
        b'0'..=b'7' => sum.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

/// Two's complement over the whole field less its top bit.
fn binary(field: &[u8]) -> Option<i64> {
    let negative = field[0] & 0x40 != 0;
    let first = if negative { i64::from(field[0] | 0x80).wrapping_sub(256) } else { i64::from(field[0] & 0x7f) };
    field[1..].iter().try_fold(first, |sum, byte| sum.checked_mul(256)?.checked_add(i64::from(*byte)))
}

#[cfg(test)]
#[path = "../../tests/raw_tar/mod.rs"]
mod raw_tar;

#[cfg(test)]
mod tests;
