//! Layers that came as somebody else's tar.

use super::decompress::{self, Tar};
use super::error::LayerError;
use super::tar_reader::TarReader;
use super::tree::MergedTree;
use super::unpack::{self, UnpackError};
use super::{LayerIndex, Layers};
use crate::layer_rows::{self, Published};
use crate::{BlobFollower, ContentDigest, FileTimes, LayerBlob, LayerId, LayerRecord, Lease, StoreError, TarOptions};
use forge_image::{ChainId, Descriptor, DiffId, Digest};
use std::io::Read;
use std::path::Path;

impl Layers {
    /// Unpacks a blob of the store over the layers below it, lowest first, and holds the result.
    ///
    /// The blob's format is told from its bytes. The tar is hashed while it is unpacked, and nothing is kept unless the hash
    /// is `diff_id` (A64). The blob stays the layer's tar: its bytes and DiffId are what a push or a save sends. Where this
    /// stack was unpacked before, that layer is the result. `progress` is told the compressed bytes read so far.
    ///
    /// # Errors
    /// The blob is absent; it is damaged, hostile or beyond the limits ([`LayerError`]); the file system or the database
    /// failed.
    pub fn unpack(
        &self,
        parents: &[LayerId],
        blob: &Descriptor,
        diff_id: &DiffId,
        lease: &Lease,
        progress: &mut dyn FnMut(u64),
    ) -> Result<LayerRecord, StoreError> {
        self.require_blob(blob, lease)?;
        let file = self.blobs.open(&blob.digest)?;
        self.unpack_from(file, parents, (blob, diff_id), lease, progress)
    }

    /// The same for a blob that is still on its way into the store.
    ///
    /// # Errors
    /// As [`Layers::unpack`]; the blob did not arrive whole, which its writer knows more about.
    pub fn unpack_arriving(
        &self,
        parents: &[LayerId],
        (blob, diff_id): (&Descriptor, &DiffId),
        arriving: BlobFollower,
        lease: &Lease,
        progress: &mut dyn FnMut(u64),
    ) -> Result<LayerRecord, StoreError> {
        self.unpack_from(arriving, parents, (blob, diff_id), lease, progress)
    }

    pub(super) fn require_blob(&self, blob: &Descriptor, lease: &Lease) -> Result<(), StoreError> {
        match lease.hold_blob(&blob.digest)? {
            true => Ok(()),
            false => Err(StoreError::BlobNotFound { digest: blob.digest.clone() }),
        }
    }

    fn unpack_from(
        &self,
        source: impl Read + Send + 'static,
        parents: &[LayerId],
        (blob, diff_id): (&Descriptor, &DiffId),
        lease: &Lease,
        progress: &mut dyn FnMut(u64),
    ) -> Result<LayerRecord, StoreError> {
        if diff_id.digest().algorithm() != "sha256" {
            return Err(LayerError::UnsupportedDigest { algorithm: diff_id.digest().algorithm().to_owned() }.into());
        }
        let chain = self.chain_of(parents, diff_id)?;
        let known = self.find_known(chain.as_ref(), lease)?;
        if let Some(known) = &known
            && self.absent(std::slice::from_ref(&known.id))?.is_empty()
        {
            return Ok(known.clone());
        }
        let scratch = self.opened.scratch("unpack")?;
        let (staged, tree) = (scratch.path().join("layer"), scratch.path().join("layer/tree"));
        crate::scratch::create_private(&staged)?;
        crate::scratch::create_private(&tree)?;
        let tar = Tar::open(source)?;
        let compression = tar.compression();
        let index = self.unpack_into(&tree, tar, &self.tree(parents)?, (&blob.digest, diff_id), progress)?;
        // Of one that was still arriving the end was read, so it is whole and in the store.
        self.require_blob(blob, lease)?;
        let diff_id = diff_id.clone();
        let blob =
            LayerBlob { descriptor: blob.clone(), diff_id: diff_id.clone(), compression, clamp: None, foreign: true };
        let content = ContentDigest::of_tar(&diff_id);
        let made = self.record_of_index(&index, FileTimes::Content);
        let record = LayerRecord { content, diff_id: Some(diff_id), foreign: true, blobs: vec![blob], ..made };
        if let Some(known) = known {
            return self.fill(&staged, &index, LayerRecord { id: known.id, ..record }, chain.as_ref(), lease);
        }
        match self.publish(&staged, &index, &record, chain.as_ref(), lease)? {
            Published::Stored => Ok(record),
            // It came to be known meanwhile, and may be here or not.
            Published::Existing(id) => self.fill(&staged, &index, LayerRecord { id, ..record }, chain.as_ref(), lease),
        }
    }

