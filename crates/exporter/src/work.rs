//! The bridge from async callers to the store, all of whose calls block.

use crate::ExportError;

pub(crate) async fn blocking<T, F>(work: F) -> Result<T, ExportError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, ExportError> + Send + 'static,
{
    tokio::task::spawn_blocking(work).await.map_err(ExportError::Thread)?
}
