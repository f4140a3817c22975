use crate::explain::{MissCause, Notes, Remembered};
use crate::plan::{Input, Plan, PlannedStep};
use crate::progress::{self, Ending};
use crate::session::BuildSession;
use crate::step::{Known, State};
use crate::work::{Outcome, PendingKeys, PendingPart, Shared, Started, StepWork};
use crate::{CacheMap, Completed, InputKey, Mode, OnFailure, SolveError, Solved, Solver, WorkerError};
use forge_cache::{InputPart, ResultRef, Selector};
use forge_llb::Op;
use forge_session::Session;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{OnceCell, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::DropGuard;

mod ending;

/// What a task reports when it ends.
enum Message {
    /// The worker said what the vertex is worth as a key.
    Mapped { step: usize, result: Result<CacheMap, WorkerError> },
    /// Inputs without a definition key were read.
    Keyed { step: usize, result: Result<Known, WorkerError> },
    /// The cache answered for the definition key.
    Asked { step: usize, result: Result<Option<Vec<ResultRef>>, WorkerError> },
    /// The step was found by its content or ran.
    Ended { step: usize, started: Started, result: Result<Outcome, WorkerError> },
    /// What a step made was saved, or could not be.
    Saved { step: usize, result: Result<(), WorkerError> },
    /// The session was cancelled.
    Cancelled,
}

/// What follows from a message: done before the next message is taken, in a list instead of by recursion, since
/// graphs are thousands of steps deep.
enum Todo {
    /// Compute the definition key: no input is missing for it.
    Key(usize),
    /// Someone needs the step's result.
    Want(usize),
    /// Begin to get the result.
    Begin(usize),
    /// All inputs are complete.
    Complete(usize),
    /// The step will need its inputs no more.
    Release(usize),
}

/// One build.
pub(crate) struct Run {
    shared: Arc<Shared>,
    steps: Vec<Step>,
    todo: Vec<Todo>,
    /// Steps that are over but not reported yet.
    over: Vec<(usize, Ending)>,
    /// Downloads, and what is done for nobody's sake.
    tasks: JoinSet<Message>,
    /// Questions, and steps that only wait for those who run them: on the loop's own thread, since the way to another one and
    /// back takes longer. The lock is never waited for; it is what lets the build be looked at from several threads.
    questions: Mutex<FuturesUnordered<BoxFuture<'static, Message>>>,
    /// Why the build ends early, once it does. Then nothing new begins.
    failure: Option<SolveError>,
    /// Who is told of results as they come.
    completed: Option<UnboundedSender<Completed>>,
    /// Tells running work when the build's future is dropped.
    _cancel_on_drop: DropGuard,
}

struct Step {
    state: State,
    /// Whether someone needs the result.
    wanted: bool,
    /// How many consumers may still want it.
    open: usize,
}

impl Run {
    pub fn new(
        solver: &Solver,
        plan: Plan,
        session: Arc<dyn Session>,
        remembered: Option<Remembered>,
        mode: Mode,
    ) -> Self {
        let cancellation = session.cancellation().child_token();
        let steps = plan.graph.node_indices().map(|step| Step::new(plan.graph.neighbors(step).count())).collect();
        let shared = Arc::new(Shared {
            solver: solver.clone(),
            plan,
            session: Arc::new(BuildSession { session, cancellation: cancellation.clone() }),
            index_turn: tokio::sync::Mutex::default(),
            slots: solver.max_parallelism.map(|slots| Arc::new(Semaphore::new(slots.clamp(1, Semaphore::MAX_PERMITS)))),
            mode,
            notes: Notes::default(),
            remembered,
            last: OnceCell::new(),
        });
        Self {
            shared,
            steps,
            todo: Vec::new(),
            over: Vec::new(),
            tasks: JoinSet::new(),
            questions: Mutex::default(),
            failure: None,
            completed: None,
            _cancel_on_drop: cancellation.drop_guard(),
        }
    }

    /// Has somebody told of results as they come.
    pub fn telling(self, completed: UnboundedSender<Completed>) -> Self {
        Self { completed: Some(completed), ..self }
    }

    /// The loop.
    ///
    /// Liveness. Call a step *open* until it is `Complete`, `Skipped`, `WouldRun` or `Failed`, and *blocked* when one of
    /// its inputs is blocked, `WouldRun` or `Failed`. Each open step that is not blocked is in one of three ways: a task
    /// works for it, and its message will come, because tasks only wait for workers (which end when told to), for a slot
    /// (held by executing steps only) or for a flight (held by steps that are past all waiting for other steps); or it
    /// waits for inputs, counted in `missing`, of which one is open, not blocked and wanted, and which come before it in
    /// the plan, so that there is no circle; or it is `Fast` and unwanted. Hence as long as the goal is open and not
    /// blocked a task is running. When no task is left, the build is over: the goal is complete; or the build failed, and
    /// what ran for it has ended; or it was only to be foretold.
    async fn evaluate(&mut self) {
        self.begin();
        while let Some(message) = self.next_message().await {
            self.take(message);
            self.settle();
            self.report();
        }
    }

    /// Evaluates the goal.
    pub async fn run(mut self) -> Result<Solved, SolveError> {
        self.evaluate().await;
        if self.failure.is_some() {
            self.note_failure().await;
        }
        match self.failure.take() {
            Some(failure) => Err(failure),
            None => self.finish().await,
        }
    }

    fn begin(&mut self) {
        for step in 0..self.steps.len() {
            progress::announce(self.shared.session.events(), &self.shared.plan, step);
        }
        for step in 0..self.steps.len() {
            let work = self.work(step);
            self.ask(work.map(), move |result| Message::Mapped { step, result });
        }
        let goal = self.shared.plan.goal;
        self.todo.extend(goal.map(|goal| Todo::Want(goal.step)));
        self.settle();
    }

    /// `None` when no task and no question is left.
    async fn next_message(&mut self) -> Option<Message> {
        let is_stopping = self.is_stopping();
        let questions = self.questions.get_mut().unwrap_or_else(PoisonError::into_inner);
        if self.tasks.is_empty() && questions.is_empty() {
            return None;
        }
        let shared = self.shared.clone();
        tokio::select! {
            biased;
            // The build's token, not the session's: both are cancelled then, and after a failure of ours there is
            // nothing more to be told.
            () = shared.session.cancellation().cancelled(), if !is_stopping => Some(Message::Cancelled),
            Some(joined) = self.tasks.join_next(), if !self.tasks.is_empty() => {
                // Tasks catch their panics, and none is aborted while the loop runs.
                Some(joined.expect("a task of the solver neither panics nor is aborted"))
            }
            answer = questions.next(), if !questions.is_empty() => answer,
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Cancelled => self.failure = Some(SolveError::Cancelled),
            Message::Mapped { step, result: Ok(map) } => self.mapped(step, map),
            Message::Keyed { step, result: Ok(known) } => self.keyed(step, known),
            Message::Asked { step, result: Ok(Some(outputs)) } => self.complete(step, outputs, None, Ending::Cached),
            Message::Asked { step, result: Ok(None) } => self.require_inputs(step),
            Message::Ended { step, started, result: Ok(outcome) } => self.ended(step, outcome, &started),
            Message::Ended { step, started, result: Err(error) } => self.failed(step, error, &started),
            Message::Saved { result: Ok(()), .. } => {}
            Message::Saved { step, result: Err(error) } => self.fail(step, error),
            Message::Mapped { step, result: Err(error) }
            | Message::Keyed { step, result: Err(error) }
            | Message::Asked { step, result: Err(error) } => self.failed(step, error, &Started::default()),
        }
    }

    /// Does what follows, until nothing does. After a failure nothing follows.
    fn settle(&mut self) {
        while let Some(todo) = self.todo.pop() {
            if self.is_stopping() {
                self.todo.clear();
                return;
            }
            match todo {
                Todo::Key(step) => self.key(step),
                Todo::Want(step) => self.want(step),
                Todo::Begin(step) => self.begin_step(step),
                Todo::Complete(step) => self.complete_inputs(step),
                Todo::Release(step) => self.release_inputs(step),
            }
        }
    }

    /// Reports what is over, inputs before what they are inputs of.
    fn report(&mut self) {
        self.over.sort_by_key(|(step, _)| *step);
        for (step, ending) in std::mem::take(&mut self.over) {
            progress::end(self.shared.session.events(), &self.shared.plan, step, ending);
        }
    }

    fn mapped(&mut self, step: usize, map: CacheMap) {
        if map.op.is_none() {
            self.steps[step].state = State::Fast(Arc::new(Known { map, keys: None }));
            // Every consumer needs its content for a key.
            self.todo.push(Todo::Begin(step));
            self.steps[step].wanted = true;
            return;
        }
        let missing = self.count_needs(step, |state| !state.is_keyed());
        self.steps[step].state = State::Unkeyed { map, missing };
        self.todo.extend((missing == 0).then_some(Todo::Key(step)));
    }

    /// Computes the definition key, or has the inputs read that it needs the content of.
    fn key(&mut self, step: usize) {
        let State::Unkeyed { map, .. } = std::mem::replace(&mut self.steps[step].state, State::Keying) else {
            unreachable!("a step is keyed once, when its last input is");
        };
        let pending = self.pending_keys(step, map);
        match pending.known_parts() {
            Some(parts) => self.keyed(step, pending.finish(parts)),
            None => {
                let work = self.work(step);
                self.ask(work.key(pending), move |result| Message::Keyed { step, result });
            }
        }
    }

    fn pending_keys(&self, step: usize, map: CacheMap) -> PendingKeys {
        let op = map.op.expect("only a step with an op key is keyed");
        let inputs = &self.planned(step).inputs;
        let part = |(input, key): (&Input, &InputKey)| {
            let state = &self.steps[input.step].state;
            match state.known().and_then(|known| known.keys.as_ref()) {
                Some(keys) => PendingPart::Known(InputPart::Key { key: keys.definition, output: input.output }),
                None => PendingPart::Unread(self.result(*input), selector_of(key)),
            }
        };
        let parts = inputs.iter().zip(&map.inputs).map(part).collect();
        let taints = |input: &Input| {
            let ignore_cache = self.planned(input.step).vertex.metadata.ignore_cache;
            self.steps[input.step].state.known().is_some_and(|known| known.taints(ignore_cache))
        };
        PendingKeys { op, parts, stale: inputs.iter().map(taints).collect(), map }
    }

    fn keyed(&mut self, step: usize, known: Known) {
        self.shared.notes.keyed(step, &known);
        self.steps[step].state = State::Fast(Arc::new(known));
        self.todo.extend(self.steps[step].wanted.then_some(Todo::Begin(step)));
        self.tell_unkeyed_consumers(step);
    }

    fn tell_unkeyed_consumers(&mut self, step: usize) {
        for consumer in self.shared.plan.consumers(step) {
            if let State::Unkeyed { missing, .. } = &mut self.steps[consumer].state {
                *missing -= 1;
                self.todo.extend((*missing == 0).then_some(Todo::Key(consumer)));
            }
        }
    }

    fn want(&mut self, step: usize) {
        let first = !std::mem::replace(&mut self.steps[step].wanted, true);
        let idle = matches!(self.steps[step].state, State::Fast(_));
        self.todo.extend((first && idle).then_some(Todo::Begin(step)));
    }

    /// Asks the cache for the definition key; where that says nothing, goes on to the inputs at once.
    fn begin_step(&mut self, step: usize) {
        let State::Fast(known) = &self.steps[step].state else { return };
        let known = known.clone();
        let ignore_cache = self.planned(step).vertex.metadata.ignore_cache;
        match &known.keys {
            Some(keys) if known.map.cacheable && !keys.stale && !ignore_cache => {
                let (work, key) = (self.work(step), keys.definition);
                self.ask(async move { work.find(key).await }, move |result| Message::Asked { step, result });
                self.steps[step].state = State::Asking(known);
            }
            _ => self.require_inputs(step),
        }
    }

    fn require_inputs(&mut self, step: usize) {
        let Some(known) = self.steps[step].state.known().cloned() else { return };
        let missing = self.count_needs(step, |state| state.outputs().is_none());
        self.steps[step].state = State::Waiting { known, missing };
        self.todo.extend((missing == 0).then_some(Todo::Complete(step)));
        // The last one is done first: in reverse, inputs begin in their order.
        let wants: Vec<Todo> = self.shared.plan.needs(step).map(Todo::Want).collect();
        self.todo.extend(wants.into_iter().rev());
    }

    fn complete_inputs(&mut self, step: usize) {
        let State::Waiting { known, .. } = &self.steps[step].state else { return };
        let known = known.clone();
        let inputs = self.planned(step).inputs.iter().map(|input| self.result(*input)).collect();
        let started = Started::default();
        let complete = self.work(step).complete(known.clone(), inputs, started.clone());
        let ended = move |result| Message::Ended { step, started, result };
        match (&self.planned(step).vertex.op, &known.keys) {
            // What is downloaded is decrypted and hashed on the way.
            (Op::Source(_), Some(_)) => self.spawn(complete, ended),
            // A source without a key is only looked at; what runs does so in threads of its own.
            _ => self.ask(complete, ended),
        }
        self.steps[step].state = State::Slow(known);
    }

    fn ended(&mut self, step: usize, outcome: Outcome, started: &Started) {
        match (outcome, started.get()) {
            (Outcome::Ran { outputs, miss, unsaved }, Some(started)) => {
                self.complete(step, outputs, miss, Ending::Ran { started: *started });
                if let Some(unsaved) = unsaved {
                    self.spawn(unsaved.save(), move |result| Message::Saved { step, result });
                }
            }
            (Outcome::Cached(outputs) | Outcome::Ran { outputs, .. }, _) => {
                self.complete(step, outputs, None, Ending::Cached);
            }
            (Outcome::WouldRun(miss), _) => {
                let Some(known) = self.steps[step].state.known().cloned() else { return };
                self.steps[step].state = State::WouldRun { known, miss };
            }
        }
    }

    fn complete(&mut self, step: usize, outputs: Vec<ResultRef>, miss: Option<MissCause>, ending: Ending) {
        let Some(known) = self.steps[step].state.known().cloned() else { return };
        let (cached, has_key) = (matches!(ending, Ending::Cached), known.keys.is_some());
        if let Some(completed) = &self.completed {
            // Whoever does not listen any more does not need it.
            _ = completed.send(Completed { digest: self.planned(step).digest.clone(), results: outputs.clone() });
        }
        self.steps[step].state = State::Complete { known, outputs, cached, miss };
        self.over.push((step, ending));
        self.todo.push(Todo::Release(step));
        self.tell_waiting_consumers(step);
        if !has_key {
            self.tell_unkeyed_consumers(step);
        }
    }

    fn tell_waiting_consumers(&mut self, step: usize) {
        for consumer in self.shared.plan.consumers(step) {
            if let State::Waiting { missing, .. } = &mut self.steps[consumer].state {
                *missing -= 1;
                self.todo.extend((*missing == 0).then_some(Todo::Complete(consumer)));
            }
        }
    }

    /// Skips the inputs that no one can want any more: everything above them was found without them.
    fn release_inputs(&mut self, step: usize) {
        for input in self.shared.plan.needs(step) {
            let Step { state, wanted, open } = &mut self.steps[input];
            *open -= 1;
            if let (State::Fast(known), 0, false) = (&*state, *open, *wanted) {
                *state = State::Skipped(known.clone());
                self.todo.push(Todo::Release(input));
                self.over.push((input, Ending::Cached));
            }
        }
    }

    /// Notes why a step failed. The first failure is the build's; the others are told to stop, or go on where they can.
    fn failed(&mut self, step: usize, error: WorkerError, started: &Started) {
        self.steps[step].state = State::Failed;
        let over = self.is_stopping();
        // What had not begun when the build ended just stays undone.
        if !over || started.get().is_some() {
            let ending = Ending::Failed { started: started.get().copied(), error: error.to_string() };
            self.over.push((step, ending));
        }
        self.fail(step, error);
    }

    fn fail(&mut self, step: usize, error: WorkerError) {
        if self.failure.is_none() {
            self.failure = Some(self.step_error(step, error));
        }
        if self.is_stopping() {
            self.shared.session.cancellation().cancel();
        }
    }

    /// Whether nothing new is to begin.
    fn is_stopping(&self) -> bool {
        match &self.failure {
            None => false,
            Some(SolveError::Step { .. }) => self.shared.solver.on_failure == OnFailure::CancelOthers,
            Some(_) => true,
        }
    }

    fn step_error(&self, step: usize, error: WorkerError) -> SolveError {
        let PlannedStep { digest, vertex, .. } = self.planned(step);
        let (error, failed) = error.parted();
        SolveError::Step {
            vertex: digest.clone(),
            name: vertex.metadata.name.clone(),
            span: vertex.metadata.span.clone().map(Box::new),
            failed,
            source: Box::new(error),
        }
    }

    fn planned(&self, step: usize) -> &PlannedStep {
        self.shared.plan.step(step)
    }

    fn work(&self, step: usize) -> StepWork {
        StepWork { shared: self.shared.clone(), step }
    }

    fn count_needs(&self, step: usize, missing: impl Fn(&State) -> bool) -> usize {
        self.shared.plan.needs(step).filter(|input| missing(&self.steps[*input].state)).count()
    }

    /// The result of an input that is complete.
    fn result(&self, input: Input) -> ResultRef {
        let outputs = self.steps[input.step].state.outputs().expect("only asked for when the input is complete");
        outputs[input.output].clone()
    }

    /// Starts a task. A panic in it, a defect, fails its step instead of leaving the loop waiting.
    fn spawn<T: 'static>(
        &mut self,
        work: impl Future<Output = Result<T, WorkerError>> + Send + 'static,
        message: impl FnOnce(Result<T, WorkerError>) -> Message + Send + 'static,
    ) {
        self.tasks.spawn(caught(work, message));
    }

    /// The same for what hands to others whatever takes time.
    fn ask<T: 'static>(
        &mut self,
        work: impl Future<Output = Result<T, WorkerError>> + Send + 'static,
        message: impl FnOnce(Result<T, WorkerError>) -> Message + Send + 'static,
    ) {
        self.questions.get_mut().unwrap_or_else(PoisonError::into_inner).push(caught(work, message).boxed());
    }
}

impl Step {
    /// The goal has no consumer, and no one ever looks at how many it has: it is wanted from the start.
    fn new(consumers: usize) -> Self {
        Self { state: State::Initial, wanted: false, open: consumers }
    }
}

/// What an op sees of an input that has no definition key.
fn selector_of(key: &InputKey) -> Selector {
    match key {
        InputKey::Content(selector) => selector.clone(),
        InputKey::Definition => Selector::all(),
    }
}

async fn caught<T>(
    work: impl Future<Output = Result<T, WorkerError>> + Send,
    message: impl FnOnce(Result<T, WorkerError>) -> Message + Send,
) -> Message {
    message(AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(|panic| Err(panicked(panic.as_ref()))))
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> WorkerError {
    let text = panic.downcast_ref::<&str>().copied().map(str::to_owned);
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
    WorkerError::internal(format!("a step panicked: {text}"))
}
