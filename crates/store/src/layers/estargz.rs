//! Layers in eStargz's arrangement (`estargz.md` of stargz-snapshotter), which lazy pullers read file by file.
//!
//! ```text
//! gzip member: headers up to the first file with bytes
//! gzip member: a piece of that file (4 MiB at most), its padding, the headers up to the next file with bytes
//! ...
//! gzip member: a tar entry stargz.index.json, the table of contents, and the end of the tar
//! gzip member: nothing, with the place of the table in its header: 51 bytes
//! ```
//! The first entry says that nothing is to be fetched ahead. All this is one valid gzip stream of one valid tar, with two
//! entries more than the plain layer has, so its DiffId is another one.

use super::chunk_index::ChunkIndex;
use super::chunks::ChunkSink;
use super::commit::WHITEOUT_PREFIX;
use super::compress::{ChunkOut, Codec, ParallelCompressor};
use super::emit::{Files, TarSink, Wanted};
use super::entry::{EntryKind, LayerEntry, Metadata, join_path, split_path};
use super::error::{LayerError, shown};
use super::index::LayerIndex;
use super::tar_writer::{self, BLOCK, OPAQUE_NAME, padding};
use crate::{StoreError, TarOptions};
use forge_image::{Annotations, DiffId, Digest, Hasher};
use serde::Serialize;
use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

/// The pieces of big files, as `ctr-remote` and BuildKit cut them.
const PIECE: u64 = 4 << 20;
const TABLE: &str = "stargz.index.json";
const LANDMARK: &str = ".no.prefetch.landmark";
const LANDMARK_CONTENT: &[u8] = &[0xf];

/// What was written.
pub(super) struct Estargz {
    pub(super) diff_id: DiffId,
    table: Digest,
    uncompressed: u64,
}

impl Estargz {
    /// What a manifest must say of the layer.
    pub(super) fn annotations(&self) -> Annotations {
        let mut annotations = Annotations::default();
        annotations.insert("containerd.io/snapshot/stargz/toc.digest".to_owned(), self.table.to_string().into());
        let size = self.uncompressed.to_string();
        annotations.insert("io.containers.estargz.uncompressed-size".to_owned(), size.into());
        annotations
    }
}

/// An entry of the table (`TOCEntry`), with the names and defaults of its JSON.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    name: String,
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "is_zero")]
    size: u64,
    #[serde(rename = "modtime", skip_serializing_if = "String::is_empty")]
    modified: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    link_name: String,
    #[serde(skip_serializing_if = "is_zero")]
    mode: u64,
    #[serde(skip_serializing_if = "is_zero")]
    uid: u64,
    #[serde(skip_serializing_if = "is_zero")]
    gid: u64,
    #[serde(skip_serializing_if = "is_zero")]
    offset: u64,
    #[serde(skip_serializing_if = "is_zero")]
    dev_major: u64,
    #[serde(skip_serializing_if = "is_zero")]
    dev_minor: u64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    xattrs: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    digest: String,
    #[serde(skip_serializing_if = "is_zero")]
    chunk_offset: u64,
    #[serde(skip_serializing_if = "is_zero")]
    chunk_size: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    chunk_digest: String,
    /// The member that its bytes begin, until the offsets are known.
    #[serde(skip)]
    member: Option<usize>,
}

