//! From layers to tars and blobs.

use super::Layers;
use super::chunks::Chunker;
use super::compress::{self, Codec, ParallelCompressor};
use super::decompress::Tar;
use super::emit::{self, TarSink};
use super::error::LayerError;
use crate::layer_rows;
use crate::{BlobWriter, Compression, LayerBlob, LayerId, LayerRecord, Lease, StoreError, TarOptions};
use forge_image::{Descriptor, DiffId, Hasher};
use std::io::{self, Read, Write};

impl Layers {
    /// The digest of the layer's tar: that of the foreign blob where there is one and nothing is clamped, else that of
    /// forge's own dialect, which is computed once.
    ///
    /// # Errors
    /// No such layer, its tree was changed, or the file system or the database failed.
    pub fn diff_id(&self, id: &LayerId, tar: &TarOptions) -> Result<DiffId, StoreError> {
        match layer_rows::diff_id(&self.opened, id, tar)? {
            Some(diff_id) => Ok(diff_id),
            None => self.write_tar(id, tar, &mut io::sink()),
        }
    }

    /// Writes the layer's tar, whose digest [`Layers::diff_id`] is.
    ///
    /// # Errors
    /// Those of [`Layers::diff_id`]; `out` failed.
    pub fn write_tar(&self, id: &LayerId, tar: &TarOptions, out: &mut dyn Write) -> Result<DiffId, StoreError> {
        let record = self.require(id)?;
        let mut hashed = Hashed { hasher: Hasher::new(), next: &mut Plain { out } };
        match foreign(&record, tar) {
            Some(blob) => self.copy_foreign(blob, &mut hashed)?,
            None => emit::emit(&self.index(id)?, &self.tree_path(id)?, tar, &mut hashed)?,
        }
        self.settle_diff_id(id, tar, hashed.finish())
    }

    /// A blob that carries the layer with that compression, made at the first call and found later. Own blobs are the
    /// same bytes on any number of processors. `progress` is told the uncompressed bytes written so far.
    ///
    /// A foreign layer's own blob is the answer where nothing is clamped and the compression is of the same kind; its level
    /// is not known and not asked for. With another compression its tar, byte for byte, is compressed anew.
    ///
    /// # Errors
    /// Those of [`Layers::diff_id`]; a level that the format does not have.
    pub fn blob(
        &self,
        id: &LayerId,
        compression: &Compression,
        tar: &TarOptions,
        lease: &Lease,
        progress: &mut dyn FnMut(u64),
    ) -> Result<LayerBlob, StoreError> {
        let codec = Codec::of(compression)?;
        let record = self.require(id)?;
        for blob in record.blobs.iter().filter(|blob| answers(blob, compression, tar)) {
            if lease.hold_blob(&blob.descriptor.digest)? {
                return Ok(blob.clone());
            }
        }
        let blob = self.make_blob(&record, compression, codec, tar, lease, progress)?;
        layer_rows::add_blob(&self.opened, id, &blob, lease)?;
        Ok(blob)
    }

    /// One pass: index and tree, tar, its digest, compression, the blob's digest, file.
    fn make_blob(
        &self,
        record: &LayerRecord,
        compression: &Compression,
        codec: Option<Codec>,
        tar: &TarOptions,
        lease: &Lease,
        progress: &mut dyn FnMut(u64),
    ) -> Result<LayerBlob, StoreError> {
        let mut writer = self.blobs.writer(None)?;
        let digest = match codec {
            None => self.tar_into(record, tar, progress, &mut Plain { out: &mut writer })?,
            Some(codec) => {
                let mut write = |bytes: &[u8]| write_all(&mut writer, bytes);
                let mut compressor = ParallelCompressor::new(codec, &mut write);
                let mut chunker = Chunker::new(&mut compressor);
                let digest = self.tar_into(record, tar, progress, &mut chunker)?;
                chunker.finish()?;
                compressor.finish()?;
                digest
            }
        };
        let diff_id = self.settle_diff_id(&record.id, tar, digest)?;
        let (digest, size) = BlobWriter::finish(writer, lease)?;
        let descriptor = Descriptor::new(compress::media_type(compression), digest, size);
        Ok(LayerBlob { descriptor, diff_id, compression: *compression, clamp: tar.clamp_mtime, foreign: false })
    }

