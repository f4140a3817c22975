//! The bytes of a layer index: see [`LayerIndex`](super::LayerIndex) for the layout.

use super::entry::{EntryKind, LayerEntry, MAX_PATH, Metadata};
use super::error::LayerError;
use crate::{FileTimes, StoreError};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

const MAGIC: &[u8; 12] = b"forge-index\x01";
const CHECKSUM: usize = 32;
const OPAQUE: u8 = 0x10;
const IMPLIED: u8 = 0x20;

const FILE: u8 = 0;
const DIRECTORY: u8 = 1;
const SYMLINK: u8 = 2;
const CHAR_DEVICE: u8 = 3;
const BLOCK_DEVICE: u8 = 4;
const FIFO: u8 = 5;
const WHITEOUT: u8 = 6;
const FURTHER_NAME: u8 = 7;

pub(super) fn encode(entries: &[LayerEntry]) -> Vec<u8> {
    let mut out = Vec::with_capacity(entries.len() * 96 + 64);
    put_head(entries.len(), &mut out);
    let mut previous: &[u8] = b"";
    for entry in entries {
        put_entry(previous, entry, &mut out);
        previous = &entry.path;
    }
    let checksum = blake3::hash(&out);
    out.extend_from_slice(checksum.as_bytes());
    out
}

/// What stands before the first entry.
pub(super) fn put_head(entries: usize, out: &mut Vec<u8>) {
    out.extend_from_slice(MAGIC);
    put_number(entries as u64, out);
}

/// An entry behind that of another path.
pub(super) fn put_entry(previous: &[u8], entry: &LayerEntry, out: &mut Vec<u8>) {
    out.push(tag(entry));
    put_path(previous, &entry.path, out);
    put_body(entry, out);
}

/// What an entry contributes to the layer's content digest; each part says its own length, so no two layers collide. `first`
/// is the path of the first name, where the entry is a further one.
pub(super) fn content_record(first: Option<&[u8]>, entry: &LayerEntry, times: &FileTimes, out: &mut Vec<u8>) {
    out.push(tag(entry));
    put_bytes(&entry.path, out);
    match first {
        // Positions depend on implied folders, which are not content: the first name stands for itself.
        Some(first) => put_bytes(first, out),
        // Only the opaque marker is this layer's word: the rest is the lower folder's.
        None if entry.is_implied() => {}
        None => {
            let is_content = entry.kind != EntryKind::Whiteout && times.is_content(entry.metadata.mtime);
            let mtime = if is_content { entry.metadata.mtime } else { (0, 0) };
            out.push(u8::from(is_content));
            put_metadata_and_kind(&Metadata { mtime, ..entry.metadata.clone() }, &entry.kind, out);
        }
    }
}

fn tag(entry: &LayerEntry) -> u8 {
    if entry.link.is_some() {
        return FURTHER_NAME;
    }
    match entry.kind {
        EntryKind::File { .. } => FILE,
        EntryKind::Directory { opaque, implied } => {
            DIRECTORY | if opaque { OPAQUE } else { 0 } | if implied { IMPLIED } else { 0 }
        }
        EntryKind::Symlink { .. } => SYMLINK,
        EntryKind::CharDevice { .. } => CHAR_DEVICE,
        EntryKind::BlockDevice { .. } => BLOCK_DEVICE,
        EntryKind::Fifo => FIFO,
        EntryKind::Whiteout => WHITEOUT,
    }
}

fn put_path(previous: &[u8], path: &[u8], out: &mut Vec<u8>) {
    let shared = previous.iter().zip(path).take_while(|(a, b)| a == b).count();
    put_number(shared as u64, out);
    put_bytes(&path[shared..], out);
}

fn put_body(entry: &LayerEntry, out: &mut Vec<u8>) {
    match entry.link {
        Some(first) => put_number(u64::from(first), out),
        None => put_metadata_and_kind(&entry.metadata, &entry.kind, out),
    }
}

fn put_metadata_and_kind(metadata: &Metadata, kind: &EntryKind, out: &mut Vec<u8>) {
    if *kind == EntryKind::Whiteout {
        return;
    }
    for number in [metadata.mode, metadata.uid, metadata.gid] {
        put_number(u64::from(number), out);
    }
    let (seconds, nanoseconds) = metadata.mtime;
    put_number(((seconds << 1) ^ (seconds >> 63)).cast_unsigned(), out);
    put_number(u64::from(nanoseconds), out);
    put_number(metadata.xattrs.len() as u64, out);
    for (name, value) in &metadata.xattrs {
        put_bytes(name.as_bytes(), out);
        put_bytes(value, out);
    }
    put_kind(kind, out);
}

fn put_kind(kind: &EntryKind, out: &mut Vec<u8>) {
    match kind {
        EntryKind::File { size, blake3 } => {
            put_number(*size, out);
            out.extend_from_slice(blake3);
        }
        EntryKind::Symlink { target } => put_bytes(target.as_bytes(), out),
        EntryKind::CharDevice { major, minor } | EntryKind::BlockDevice { major, minor } => {
            put_number(u64::from(*major), out);
            put_number(u64::from(*minor), out);
        }
        EntryKind::Directory { .. } | EntryKind::Fifo | EntryKind::Whiteout => {}
    }
}

