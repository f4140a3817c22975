//! Evaluates one build's graph: asks the cache, runs what is missing, as much at the same time as may be.
//!
//! The crate knows no op: what a vertex is worth as a key and what running it means is the [`Worker`]'s business,
//! results are handles that it passes on. It touches no file and starts no process.
//!
//! Reading order: [`Solver`], [`Solved`], [`SolveError`]; [`Remembered`], [`MissCause`]; [`StepForecast`]; [`Worker`], [`CacheMap`], [`ExecuteRequest`],
//! [`Execution`], [`WorkerError`]; then `plan` (what the goal needs, as a `petgraph` graph), `run` (the loop), `step` (the
//! states of a step), `work` (what is done beside the loop).
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod error;
mod explain;
mod failed;
mod forecast;
mod plan;
mod progress;
mod run;
mod session;
mod step;
mod work;
mod worker;

pub use error::{SolveError, WorkerError};
pub use explain::{Explain, MissCause, NamedChange, Remembered};
pub use failed::{FailedPart, FailedStep};
pub use forecast::{Expected, Forecast, StepForecast};
pub use worker::{CacheMap, ExecuteRequest, Execution, InputKey, Worker};

use forge_cache::remote::RemoteCache;
use forge_cache::{CacheIndex, Flights, ResultRef, ResultStore};
use forge_llb::{Graph, VertexDigest};
use forge_session::Session;
use std::sync::Arc;
use tokio::sync::mpsc::UnboundedSender;

/// Solves graphs. Cheap to clone and to keep; every [`Solver::solve`] is a build of its own.
#[derive(Clone)]
pub struct Solver {
    /// Who runs steps.
    pub worker: Arc<dyn Worker>,
    /// Who keeps results.
    pub results: Arc<dyn ResultStore>,
    /// Where results are found by key.
    pub index: Arc<dyn CacheIndex>,
    /// Who is asked where the index has nothing, and told of what is in it.
    pub remote: Option<Arc<dyn RemoteCache>>,
    /// What keeps equal steps of several builds from running twice.
    pub flights: Arc<Flights>,
    /// How many steps may run at once; `None` for no bound.
    pub max_parallelism: Option<usize>,
    /// What becomes of the other steps when one fails.
    pub on_failure: OnFailure,
}

/// What becomes of the other steps of a build when one fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// They are told to stop.
    #[default]
    CancelOthers,
    /// Those that do not need what it makes go on to their end. The first failure is the build's.
    FinishOthers,
}

/// Whether steps are run, or only asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Build,
    Forecast,
}

/// What came of a build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Solved {
    /// The goal's result.
    pub result: ResultRef,
    /// What became of each step that the goal needs, in the graph's order.
    pub steps: Vec<StepOutcome>,
}

/// What became of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepOutcome {
    /// The vertex.
    pub digest: VertexDigest,
    /// Its name.
    pub name: String,
    /// Whether it did not run, because the cache had its result or that of everything that needs it.
    pub cached: bool,
    /// Its results; empty where nothing needed them.
    pub result: Vec<ResultRef>,
    /// Why it ran, where the build is compared with an earlier one.
    pub miss: Option<MissCause>,
}

/// A step whose results are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completed {
    /// The vertex.
    pub digest: VertexDigest,
    /// Its results.
    pub results: Vec<ResultRef>,
}

impl Solver {
    /// Evaluates what the goal of a graph needs, and nothing else.
    ///
    /// An input is completed only when its consumer was not found by its definition key. Every needed vertex is
    /// announced first; each that runs is reported when it starts and ends, each that does not have to run once,
    /// as cached. Dropping the future aborts the build and cancels the session that its steps see.
    ///
    /// # Errors
    /// A step failed (the others have ended, see [`OnFailure`]), or the session was cancelled.
    pub async fn solve(&self, graph: &Graph, session: Arc<dyn Session>) -> Result<Solved, SolveError> {
        run::Run::new(self, plan::Plan::new(graph), session, None, Mode::Build).run().await
    }

    /// The same for a build that is compared with the last one of its identity: steps that run say why, as lines of
    /// their logs.
    ///
    /// # Errors
    /// As with [`Solver::solve`].
    pub async fn solve_again(
        &self,
        graph: &Graph,
        session: Arc<dyn Session>,
        remembered: Remembered,
    ) -> Result<Solved, SolveError> {
        run::Run::new(self, plan::Plan::new(graph), session, Some(remembered), Mode::Build).run().await
    }

    /// The same, and `completed` is told of each step whose results are there while others still run. Its other end sees the
    /// channel closed when the build is over.
    ///
    /// # Errors
    /// As with [`Solver::solve`].
    pub async fn solve_telling(
        &self,
        graph: &Graph,
        session: Arc<dyn Session>,
        remembered: Option<Remembered>,
        completed: UnboundedSender<Completed>,
    ) -> Result<Solved, SolveError> {
        let run = run::Run::new(self, plan::Plan::new(graph), session, remembered, Mode::Build);
        run.telling(completed).run().await
    }

    /// Says what [`Solver::solve_again`] would do, in the graph's order. Contexts are read and images resolved, but no
    /// step runs, nothing is noted in the index, and no other build is waited for.
    ///
    /// # Errors
    /// An input cannot be read, or the session was cancelled.
    pub async fn forecast(
        &self,
        graph: &Graph,
        session: Arc<dyn Session>,
        remembered: Remembered,
    ) -> Result<Vec<StepForecast>, SolveError> {
        let solver = Self { flights: Arc::new(Flights::in_process()), ..self.clone() };
        run::Run::new(&solver, plan::Plan::new(graph), session, Some(remembered), Mode::Forecast).forecast().await
    }
}
