//! What a step made, from its end until it can be found.

use super::Shared;
use crate::WorkerError;
use forge_cache::{CacheError, CacheIndex, CacheKey, FlightGuard, ResultRef, StepInputs, StepRecord};
use std::sync::Arc;
use std::time::Duration;

/// How long it takes the next step to have asked for what it needs.
const SAVE_PAUSE: Duration = Duration::from_millis(1);

/// What is kept of a step that ran.
pub(super) struct Kept {
    /// Under which others may look for it.
    pub(super) keys: Vec<CacheKey>,
    /// Under which this machine does.
    pub(super) all: Vec<CacheKey>,
    pub(super) record: StepRecord,
    pub(super) made_of: StepInputs,
    /// What the step made and nobody needs.
    pub(super) given_up: Vec<ResultRef>,
}

impl Kept {
    /// What an earlier run made that is the same.
    pub(super) fn equal(&self, index: &dyn CacheIndex) -> Result<Option<Vec<ResultRef>>, CacheError> {
        let earlier = self.record.result.as_ref().map(|result| index.equal(result)).transpose()?.flatten();
        Ok(earlier.map(|earlier| earlier.outputs).filter(|earlier| *earlier != self.record.outputs))
    }

    /// The same with these results instead, which are equal.
    pub(super) fn replaced_by(mut self, earlier: Vec<ResultRef>) -> Self {
        let made = std::mem::replace(&mut self.record.outputs, earlier);
        let outputs = &self.record.outputs;
        self.given_up =
            made.into_iter().zip(outputs).filter(|(new, stays)| new != *stays).map(|(new, _)| new).collect();
        self
    }
}

/// What a step made, and nobody can find yet: to save it takes about as long as a short step, and the steps that follow need
/// not wait for that. Whoever wants to run the same step waits.
pub(crate) struct Unsaved {
    pub(super) kept: Kept,
    pub(super) shared: Arc<Shared>,
    pub(super) _flight: Option<FlightGuard>,
}

impl Unsaved {
    /// Saves it, a little later: what follows asks the index first of all.
    pub async fn save(self) -> Result<(), WorkerError> {
        tokio::time::sleep(SAVE_PAUSE).await;
        let Kept { all, record, made_of, given_up, .. } = self.kept;
        self.shared.on_index(move |index| index.save(&all, &record, &made_of)).await?;
        for result in &given_up {
            self.shared.solver.results.discard(result).await?;
        }
        Ok(())
    }
}
