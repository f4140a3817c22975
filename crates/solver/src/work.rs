//! What is done for a step beside the loop: asking the worker, reading inputs, asking the cache, running.

use crate::plan::{Plan, PlannedStep};
use crate::session::StepSession;
use crate::step::{ContentPart, Keys, Known};
use crate::{CacheMap, ExecuteRequest, Execution, Solver, WorkerError, progress};
use forge_cache::{CacheError, CacheIndex, CacheKey, InputPart, OpKey, ResultRef, Selector, StepRecord};
use forge_session::Session;
use futures_util::future::try_join_all;
use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime};
use tokio::sync::Semaphore;

/// What all steps of a build share.
pub(crate) struct Shared {
    pub solver: Solver,
    pub plan: Plan,
    /// A [`crate::session::BuildSession`].
    pub session: Arc<dyn Session>,
    /// `None` for no bound.
    pub slots: Option<Arc<Semaphore>>,
    /// Lets one step at a time ask the index: it has one connection, and without this thousands of steps would
    /// wait for it in hundreds of threads.
    pub index_turn: tokio::sync::Mutex<()>,
}

/// The results of a step, and how they came about.
pub(crate) struct Outcome {
    pub outputs: Vec<ResultRef>,
    pub cached: bool,
}

/// Works for one step. Each method is one task of the loop.
pub(crate) struct StepWork {
    pub shared: Arc<Shared>,
    pub step: usize,
}

/// When a step started to run; empty until then. Outlives the step's failure.
pub(crate) type Started = Arc<OnceLock<SystemTime>>;

impl StepWork {
    fn planned(&self) -> &PlannedStep {
        self.shared.plan.step(self.step)
    }

    fn session(&self) -> &Arc<dyn Session> {
        &self.shared.session
    }

    /// Asks the worker what the vertex is worth as a key.
    pub async fn map(self) -> Result<CacheMap, WorkerError> {
        let vertex = &self.planned().vertex;
        let asking = self.shared.solver.worker.cache_map(vertex, self.session());
        let asked = self.session().cancellation().run_until_cancelled(asking).await;
        let map = asked.unwrap_or(Err(WorkerError::Cancelled))?;
        match map.inputs.len() == vertex.inputs.len() {
            true => Ok(map),
            false => Err(WorkerError::internal("the worker's cache map does not fit the vertex's inputs")),
        }
    }

    /// Makes the definition key where inputs take part in it by their content.
    pub async fn key(self, pending: PendingKeys) -> Result<Known, WorkerError> {
        let read = pending.parts.iter().map(async |part| match part {
            PendingPart::Known(part) => Ok(*part),
            PendingPart::Unread(result, selector) => self.read(result, selector).await,
        });
        let parts = try_join_all(read).await?;
        Ok(pending.finish(parts))
    }

    async fn read(&self, result: &ResultRef, selector: &Selector) -> Result<InputPart, WorkerError> {
        let digest = self.shared.solver.results.content_digest(result, selector, self.session()).await?;
        Ok(InputPart::Content(digest))
    }

    /// Looks for the results under a key; a record whose results are gone is none.
    pub async fn find(&self, key: CacheKey) -> Result<Option<Vec<ResultRef>>, WorkerError> {
        let Some(record) = self.on_index(move |index| index.query(&key)).await? else { return Ok(None) };
        if record.outputs.len() < self.planned().vertex.op.outputs() {
            return Ok(None);
        }
        for output in &record.outputs {
            if !self.shared.solver.results.acquire(output).await? {
                return Ok(None);
            }
        }
        Ok(Some(record.outputs))
    }

    /// Gets the results of a step whose inputs are all there, by the content key or by running it.
    pub async fn complete(
        self,
        known: Arc<Known>,
        inputs: Vec<ResultRef>,
        started: Started,
    ) -> Result<Outcome, WorkerError> {
        let (Some(op), Some(keys), true) = (&known.map.op, &known.keys, known.map.cacheable) else {
            let Execution { outputs, .. } = self.run(inputs, &started).await?;
            return Ok(Outcome { outputs, cached: false });
        };
        let content = self.content_keys(op, keys, &inputs).await?;
        if self.planned().vertex.metadata.ignore_cache {
            return self.run_and_save(&known, content, inputs, &started).await;
        }
        // The cache is asked once the flight is ours: whoever had it before has saved what it made.
        let _flight = self.shared.solver.flights.acquire(&content.key, self.session().cancellation()).await?;
        match self.find_by_content(&content).await? {
            Some(outcome) => Ok(outcome),
            None => self.run_and_save(&known, content, inputs, &started).await,
        }
    }

    async fn content_keys(&self, op: &OpKey, keys: &Keys, inputs: &[ResultRef]) -> Result<ContentKeys, WorkerError> {
        let read = keys.content.iter().zip(inputs).map(async |(part, input)| match part {
            ContentPart::Known(part) => Ok(*part),
            ContentPart::Selected(selector) => self.read(input, selector).await,
            ContentPart::Stale => self.read(input, &Selector::all()).await,
        });
        let parts = try_join_all(read).await?;
        Ok(ContentKeys::new(op, keys, parts))
    }

    async fn find_by_content(&self, content: &ContentKeys) -> Result<Option<Outcome>, WorkerError> {
        let Some(outputs) = self.find(content.key).await? else { return Ok(None) };
        let (key, further) = (content.key, content.further.clone());
        // `false` is a record that was removed just now: the results are leased, and the next build makes a new one.
        _ = self.on_index(move |index| index.link(&further, &key)).await?;
        Ok(Some(Outcome { outputs, cached: true }))
    }

