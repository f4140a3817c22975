//! Where a foreign layer came from, in a file beside its index: what could not be computed from the tree.

use crate::{LayerBlob, StoreError};
use forge_image::{ChainId, Descriptor, DiffId};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The tar that a layer was unpacked from. The file `origin` in the layer's folder holds it as JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Origin {
    pub(crate) diff_id: DiffId,
    /// The stack that the layer is the top of; `None` over layers whose tars had no digest yet.
    pub(crate) chain: Option<ChainId>,
    pub(crate) descriptor: Descriptor,
    pub(crate) compression: crate::Compression,
}

impl Origin {
    pub(crate) fn new(blob: &LayerBlob, chain: Option<&ChainId>) -> Self {
        Self {
            diff_id: blob.diff_id.clone(),
            chain: chain.cloned(),
            descriptor: blob.descriptor.clone(),
            compression: blob.compression,
        }
    }

    pub(crate) fn blob(&self) -> LayerBlob {
        LayerBlob {
            descriptor: self.descriptor.clone(),
            diff_id: self.diff_id.clone(),
            compression: self.compression,
            clamp: None,
            foreign: true,
        }
    }

    pub(super) fn write(&self, folder: &Path) -> Result<(), StoreError> {
        let path = folder.join("origin");
        let text = serde_json::to_vec(self).expect("these types hold only JSON values");
        std::fs::write(&path, text).map_err(StoreError::io("write", &path))
    }

    /// What the layer's folder says; `None` for a layer that was made here, or where the file cannot be read.
    pub(crate) fn read(folder: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(folder.join("origin")).ok()?).ok()
    }
}
