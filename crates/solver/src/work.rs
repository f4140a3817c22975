//! What is done for a step beside the loop: asking the worker, reading inputs, asking the cache, running.

use crate::explain::{Explain, MissCause, Missed, Notes, ReadInputs, Remembered};
use crate::plan::{Input, Plan, PlannedStep};
use crate::session::StepSession;
use crate::step::{ContentPart, Keys, Known};
use crate::{
    CacheMap, ExecuteRequest, Execution, Expected, FailedPart, FailedStep, InputKey, Mode, Solver, WorkerError,
    progress,
};
use forge_cache::remote::FoundRecord;
use forge_cache::{
    CacheError, CacheIndex, CacheKey, EarlierSteps, FlightGuard, InputPart, OpKey, ResultRef, Selector, StepInputs,
    StepRecord,
};
use forge_llb::Op;
use forge_session::{Event, LogStream, Session, at_once};
use futures_util::future::try_join_all;
use kept::Kept;
use keys::ContentKeys;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{OnceCell, Semaphore};

mod kept;
mod keys;

pub(crate) use kept::Unsaved;
pub(crate) use keys::{PendingKeys, PendingPart};

/// How long a step waits for another build before it says so: at first, and from then on.
const FIRST_WATCH: Duration = Duration::from_secs(5);
const LATER_WATCH: Duration = Duration::from_secs(60);

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
    pub mode: Mode,
    /// What is known of the steps so far, for saying why one was not found.
    pub notes: Notes,
    /// `None` where nobody is to be told.
    pub remembered: Option<Remembered>,
    /// The last build, read by the first step that is not found.
    pub last: OnceCell<Option<EarlierSteps>>,
}

/// What came of a step.
pub(crate) enum Outcome {
    /// The cache had its results.
    Cached(Vec<ResultRef>),
    /// It ran; `miss` says why, where that was asked.
    Ran { outputs: Vec<ResultRef>, miss: Option<MissCause>, unsaved: Option<Box<Unsaved>> },
    /// It would have to run, and is not to.
    WouldRun(MissCause),
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

    /// Looks for the results under a key, here and then elsewhere; a record whose results are gone is none.
    pub async fn find(&self, key: CacheKey) -> Result<Option<Vec<ResultRef>>, WorkerError> {
        if let Some(record) = self.shared.look_up(|index| index.query(&key)).await?
            && record.outputs.len() >= self.planned().vertex.op.outputs()
            && self.acquire(&record.outputs).await?
        {
            return Ok(Some(record.outputs));
        }
        self.find_elsewhere(key).await
    }

    /// Asks the shared caches. What is found is this machine's own from then on.
    async fn find_elsewhere(&self, key: CacheKey) -> Result<Option<Vec<ResultRef>>, WorkerError> {
        let planned = self.planned();
        let (Some(remote), Mode::Build) = (&self.shared.solver.remote, self.shared.mode) else { return Ok(None) };
        if matches!(planned.vertex.op, Op::Source(_)) {
            return Ok(None);
        }
        let asked = remote.find(&key, planned.digest.digest());
        let Some(Some(found)) = self.session().cancellation().run_until_cancelled(asked).await else {
            return Ok(None);
        };
        let FoundRecord { keys, mut record, absent } = found;
        if absent.iter().any(|output| self.shared.plan.reads(Input { step: self.step, output: *output })) {
            return Ok(None);
        }
        if record.outputs.len() < planned.vertex.op.outputs() || !self.acquire(&record.outputs).await? {
            return Ok(None);
        }
        if !absent.is_empty() {
            // It is of use for what this build reads of it, and may not be for another one.
            return Ok(Some(record.outputs));
        }
        // What others call the step is not for this machine's lists.
        record.name.clone_from(&planned.vertex.metadata.name);
        let outputs = record.outputs.clone();
        let made_of = StepInputs { keys, ..StepInputs::default() };
        self.on_index(move |index| index.save(&[key], &record, &made_of)).await?;
        Ok(Some(outputs))
    }

