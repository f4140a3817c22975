//! Layers in the arrangement zstd:chunked (`zstd-chunked` of containers/storage).
//!
//! ```text
//! zstd frame: headers up to the first file with bytes
//! zstd frame: a piece of that file (4 MiB at most), and nothing else
//! zstd frame: its padding, the headers up to the next file with bytes
//! ...
//! zstd frame: the end of the tar
//! skippable frame: the table of contents, compressed
//! skippable frame: 64 bytes that say where that lies
//! ```
//! The tar is the plain layer's, and so is its DiffId: whoever does not know the arrangement skips the last two frames.

use super::chunk_index::ChunkIndex;
use super::codec::Codec;
use super::compress::{ChunkOut, ParallelCompressor};
use super::contents::{Behind, Writer, table, write_entries};
use super::emit::{Entries, Files};
use super::error::LayerError;
use super::tar_writer::BLOCK;
use crate::{StoreError, TarOptions};
use forge_image::{Annotations, DiffId, Digest};
use std::sync::Arc;

/// RFC 8878, 3.1.2.
const SKIPPABLE: [u8; 4] = [0x50, 0x2a, 0x4d, 0x18];
/// The kind of table: that of CRFS, from which estargz came too.
const KIND: u64 = 1;
/// What the footer ends with.
const MAGIC: &[u8; 8] = b"GNUlInUx";

/// What was written.
pub(super) struct ZstdChunked {
    pub(super) diff_id: DiffId,
    table: Digest,
    place: Place,
}

/// Where the table lies.
#[derive(Clone, Copy)]
struct Place {
    offset: u64,
    compressed: u64,
    uncompressed: u64,
}

impl ZstdChunked {
    /// What a manifest must say of the layer.
    pub(super) fn annotations(&self) -> Annotations {
        let Place { offset, compressed, uncompressed } = self.place;
        let mut annotations = Annotations::default();
        let mut put = |key: &str, value: String| {
            annotations.insert(format!("io.github.containers.zstd-chunked.{key}"), value.into())
        };
        put("manifest-checksum", self.table.to_string());
        put("manifest-position", format!("{offset}:{compressed}:{uncompressed}:{KIND}"));
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
) -> Result<ZstdChunked, StoreError> {
    let mut layer = Writer::new(ParallelCompressor::new(codec, chunks, &mut *out), options, Behind::Nothing);
    write_entries(&mut layer, entries, files, progress)?;
    layer.put(&[0; 2 * BLOCK]);
    let listed = layer.finish()?;
    let table = table(&listed.rows);
    let compressed = codec.compress(&table).map_err(|source| LayerError::Compress { source })?;
    let place =
        Place { offset: listed.length + 8, compressed: compressed.len() as u64, uncompressed: table.len() as u64 };
    out.write(&skippable(&compressed))?;
    out.write(&skippable(&footer(place)))?;
    Ok(ZstdChunked { diff_id: DiffId::new(listed.hasher.finish()), table: Digest::sha256(&compressed), place })
}

fn skippable(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).expect("a table is far smaller than 4 GiB");
    [&SKIPPABLE[..], &length.to_le_bytes(), bytes].concat()
}

/// Seven numbers and a mark; the last three numbers would say where a list of the tar's headers lies.
fn footer(place: Place) -> [u8; 64] {
    let mut footer = [0; 64];
    for (at, number) in [place.offset, place.compressed, place.uncompressed, KIND].into_iter().enumerate() {
        footer[8 * at..8 * at + 8].copy_from_slice(&number.to_le_bytes());
    }
    footer[56..].copy_from_slice(MAGIC);
    footer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_footer_is_what_podman_looks_for() {
        let footer = skippable(&footer(Place { offset: 0x1234, compressed: 5, uncompressed: 6 }));
        assert_eq!((footer.len(), &footer[..8]), (72, &[0x50, 0x2a, 0x4d, 0x18, 64, 0, 0, 0][..]));
        assert_eq!(&footer[8..16], &[0x34, 0x12, 0, 0, 0, 0, 0, 0]);
        assert_eq!((footer[16], footer[24], footer[32], &footer[64..]), (5, 6, 1, &b"GNUlInUx"[..]));
        assert!(zstd::decode_all(&footer[..]).unwrap().is_empty(), "others skip it");
    }
}