#[derive(Serialize)]
struct Table {
    version: u32,
    entries: Vec<Row>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Writes a layer.
///
/// # Errors
/// Those of [`emit`](super::emit::emit); a name that is not UTF-8, which the table cannot hold; `out` failed.
pub(super) fn write(
    index: &LayerIndex,
    files: &mut Files,
    options: &TarOptions,
    codec: Codec,
    chunks: Arc<ChunkIndex>,
    progress: &mut dyn FnMut(u64),
    out: &mut dyn ChunkOut,
) -> Result<Estargz, StoreError> {
    let compressor = ParallelCompressor::new(codec, chunks, &mut *out);
    let mut layer = Writer::new(compressor, options);
    layer.landmark()?;
    for (position, entry) in index.entries().iter().enumerate().filter(|(_, entry)| entry.is_change()) {
        progress(layer.uncompressed);
        let first = entry.link.map(|first| &index.entries()[first as usize].path[..]);
        layer.headers(entry, first)?;
        if entry.size() > 0 {
            layer.file(&Wanted { position, path: &entry.path, size: entry.size(), hash: None }, files)?;
        }
    }
    let (rows, hasher, uncompressed, lengths) = layer.finish()?;
    Ending { codec, hasher, uncompressed, at: lengths.iter().sum() }.write(with_offsets(rows, &lengths), out)
}

fn with_offsets(mut rows: Vec<Row>, lengths: &[u64]) -> Vec<Row> {
    let mut offsets = Vec::with_capacity(lengths.len());
    let mut at = 0;
    for length in lengths {
        offsets.push(at);
        at += length;
    }
    for row in &mut rows {
        row.offset = row.member.map_or(0, |member| offsets[member]);
    }
    rows
}

/// Cuts the tar into members and lists what is in it.
struct Writer<'a> {
    compressor: ParallelCompressor<'a>,
    options: TarOptions,
    member: Vec<u8>,
    members: usize,
    rows: Vec<Row>,
    hasher: Hasher,
    uncompressed: u64,
}

impl<'a> Writer<'a> {
    fn new(compressor: ParallelCompressor<'a>, options: &TarOptions) -> Self {
        let (options, hasher) = (*options, Hasher::new());
        Self { compressor, options, member: Vec::new(), members: 0, rows: Vec::new(), hasher, uncompressed: 0 }
    }

    fn put(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.uncompressed += bytes.len() as u64;
        self.member.extend_from_slice(bytes);
    }

    /// Ends the member, so that what follows begins one.
    fn cut(&mut self) -> Result<(), StoreError> {
        if !self.member.is_empty() {
            self.member = self.compressor.chunk(std::mem::take(&mut self.member))?;
            self.members += 1;
        }
        Ok(())
    }

    fn landmark(&mut self) -> Result<(), StoreError> {
        let size = LANDMARK_CONTENT.len() as u64;
        let kind = EntryKind::File { size, blake3: [0; 32] };
        let metadata = Metadata { mode: 0o644, ..Metadata::default() };
        let entry = LayerEntry { path: LANDMARK.into(), kind, metadata, link: None };
        self.headers(&entry, None)?;
        let mut pieces = Pieces::of(self, size);
        pieces.write(LANDMARK_CONTENT)?;
        pieces.end()
    }

    /// Headers, and a row for each of them but those of files with bytes, whose rows are their pieces'.
    fn headers(&mut self, entry: &LayerEntry, first: Option<&[u8]>) -> Result<(), StoreError> {
        let mut headers = Vec::new();
        tar_writer::put_entry(entry, first, &self.options, &mut headers);
        self.put(&headers);
        let rows = rows_of(entry, first, &self.options)?;
        self.rows.extend(rows);
        Ok(())
    }

    fn file(&mut self, wanted: &Wanted<'_>, files: &mut Files) -> Result<(), StoreError> {
        let mut pieces = Pieces::of(self, wanted.size);
        files.copy(wanted, &mut pieces)?;
        pieces.end()
    }

    fn finish(mut self) -> Result<(Vec<Row>, Hasher, u64, Vec<u64>), StoreError> {
        self.cut()?;
        let chunks = self.compressor.finish()?;
        Ok((self.rows, self.hasher, self.uncompressed, chunks.lengths))
    }
}

/// The bytes of one file on their way into pieces. The last row of the writer is the file's.
struct Pieces<'w, 'a> {
    writer: &'w mut Writer<'a>,
    size: u64,
    written: u64,
    whole: Hasher,
    piece: Hasher,
    file: usize,
}

impl<'w, 'a> Pieces<'w, 'a> {
    fn of(writer: &'w mut Writer<'a>, size: u64) -> Self {
        let file = writer.rows.len() - 1;
        Self { writer, size, written: 0, whole: Hasher::new(), piece: Hasher::new(), file }
    }

