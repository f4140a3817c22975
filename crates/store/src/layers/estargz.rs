//! Layers in eStargz's arrangement (`estargz.md` of stargz-snapshotter).
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
use super::codec::Codec;
use super::compress::{ChunkOut, ParallelCompressor};
use super::contents::{Behind, Listed, Writer, table, write_entries};
use super::emit::{Entries, Files};
use super::entry::{EntryKind, LayerEntry, Metadata};
use super::error::LayerError;
use super::tar_writer::{self, BLOCK, padding};
use crate::{StoreError, TarOptions};
use forge_image::{Annotations, DiffId, Digest};
use std::sync::Arc;

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

/// Writes a layer.
///
/// # Errors
/// Those of [`write_entries`]; `out` failed.
pub(super) fn write(
    entries: &dyn Entries,
    files: &mut Files,
    options: &TarOptions,
    codec: Codec,
    chunks: Arc<ChunkIndex>,
    progress: &mut dyn FnMut(u64),
    out: &mut dyn ChunkOut,
) -> Result<Estargz, StoreError> {
    let compressor = ParallelCompressor::new(codec, chunks, &mut *out);
    let mut layer = Writer::new(compressor, options, Behind::Padding);
    let kind = EntryKind::File { size: LANDMARK_CONTENT.len() as u64, blake3: [0; 32] };
    let metadata = Metadata { mode: 0o644, ..Metadata::default() };
    layer.whole_file(&LayerEntry { path: LANDMARK.into(), kind, metadata, link: None }, LANDMARK_CONTENT)?;
    write_entries(&mut layer, entries, files, progress)?;
    end(layer.finish()?, codec, out)
}

/// Writes table and footer.
fn end(listed: Listed, codec: Codec, out: &mut dyn ChunkOut) -> Result<Estargz, StoreError> {
    let Listed { rows, mut hasher, uncompressed, length } = listed;
    let table = table(&rows);
    let kind = EntryKind::File { size: table.len() as u64, blake3: [0; 32] };
    let entry = LayerEntry { path: TABLE.into(), kind, metadata: Metadata::default(), link: None };
    let mut member = Vec::new();
    tar_writer::put_entry(&entry, None, &TarOptions::default(), &mut member);
    member.extend_from_slice(&table);
    member.resize(member.len() + padding(table.len() as u64) + 2 * BLOCK, 0);
    hasher.update(&member);
    let compressed = codec.compress(&member).map_err(|source| LayerError::Compress { source })?;
    out.write(&compressed)?;
    out.write(&footer(length))?;
    let (diff_id, uncompressed) = (DiffId::new(hasher.finish()), uncompressed + member.len() as u64);
    Ok(Estargz { diff_id, table: Digest::sha256(&table), uncompressed })
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
}
