//! Records that go out.

use super::bundle::{self, BundleForm};
use super::document::SentRecord;
use super::mounts::{Carrier, mount_key};
use super::trust::{RecordSigner, Trust};
use super::{RecordStore, blocking, failed, store_failed};
use crate::{CacheError, CacheKey, ResultRef, StepRecord};
use forge_image::{Descriptor, Digest};
use forge_registry::{OfferedLayer, Registry, TransferContext, bring_layers};
use forge_store::{
    CacheMountFound, CacheMountKey, CacheMountUse, Compression, LayerId, RemoteLayer, StoreError, TarOptions,
};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{OnceCell, Semaphore};

/// How records are sent.
pub struct Dispatch {
    /// The compression of layers that were made here.
    pub compression: Compression,
    /// Whether layers that came compressed are compressed anew.
    pub force: bool,
    /// Which steps are sent.
    pub extent: Extent,
    /// Who signs.
    pub signer: Option<RecordSigner>,
    /// How many records are sent at once.
    pub at_once: usize,
    /// Whether cache mounts are sent, and what tells those of this project apart.
    pub mounts: Option<String>,
    /// What the document looks like that names all records, where there is to be one.
    pub bundle: Option<BundleForm>,
    /// Whether the build fails where something cannot be sent.
    pub required: bool,
}

/// Which steps are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Extent {
    /// Those whose results are in the image.
    Final,
    /// All.
    #[default]
    All,
}

/// A place that records are sent to.
pub struct CacheTarget {
    store: Arc<dyn RecordStore>,
    compression: Compression,
    /// Whether layers that came compressed are compressed anew.
    force: bool,
    extent: Extent,
    signer: Option<RecordSigner>,
    mounts: Option<String>,
    bundle: Option<BundleForm>,
    required: bool,
    /// What the bundle is to name.
    sent: Mutex<BTreeMap<Vec<CacheKey>, SentRecord>>,
    slots: Semaphore,
    layers: Mutex<HashMap<LayerId, Arc<OnceCell<OfferedLayer>>>>,
    /// What was sent. Layers of several stacks can be one blob, and registries show a blob that is sent to them a second time as
    /// damaged for a moment.
    blobs: Mutex<HashMap<Digest, Arc<OnceCell<()>>>>,
    given_up: AtomicBool,
}

/// A record that is to be sent.
#[derive(Clone)]
pub(super) struct Outgoing {
    pub keys: Vec<CacheKey>,
    pub record: StepRecord,
    pub news: News,
}

/// Whether a place can have a record already.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum News {
    /// It was made just now, and takes the place of what is there.
    Made,
    /// It was here before: what is there is as good.
    Used,
}

impl CacheTarget {
    /// Sends to `store` as the dispatch says.
    pub fn new(store: Arc<dyn RecordStore>, dispatch: Dispatch) -> Self {
        let Dispatch { compression, force, extent, signer, at_once, mounts, bundle, required } = dispatch;
        let slots = Semaphore::new(at_once.clamp(1, 64));
        let (sent, layers, blobs) = (Mutex::default(), Mutex::default(), Mutex::default());
        let given_up = AtomicBool::new(false);
        Self {
            store,
            compression,
            force,
            extent,
            signer,
            mounts,
            bundle,
            required,
            sent,
            slots,
            layers,
            blobs,
            given_up,
        }
    }

    /// Whether the build fails where something cannot be sent.
    pub(super) fn is_required(&self) -> bool {
        self.required
    }

    /// Writes the document that names everything that was sent; `None` where there is to be none, or nothing was sent.
    pub(super) async fn send_bundle(&self, context: &TransferContext) -> Result<Option<Descriptor>, CacheError> {
        let Some(form) = self.bundle.filter(|_| !self.given_up.load(Ordering::Relaxed)) else { return Ok(None) };
        let sent = std::mem::take(&mut *self.sent.lock().unwrap_or_else(PoisonError::into_inner));
        if sent.is_empty() {
            return Ok(None);
        }
        let records: Vec<SentRecord> = sent.into_values().collect();
        let written = bundle::write(&records, form, self.signer.as_ref());
        let config = Descriptor::of(written.config_type, &written.config);
        self.send_document(context, &config, written.config).await?;
        let document = Descriptor::of(written.document_type.clone(), &written.document);
        self.store.put_bundle(context, &written.document_type, &written.document).await?;
        Ok(Some(document))
    }

