//! Layers that are known and not here: recorded by what manifest and config say, brought when somebody reads them.

use super::Layers;
use crate::layer_rows;
use crate::remote_rows::{self, RemoteLayer};
use crate::{Compression, ContentDigest, FileTimes, LayerBlob, LayerId, LayerRecord, Lease, StoreError};
use forge_image::{ChainId, Descriptor, DiffId, MediaType, Reference};

impl Layers {
    /// Records the layers of an image, lowest first, that a repository has, and holds them. Those that are here stay; of the
    /// others nothing is fetched: they have a DiffId and a blob to be named by, and no tree.
    ///
    /// # Errors
    /// The database failed.
    pub fn know(
        &self,
        stack: &[(Descriptor, DiffId)],
        repository: &Reference,
        lease: &Lease,
    ) -> Result<Vec<LayerId>, StoreError> {
        let diff_ids: Vec<DiffId> = stack.iter().map(|(_, diff_id)| diff_id.clone()).collect();
        let mut layers: Vec<LayerId> = Vec::with_capacity(stack.len());
        for (height, (blob, diff_id)) in stack.iter().enumerate() {
            let chain = ChainId::of(&diff_ids[..=height]).expect("the stack has a layer");
            // One that a power cut may have taken is settled first: it is here, or becomes absent, or goes.
            if let Some(found) = layer_rows::find_by_chain(&self.opened, &chain)? {
                lease.hold_layer(&found)?;
            }
            let remote = RemoteLayer {
                layer: LayerId::of_new_layer(),
                parent: layers.last().cloned(),
                blob: blob.clone(),
                diff_id: diff_id.clone(),
                repository: repository.clone(),
                absent: true,
            };
            layers.push(layer_rows::know(&self.opened, remote, &record_of, &chain, lease)?);
        }
        Ok(layers)
    }

    /// Which of some layers are not here, with where they can be had; in the same order.
    ///
    /// # Errors
    /// The database failed.
    pub fn absent(&self, layers: &[LayerId]) -> Result<Vec<RemoteLayer>, StoreError> {
        self.opened.database().read(|connection| {
            let mut absent = Vec::new();
            if !remote_rows::some_absent(connection)? {
                return Ok(absent);
            }
            for id in layers {
                absent.extend(remote_rows::get(connection, id)?.filter(|remote| remote.absent));
            }
            Ok(absent)
        })
    }

    /// Where a layer came from, here or not; `None` for one that was made here or came in an archive.
    ///
    /// # Errors
    /// The database failed.
    pub fn remote(&self, id: &LayerId) -> Result<Option<RemoteLayer>, StoreError> {
        self.opened.database().read(|connection| remote_rows::get(connection, id))
    }
}

/// What can be said of a layer without having it. Its content is whatever its tar's digest stands for.
pub(crate) fn record_of(remote: &RemoteLayer) -> LayerRecord {
    let blob = LayerBlob {
        descriptor: remote.blob.clone(),
        diff_id: remote.diff_id.clone(),
        compression: announced(&remote.blob.media_type),
        clamp: None,
        foreign: true,
    };
    LayerRecord {
        id: remote.layer,
        content: ContentDigest::of_tar(&remote.diff_id),
        times: FileTimes::Content,
        bytes: 0,
        entries: 1,
        diff_id: Some(remote.diff_id.clone()),
        foreign: true,
        blobs: vec![blob],
    }
}

/// What a media type says; the bytes may turn out to be something else.
fn announced(media_type: &MediaType) -> Compression {
    match media_type {
        MediaType::OciLayerZstd | MediaType::DockerLayerZstd => Compression::Zstd { level: None },
        MediaType::OciLayer | MediaType::DockerLayer => Compression::None,
        _ => Compression::Gzip { level: None },
    }
}
