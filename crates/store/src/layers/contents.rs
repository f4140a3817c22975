//! Layers with tables of contents, which lazy pullers read file by file: what the two arrangements have in common.
//!
//! The bytes of each file, or of each piece of a big one, are a member or frame of their own. `estargz` and `zstd_chunked` say
//! where the table lies and what else there is.

use super::chunks::ChunkSink;
use super::commit::WHITEOUT_PREFIX;
use super::compress::ParallelCompressor;
use super::emit::{Entries, Files, TarSink, Wanted};
use super::entry::{EntryKind, LayerEntry, Metadata, join_path, split_path};
use super::error::{LayerError, shown};
use super::tar_writer::{self, BLOCK, OPAQUE_NAME, padding};
use crate::{StoreError, TarOptions};
use forge_image::Hasher;
use serde::Serialize;
use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, UNIX_EPOCH};

/// The pieces of big files, as `ctr-remote`, BuildKit and podman cut them.
const PIECE: u64 = 4 << 20;

/// An entry of a table (`TOCEntry` of estargz, `FileMetadata` of zstd:chunked), with the names and defaults of its JSON.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Row {
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
    /// Where the last piece of a file ends; estargz does not say it.
    #[serde(skip_serializing_if = "is_zero")]
    end_offset: u64,
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
    /// The member behind its last piece.
    #[serde(skip)]
    behind: Option<usize>,
}

#[derive(Serialize)]
struct Table<'a> {
    version: u32,
    entries: &'a [Row],
}

/// The JSON of a table.
pub(super) fn table(entries: &[Row]) -> Vec<u8> {
    serde_json::to_vec(&Table { version: 1, entries }).expect("rows hold only text and numbers")
}

/// What stands behind the bytes of a file in their member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Behind {
    /// The padding of its last block, and what follows up to the next file.
    Padding,
    /// Nothing: the member is exactly those bytes.
    Nothing,
}

/// A layer up to the end of its last member.
pub(super) struct Listed {
    pub(super) rows: Vec<Row>,
    pub(super) hasher: Hasher,
    pub(super) uncompressed: u64,
    /// How long it is.
    pub(super) length: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Writes the entries of a layer.
///
/// # Errors
/// Those of [`emit`](super::emit::emit); a name that is not UTF-8, which the table cannot hold; the compressor's sink failed.
pub(super) fn write_entries(
    layer: &mut Writer<'_>,
    entries: &dyn Entries,
    files: &mut Files,
    progress: &mut dyn FnMut(u64),
) -> Result<(), StoreError> {
    entries.each(&mut |position, entry, first| {
        if !entry.is_change() {
            return Ok(());
        }
        progress(layer.uncompressed);
        layer.headers(entry, first)?;
        if entry.size() > 0 {
            layer.file(&Wanted { position, path: &entry.path, size: entry.size(), hash: None }, files)?;
        }
        Ok(())
    })
}

fn with_offsets(mut rows: Vec<Row>, lengths: &[u64]) -> Vec<Row> {
    let mut offsets = vec![0];
    offsets.extend(lengths.iter().scan(0, |at, length| {
        *at += length;
        Some(*at)
    }));
    for row in &mut rows {
        row.offset = row.member.map_or(0, |member| offsets[member]);
        row.end_offset = row.behind.map_or(0, |member| offsets[member]);
    }
    rows
}

/// Cuts the tar into members and lists what is in it.
pub(super) struct Writer<'a> {
    compressor: ParallelCompressor<'a>,
    options: TarOptions,
    behind: Behind,
    member: Vec<u8>,
    members: usize,
    rows: Vec<Row>,
    hasher: Hasher,
    uncompressed: u64,
}

impl<'a> Writer<'a> {
    pub(super) fn new(compressor: ParallelCompressor<'a>, options: &TarOptions, behind: Behind) -> Self {
        let (options, hasher, rows) = (*options, Hasher::new(), Vec::new());
        Self { compressor, options, behind, member: Vec::new(), members: 0, rows, hasher, uncompressed: 0 }
    }

    pub(super) fn put(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.uncompressed += bytes.len() as u64;
        self.member.extend_from_slice(bytes);
    }

    /// Ends the member, so that what follows begins one.
    fn cut(&mut self) -> Result<(), StoreError> {
        if !self.member.is_empty() {
            self.compressor.chunk(&self.member)?;
            self.member.clear();
            self.members += 1;
        }
        Ok(())
    }

    /// Headers, and a row for each of them but those of files with bytes, whose rows are their pieces'.
    pub(super) fn headers(&mut self, entry: &LayerEntry, first: Option<&[u8]>) -> Result<(), StoreError> {
        let mut headers = Vec::new();
        tar_writer::put_entry(entry, first, &self.options, &mut headers);
        self.put(&headers);
        let rows = rows_of(entry, first, &self.options)?;
        self.rows.extend(rows);
        Ok(())
    }

    /// A file whose bytes are at hand, with its headers.
    pub(super) fn whole_file(&mut self, entry: &LayerEntry, bytes: &[u8]) -> Result<(), StoreError> {
        self.headers(entry, None)?;
        let mut pieces = Pieces::of(self, bytes.len() as u64);
        pieces.write(bytes)?;
        pieces.end()
    }

    fn file(&mut self, wanted: &Wanted<'_>, files: &mut Files) -> Result<(), StoreError> {
        let mut pieces = Pieces::of(self, wanted.size);
        files.copy(wanted, &mut pieces)?;
        pieces.end()
    }

    pub(super) fn finish(mut self) -> Result<Listed, StoreError> {
        self.cut()?;
        let lengths = self.compressor.finish()?.lengths;
        let rows = with_offsets(self.rows, &lengths);
        Ok(Listed { rows, hasher: self.hasher, uncompressed: self.uncompressed, length: lengths.iter().sum() })
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
        // In estargz a piece that reaches the end of its file does not say how long it is; in the other one, a file that is
        // one piece.
        let chunk_size = match self.writer.behind {
            Behind::Nothing if self.size > PIECE => left.min(PIECE),
            Behind::Padding if left > PIECE => PIECE,
            _ => 0,
        };
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
        if self.writer.behind == Behind::Nothing {
            self.writer.cut()?;
            self.writer.rows[self.file].behind = Some(self.writer.members);
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_base64() {
        for (bytes, expect) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")] {
            assert_eq!(base64(bytes.as_bytes()), expect);
        }
        assert_eq!(base64(&[0xff, 0xfe, 0xfd]), "//79");
    }
}
