//! The shared caches of one build.

use super::inline::{self, InlineRecords};
use super::source::{CacheOrigin, CacheSource};
use super::target::{CacheTarget, Extent, News, Outgoing};
use super::{FoundRecord, RemoteCache, RemoteMounts};
use crate::{CacheError, CacheKey, StepRecord};
use async_trait::async_trait;
use forge_image::{Descriptor, Digest, ImageConfig, chain};
use forge_registry::{Registry, TransferContext};
use forge_session::{Event, WarningNotice};
use forge_store::{CacheMountKey, LayerId};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;
use tokio::task::JoinSet;

/// What a build asks beside its own cache, and what it tells.
pub struct SharedCache {
    context: TransferContext,
    /// Where layers lie that are to be sent and are not here.
    registry: Arc<Registry>,
    sources: RwLock<Vec<Arc<CacheSource>>>,
    targets: Vec<Arc<CacheTarget>>,
    /// Records on their way.
    sending: Mutex<JoinSet<()>>,
    open: Arc<AtomicUsize>,
    /// What went wrong with sending.
    failures: Arc<Mutex<Vec<Failure>>>,
    /// Records that the image is to name, where it is.
    inline: Option<Mutex<InlineRecords>>,
    /// Cache mounts that steps used.
    mounts: Mutex<BTreeSet<CacheMountKey>>,
    /// Records of which only the end of the build says whether they are sent.
    held_back: Mutex<Vec<(Arc<CacheTarget>, Outgoing)>>,
}

/// Something that was not sent.
struct Failure {
    line: String,
    /// Whether the build fails for it.
    required: bool,
}

/// What came of sending.
#[derive(Debug, Default)]
pub struct CachesSent {
    /// What was not sent, a line for each cache.
    pub lines: Vec<String>,
    /// The first of them for which the build fails.
    pub failure: Option<String>,
    /// The last document that names all records, where one was asked for.
    pub bundle: Option<Descriptor>,
}

impl SharedCache {
    /// Asks `sources` in order, and sends to all of `targets`. The context is the build's.
    pub fn new(
        context: TransferContext,
        registry: Arc<Registry>,
        sources: Vec<CacheOrigin>,
        targets: Vec<CacheTarget>,
    ) -> Self {
        Self {
            context,
            registry,
            sources: RwLock::new(sources.into_iter().map(|origin| Arc::new(CacheSource::new(origin))).collect()),
            targets: targets.into_iter().map(Arc::new).collect(),
            sending: Mutex::default(),
            open: Arc::default(),
            failures: Arc::default(),
            inline: None,
            mounts: Mutex::default(),
            held_back: Mutex::default(),
        }
    }

    /// Has [`SharedCache::write_inline`] write what it is told of from now on.
    #[must_use]
    pub fn with_inline(self) -> Self {
        Self { inline: Some(Mutex::default()), ..self }
    }

    /// Writes into the config of an image which steps its layers, lowest first, are the results of, where that is wanted. What
    /// its base said of that is taken out.
    ///
    /// # Errors
    /// The store failed.
    pub fn write_inline(&self, layers: &[LayerId], config: &mut ImageConfig) -> Result<(), CacheError> {
        match &self.inline {
            Some(records) => inline::write(&self.context, layers, &lock(records), config),
            None => Ok(()),
        }
    }

    /// Asks further places from now on, after the others.
    pub fn ask_also(&self, sources: Vec<CacheOrigin>) {
        let mut known = self.sources.write().unwrap_or_else(PoisonError::into_inner);
        known.extend(sources.into_iter().map(|origin| Arc::new(CacheSource::new(origin))));
    }

