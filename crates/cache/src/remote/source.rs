//! Records that come in.

use super::document::SentRecord;
use super::{RecordStore, failed};
use crate::{CacheError, CacheKey, ResultRef, StepRecord};
use forge_registry::{OfferedLayer, TransferContext, fetch_stack};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

/// How long a place may take to answer for a key. Blobs may take longer.
const PATIENCE: Duration = Duration::from_secs(5);

/// A place that is asked.
pub(super) struct CacheSource {
    pub store: Arc<dyn RecordStore>,
    /// It failed, and is not asked again in this build.
    given_up: AtomicBool,
}

impl CacheSource {
    pub fn new(store: Arc<dyn RecordStore>) -> Self {
        Self { store, given_up: AtomicBool::new(false) }
    }

    /// The record under a key with its layers here; `None` where the place has none, or is not asked any more.
    pub async fn find(&self, context: &TransferContext, key: &CacheKey) -> Result<Option<StepRecord>, CacheError> {
        if self.given_up.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let asked = tokio::time::timeout(PATIENCE, self.store.record(context, key)).await;
        let document = match asked {
            Ok(Ok(Some(document))) => document,
            Ok(Ok(None)) => return Ok(None),
            Ok(Err(error)) => return self.give_up(error),
            Err(elapsed) => return self.give_up(failed(self.store.name(), elapsed)),
        };
        let sent = SentRecord::from_document(&document, key)
            .map_err(|reason| CacheError::RemoteRecord { place: self.store.name(), reason })?;
        let mut outputs = Vec::with_capacity(sent.outputs.len());
        for stack in &sent.outputs {
            outputs.push(self.bring(context, stack).await?);
        }
        Ok(Some(received(sent, outputs)))
    }

    /// The first failure is told, and there is no other: a registry that cannot be reached would hold up every step.
    fn give_up<T>(&self, error: CacheError) -> Result<Option<T>, CacheError> {
        if matches!(error, CacheError::RemoteRecord { .. }) {
            return Err(error);
        }
        match self.given_up.swap(true, Ordering::Relaxed) {
            false => Err(error),
            true => Ok(None),
        }
    }

    /// Has a stack here: fetched, verified, unpacked.
    async fn bring(&self, context: &TransferContext, stack: &[OfferedLayer]) -> Result<ResultRef, CacheError> {
        if stack.is_empty() {
            return Ok(ResultRef::scratch());
        }
        let source = self.store.blobs()?;
        let layers = fetch_stack(context, &source, stack).await;
        Ok(ResultRef::Layers(layers.map_err(|error| failed(self.store.name(), error))?))
    }
}

/// What is kept of a record that came in. It is as old as it says, and was used now; that another step makes the same is for
/// this machine to find out.
fn received(sent: SentRecord, outputs: Vec<ResultRef>) -> StepRecord {
    StepRecord {
        name: sent.name,
        is_source: false,
        outputs,
        result: None,
        bytes: sent.bytes,
        wall_ms: sent.wall_ms,
        usage: sent.usage,
        created: sent.created,
        last_used: SystemTime::now(),
        boot_id: StepRecord::current_boot().to_owned(),
    }
}
