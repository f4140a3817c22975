//! What came of a build: its result, what is noted for the next one, and what would come of one that only asks.

use super::{Run, Step};
use crate::explain::Remembered;
use crate::plan::PlannedStep;
use crate::step::State;
use crate::{Forecast, SolveError, Solved, StepForecast, StepOutcome};
use forge_cache::{BuildId, BuildSteps, CacheIndex, CacheKey, EarlierSteps, ResultRef};
use forge_llb::Op;
use std::time::SystemTime;

impl Run {
    pub(super) async fn finish(self) -> Result<Solved, SolveError> {
        let result = match self.shared.plan.goal {
            None => ResultRef::scratch(),
            Some(goal) => match self.steps[goal.step].state.outputs() {
                Some(outputs) => outputs[goal.output].clone(),
                None => return Err(self.stuck()),
            },
        };
        self.note_uses().await;
        let steps = (0..self.steps.len()).map(|step| self.outcome(step)).collect();
        Ok(Solved { result, steps })
    }

    fn stuck(&self) -> SolveError {
        let open = |step: &usize| !matches!(self.steps[*step].state, State::Complete { .. } | State::Skipped(_));
        let name = |step: usize| self.planned(step).vertex.metadata.name.clone();
        SolveError::Stuck { waiting: (0..self.steps.len()).filter(open).map(name).take(10).collect() }
    }

    /// Notes that records were used, those of skipped steps too: they are needed as soon as what follows changes. And what
    /// the next build is to be compared with.
    async fn note_uses(&self) {
        let used = |step: &Step| match &step.state {
            State::Complete { known, cached: true, .. } | State::Skipped(known) => {
                Some(known.keys.as_ref()?.definition)
            }
            _ => None,
        };
        let keys: Vec<_> = self.steps.iter().filter_map(used).collect();
        let now = SystemTime::now();
        self.offer_used(&keys).await;
        // The build has succeeded. All that is lost is how recently its records were used, and an explanation.
        let noted = self.noted(None);
        let note = move |index: &dyn CacheIndex| {
            let touched = index.touch(&keys, now);
            noted.map(|(build, steps)| index.note_build(&build, &steps, now)).transpose()?;
            touched
        };
        _ = self.shared.settle(note).await;
    }

    /// What the next build is to be compared with.
    fn noted(&self, last: Option<&EarlierSteps>) -> Option<(BuildId, BuildSteps)> {
        let is_done = |step: usize| matches!(self.steps[step].state, State::Complete { .. } | State::Skipped(_));
        let build = self.shared.remembered.as_ref()?.id;
        Some((build, self.shared.notes.steps(&self.shared.plan, is_done, last)))
    }

    /// Tells the shared caches of the records that were used.
    async fn offer_used(&self, keys: &[CacheKey]) {
        let Some(remote) = self.shared.solver.remote.clone() else { return };
        let keys = keys.to_vec();
        let offered = remote.clone();
        let offer = move |index: &dyn CacheIndex| {
            let mut skipped = Vec::new();
            for key in keys {
                let Some(record) = index.query(&key)? else {
                    skipped.push(key);
                    continue;
                };
                let mut keys = index.inputs(&key)?.unwrap_or_default().keys;
                if !keys.contains(&key) {
                    keys.push(key);
                }
                offered.used(&keys, &record);
            }
            Ok(skipped)
        };
        // What cannot be read is not told.
        if let Ok(skipped) = self.shared.on_index(offer).await {
            remote.skipped(&skipped).await;
        }
    }

    /// Notes what the next build is to be compared with: of one that failed, that is what it came to, and what the one
    /// before it was where it came to nothing.
    pub(super) async fn note_failure(&self) {
        let Some(Remembered { id: build, .. }) = self.shared.remembered else { return };
        let last = self.shared.on_index(move |index| index.last_build(&build)).await.ok().flatten();
        let Some((build, steps)) = self.noted(last.map(EarlierSteps::from).as_ref()) else { return };
        // All that is lost is an explanation.
        _ = self.shared.on_index(move |index| index.note_build(&build, &steps, SystemTime::now())).await;
    }

    /// Asks for everything and runs nothing.
    pub async fn forecast(mut self) -> Result<Vec<StepForecast>, SolveError> {
        self.evaluate().await;
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        let blockers = self.blockers();
        let mut forecasts = Vec::with_capacity(self.steps.len());
        for (step, blocker) in blockers.into_iter().enumerate() {
            forecasts.push(self.step_forecast(step, blocker).await);
        }
        Ok(forecasts)
    }

    /// For each step the first one that would run and that it depends on.
    fn blockers(&self) -> Vec<Option<usize>> {
        let mut blockers: Vec<Option<usize>> = Vec::with_capacity(self.steps.len());
        for step in 0..self.steps.len() {
            let of = |input: usize| match self.steps[input].state {
                State::WouldRun { .. } => Some(input),
                _ => blockers[input],
            };
            let blocker = self.shared.plan.needs(step).filter_map(of).min();
            blockers.push(blocker);
        }
        blockers
    }

    async fn step_forecast(&self, step: usize, blocker: Option<usize>) -> StepForecast {
        let PlannedStep { digest, vertex, .. } = self.planned(step);
        let forecast: Forecast = match &self.steps[step].state {
            State::WouldRun { miss, .. } => Forecast::Runs(miss.clone()),
            State::Complete { .. } | State::Skipped(_) | State::Fast(_) => Forecast::Cached,
            _ => Forecast::Unknown,
        };
        let is_source = matches!(vertex.op, Op::Source(_));
        let expected = self.work(step).expected().await;
        let name = |step: usize| self.planned(step).vertex.metadata.name.clone();
        let after = blocker.filter(|_| forecast == Forecast::Unknown).map(name);
        StepForecast { digest: digest.clone(), name: name(step), is_source, forecast, after, expected }
    }

    fn outcome(&self, step: usize) -> StepOutcome {
        let PlannedStep { digest, vertex, .. } = self.planned(step);
        let state = &self.steps[step].state;
        StepOutcome {
            digest: digest.clone(),
            name: vertex.metadata.name.clone(),
            cached: matches!(state, State::Skipped(_) | State::Complete { cached: true, .. }),
            miss: match state {
                State::Complete { miss, .. } => miss.clone(),
                _ => None,
            },
            result: state.outputs().unwrap_or_default().to_vec(),
        }
    }
}
