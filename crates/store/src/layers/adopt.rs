//! Layers that forge made on another machine, kept as if they had been made here.

use super::Layers;
use super::blob::own_digest;
use super::decompress::Tar;
use super::emit::Files;
use crate::layer_rows::Published;
use crate::{BlobFollower, FileTimes, LayerBlob, LayerId, LayerRecord, Lease, StoreError};
use forge_image::{ChainId, Descriptor, DiffId, Digest};
use std::io::Read;

/// Stands on top of an adopted stack where it is looked for: images that were pulled are never found by it, nor it by them.
const ADOPTED: &[u8] = b"forge adopted layer";

/// A layer that comes with a record of the cache.
#[derive(Clone, Copy, Debug)]
pub struct Adoption<'a> {
    /// The blob that carries it.
    pub blob: &'a Descriptor,
    /// The digest of its tar.
    pub diff_id: &'a DiffId,
    /// Which of its times are content, as its maker says.
    pub times: FileTimes,
}

impl Layers {
    /// Unpacks a blob of the store as a layer of forge's own making, and holds it; `None` where it is not: its tar is not
    /// what forge writes for those files. A layer that was adopted before, over the same layers, is the result.
    ///
    /// An own layer is not bound to a blob: its tar can be written anew, with clamped times too.
    ///
    /// # Errors
    /// As [`Layers::unpack`].
    pub fn adopt(
        &self,
        parents: &[LayerId],
        adoption: &Adoption<'_>,
        lease: &Lease,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Option<LayerRecord>, StoreError> {
        self.require_blob(adoption.blob, lease)?;
        let file = self.blobs.open(&adoption.blob.digest)?;
        self.adopt_from(file, parents, adoption, lease, progress)
    }

    /// The same for a blob that is still on its way into the store.
    ///
    /// # Errors
    /// As [`Layers::unpack_arriving`].
    pub fn adopt_arriving(
        &self,
        parents: &[LayerId],
        adoption: &Adoption<'_>,
        arriving: BlobFollower,
        lease: &Lease,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Option<LayerRecord>, StoreError> {
        self.adopt_from(arriving, parents, adoption, lease, progress)
    }

    /// The layer that was adopted over these, held by the lease.
    ///
    /// # Errors
    /// The database failed.
    pub fn find_adopted(
        &self,
        parents: &[LayerId],
        diff_id: &DiffId,
        lease: &Lease,
    ) -> Result<Option<LayerId>, StoreError> {
        let chain = self.adopted_chain(parents, diff_id)?;
        Ok(self.find_known(chain.as_ref(), lease)?.map(|record| record.id))
    }

    /// The layer that was unpacked over these, held by the lease.
    ///
    /// # Errors
    /// The database failed.
    pub fn find_unpacked(
        &self,
        parents: &[LayerId],
        diff_id: &DiffId,
        lease: &Lease,
    ) -> Result<Option<LayerId>, StoreError> {
        let chain = self.chain_of(parents, diff_id)?;
        Ok(self.find_known(chain.as_ref(), lease)?.map(|record| record.id))
    }

    fn adopt_from(
        &self,
        source: impl Read + Send + 'static,
        parents: &[LayerId],
        Adoption { blob, diff_id, times }: &Adoption<'_>,
        lease: &Lease,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Option<LayerRecord>, StoreError> {
        let chain = self.adopted_chain(parents, diff_id)?;
        if let Some(known) = self.find_known(chain.as_ref(), lease)? {
            return Ok(Some(known));
        }
        let scratch = self.opened.scratch("adopt")?;
        let (staged, tree) = (scratch.path().join("layer"), scratch.path().join("layer/tree"));
        crate::scratch::create_private(&staged)?;
        crate::scratch::create_private(&tree)?;
        let tar = Tar::open(source)?;
        let compression = tar.compression();
        let index = self.unpack_into(&tree, tar, &self.tree(parents)?, (&blob.digest, diff_id), progress)?;
        self.require_blob(blob, lease)?;
        if own_digest(&index, &mut Files::of_tree(tree)?)? != **diff_id {
            return Ok(None);
        }
        let diff_id = (*diff_id).clone();
        let descriptor = (*blob).clone();
        let carrier = LayerBlob { descriptor, diff_id: diff_id.clone(), compression, clamp: None, foreign: false };
        let made = self.record_of_index(&index, *times);
        let record = LayerRecord { diff_id: Some(diff_id), blobs: vec![carrier], ..made };
        match self.publish(&staged, &index, &record, chain.as_ref(), lease)? {
            Published::Stored => Ok(Some(record)),
            Published::Existing(id) => self.require(&id).map(Some),
        }
    }

    /// What an adopted layer is found by; none where a layer below has no tar yet.
    fn adopted_chain(&self, parents: &[LayerId], diff_id: &DiffId) -> Result<Option<ChainId>, StoreError> {
        let mark = DiffId::new(Digest::sha256(ADOPTED));
        let stack = self.recorded_diff_ids(parents)?;
        Ok(stack.and_then(|stack| ChainId::of(&[stack, vec![diff_id.clone(), mark]].concat())))
    }
}
