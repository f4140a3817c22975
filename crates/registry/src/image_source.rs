use crate::{FetchError, Registry, TransferContext};
use async_trait::async_trait;
use forge_image::{Descriptor, Reference};
use forge_store::BlobWriter;
use std::sync::Arc;

/// Where an image's documents and blobs come from.
#[async_trait]
pub trait ImageSource: Send + Sync {
    /// The bytes of a manifest or index, verified against the descriptor. Not longer than [`MAX_MANIFEST`].
    ///
    /// # Errors
    /// [`FetchError::NotAnImage`] of a source that holds blobs alone, which is what there is without further words.
    async fn manifest(&self, _context: &TransferContext, descriptor: &Descriptor) -> Result<Vec<u8>, FetchError> {
        Err(FetchError::NotAnImage { digest: descriptor.digest.clone(), media_type: descriptor.media_type.clone() })
    }

    /// Writes a blob. Whether its digest is right is for `into` to say. `progress` is told the bytes so far.
    async fn blob(
        &self,
        context: &TransferContext,
        descriptor: &Descriptor,
        into: BlobWriter,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), FetchError>;
}

/// A repository of a registry.
pub struct RegistrySource {
    registry: Arc<Registry>,
    reference: Reference,
}

impl RegistrySource {
    /// Reads from the repository that `reference` names.
    pub fn new(registry: Arc<Registry>, reference: Reference) -> Self {
        Self { registry, reference }
    }
}

#[async_trait]
impl ImageSource for RegistrySource {
    async fn manifest(&self, context: &TransferContext, descriptor: &Descriptor) -> Result<Vec<u8>, FetchError> {
        Ok(self.registry.manifest(&self.reference, descriptor, &*context.session).await?.bytes)
    }

    async fn blob(
        &self,
        context: &TransferContext,
        descriptor: &Descriptor,
        into: BlobWriter,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), FetchError> {
        let (lease, session) = (&context.lease, &*context.session);
        Ok(self.registry.fetch_blob(&self.reference, descriptor, into, lease, session, progress).await?)
    }
}