    async fn send_document(
        &self,
        context: &TransferContext,
        descriptor: &Descriptor,
        bytes: Vec<u8>,
    ) -> Result<(), CacheError> {
        let kept = context.clone();
        let keep = move || kept.store.blobs().write(&bytes, &kept.lease).map(drop).map_err(store_failed);
        blocking(keep).await?;
        self.send_blob(context, descriptor).await
    }

    /// Sends a blob, once.
    async fn send_blob(&self, context: &TransferContext, blob: &Descriptor) -> Result<(), CacheError> {
        let cell = {
            let mut blobs = self.blobs.lock().unwrap_or_else(PoisonError::into_inner);
            blobs.entry(blob.digest.clone()).or_default().clone()
        };
        cell.get_or_try_init(|| self.store.put_blob(context, blob)).await.copied()
    }

    /// Takes note of what the bundle is to name.
    fn note(&self, record: SentRecord) {
        if self.bundle.is_some() {
            let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
            sent.insert(record.keys.clone(), record);
        }
    }

    pub(super) fn extent(&self) -> Extent {
        self.extent
    }

    pub(super) fn name(&self) -> String {
        self.store.name()
    }

    /// Sends a record after the layers that it names. The first failure is told, and nothing is sent after it.
    pub(super) async fn send(
        &self,
        context: &TransferContext,
        registry: &Arc<Registry>,
        outgoing: &Outgoing,
    ) -> Result<(), CacheError> {
        let _slot = self.slots.acquire().await.expect("the semaphore is never closed");
        if self.given_up.load(Ordering::Relaxed) {
            return Ok(());
        }
        match self.try_send(context, registry, outgoing).await {
            Err(error) if !self.given_up.swap(true, Ordering::Relaxed) => Err(error),
            _ => Ok(()),
        }
    }

    /// Whether it takes cache mounts.
    pub(super) fn takes_mounts(&self) -> bool {
        self.mounts.is_some()
    }

    /// Sends what a cache mount holds now. One that somebody is alone with is left to them.
    pub(super) async fn send_mount(&self, context: &TransferContext, mount: &CacheMountKey) -> Result<(), CacheError> {
        let Some(scope) = self.mounts.as_ref().filter(|_| !self.given_up.load(Ordering::Relaxed)) else {
            return Ok(());
        };
        let _slot = self.slots.acquire().await.expect("the semaphore is never closed");
        let (store, wanted) = (context.store.clone(), mount.clone());
        let find = move || store.cache_mounts().find(&wanted, CacheMountUse::Shared).map_err(store_failed);
        let CacheMountFound::Folder(guard) = blocking(find).await? else { return Ok(()) };
        let carrier = Carrier { context, store: &self.store, key: mount_key(scope, mount) };
        match carrier.send(self.signer.as_ref(), guard.tree().to_owned()).await {
            Err(error) if !self.given_up.swap(true, Ordering::Relaxed) => Err(error),
            _ => Ok(()),
        }
    }

    async fn try_send(
        &self,
        context: &TransferContext,
        registry: &Arc<Registry>,
        Outgoing { keys, record, news }: &Outgoing,
    ) -> Result<(), CacheError> {
        // A folder that is not there yet has nothing.
        if *news == News::Used
            && let Ok(Some(there)) = self.there(context, keys).await
        {
            self.note(there);
            return Ok(());
        }
        let layers: Vec<LayerId> = record.layers().cloned().collect();
        let held = context.clone();
        if !blocking(move || held.lease.hold_layers(&layers).map_err(store_failed)).await? {
            // A collection was faster.
            return Ok(());
        }
        let mut outputs = Vec::with_capacity(record.outputs.len());
        for output in &record.outputs {
            let ResultRef::Layers(stack) = output else { return Ok(()) };
            let mut sent = Vec::with_capacity(stack.len());
            for layer in stack {
                sent.push(self.layer(context, registry, layer).await?);
            }
            outputs.push(sent);
        }
        let sent = SentRecord::of(keys, record, outputs);
        let document = sent.to_document(self.signer.as_ref());
        for key in keys {
            self.store.put_record(context, key, &document).await?;
        }
        self.note(sent);
        Ok(())
    }

    /// The record that is there under all keys.
    async fn there(&self, context: &TransferContext, keys: &[CacheKey]) -> Result<Option<SentRecord>, CacheError> {
        let mut found = None;
        for key in keys {
            let Some(document) = self.store.record(context, key).await? else { return Ok(None) };
            // What was put there by somebody else may be as good, and cannot be judged: what is here is then sent.
            let Ok(record) = SentRecord::from_document(&document, key, &Trust::Everybody) else { return Ok(None) };
            found = Some(record);
        }
        Ok(found)
    }