    fn tar_into(
        &self,
        record: &LayerRecord,
        tar: &TarOptions,
        progress: &mut dyn FnMut(u64),
        sink: &mut dyn TarSink,
    ) -> Result<DiffId, StoreError> {
        let mut hashed = Hashed { hasher: Hasher::new(), next: &mut Watched { total: 0, progress, next: sink } };
        match foreign(record, tar) {
            Some(blob) => self.copy_foreign(blob, &mut hashed)?,
            None => emit::emit(&self.index(&record.id)?, &self.tree_path(&record.id)?, tar, &mut hashed)?,
        }
        Ok(hashed.finish())
    }

    /// The foreign tar as it is. For the cuts between chunks it is one long file: its entries are not looked at.
    fn copy_foreign(&self, blob: &LayerBlob, sink: &mut dyn TarSink) -> Result<(), StoreError> {
        let digest = &blob.descriptor.digest;
        let mut tar = Tar::open(self.blobs.open(digest)?)?;
        let mut buffer = vec![0; 1 << 17];
        sink.begin_entry(0, 0, u64::MAX)?;
        loop {
            match tar.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => sink.write(&buffer[..count])?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(LayerError::Decompress { source }.into()),
            }
        }
    }

    /// Records a digest that was just computed; one that was recorded before must agree.
    fn settle_diff_id(&self, id: &LayerId, tar: &TarOptions, computed: DiffId) -> Result<DiffId, StoreError> {
        match layer_rows::diff_id(&self.opened, id, tar)? {
            None => layer_rows::set_diff_id(&self.opened, id, tar, &computed)?,
            Some(known) if known == computed => {}
            Some(_) => {
                let reason = "its tar is no longer the one it was";
                return Err(LayerError::TreeChanged { path: id.to_string(), reason }.into());
            }
        }
        Ok(computed)
    }
}

/// The blob whose bytes are the layer's tar, if it is foreign and to be written as it came.
fn foreign<'a>(record: &'a LayerRecord, tar: &TarOptions) -> Option<&'a LayerBlob> {
    record.blobs.iter().find(|blob| blob.foreign && tar.clamp_mtime.is_none())
}

fn answers(blob: &LayerBlob, compression: &Compression, tar: &TarOptions) -> bool {
    let same_kind = std::mem::discriminant(&blob.compression) == std::mem::discriminant(compression);
    blob.clamp == tar.clamp_mtime && (blob.compression == *compression || (blob.foreign && same_kind))
}

/// Hashes what goes by.
struct Hashed<'a> {
    hasher: Hasher,
    next: &'a mut dyn TarSink,
}

impl Hashed<'_> {
    fn finish(self) -> DiffId {
        DiffId::new(self.hasher.finish())
    }
}

impl TarSink for Hashed<'_> {
    fn begin_entry(&mut self, mark: u64, headers: u64, data: u64) -> Result<(), StoreError> {
        self.next.begin_entry(mark, headers, data)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.hasher.update(bytes);
        self.next.write(bytes)
    }
}

/// Tells somebody how far it is.
struct Watched<'a> {
    total: u64,
    progress: &'a mut dyn FnMut(u64),
    next: &'a mut dyn TarSink,
}

impl TarSink for Watched<'_> {
    fn begin_entry(&mut self, mark: u64, headers: u64, data: u64) -> Result<(), StoreError> {
        (self.progress)(self.total);
        self.next.begin_entry(mark, headers, data)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.total += bytes.len() as u64;
        self.next.write(bytes)
    }
}

/// Writes what goes by, as it is.
struct Plain<'a> {
    out: &'a mut dyn Write,
}

impl TarSink for Plain<'_> {
    fn begin_entry(&mut self, _: u64, _: u64, _: u64) -> Result<(), StoreError> {
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        write_all(self.out, bytes)
    }
}

fn write_all(out: &mut dyn Write, bytes: &[u8]) -> Result<(), StoreError> {
    Ok(out.write_all(bytes).map_err(|source| LayerError::WriteTar { source })?)
}
