//! Has blobs in the store, each fetched once however many want it.

use crate::{FetchError, ImageSource, TransferContext};
use forge_image::{Descriptor, Digest};
use forge_store::{BlobFollower, LockGuard};
use std::time::Duration;

pub(crate) async fn blocking<T, F>(work: F) -> Result<T, FetchError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, FetchError> + Send + 'static,
{
    tokio::task::spawn_blocking(work).await.map_err(FetchError::Thread)?
}

/// Has a blob in the store and held by the lease. Of several that want the same blob, in any process, one fetches.
///
/// # Errors
/// The source fails, or sends other bytes than the descriptor names.
pub async fn ensure_blob(
    context: &TransferContext,
    source: &dyn ImageSource,
    descriptor: &Descriptor,
    verb: &str,
) -> Result<(), FetchError> {
    ensure_followed(context, source, descriptor, verb, drop).await
}

/// The same; where the blob is fetched, `begun` is given what reads along while it arrives.
pub(crate) async fn ensure_followed(
    context: &TransferContext,
    source: &dyn ImageSource,
    descriptor: &Descriptor,
    verb: &str,
    begun: impl FnOnce(BlobFollower),
) -> Result<(), FetchError> {
    if hold(context, &descriptor.digest).await? {
        return Ok(());
    }
    let _only = lock(context, format!("blob {}", descriptor.digest)).await?;
    if hold(context, &descriptor.digest).await? {
        return Ok(());
    }
    let blobs = context.store.blobs();
    let expected = Some((&descriptor.digest, descriptor.size));
    let writer = blobs.writer(expected).map_err(FetchError::store("make a blob"))?;
    begun(writer.follow().map_err(FetchError::store("make a blob"))?);
    let progress = context.begin(descriptor.digest.to_string(), verb, descriptor.size);
    let transfer = async {
        let report = |done| progress.set(done);
        source.blob(context, descriptor, writer, &report).await
    };
    tokio::select! {
        result = transfer => result?,
        () = context.session.cancellation().cancelled() => return Err(FetchError::Cancelled),
    }
    progress.complete();
    Ok(())
}

async fn hold(context: &TransferContext, digest: &Digest) -> Result<bool, FetchError> {
    let (context, digest) = (context.clone(), digest.clone());
    blocking(move || context.lease.hold_blob(&digest).map_err(FetchError::store("hold a blob"))).await
}

/// How often a lock that somebody else holds is asked for. Asking, instead of waiting in the kernel, can be cancelled.
const LOCK_INTERVAL: Duration = Duration::from_millis(25);

pub(crate) async fn lock(context: &TransferContext, name: String) -> Result<LockGuard, FetchError> {
    loop {
        let (store, name) = (context.store.clone(), name.clone());
        let attempt = blocking(move || store.try_lock(&name).map_err(FetchError::store("lock a blob"))).await?;
        if let Some(guard) = attempt {
            return Ok(guard);
        }
        tokio::select! {
            () = tokio::time::sleep(LOCK_INTERVAL) => {}
            () = context.session.cancellation().cancelled() => return Err(FetchError::Cancelled),
        }
    }
}