    /// Sends a layer, once for all records that name it.
    async fn layer(
        &self,
        context: &TransferContext,
        registry: &Arc<Registry>,
        layer: &LayerId,
    ) -> Result<OfferedLayer, CacheError> {
        let cell = {
            let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
            layers.entry(*layer).or_default().clone()
        };
        cell.get_or_try_init(|| self.send_layer(context, registry, layer)).await.cloned()
    }

    async fn send_layer(
        &self,
        context: &TransferContext,
        registry: &Arc<Registry>,
        layer: &LayerId,
    ) -> Result<OfferedLayer, CacheError> {
        let (store, id) = (context.store.clone(), *layer);
        let known = blocking(move || store.layers().remote(&id).map_err(store_failed)).await?;
        if let Some(RemoteLayer { blob, diff_id, repository, absent, .. }) = known.filter(|_| !self.force) {
            if self.store.mount(context, &blob, &repository).await? {
                return Ok(OfferedLayer { blob, diff_id, made: None, created: None });
            }
            if absent {
                let brought = bring_layers(context, registry, std::slice::from_ref(layer)).await;
                brought.map_err(|error| failed(repository.to_string(), error))?;
            }
        }
        let (packed, id, compression, force) = (context.clone(), *layer, self.compression, self.force);
        let sent = blocking(move || pack(&packed, &id, &compression, force).map_err(store_failed)).await?;
        self.send_blob(context, &sent.blob).await?;
        Ok(sent)
    }
}

/// The blob that a layer leaves as: the one that it came as, where that was compressed.
fn pack(
    context: &TransferContext,
    id: &LayerId,
    compression: &Compression,
    force: bool,
) -> Result<OfferedLayer, StoreError> {
    let layers = context.store.layers();
    let came_as = layers.foreign_blob(id)?.filter(|blob| !force && blob.compression != Compression::None);
    let blob = match came_as {
        Some(blob) if context.lease.hold_blob(&blob.descriptor.digest)? => blob,
        _ => layers.blob(id, compression, &TarOptions::default(), &context.lease, &mut |_| {})?,
    };
    let made = layers.get(id)?.filter(|record| !record.foreign).map(|record| record.times);
    let created = layers.outline(id)?.filter(|outline| !outline.foreign).map(|outline| outline.stored);
    Ok(OfferedLayer { blob: blob.descriptor, diff_id: blob.diff_id, made, created })
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_trait::async_trait;
    use forge_image::MediaType;
    use forge_registry::ImageSource;
    use forge_store::Store;
    use forge_testkit::TestSession;
    use std::sync::atomic::AtomicUsize;

    /// Takes its time with each blob.
    #[derive(Default)]
    struct Slow(AtomicUsize);

    #[async_trait]
    impl RecordStore for Slow {
        fn name(&self) -> String {
            "slow".to_owned()
        }

        async fn record(&self, _: &TransferContext, _: &CacheKey) -> Result<Option<Vec<u8>>, CacheError> {
            Ok(None)
        }

        fn blobs(&self) -> Result<Arc<dyn ImageSource>, CacheError> {
            Err(failed("slow", std::io::Error::other("there are none")))
        }

        async fn put_blob(&self, _: &TransferContext, _: &Descriptor) -> Result<(), CacheError> {
            self.0.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            Ok(())
        }

        async fn put_record(&self, _: &TransferContext, _: &CacheKey, _: &[u8]) -> Result<(), CacheError> {
            Ok(())
        }
    }

    /// Fails where each layer sends its blob: a registry wrote it a second time while a manifest that names it came in, and
    /// refused that.
    #[tokio::test]
    async fn a_blob_of_two_layers_is_sent_once_and_waited_for_by_both() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store")).unwrap();
        let lease = Arc::new(store.lease("test").unwrap());
        let blob = Descriptor::of(MediaType::OciLayerGzip, b"blob");
        let (session, vertex) = (Arc::new(TestSession::new()), blob.digest.clone());
        let context = TransferContext { store, lease, session, vertex };
        let slow = Arc::new(Slow::default());
        let dispatch = Dispatch {
            compression: Compression::None,
            force: false,
            extent: Extent::All,
            signer: None,
            at_once: 4,
            mounts: None,
            bundle: None,
            required: false,
        };
        let target = CacheTarget::new(slow.clone(), dispatch);
        let begin = tokio::time::Instant::now();
        let (first, second) = tokio::join!(target.send_blob(&context, &blob), target.send_blob(&context, &blob));
        first.and(second).unwrap();
        assert!(begin.elapsed() >= std::time::Duration::from_millis(20));
        assert_eq!(slow.0.load(Ordering::Relaxed), 1);
    }
}
