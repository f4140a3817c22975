//! Evaluates one build's graph: asks the cache, runs what is missing, as much at the same time as may be.
//!
//! The crate knows no op: what a vertex is worth as a key and what running it means is the [`Worker`]'s business,
//! results are handles that it passes on. It touches no file and starts no process.
//!
//! Reading order: [`Solver`], [`Solved`], [`SolveError`]; [`Worker`], [`CacheMap`], [`ExecuteRequest`],
//! [`Execution`], [`WorkerError`]; then `plan` (what the goal needs, as a `petgraph` graph), `run` (the loop), `step` (the
//! states of a step), `work` (what is done beside the loop).
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod error;
mod plan;
mod progress;
mod run;
mod session;
mod step;
mod work;
mod worker;

pub use error::{SolveError, WorkerError};
pub use worker::{CacheMap, ExecuteRequest, Execution, InputKey, Worker};

use forge_cache::{CacheIndex, Flights, ResultRef, ResultStore};
use forge_llb::{Graph, VertexDigest};
use forge_session::Session;
use std::sync::Arc;

/// Solves graphs. Cheap to clone and to keep; every [`Solver::solve`] is a build of its own.
#[derive(Clone)]
pub struct Solver {
    /// Who runs steps.
    pub worker: Arc<dyn Worker>,
    /// Who keeps results.
    pub results: Arc<dyn ResultStore>,
    /// Where results are found by key.
    pub index: Arc<dyn CacheIndex>,
    /// What keeps equal steps of several builds from running twice.
    pub flights: Arc<Flights>,
    /// How many steps may run at once; `None` for no bound.
    pub max_parallelism: Option<usize>,
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
}

impl Solver {
    /// Evaluates what the goal of a graph needs, and nothing else.
    ///
    /// An input is completed only when its consumer was not found by its definition key. Every needed vertex is
    /// announced first; each that runs is reported when it starts and ends, each that does not have to run once,
    /// as cached. Dropping the future aborts the build and cancels the session that its steps see.
    ///
    /// # Errors
    /// A step failed (the others are then cancelled and have ended), or the session was cancelled.
    pub async fn solve(&self, graph: &Graph, session: Arc<dyn Session>) -> Result<Solved, SolveError> {
        run::Run::new(self, plan::Plan::new(graph), session).run().await
    }
}
