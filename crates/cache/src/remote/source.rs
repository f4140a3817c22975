//! Records that come in.

use super::document::SentRecord;
use super::mounts::{Carrier, mount_key};
use super::trust::Trust;
use super::{FoundRecord, RecordStore, failed};
use crate::{CacheError, CacheKey, ResultRef, StepRecord};
use forge_registry::{OfferedLayer, TransferContext, fetch_stack};
use forge_store::CacheMountKey;
use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// How long a place may take to answer for a key. Blobs may take longer.
const PATIENCE: Duration = Duration::from_secs(5);

/// A place that is asked.
pub(super) struct CacheSource {
    pub store: Arc<dyn RecordStore>,
    trust: Trust,
    mounts: Option<String>,
    /// It failed, and is not asked again in this build.
    given_up: AtomicBool,
    /// Why records were refused: each reason is told once.
    told: Mutex<HashSet<String>>,
}

/// A place that is asked, and whose records are taken from there.
pub struct CacheOrigin {
    /// The place.
    pub store: Arc<dyn RecordStore>,
    /// Whose records are taken.
    pub trust: Trust,
    /// Whether cache mounts are looked for, and what tells those of this project apart.
    pub mounts: Option<String>,
}

impl CacheSource {
    pub fn new(CacheOrigin { store, trust, mounts }: CacheOrigin) -> Self {
        Self { store, trust, mounts, given_up: AtomicBool::new(false), told: Mutex::default() }
    }

    /// The record under a key with its layers here; `None` where the place has none, or is not asked any more.
    pub async fn find(&self, context: &TransferContext, key: &CacheKey) -> Result<Option<FoundRecord>, CacheError> {
        let Some(sent) = self.look_up(context, key).await? else { return Ok(None) };
        let (mut outputs, mut absent) = (Vec::with_capacity(sent.outputs.len()), Vec::new());
        for (number, stack) in sent.outputs.iter().enumerate() {
            match stack {
                Some(stack) => outputs.push(self.bring(context, stack).await?),
                None => {
                    outputs.push(ResultRef::scratch());
                    absent.push(number);
                }
            }
        }
        Ok(Some(FoundRecord { keys: sent.keys.clone(), record: received(sent, outputs), absent }))
    }

    /// What the place says under a key, its layers still there.
    pub async fn look_up(&self, context: &TransferContext, key: &CacheKey) -> Result<Option<SentRecord>, CacheError> {
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
        SentRecord::from_document(&document, key, &self.trust).map(Some).or_else(|reason| self.refuse(reason))
    }

    /// Fills an empty folder with what a cache mount holds there.
    pub async fn fill(
        &self,
        context: &TransferContext,
        mount: &CacheMountKey,
        into: &Path,
    ) -> Result<bool, CacheError> {
        let Some(scope) = self.mounts.as_ref().filter(|_| !self.given_up.load(Ordering::Relaxed)) else {
            return Ok(false);
        };
        let carrier = Carrier { context, store: &self.store, key: mount_key(scope, mount) };
        match carrier.fetch(&self.trust, into).await {
            Ok(filled) => Ok(filled),
            Err(error) => Ok(self.give_up::<()>(error)?.is_some()),
        }
    }

    /// A record that is none is a miss. There may be as many as there are steps, for one reason.
    fn refuse<T>(&self, reason: String) -> Result<Option<T>, CacheError> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        match told.insert(reason.clone()) {
            true => Err(CacheError::RemoteRecord { place: self.store.name(), reason }),
            false => Ok(None),
        }
    }

    /// The first failure is told, and there is no other: a registry that cannot be reached would hold up every step.
    fn give_up<T>(&self, error: CacheError) -> Result<Option<T>, CacheError> {
        if let CacheError::RemoteRecord { reason, .. } = error {
            return self.refuse(reason);
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
