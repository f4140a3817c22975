//! A repository of a registry as a shared cache: a tag for each key, and the image that says itself what it is made of.

use super::inline::{self, InlineCache};
use super::{RecordStore, document, failed};
use crate::{CacheError, CacheKey};
use async_trait::async_trait;
use forge_image::{Descriptor, MediaType, Reference, ReferenceError};
use forge_registry::{ImageSource, Registry, RegistryError, RegistrySource, TransferContext};
use std::sync::Arc;
use tokio::sync::OnceCell;

/// Records in a repository, under tags that begin with the reference's own.
pub struct RegistryRecords {
    registry: Arc<Registry>,
    reference: Reference,
    tag: String,
    /// The image of that name, where it is one.
    image: Reference,
    inline: OnceCell<InlineCache>,
    /// Whether the config that all records share is there.
    config: OnceCell<()>,
}

impl RegistryRecords {
    /// The records of a reference. Each has the tag `TAG-KEY`.
    ///
    /// # Errors
    /// The tag is too long to be followed by a key.
    pub fn new(registry: Arc<Registry>, reference: &Reference) -> Result<Self, ReferenceError> {
        let (tag, image) = (reference.tag().unwrap_or("latest").to_owned(), reference.clone());
        let reference: Reference = reference.name().parse()?;
        let records = Self { registry, reference, tag, image, inline: OnceCell::new(), config: OnceCell::new() };
        records.place(&CacheKey::from_bytes([0; 32]))?;
        Ok(records)
    }

    fn place(&self, key: &CacheKey) -> Result<Reference, ReferenceError> {
        self.reference.with_tag(&format!("{}-{key}", self.tag))
    }

    /// What the image of that name says of a key.
    async fn inline_record(&self, context: &TransferContext, key: &CacheKey) -> Result<Option<Vec<u8>>, CacheError> {
        let source = RegistrySource::new(self.registry.clone(), self.reference.clone());
        let load = || inline::load(context, &self.registry, &source, &self.image);
        let inline = self.inline.get_or_try_init(load).await?;
        match (inline.find(key), inline.remark) {
            (Some(document), _) => Ok(Some(document)),
            (None, Some(remark)) => Err(CacheError::RemoteRecord { place: self.name(), reason: remark.to_owned() }),
            (None, None) => Ok(None),
        }
    }

    fn failed(&self) -> impl FnOnce(RegistryError) -> CacheError + '_ {
        |error| failed(self.name(), error)
    }

    async fn put_config(&self, context: &TransferContext) -> Result<(), CacheError> {
        let config = document::config();
        let kept = context.clone();
        super::blocking(move || {
            let kept = kept.store.blobs().write(document::EMPTY, &kept.lease);
            kept.map(drop).map_err(|error| failed("the store", error))
        })
        .await?;
        self.put_blob(context, &config).await
    }
}

#[async_trait]
impl RecordStore for RegistryRecords {
    fn name(&self) -> String {
        format!("{}:{}", self.reference.familiar_name(), self.tag)
    }

    async fn record(&self, context: &TransferContext, key: &CacheKey) -> Result<Option<Vec<u8>>, CacheError> {
        let place = self.place(key).map_err(|error| failed(self.name(), error))?;
        match self.registry.resolve(&place, &*context.session).await {
            Ok(document) => Ok(Some(document.bytes)),
            Err(RegistryError::NotFound { .. }) => self.inline_record(context, key).await,
            Err(error) => Err(failed(self.name(), error)),
        }
    }

    fn blobs(&self) -> Result<Arc<dyn ImageSource>, CacheError> {
        Ok(Arc::new(RegistrySource::new(self.registry.clone(), self.reference.clone())))
    }

    async fn mount(&self, context: &TransferContext, blob: &Descriptor, from: &Reference) -> Result<bool, CacheError> {
        if from.registry() != self.reference.registry() {
            return Ok(false);
        }
        let from = [from.repository().to_owned()];
        let offered = self.registry.offer_blob(&self.reference, blob, &from, &*context.session).await;
        Ok(offered.map_err(self.failed())?.is_some())
    }

    async fn put_blob(&self, context: &TransferContext, blob: &Descriptor) -> Result<(), CacheError> {
        let (store, digest) = (context.store.clone(), blob.digest.clone());
        let open = move || store.blobs().open(&digest).map_err(|error| failed("the store", error));
        let file = super::blocking(open).await?;
        let session = &*context.session;
        let pushed = self.registry.push_blob(&self.reference, blob, file, &[], session, &|_| {}).await;
        pushed.map(drop).map_err(self.failed())
    }

    async fn put_record(&self, context: &TransferContext, key: &CacheKey, document: &[u8]) -> Result<(), CacheError> {
        self.config.get_or_try_init(|| self.put_config(context)).await?;
        let place = self.place(key).map_err(|error| failed(self.name(), error))?;
        let session = &*context.session;
        let pushed = self.registry.push_manifest(&place, &MediaType::OciManifest, document, session).await;
        pushed.map(drop).map_err(self.failed())
    }

    async fn put_bundle(
        &self,
        context: &TransferContext,
        media_type: &MediaType,
        document: &[u8],
    ) -> Result<(), CacheError> {
        let place = self.reference.with_tag(&self.tag).map_err(|error| failed(self.name(), error))?;
        let pushed = self.registry.push_manifest(&place, media_type, document, &*context.session).await;
        pushed.map(drop).map_err(self.failed())
    }
}
