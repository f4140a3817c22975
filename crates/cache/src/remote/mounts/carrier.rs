//! A mount's document, there and back.

use super::pack::take;
use super::restore::restore;
use super::snapshot::Snapshot;
use crate::remote::trust::{RecordSigner, Trust};
use crate::remote::{RecordStore, blocking, document, failed, store_failed};
use crate::{CacheError, CacheKey};
use forge_image::{Annotations, Descriptor, Digest, Manifest, MediaType};
use forge_registry::{ImageSource, TransferContext, ensure_blob};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const INDEX_TYPE: &str = "application/vnd.forge.cache.mount.index.v1+json+zstd";
const PACK_TYPE: &str = "application/vnd.forge.cache.mount.pack.v1+zstd";
/// Signed is which index stands under which key; the index names the packs.
const SIGNATURE: &str = "forge.cache.signature";
/// The longest index, as it comes and unpacked.
const LONGEST_INDEX: u64 = 64 << 20;
const LONGEST_UNPACKED: u64 = 1 << 30;

/// A mount elsewhere.
pub(in crate::remote) struct Carrier<'a> {
    pub context: &'a TransferContext,
    pub store: &'a Arc<dyn RecordStore>,
    pub key: CacheKey,
}

impl Carrier<'_> {
    /// What there is under the key, if anything.
    async fn index(&self, trust: &Trust) -> Result<Option<Snapshot>, CacheError> {
        let Some(document) = self.store.record(self.context, &self.key).await? else { return Ok(None) };
        let descriptor = read(&document, &self.key, trust).map_err(|reason| self.refused(reason))?;
        self.bring(&descriptor, "downloading").await?;
        let (store, place) = (self.context.store.clone(), self.store.name());
        let unpack = move || {
            let bytes = store.blobs().open(&descriptor.digest).map_err(store_failed)?;
            let unpacked = unpack(bytes).map_err(|error| failed(place.clone(), error))?;
            Snapshot::read(&unpacked).map_err(|reason| CacheError::RemoteRecord { place, reason })
        };
        blocking(unpack).await.map(Some)
    }

    fn refused(&self, reason: String) -> CacheError {
        CacheError::RemoteRecord { place: self.store.name(), reason }
    }

    async fn bring(&self, blob: &Descriptor, action: &'static str) -> Result<(), CacheError> {
        let source: Arc<dyn ImageSource> = self.store.blobs()?;
        let brought = ensure_blob(self.context, &*source, blob, action).await;
        brought.map_err(|error| failed(self.store.name(), error))
    }

    /// Fills an empty folder; `false` where there is nothing to fill it with.
    pub async fn fetch(&self, trust: &Trust, into: &Path) -> Result<bool, CacheError> {
        let Some(snapshot) = self.index(trust).await? else { return Ok(false) };
        for pack in &snapshot.packs {
            let media_type = MediaType::Other(PACK_TYPE.to_owned());
            self.bring(&Descriptor::new(media_type, pack.digest.clone(), pack.size), "downloading").await?;
        }
        let (store, into, place) = (self.context.store.clone(), into.to_owned(), self.store.name());
        blocking(move || restore(&snapshot, &store, &into).map_err(|error| failed(place, error))).await?;
        Ok(true)
    }

    /// Sends what a folder holds now, less what is there already.
    pub async fn send(&self, signer: Option<&RecordSigner>, tree: PathBuf) -> Result<(), CacheError> {
        // What cannot be read is written anew.
        let earlier = self.index(&Trust::Everybody).await.ok().flatten().unwrap_or_default();
        let (store, lease) = (self.context.store.clone(), self.context.lease.clone());
        let taken = blocking(move || {
            let snapshot = take(&tree, &earlier, &store, &lease).map_err(|error| failed("a cache mount", error))?;
            if snapshot == earlier {
                return Ok(None);
            }
            let text = serde_json::to_vec(&snapshot).expect("an index holds only JSON values");
            let packed = zstd::encode_all(text.as_slice(), 3).map_err(|error| failed("a cache mount", error))?;
            let digest = store.blobs().write(&packed, &lease).map_err(store_failed)?;
            let index = Descriptor::new(MediaType::Other(INDEX_TYPE.to_owned()), digest, packed.len() as u64);
            let new: Vec<_> = snapshot.packs.iter().filter(|pack| !earlier.packs.contains(pack)).cloned().collect();
            Ok(Some((snapshot, index, new)))
        });
        let Some((snapshot, index, new)) = taken.await? else { return Ok(()) };
        let pack =
            |digest: &Digest, size| Descriptor::new(MediaType::Other(PACK_TYPE.to_owned()), digest.clone(), size);
        for info in &new {
            self.store.put_blob(self.context, &pack(&info.digest, info.size)).await?;
        }
        self.store.put_blob(self.context, &index).await?;
        let packs = snapshot.packs.iter().map(|info| pack(&info.digest, info.size));
        let document = write(&self.key, index, packs.collect(), signer);
        self.store.put_record(self.context, &self.key, &document).await
    }
}

fn signed_text(key: &CacheKey, index: &Descriptor) -> String {
    format!("mount {key} {}", index.digest)
}

fn write(key: &CacheKey, index: Descriptor, packs: Vec<Descriptor>, signer: Option<&RecordSigner>) -> Vec<u8> {
    let signature = signer.map(|signer| (SIGNATURE.to_owned(), signer.sign(&signed_text(key, &index)).into()));
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(MediaType::OciManifest),
        config: document::config(),
        layers: [vec![index], packs].concat(),
        annotations: Annotations::from_iter(signature),
        unknown: serde_json::Map::new(),
    };
    manifest.to_json()
}

/// The index that a document names.
fn read(document: &[u8], key: &CacheKey, trust: &Trust) -> Result<Descriptor, String> {
    let manifest = Manifest::from_json(document, Some(&MediaType::OciManifest)).map_err(|error| error.to_string())?;
    let index = manifest.layers.first().filter(|layer| layer.media_type.as_str() == INDEX_TYPE);
    let index = index.ok_or("it is no cache mount")?;
    let signature = manifest.annotations.get(SIGNATURE).and_then(|value| value.as_str());
    if !trust.accepts(&signed_text(key, index), signature) {
        return Err("it is not signed by anybody who is trusted".to_owned());
    }
    if index.size > LONGEST_INDEX {
        return Err("the index of a mount is too long".to_owned());
    }
    Ok(Descriptor::new(index.media_type.clone(), index.digest.clone(), index.size))
}

fn unpack(bytes: std::fs::File) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let decoder = zstd::Decoder::new(bytes)?;
    std::io::Read::read_to_end(&mut std::io::Read::take(decoder, LONGEST_UNPACKED), &mut text)?;
    Ok(text)
}
