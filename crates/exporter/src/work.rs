//! The bridge from async callers to the store, all of whose calls block.

use crate::ExportError;

/// Work on a thread that may block.
pub(crate) async fn blocking<T, F>(work: F) -> Result<T, ExportError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, ExportError> + Send + 'static,
{
    tokio::task::spawn_blocking(work).await.map_err(ExportError::Thread)?
}

/// The same for what is mostly over before another thread would have begun it.
pub(crate) async fn briefly<T, F>(work: F) -> Result<T, ExportError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, ExportError> + Send + 'static,
{
    forge_session::at_once(work).await.map_err(ExportError::Thread)?
}