    /// Gives a layer that is known its files.
    fn fill(
        &self,
        staged: &Path,
        index: &LayerIndex,
        record: LayerRecord,
        chain: Option<&ChainId>,
        lease: &Lease,
    ) -> Result<LayerRecord, StoreError> {
        self.write_beside(staged, index, &record, chain)?;
        match layer_rows::fill(&self.opened, staged, &record, lease)? {
            Published::Stored => Ok(record),
            Published::Existing(id) => self.require(&id),
        }
    }

    /// The blob that a foreign layer came as.
    ///
    /// # Errors
    /// The database failed.
    pub fn foreign_blob(&self, id: &LayerId) -> Result<Option<LayerBlob>, StoreError> {
        let record = self.get(id)?;
        Ok(record.and_then(|record| record.blobs.into_iter().find(|blob| blob.foreign)))
    }

    pub(super) fn unpack_into(
        &self,
        tree: &Path,
        tar: Tar,
        lower: &MergedTree,
        (blob, expected): (&Digest, &DiffId),
        progress: &mut dyn FnMut(u64),
    ) -> Result<LayerIndex, StoreError> {
        let unpacked = decompress::with_tar(tar, self.limits, progress, |pieces| {
            let mut reader = TarReader::new(pieces, self.limits);
            let index = unpack::unpack(&mut reader, lower, tree)?;
            // The digest is that of all bytes of the blob, also of those after the end of the archive (A63).
            reader.drain()?;
            let actual = reader.source().digest().expect("the stream was read to its end").clone();
            Ok((index, actual))
        });
        let (index, actual) = unpacked.map_err(|error| match error {
            UnpackError::Store(error) => error,
            UnpackError::Source(error) => StoreError::io("read", self.blobs.path(blob))(error),
        })?;
        if actual != *expected.digest() {
            return Err(LayerError::DiffIdMismatch { expected: expected.clone(), actual }.into());
        }
        Ok(index)
    }

    /// The ChainId of the stack with a tar on top; none when a layer below was made here and its tar not yet computed.
    pub(super) fn chain_of(&self, parents: &[LayerId], diff_id: &DiffId) -> Result<Option<ChainId>, StoreError> {
        let stack = self.recorded_diff_ids(parents)?;
        Ok(stack.and_then(|stack| ChainId::of(&[stack, vec![diff_id.clone()]].concat())))
    }

    /// The digests of the tars of some layers; none where one was not computed yet.
    pub(super) fn recorded_diff_ids(&self, layers: &[LayerId]) -> Result<Option<Vec<DiffId>>, StoreError> {
        Ok(layer_rows::diff_ids(&self.opened, layers, &TarOptions::default())?.into_iter().collect())
    }

    pub(super) fn find_known(&self, chain: Option<&ChainId>, lease: &Lease) -> Result<Option<LayerRecord>, StoreError> {
        let known = chain.map(|chain| layer_rows::find_by_chain(&self.opened, chain)).transpose()?.flatten();
        match known {
            Some(id) if lease.hold_layer(&id)? => self.get(&id),
            _ => Ok(None),
        }
    }

    pub(super) fn require(&self, id: &LayerId) -> Result<LayerRecord, StoreError> {
        self.get(id)?.ok_or_else(|| StoreError::LayerNotFound { layer: *id })
    }
}
