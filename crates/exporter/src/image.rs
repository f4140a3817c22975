use crate::Attestation;
use forge_image::{Descriptor, DiffId, ImageConfig, ImageId, Platform};
use forge_store::{LayerId, TarOptions};

/// What a build made for one platform.
#[derive(Clone, Debug)]
pub struct BuiltImage {
    /// What it runs on.
    pub platform: Platform,
    /// The layers, lowest first, those of the base image included. Layers that turned out empty are in it.
    pub layers: Vec<LayerId>,
    /// The config with everything but `rootfs.diff_ids` and the times of what was made in this build. Its
    /// history names one entry that is not `empty_layer` for each of `layers`; missing ones are filled in.
    pub config: ImageConfig,
    /// Which those are.
    pub missing_history: MissingHistory,
}

/// Of which layers a history lacks the entries, where it has fewer than there are layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MissingHistory {
    /// The lowest: a base image need not have a history, and what a Dockerfile adds is always told.
    #[default]
    Lowest,
    /// The uppermost: the config was made for a base, and nobody told what came upon it.
    Uppermost,
}

/// An image whose config, and so whose id, is settled. No layer of it is compressed yet.
#[derive(Clone, Debug)]
pub struct AssembledImage {
    /// The digest of `config_bytes`.
    pub id: ImageId,
    /// What it runs on.
    pub platform: Platform,
    /// The config.
    pub config: ImageConfig,
    /// The config's exact bytes.
    pub config_bytes: Vec<u8>,
    /// The layers, lowest first.
    pub layers: Vec<AssembledLayer>,
    /// The manifest that the image came with, whose bytes are in the store; only for images of the store.
    pub manifest: Option<Descriptor>,
    /// What is said of it where it leaves; the store keeps none of it.
    pub attestations: Vec<Attestation>,
}

/// One layer of an assembled image.
#[derive(Clone, Debug)]
pub struct AssembledLayer {
    /// The layer in the store.
    pub id: LayerId,
    /// The digest of its tar stream in the dialect `tar`, as the config lists it.
    pub diff_id: DiffId,
    /// The dialect: whether times are clamped.
    pub tar: TarOptions,
    /// Whether the bytes came from elsewhere and cannot be made again from the tree.
    pub foreign: bool,
}

impl AssembledImage {
    /// The layer ids, lowest first.
    pub fn layer_ids(&self) -> Vec<LayerId> {
        self.layers.iter().map(|layer| layer.id).collect()
    }
}
