//! Manifests, indexes and configs: small, read whole, kept in the store to the byte.

use crate::blob_fetch::{blocking, ensure_blob};
use crate::{FetchError, ImageSource, TransferContext};
use forge_image::{Descriptor, Digest};

/// Manifests and indexes larger than this are refused (A71); what registries accept.
pub const MAX_MANIFEST: u64 = 4 << 20;
/// Configs larger than this are refused (A71).
pub const MAX_CONFIG: u64 = 8 << 20;

/// The bytes of a manifest or index, from the store if it has them; they are in the store afterwards.
pub(crate) async fn manifest_bytes(
    context: &TransferContext,
    source: &dyn ImageSource,
    descriptor: &Descriptor,
) -> Result<Vec<u8>, FetchError> {
    check_size(descriptor, MAX_MANIFEST)?;
    if let Some(bytes) = stored_document(context, &descriptor.digest, MAX_MANIFEST).await? {
        check_bytes(descriptor, &bytes)?;
        return Ok(bytes);
    }
    let bytes = source.manifest(context, descriptor).await?;
    check_bytes(descriptor, &bytes)?;
    keep(context, bytes.clone()).await?;
    Ok(bytes)
}

pub(crate) async fn config_bytes(
    context: &TransferContext,
    source: &dyn ImageSource,
    descriptor: &Descriptor,
) -> Result<Vec<u8>, FetchError> {
    check_size(descriptor, MAX_CONFIG)?;
    ensure_blob(context, source, descriptor, "resolving").await?;
    let bytes = stored_document(context, &descriptor.digest, MAX_CONFIG).await?;
    let bytes = bytes.ok_or_else(|| FetchError::BlobMissing { digest: descriptor.digest.clone() })?;
    check_bytes(descriptor, &bytes)?;
    Ok(bytes)
}

fn check_size(descriptor: &Descriptor, limit: u64) -> Result<(), FetchError> {
    if descriptor.size > limit {
        return Err(FetchError::DocumentSize { digest: descriptor.digest.clone(), size: descriptor.size, limit });
    }
    Ok(())
}

/// Digest and size are both checked: a right digest with a wrong size is a lie too (A67).
pub(crate) fn check_bytes(descriptor: &Descriptor, bytes: &[u8]) -> Result<(), FetchError> {
    let actual = Descriptor::of(descriptor.media_type.clone(), bytes);
    // Only sha256 can be recomputed here; the store verified any other digest when it took the bytes in.
    let same_digest = descriptor.digest.algorithm() != "sha256" || actual.digest == descriptor.digest;
    if !same_digest || actual.size != descriptor.size {
        return Err(FetchError::Mismatch {
            expected: descriptor.digest.clone(),
            expected_size: descriptor.size,
            actual: actual.digest,
            actual_size: actual.size,
        });
    }
    Ok(())
}

pub(crate) async fn stored_document(
    context: &TransferContext,
    digest: &Digest,
    limit: u64,
) -> Result<Option<Vec<u8>>, FetchError> {
    let (context, digest) = (context.clone(), digest.clone());
    blocking(move || {
        if !context.lease.hold_blob(&digest).map_err(FetchError::store("hold a document"))? {
            return Ok(None);
        }
        context.store.blobs().read(&digest, limit).map(Some).map_err(FetchError::store("read a document"))
    })
    .await
}

pub(crate) async fn keep(context: &TransferContext, bytes: Vec<u8>) -> Result<Digest, FetchError> {
    let context = context.clone();
    let write = move || context.store.blobs().write(&bytes, &context.lease);
    blocking(move || write().map_err(FetchError::store("keep a document"))).await
}