fn put_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    put_number(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

fn put_number(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

pub(super) fn decode(bytes: &[u8]) -> Result<Vec<LayerEntry>, LayerError> {
    read(bytes, |reader| {
        let count = reader.count()?;
        let mut entries: Vec<LayerEntry> = Vec::with_capacity(count);
        for _ in 0..count {
            let previous = entries.last().map_or(&[][..], |entry| &entry.path);
            let entry = reader.entry(previous, |first| entries.get(first as usize))?;
            entries.push(entry);
        }
        Ok(entries)
    })
}

/// Visits each entry with its position, and with the path of the first name where it is a further one of a file.
pub(super) type Visit<'a> = dyn FnMut(usize, &LayerEntry, Option<&[u8]>) -> Result<(), StoreError> + 'a;

/// The bytes of an index, whose entries are decoded one after the other: a million of them take three times as much.
pub(super) struct EncodedIndex {
    bytes: Vec<u8>,
    /// The bytes that each entry adds to the layer.
    sizes: Vec<u64>,
    /// Which entries have further names.
    firsts: HashSet<u32>,
}

impl EncodedIndex {
    /// Takes the file of an index, as it was written.
    pub(super) fn new(bytes: Vec<u8>) -> Result<Self, LayerError> {
        let (mut sizes, mut firsts) = (Vec::new(), HashSet::new());
        read(&bytes, |reader| {
            let count = reader.count()?;
            sizes.reserve_exact(count);
            for _ in 0..count {
                let skimmed = reader.skim()?;
                sizes.push(if let Skimmed::File((size, _)) = skimmed { size } else { 0 });
                if let Skimmed::FurtherName(first) = skimmed {
                    firsts.insert(first);
                }
            }
            Ok(())
        })?;
        Ok(Self { bytes, sizes, firsts })
    }

    /// The bytes that each entry adds to the layer.
    pub(super) fn sizes(&self) -> impl ExactSizeIterator<Item = u64> {
        self.sizes.iter().copied()
    }

    /// Visits every entry.
    pub(super) fn each(&self, visit: &mut Visit<'_>) -> Result<(), StoreError> {
        let mut reader = Reader { rest: &self.bytes[MAGIC.len()..self.bytes.len() - CHECKSUM] };
        let mut previous = Vec::new();
        let mut firsts: HashMap<u32, LayerEntry> = HashMap::new();
        for position in 0..reader.count()? {
            let entry = reader.entry(&previous, |first| firsts.get(&first))?;
            let first = entry.link.and_then(|first| firsts.get(&first)).map(|first| first.path.clone());
            visit(position, &entry, first.as_deref())?;
            previous.clone_from(&entry.path);
            let position = position as u32;
            if self.firsts.contains(&position) {
                firsts.insert(position, entry);
            }
        }
        Ok(())
    }
}

/// A file's size, and the hash of its bytes.
pub(super) type FileBytes = (u64, [u8; 32]);

/// Of each entry, in order, what is said of its bytes if it is a file and not a further name of one: a million entries take
/// a fifth of the memory so.
pub(super) fn files(bytes: &[u8]) -> Result<Vec<Option<FileBytes>>, LayerError> {
    let file = |skimmed| if let Skimmed::File(file) = skimmed { Some(file) } else { None };
    read(bytes, |reader| (0..reader.count()?).map(|_| reader.skim().map(file)).collect())
}

/// What is told of an entry without decoding all of it.
enum Skimmed {
    File(FileBytes),
    /// Of the file that stands there.
    FurtherName(u32),
    Other,
}

fn read<T>(bytes: &[u8], body: impl FnOnce(&mut Reader<'_>) -> Result<T, LayerError>) -> Result<T, LayerError> {
    let end = bytes.len().checked_sub(CHECKSUM).ok_or(broken("it is too short"))?;
    let (content, checksum) = bytes.split_at(end);
    match content.get(..MAGIC.len()) {
        Some(magic) if magic == MAGIC => {}
        Some(magic) if magic[..MAGIC.len() - 1] == MAGIC[..MAGIC.len() - 1] => {
            return Err(broken("its version is not known"));
        }
        _ => return Err(broken("it does not begin as an index")),
    }
    if blake3::hash(content).as_bytes() != checksum {
        return Err(broken("its checksum is wrong"));
    }
    let mut reader = Reader { rest: &content[MAGIC.len()..] };
    let entries = body(&mut reader)?;
    if reader.rest.is_empty() { Ok(entries) } else { Err(broken("bytes follow the last entry")) }
}

fn broken(reason: &'static str) -> LayerError {
    LayerError::BrokenIndex { reason }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// The number of entries.
    fn count(&mut self) -> Result<usize, LayerError> {
        let count = self.number()?;
        // An entry takes three bytes at the least: what a count claims is not believed beyond that.
        match count > self.rest.len() as u64 / 3 {
            true => Err(broken("it has fewer entries than it says")),
            false => Ok(count as usize),
        }
    }

    fn skim(&mut self) -> Result<Skimmed, LayerError> {
        let tag = self.take(1)?[0];
        self.number()?;
        self.bytes()?;
        match tag {
            FURTHER_NAME => self.small().map(Skimmed::FurtherName),
            WHITEOUT => Ok(Skimmed::Other),
            _ => {
                self.metadata()?;
                Ok(match self.kind(tag)? {
                    EntryKind::File { size, blake3 } => Skimmed::File((size, blake3)),
                    _ => Skimmed::Other,
                })
            }
        }
    }

    /// The next entry, behind that of another path; `before` has those that further names are of.
    fn entry<'b>(
        &mut self,
        previous: &[u8],
        before: impl FnOnce(u32) -> Option<&'b LayerEntry>,
    ) -> Result<LayerEntry, LayerError> {
        let tag = self.take(1)?[0];
        let path = self.path(previous)?;
        match tag {
            FURTHER_NAME => {
                let first = self.small()?;
                let target = before(first).ok_or(broken("a hard link has no first name"))?;
                Ok(LayerEntry { path, kind: target.kind.clone(), metadata: target.metadata.clone(), link: Some(first) })
            }
            WHITEOUT => Ok(LayerEntry { path, kind: EntryKind::Whiteout, metadata: Metadata::default(), link: None }),
            _ => {
                let metadata = self.metadata()?;
                Ok(LayerEntry { path, kind: self.kind(tag)?, metadata, link: None })
            }
        }
    }

    fn path(&mut self, previous: &[u8]) -> Result<Vec<u8>, LayerError> {
        let shared = self.number()?;
        let prefix = usize::try_from(shared).ok().and_then(|shared| previous.get(..shared));
        let prefix = prefix.ok_or(broken("a path shares more than there is"))?;
        let path = [prefix, self.bytes()?].concat();
        // Shared prefixes would otherwise let a small file ask for quadratic memory.
        if path.len() > MAX_PATH { Err(broken("a path is too long")) } else { Ok(path) }
    }

    fn metadata(&mut self) -> Result<Metadata, LayerError> {
        let (mode, uid, gid) = (self.small()?, self.small()?, self.small()?);
        let seconds = self.number()?;
        let seconds = (seconds >> 1).cast_signed() ^ -((seconds & 1).cast_signed());
        let nanoseconds = self.small()?;
        if mode > 0o7777 || nanoseconds >= 1_000_000_000 {
            return Err(broken("a mode or a time is out of range"));
        }
        Ok(Metadata { mode, uid, gid, mtime: (seconds, nanoseconds), xattrs: self.xattrs()? })
    }

    fn xattrs(&mut self) -> Result<BTreeMap<OsString, Vec<u8>>, LayerError> {
        let mut xattrs = BTreeMap::new();
        for _ in 0..self.number()? {
            let name = OsString::from_vec(self.bytes()?.to_vec());
            xattrs.insert(name, self.bytes()?.to_vec());
        }
        Ok(xattrs)
    }

    fn kind(&mut self, tag: u8) -> Result<EntryKind, LayerError> {
        match tag {
            FILE => {
                let size = self.number()?;
                let blake3 = self.take(32)?.try_into().expect("32 bytes were taken");
                Ok(EntryKind::File { size, blake3 })
            }
            SYMLINK => Ok(EntryKind::Symlink { target: OsString::from_vec(self.bytes()?.to_vec()) }),
            CHAR_DEVICE => Ok(EntryKind::CharDevice { major: self.small()?, minor: self.small()? }),
            BLOCK_DEVICE => Ok(EntryKind::BlockDevice { major: self.small()?, minor: self.small()? }),
            FIFO => Ok(EntryKind::Fifo),
            _ if tag & !(OPAQUE | IMPLIED) == DIRECTORY => {
                Ok(EntryKind::Directory { opaque: tag & OPAQUE != 0, implied: tag & IMPLIED != 0 })
            }
            _ => Err(broken("an entry is of no known kind")),
        }
    }

    fn bytes(&mut self) -> Result<&'a [u8], LayerError> {
        let length = self.number()?;
        self.take(usize::try_from(length).map_err(|_| broken("it ends too early"))?)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], LayerError> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(broken("it ends too early"))?;
        self.rest = rest;
        Ok(taken)
    }

    fn small(&mut self) -> Result<u32, LayerError> {
        u32::try_from(self.number()?).map_err(|_| broken("a number is out of range"))
    }

    fn number(&mut self) -> Result<u64, LayerError> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            let bits = u64::from(byte & 0x7f);
            if (bits << shift) >> shift != bits || (shift > 0 && byte == 0) {
                return Err(broken("a number is out of range"));
            }
            number |= bits << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(broken("a number is out of range"))
    }
}