    /// Holds results; `false` where one is gone.
    async fn acquire(&self, outputs: &[ResultRef]) -> Result<bool, WorkerError> {
        for output in outputs {
            if !self.shared.solver.results.acquire(output).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Gets the results of a step whose inputs are all there, by the content key or by running it.
    pub async fn complete(
        self,
        known: Arc<Known>,
        inputs: Vec<ResultRef>,
        started: Started,
    ) -> Result<Outcome, WorkerError> {
        let (Some(op), Some(keys), true) = (&known.map.op, &known.keys, known.map.cacheable) else {
            // What has no key is only looked at.
            if self.shared.mode == Mode::Forecast && known.map.op.is_some() {
                return Ok(Outcome::WouldRun(MissCause::Asked));
            }
            let Execution { outputs, .. } = self.run(inputs, &started, None).await?;
            return Ok(Outcome::Ran { outputs, miss: None, unsaved: None });
        };
        let content = self.content_keys(op, (&known.map, keys), &inputs).await?;
        if self.planned().vertex.metadata.ignore_cache {
            return self.missed(&known, (content, None), inputs, &started).await;
        }
        // The cache is asked once the flight is ours: whoever had it before has saved what it made.
        let flight = self.flight(&content.key).await?;
        if let Some(outputs) = self.find_by_content(&content).await? {
            return Ok(Outcome::Cached(outputs));
        }
        match self.find_beneath(&known, &content, &inputs).await? {
            Some(outputs) => Ok(Outcome::Cached(outputs)),
            None => self.missed(&known, (content, Some(flight)), inputs, &started).await,
        }
    }

    /// Waits until nobody else runs the step, and says from time to time who does.
    async fn flight(&self, key: &CacheKey) -> Result<FlightGuard, WorkerError> {
        let flights = &self.shared.solver.flights;
        let mut turn = pin!(flights.acquire(key, self.session().cancellation()));
        let mut pause = FIRST_WATCH;
        loop {
            if let Ok(guard) = tokio::time::timeout(pause, &mut turn).await {
                return Ok(guard?);
            }
            let owner = match flights.owner(key) {
                Some(owner) if owner == std::process::id() => "another build of this process".to_owned(),
                Some(owner) => format!("process {owner}"),
                None => "another process".to_owned(),
            };
            self.tell(&format!("waiting for {owner}, which runs the same step"));
            pause = LATER_WATCH;
        }
    }

    /// Writes a line into the step's log.
    fn tell(&self, text: &str) {
        let vertex = self.planned().digest.digest().clone();
        let (data, timestamp) = (format!("forge: {text}\n").into_bytes(), SystemTime::now());
        self.session().events().emit(Event::Log { vertex, stream: LogStream::Stderr, data, timestamp });
    }

    async fn content_keys(
        &self,
        op: &OpKey,
        (map, keys): (&CacheMap, &Keys),
        inputs: &[ResultRef],
    ) -> Result<ContentKeys, WorkerError> {
        let read = keys.content.iter().zip(inputs).enumerate().map(async |(place, (part, input))| {
            let read = match part {
                ContentPart::Known(part) => return Ok(*part),
                ContentPart::Selected(selector) => self.read(input, selector).await,
                ContentPart::Stale => self.read(input, &Selector::all()).await,
            };
            read.map_err(|error| {
                let inputs = vec![Some(input.clone())];
                error.keeping(FailedStep { inputs, left: Vec::new(), part: FailedPart::Key(place) })
            })
        });
        let parts = try_join_all(read).await?;
        Ok(ContentKeys::new(op, keys, map.beneath, parts))
    }

    async fn find_by_content(&self, content: &ContentKeys) -> Result<Option<Vec<ResultRef>>, WorkerError> {
        let Some(outputs) = self.find(content.key).await? else { return Ok(None) };
        if self.shared.mode == Mode::Build {
            let (key, further) = (content.key, content.further.clone());
            // `false` is a record that was removed just now: the results are leased, and the next build makes a new one.
            _ = self.on_index(move |index| index.link(&further, &key)).await?;
        }
        Ok(Some(outputs))
    }

    /// Looks for a step that ran before on something else beneath, and comes out the same on what is beneath it now.
    async fn find_beneath(
        &self,
        known: &Known,
        content: &ContentKeys,
        inputs: &[ResultRef],
    ) -> Result<Option<Vec<ResultRef>>, WorkerError> {
        let Some(detached) = content.detached else { return Ok(None) };
        let Some(earlier) = self.shared.look_up(|index| index.query(&detached)).await? else { return Ok(None) };
        let found = self.shared.solver.worker.find(self.request(inputs.to_vec()), self.session()).await?;
        let Some(outputs) = found.filter(|found| found.len() >= self.planned().vertex.op.outputs()) else {
            return Ok(None);
        };
        if self.shared.mode == Mode::Build {
            // What the layer takes is counted with the step that made it.
            let (bytes, result, last_used) = (0, None, SystemTime::now());
            let record = StepRecord { outputs: outputs.clone(), bytes, result, last_used, ..earlier };
            let made_of = self.made_of(known, content, inputs).await;
            let keys = content.all();
            self.offer(&content.keys(), &record);
            self.on_index(move |index| index.save(&keys, &record, &made_of)).await?;
        }
        Ok(Some(outputs))
    }

    fn request(&self, inputs: Vec<ResultRef>) -> ExecuteRequest {
        let planned = self.planned();
        ExecuteRequest { vertex: planned.vertex.clone(), digest: planned.digest.clone(), inputs }
    }

    /// Runs a step that was not found, or says that it would have to.
    async fn missed(
        &self,
        known: &Known,
        (content, flight): (ContentKeys, Option<FlightGuard>),
        inputs: Vec<ResultRef>,
        started: &Started,
    ) -> Result<Outcome, WorkerError> {
        self.shared.notes.missed(self.step);
        let made_of = self.made_of(known, &content, &inputs).await;
        let miss = self.cause(known, &made_of).await;
        match self.shared.mode {
            Mode::Forecast => Ok(Outcome::WouldRun(miss.unwrap_or(MissCause::FirstBuild))),
            Mode::Build => {
                let (outputs, kept) = self.run_and_keep(content, made_of, inputs, miss.as_ref(), started).await?;
                let unsaved = Box::new(Unsaved { kept, shared: self.shared.clone(), _flight: flight });
                Ok(Outcome::Ran { outputs, miss, unsaved: Some(unsaved) })
            }
        }
    }

    /// What the step, or what it was in the last build, took when it last ran.
    pub async fn expected(&self) -> Option<Expected> {
        let (key, earlier) =
            self.shared.notes.keys(&self.shared.plan, self.step, self.shared.last.get().and_then(Option::as_ref));
        let find = move |index: &dyn CacheIndex| {
            for key in [key, earlier].into_iter().flatten() {
                if let Some(record) = index.query(&key)? {
                    return Ok(Some(record));
                }
            }
            Ok(None)
        };
        let record = self.on_index(find).await.ok().flatten()?;
        Some(Expected { wall_ms: record.wall_ms, bytes: record.bytes })
    }

    /// What the keys are made of, for people. What cannot be listed is not, and fails nothing.
    async fn made_of(&self, known: &Known, content: &ContentKeys, inputs: &[ResultRef]) -> StepInputs {
        let results = &self.shared.solver.results;
        let mut listings = Vec::new();
        for (number, (key, input)) in known.map.inputs.iter().zip(inputs).enumerate() {
            if let InputKey::Content(selector) = key
                && !selector.paths.is_empty()
                && let Ok(Some(listing)) = results.listing(input, selector, self.session()).await
            {
                listings.push((number, listing));
            }
        }
        let (readable, parts) = (known.map.readable.clone(), content.parts.clone());
        StepInputs { readable, parts, listings, keys: content.keys() }
    }

    /// Why the step was not found; `None` where nobody asks.
    async fn cause(&self, known: &Known, made_of: &StepInputs) -> Option<MissCause> {
        let Shared { plan, notes, remembered, .. } = &*self.shared;
        let remembered = remembered.as_ref()?;
        let id = remembered.id;
        let read = async || {
            let last = self.shared.look_up(|index| index.last_build(&id)).await.ok().flatten();
            last.map(EarlierSteps::from)
        };
        let last = self.shared.last.get_or_init(read).await.as_ref();
        let missed = Missed { plan, notes, remembered, last, step: self.step };
        Some(missed.cause(known, made_of, self).await)
    }

    /// The line that says why the step runs, where it is to be said.
    fn told(&self, miss: Option<&MissCause>) -> Option<String> {
        let (miss, remembered) = (miss?, self.shared.remembered.as_ref()?);
        let is_told = match remembered.explain {
            Explain::Everything => true,
            Explain::FirstCauses => matches!(miss, MissCause::Changed(_) | MissCause::Lost) && miss.is_first(),
        };
        is_told.then(|| format!("not cached: {miss}"))
    }

    /// Runs the step; gives what is still to be saved, too.
    async fn run_and_keep(
        &self,
        content: ContentKeys,
        made_of: StepInputs,
        inputs: Vec<ResultRef>,
        miss: Option<&MissCause>,
        started: &Started,
    ) -> Result<(Vec<ResultRef>, Kept), WorkerError> {
        let begin = Instant::now();
        let Execution { outputs, made, usage } = self.run(inputs, started, self.told(miss)).await?;
        let now = SystemTime::now();
        let vertex = &self.planned().vertex;
        let record = StepRecord {
            name: vertex.metadata.name.clone(),
            is_source: matches!(vertex.op, Op::Source(_)),
            result: CacheKey::result(&outputs, &made),
            bytes: made.iter().flatten().map(|made| made.bytes).sum(),
            outputs,
            wall_ms: u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX),
            usage,
            created: now,
            last_used: now,
            boot_id: StepRecord::current_boot().to_owned(),
        };
        self.keep(Kept { keys: content.keys(), all: content.all(), record, made_of, given_up: Vec::new() }).await
    }

    /// Decides what is kept of a step. Where an earlier run made the same, its results take their place and the new ones are
    /// given up: what was made from the earlier ones then stays what follows from these, byte for byte.
    async fn keep(&self, made: Kept) -> Result<(Vec<ResultRef>, Kept), WorkerError> {
        let earlier = self.shared.look_up(|index| made.equal(index)).await?;
        let kept = match earlier {
            Some(earlier) if self.acquire(&earlier).await? => made.replaced_by(earlier),
            _ => made,
        };
        self.offer(&kept.keys, &kept.record);
        Ok((kept.record.outputs.clone(), kept))
    }

    /// Tells the shared caches of a record.
    fn offer(&self, keys: &[CacheKey], record: &StepRecord) {
        self.shared.solver.remote.iter().for_each(|remote| remote.made(keys, record));
    }

    /// Runs the vertex as soon as a slot is free; its log begins with a line of ours, if there is one.
    async fn run(
        &self,
        inputs: Vec<ResultRef>,
        started: &Started,
        line: Option<String>,
    ) -> Result<Execution, WorkerError> {
        let session: Arc<dyn Session> = match &self.shared.slots {
            Some(slots) => Arc::new(StepSession::new(self.session().clone(), slots.clone())),
            None => self.session().clone(),
        };
        session.take_place().await;
        let result = self.run_in_place(inputs, started, line, &session).await;
        // What outlives the step, such as a log, may hold the session longer.
        session.leave_place().await;
        result
    }

    async fn run_in_place(
        &self,
        inputs: Vec<ResultRef>,
        started: &Started,
        line: Option<String>,
        session: &Arc<dyn Session>,
    ) -> Result<Execution, WorkerError> {
        let cancellation = session.cancellation();
        if cancellation.is_cancelled() {
            return Err(WorkerError::Cancelled);
        }
        let planned = self.planned();
        let at = *started.get_or_init(SystemTime::now);
        progress::start(self.session().events(), &self.shared.plan, self.step, at);
        line.iter().for_each(|line| self.tell(line));
        let execution = self.shared.solver.worker.execute(self.request(inputs), session).await?;
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

impl ReadInputs for StepWork {
    async fn inputs(&self, key: CacheKey) -> Option<StepInputs> {
        // Whatever cannot be read explains nothing, and fails nothing.
        self.shared.look_up(|index| index.inputs(&key)).await.ok().flatten()
    }
}

impl Shared {
    /// Looks something up in the index: that takes less than the way to another thread and back.
    pub async fn look_up<T>(
        &self,
        work: impl FnOnce(&dyn CacheIndex) -> Result<T, CacheError>,
    ) -> Result<T, WorkerError> {
        // Whoever changes the index has a turn, so that nobody here waits for another process's change.
        let _turn = self.index_turn.lock().await;
        Ok(work(self.solver.index.as_ref())?)
    }

    /// Does what seldom changes the index: at once, since to find that out takes less than the way to another thread.
    pub async fn settle<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn CacheIndex) -> Result<T, CacheError> + Send + 'static,
    ) -> Result<T, WorkerError> {
        let index = self.solver.index.clone();
        let _turn = self.index_turn.lock().await;
        match at_once(move || work(index.as_ref())).await {
            Ok(result) => Ok(result?),
            Err(_) => Err(WorkerError::internal("the cache index panicked")),
        }
    }

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