    async fn run_and_save(
        &self,
        known: &Known,
        content: ContentKeys,
        inputs: Vec<ResultRef>,
        started: &Started,
    ) -> Result<Outcome, WorkerError> {
        let begin = Instant::now();
        let Execution { outputs, usage } = self.run(inputs, started).await?;
        let now = SystemTime::now();
        let record = StepRecord {
            name: self.planned().vertex.metadata.name.clone(),
            key_inputs: known.map.readable.clone(),
            input_parts: content.parts,
            outputs: outputs.clone(),
            wall_ms: u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX),
            usage,
            created: now,
            last_used: now,
            boot_id: StepRecord::current_boot().to_owned(),
        };
        let keys = [vec![content.key], content.further].concat();
        self.on_index(move |index| index.save(&keys, &record)).await?;
        Ok(Outcome { outputs, cached: false })
    }

    /// Runs the vertex as soon as a slot is free.
    async fn run(&self, inputs: Vec<ResultRef>, started: &Started) -> Result<Execution, WorkerError> {
        let session: Arc<dyn Session> = match &self.shared.slots {
            Some(slots) => Arc::new(StepSession::new(self.session().clone(), slots.clone())),
            None => self.session().clone(),
        };
        session.take_place().await;
        let result = self.run_in_place(inputs, started, &session).await;
        // What outlives the step, such as a log, may hold the session longer.
        session.leave_place().await;
        result
    }

    async fn run_in_place(
        &self,
        inputs: Vec<ResultRef>,
        started: &Started,
        session: &Arc<dyn Session>,
    ) -> Result<Execution, WorkerError> {
        let cancellation = session.cancellation();
        if cancellation.is_cancelled() {
            return Err(WorkerError::Cancelled);
        }
        let planned = self.planned();
        let at = *started.get_or_init(SystemTime::now);
        progress::start(self.session().events(), &self.shared.plan, self.step, at);
        let request = ExecuteRequest { vertex: planned.vertex.clone(), digest: planned.digest.clone(), inputs };
        let execution = self.shared.solver.worker.execute(request, session).await?;
        match execution.outputs.len() >= planned.vertex.op.outputs() {
            true => Ok(execution),
            false => Err(WorkerError::internal("the worker returned too few results")),
        }
    }

    async fn on_index<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn CacheIndex) -> Result<T, CacheError> + Send + 'static,
    ) -> Result<T, WorkerError> {
        self.shared.on_index(work).await
    }
}

impl Shared {
    /// Uses the index on a thread that may block.
    pub async fn on_index<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn CacheIndex) -> Result<T, CacheError> + Send + 'static,
    ) -> Result<T, WorkerError> {
        let index = self.solver.index.clone();
        let _turn = self.index_turn.lock().await;
        match tokio::task::spawn_blocking(move || work(index.as_ref())).await {
            Ok(result) => Ok(result?),
            Err(_) => Err(WorkerError::internal("the cache index panicked")),
        }
    }
}

/// What a definition key will be made of.
pub(crate) struct PendingKeys {
    pub map: CacheMap,
    pub op: OpKey,
    pub parts: Vec<PendingPart>,
    /// Which inputs have a definition key that is stale.
    pub stale: Vec<bool>,
}

/// What an input will contribute to a definition key.
#[derive(Clone)]
pub(crate) enum PendingPart {
    /// Known already.
    Known(InputPart),
    /// The digest of what the selector shows of a result.
    Unread(ResultRef, Selector),
}

impl PendingKeys {
    /// The parts, if nothing has to be read.
    pub fn known_parts(&self) -> Option<Vec<InputPart>> {
        let known = |part: &PendingPart| match part {
            PendingPart::Known(part) => Some(*part),
            PendingPart::Unread(..) => None,
        };
        self.parts.iter().map(known).collect()
    }

    /// Makes the keys of what the inputs contribute.
    pub fn finish(self, parts: Vec<InputPart>) -> Known {
        let inputs = self.map.inputs.iter().zip(&parts).zip(&self.stale);
        let content = inputs.map(|((key, part), stale)| content_part(key, part, *stale)).collect();
        let definition = CacheKey::definition(&self.op, &parts);
        let keys = Keys { definition, parts, content, stale: self.stale.contains(&true) };
        Known { map: self.map, keys: Some(keys) }
    }
}

fn content_part(key: &crate::InputKey, part: &InputPart, stale: bool) -> ContentPart {
    match (part, key) {
        // Read for the definition key already, with the same selector.
        (InputPart::Content(_), _) => ContentPart::Known(*part),
        (InputPart::Key { .. }, crate::InputKey::Content(selector)) => ContentPart::Selected(selector.clone()),
        (InputPart::Key { .. }, crate::InputKey::Definition) if stale => ContentPart::Stale,
        (InputPart::Key { .. }, crate::InputKey::Definition) => ContentPart::Known(*part),
    }
}

/// The content key of a step whose inputs were read, and the other keys of its record.
struct ContentKeys {
    key: CacheKey,
    parts: Vec<InputPart>,
    /// The definition key; and with stale inputs the content key that a build without `ignore_cache` computes,
    /// which must not lead to an older record any more.
    further: Vec<CacheKey>,
}

impl ContentKeys {
    fn new(op: &OpKey, keys: &Keys, parts: Vec<InputPart>) -> Self {
        let key = CacheKey::content(op, &parts);
        let nominal = |((part, read), nominal): ((&ContentPart, &InputPart), &InputPart)| match part {
            ContentPart::Stale => *nominal,
            _ => *read,
        };
        let nominal: Vec<InputPart> = keys.content.iter().zip(&parts).zip(&keys.parts).map(nominal).collect();
        let mut further = vec![keys.definition, CacheKey::content(op, &nominal)];
        further.retain(|other| *other != key);
        Self { key, parts, further }
    }
}