    fn sources(&self) -> Vec<Arc<CacheSource>> {
        self.sources.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The places that are sent to, as users see them.
    pub fn targets(&self) -> Vec<String> {
        self.targets.iter().map(|target| target.name()).collect()
    }

    /// Waits until everything is sent, but not longer than that, and says what was not. `results` are the stacks of the
    /// build.
    pub async fn finish(&self, results: &[Vec<LayerId>], patience: Duration) -> CachesSent {
        let held_back = std::mem::take(&mut *lock(&self.held_back));
        for (target, outgoing) in held_back {
            let is_part = |layers: &[LayerId]| results.iter().any(|result| result.starts_with(layers));
            if outgoing.record.outputs.iter().all(|output| !output.layers().is_empty() && is_part(output.layers())) {
                self.start(&target, outgoing);
            }
        }
        for mount in std::mem::take(&mut *lock(&self.mounts)) {
            self.targets
                .iter()
                .filter(|target| target.takes_mounts())
                .for_each(|target| self.start_mount(target, &mount));
        }
        let mut sending = std::mem::take(&mut *lock(&self.sending));
        let mut bundle = None;
        let ended = async {
            while sending.join_next().await.is_some() {}
            for target in &self.targets {
                match target.send_bundle(&self.context).await {
                    Ok(sent) => bundle = sent.or(bundle.take()),
                    Err(error) => lock(&self.failures).push(Failure::new(&error, target.is_required())),
                }
            }
        };
        if tokio::time::timeout(patience, ended).await.is_err() {
            let left = self.open.load(Ordering::Relaxed);
            let line = format!("cache export: {left} records were not sent within {} s", patience.as_secs());
            let required = self.targets.iter().any(|target| target.is_required());
            lock(&self.failures).push(Failure { line, required });
        }
        let failures = std::mem::take(&mut *lock(&self.failures));
        let failure = failures.iter().find(|failure| failure.required).map(|failure| failure.line.clone());
        CachesSent { lines: failures.into_iter().map(|failure| failure.line).collect(), failure, bundle }
    }

    fn offer(&self, keys: &[CacheKey], record: &StepRecord, news: News) {
        // A source is had from where it is.
        if record.is_source {
            return;
        }
        if let Some(inline) = &self.inline {
            lock(inline).known.push((keys.to_vec(), record.clone()));
        }
        for target in &self.targets {
            let outgoing = Outgoing { keys: keys.to_vec(), record: record.clone(), news };
            match target.extent() {
                Extent::All => self.start(target, outgoing),
                Extent::Final => lock(&self.held_back).push((target.clone(), outgoing)),
            }
        }
    }

    fn start(&self, target: &Arc<CacheTarget>, outgoing: Outgoing) {
        let (context, registry, target) = (self.context.clone(), self.registry.clone(), target.clone());
        let required = target.is_required();
        self.spawn(required, async move { target.send(&context, &registry, &outgoing).await });
    }

    fn start_mount(&self, target: &Arc<CacheTarget>, mount: &CacheMountKey) {
        let (context, target, mount) = (self.context.clone(), target.clone(), mount.clone());
        let required = target.is_required();
        self.spawn(required, async move { target.send_mount(&context, &mount).await });
    }

    fn spawn(&self, required: bool, sending: impl Future<Output = Result<(), CacheError>> + Send + 'static) {
        let (open, failures) = (self.open.clone(), self.failures.clone());
        open.fetch_add(1, Ordering::Relaxed);
        lock(&self.sending).spawn(async move {
            if let Err(error) = sending.await {
                lock(&failures).push(Failure::new(&error, required));
            }
            open.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

impl Failure {
    fn new(error: &CacheError, required: bool) -> Self {
        Self { line: format!("cache export: {}", chain(error)), required }
    }
}

#[async_trait]
impl RemoteCache for SharedCache {
    async fn find(&self, key: &CacheKey, vertex: &Digest) -> Option<FoundRecord> {
        let context = TransferContext { vertex: vertex.clone(), ..self.context.clone() };
        for source in self.sources() {
            match source.find(&context, key).await {
                Ok(Some(found)) => return Some(found),
                Ok(None) => {}
                Err(error) => tell(&context, &error),
            }
        }
        None
    }

    fn made(&self, keys: &[CacheKey], record: &StepRecord) {
        self.offer(keys, record, News::Made);
    }

    fn used(&self, keys: &[CacheKey], record: &StepRecord) {
        self.offer(keys, record, News::Used);
    }

    async fn skipped(&self, keys: &[CacheKey]) {
        // Layers can be sent when they are here; an image has its own.
        let Some(inline) = &self.inline else { return };
        for key in keys {
            for source in self.sources() {
                if let Ok(Some(record)) = source.look_up(&self.context, key).await {
                    lock(inline).passed.push(record);
                    break;
                }
            }
        }
    }
}

#[async_trait]
impl RemoteMounts for SharedCache {
    async fn fill(&self, mount: &CacheMountKey, into: &Path, vertex: &Digest) -> bool {
        let context = TransferContext { vertex: vertex.clone(), ..self.context.clone() };
        for source in self.sources() {
            match source.fill(&context, mount, into).await {
                Ok(false) => {}
                Ok(true) => return true,
                Err(error) => {
                    tell(&context, &error);
                    // Another one would find the folder half full.
                    return false;
                }
            }
        }
        false
    }

    fn mounted(&self, mount: &CacheMountKey) {
        if self.targets.iter().any(|target| target.takes_mounts()) {
            lock(&self.mounts).insert(mount.clone());
        }
    }
}

/// Tells why a cache is of no use for a step.
fn tell(context: &TransferContext, error: &CacheError) {
    if context.session.cancellation().is_cancelled() {
        return;
    }
    let notice = WarningNotice {
        vertex: Some(context.vertex.clone()),
        level: 1,
        short: format!("cache import: {}", chain(error)),
        detail: Vec::new(),
        url: None,
        span: None,
        excerpt: None,
    };
    context.session.events().emit(Event::Warning(notice));
}

/// What is behind the lock is whole at every moment.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