    fn begin_piece(&mut self) -> Result<(), StoreError> {
        self.writer.cut()?;
        let left = self.size - self.written;
        // A piece that reaches the end of its file does not say how long it is.
        let chunk_size = if left > PIECE { PIECE } else { 0 };
        if self.written > 0 {
            let name = self.writer.rows[self.file].name.clone();
            self.writer.rows.push(Row { name, kind: "chunk", chunk_offset: self.written, ..Row::default() });
        }
        let row = self.writer.rows.last_mut().expect("a file has a row");
        (row.member, row.chunk_size) = (Some(self.writer.members), chunk_size);
        Ok(())
    }

    fn end_piece(&mut self) {
        let hasher = std::mem::replace(&mut self.piece, Hasher::new());
        let row = self.writer.rows.last_mut().expect("a file has a row");
        row.chunk_digest = hasher.finish().to_string();
    }

    fn end(self) -> Result<(), StoreError> {
        self.writer.rows[self.file].digest = self.whole.finish().to_string();
        self.writer.put(&[0; BLOCK][..padding(self.size)]);
        Ok(())
    }
}

impl TarSink for Pieces<'_, '_> {
    fn begin_entry(&mut self, _: u64, _: u64, _: u64) -> Result<(), StoreError> {
        Ok(())
    }

    fn write(&mut self, mut bytes: &[u8]) -> Result<(), StoreError> {
        while !bytes.is_empty() {
            if self.written.is_multiple_of(PIECE) {
                self.begin_piece()?;
            }
            let room = (PIECE - self.written % PIECE).min(bytes.len() as u64) as usize;
            let (now, rest) = bytes.split_at(room);
            self.whole.update(now);
            self.piece.update(now);
            self.writer.put(now);
            self.written += now.len() as u64;
            if self.written.is_multiple_of(PIECE) || self.written == self.size {
                self.end_piece();
            }
            bytes = rest;
        }
        Ok(())
    }
}

fn rows_of(entry: &LayerEntry, first: Option<&[u8]>, options: &TarOptions) -> Result<Vec<Row>, LayerError> {
    if let Some(first) = first {
        let row = Row { link_name: text(first)?, ..row("hardlink", &entry.path, &entry.metadata, options)? };
        return Ok(vec![Row { xattrs: BTreeMap::new(), ..row }]);
    }
    let plain = |kind| row(kind, &entry.path, &entry.metadata, options);
    let device = |kind, major: u32, minor: u32| {
        Ok::<_, LayerError>(Row { dev_major: major.into(), dev_minor: minor.into(), ..plain(kind)? })
    };
    Ok(vec![match &entry.kind {
        EntryKind::File { size, .. } => Row { size: *size, ..plain("reg")? },
        EntryKind::Directory { opaque, implied } => return folder_rows(entry, *opaque, *implied, options),
        EntryKind::Symlink { target } => Row { link_name: text(target.as_bytes())?, ..plain("symlink")? },
        EntryKind::CharDevice { major, minor } => device("char", *major, *minor)?,
        EntryKind::BlockDevice { major, minor } => device("block", *major, *minor)?,
        EntryKind::Fifo => plain("fifo")?,
        EntryKind::Whiteout => {
            let (parent, name) = split_path(&entry.path).expect("the root is always a folder");
            marker(&join_path(parent, &[WHITEOUT_PREFIX, name].concat()))?
        }
    }])
}

fn folder_rows(entry: &LayerEntry, opaque: bool, implied: bool, options: &TarOptions) -> Result<Vec<Row>, LayerError> {
    let name = if entry.path.is_empty() { b"./".to_vec() } else { [&entry.path[..], b"/"].concat() };
    let mut rows = Vec::new();
    if !implied {
        rows.push(row("dir", &name, &entry.metadata, options)?);
    }
    if opaque {
        rows.push(marker(&join_path(&entry.path, OPAQUE_NAME))?);
    }
    Ok(rows)
}

/// A deletion is an empty file in the tar, and a row like any other.
fn marker(name: &[u8]) -> Result<Row, LayerError> {
    row("reg", name, &Metadata::default(), &TarOptions::default())
}

fn row(kind: &'static str, name: &[u8], metadata: &Metadata, options: &TarOptions) -> Result<Row, LayerError> {
    let seconds = options.clamp_mtime.map_or(metadata.mtime.0, |clamp| metadata.mtime.0.min(clamp));
    let xattr = |(name, value): (&std::ffi::OsString, &Vec<u8>)| Ok((text(name.as_bytes())?, base64(value)));
    Ok(Row {
        name: text(name)?,
        kind,
        modified: time(seconds),
        mode: metadata.mode.into(),
        uid: metadata.uid.into(),
        gid: metadata.gid.into(),
        xattrs: metadata.xattrs.iter().map(xattr).collect::<Result<_, LayerError>>()?,
        ..Row::default()
    })
}

/// RFC 3339; times that it cannot write are left out, and lazy pullers take the zero time.
fn time(seconds: i64) -> String {
    const LAST: u64 = 253_402_300_799;
    match u64::try_from(seconds) {
        Ok(seconds) if seconds <= LAST => {
            humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds)).to_string()
        }
        _ => String::new(),
    }
}

/// The table is JSON, which holds no other bytes.
fn text(bytes: &[u8]) -> Result<String, LayerError> {
    let what = "a name that is not UTF-8, which a table of contents cannot hold";
    String::from_utf8(bytes.to_vec()).map_err(|_| LayerError::UnsupportedEntry { path: shown(bytes), what })
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for place in 0..4 {
            match place <= group.len() {
                true => text.push(char::from(DIGITS[(bits >> (18 - 6 * place) & 63) as usize])),
                false => text.push('='),
            }
        }
    }
    text
}

/// Table and footer.
struct Ending {
    codec: Codec,
    hasher: Hasher,
    uncompressed: u64,
    /// Where the table's member begins.
    at: u64,
}

impl Ending {
    fn write(mut self, entries: Vec<Row>, out: &mut dyn ChunkOut) -> Result<Estargz, StoreError> {
        let table = serde_json::to_vec(&Table { version: 1, entries }).expect("rows hold only text and numbers");
        let kind = EntryKind::File { size: table.len() as u64, blake3: [0; 32] };
        let entry = LayerEntry { path: TABLE.into(), kind, metadata: Metadata::default(), link: None };
        let mut member = Vec::new();
        tar_writer::put_entry(&entry, None, &TarOptions::default(), &mut member);
        member.extend_from_slice(&table);
        member.resize(member.len() + padding(table.len() as u64) + 2 * BLOCK, 0);
        self.hasher.update(&member);
        self.uncompressed += member.len() as u64;
        let compressed = self.codec.compress(&member).map_err(|source| LayerError::Compress { source })?;
        out.write(&compressed)?;
        out.write(&footer(self.at))?;
        let diff_id = DiffId::new(self.hasher.finish());
        Ok(Estargz { diff_id, table: Digest::sha256(&table), uncompressed: self.uncompressed })
    }
}

/// An empty gzip member (RFC 1952) whose extra field `SG` says where the table begins.
fn footer(at: u64) -> Vec<u8> {
    let mut footer = vec![0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff, 26, 0, b'S', b'G', 22, 0];
    footer.extend_from_slice(format!("{at:016x}STARGZ").as_bytes());
    // One final stored block of no bytes, checksum and length.
    footer.extend_from_slice(&[1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]);
    footer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_footer_is_the_specifications() {
        let footer = footer(0x1234);
        assert_eq!(footer.len(), 51);
        assert_eq!(&footer[16..38], b"0000000000001234STARGZ");
        let mut none = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&footer[..]), &mut none).unwrap();
        assert!(none.is_empty());
    }

    #[test]
    fn bytes_are_base64() {
        for (bytes, expect) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")] {
            assert_eq!(base64(bytes.as_bytes()), expect);
        }
        assert_eq!(base64(&[0xff, 0xfe, 0xfd]), "//79");
    }
}
