//! From a graph to results: the solver with all that it works with, and what its failures are told as.

use super::refusal::{foreign_program, step_failed};
use super::{Build, PlatformResult};
use crate::dockerfile::{DockerfileText, read_ignore_file};
use crate::engine::{blocking, briefly};
use crate::limits::BoundedExecutor;
use crate::{EngineError, StepCounts, missing};
use forge_cache::BuildId;
use forge_cache::remote::{RemoteCache, RemoteMounts, SharedCache};
use forge_frontend::{Arguments, Dockerfile, Instruction, LoweredImage};
use forge_image::{ErrorKind, Platform};
use forge_solver::{Remembered, SolveError, Solved, Solver};
use forge_worker::{LocalResults, LocalWorker};
use std::collections::BTreeSet;
use std::sync::Arc;

impl Build {
    /// Made when first needed. There is one for a build, so that a source is asked once.
    pub(crate) async fn solver(&self) -> Result<&Solver, EngineError> {
        self.solver.get_or_try_init(|| self.new_solver()).await
    }

    async fn new_solver(&self) -> Result<Solver, EngineError> {
        let (transfer, images) = (self.transfer.clone(), self.images.clone());
        let (on_failure, max_parallelism) = (self.request.on_failure, self.request.max_parallelism);
        let (caches, renews) = (self.request.caches.clone(), self.request.renew_cache_mounts);
        let keeps = self.failures.is_some();
        let (each, together) = (self.request.limits.resources.clone(), self.request.total_limits.clone());
        let engine = self.engine.clone();
        let solver = briefly(move || {
            let engine = &engine;
            let shared = caches.open(engine, &transfer)?;
            let (store, lease) = (transfer.store, transfer.lease);
            let executor = Arc::new(BoundedExecutor::new(engine.clone(), each, together)?);
            let worker = LocalWorker::new(store.clone(), lease.clone(), executor, images.clone());
            let worker = worker.with_devices(&engine.options().device_folders);
            let worker = worker.with_shared_mounts(shared.clone().map(|shared| shared as Arc<dyn RemoteMounts>));
            let worker = if renews { worker.renewing_mounts() } else { worker };
            let worker = if keeps { worker.keeping_failures() } else { worker };
            let results = Arc::new(LocalResults::new(store, lease, worker.contexts()).fetching(images));
            let worker = Arc::new(worker.with_index(engine.index()?));
            let solver = Solver {
                worker: worker.clone(),
                results,
                index: engine.cache_index()?,
                remote: shared.clone().map(|shared| shared as Arc<dyn RemoteCache>),
                flights: engine.flights()?,
                max_parallelism: max_parallelism.or(engine.options().max_parallelism),
                on_failure,
            };
            Ok((worker, shared, solver))
        });
        let (worker, shared, solver) = solver.await?;
        // Nobody else sets it: the solver is made once.
        _ = self.worker.set(worker);
        _ = self.shared_cache.set(shared);
        Ok(solver)
    }

    /// The caches that the build shares, once there is a solver.
    pub(crate) fn shared_cache(&self) -> Option<Arc<SharedCache>> {
        self.shared_cache.get().cloned().flatten()
    }

    /// What the build is compared with: the last one of the same file, context, target and platform.
    pub(crate) fn remembered(&self, dockerfile: &Dockerfile, platform: &Platform) -> Remembered {
        let context = self.request.compared_as.clone().unwrap_or_else(|| self.main.files.identity());
        let target = self.request.target.as_deref().unwrap_or_default();
        let shown = platform.to_string();
        let words = [context.as_bytes(), dockerfile.name().as_bytes(), target.as_bytes(), shown.as_bytes()];
        Remembered { id: BuildId::new(&words), arguments: arguments(dockerfile), explain: self.request.explain }
    }

    pub(super) async fn solve(
        &self,
        solver: &Solver,
        image: &LoweredImage,
        (dockerfile, text): (&Dockerfile, &DockerfileText),
        platform: &Platform,
    ) -> Result<Solved, EngineError> {
        let remembered = self.remembered(dockerfile, platform);
        let error = match self.solve_and_send(solver, image, Some(remembered)).await {
            Ok(solved) => return Ok(solved),
            Err(error) => error,
        };
        Err(self.failed(error, image, text).await)
    }

    /// A step that failed, and what may have been meant.
    pub(crate) async fn failed(&self, error: SolveError, image: &LoweredImage, text: &DockerfileText) -> EngineError {
        let meant = self.explain_missing(&error, image).await.or_else(|| foreign_program(&error, image));
        let failed = step_failed(error, text);
        match meant {
            Some(hint) => failed.with_hint(hint),
            None => failed,
        }
    }

    /// What a step may have meant that did not find its files.
    async fn explain_missing(&self, error: &SolveError, image: &LoweredImage) -> Option<String> {
        let SolveError::Step { vertex, source, .. } = error else { return None };
        if source.kind() != ErrorKind::UserInput {
            return None;
        }
        let (graph, vertex, session) = (image.graph.clone(), vertex.clone(), self.session.clone());
        let (dockerfile, main) = (self.request.dockerfile.clone(), self.main.clone());
        let in_result = missing::explain_result(&graph, &vertex, source);
        let looked =
            blocking(move || missing::explain(&graph, &vertex, &*session, &read_ignore_file(&dockerfile, &main)?));
        // Another failure must not hide the one that is to be explained.
        looked.await.ok().flatten().or(in_result)
    }
}

/// How many steps ran and how many did not have to. Sources count as neither.
pub(crate) fn count(results: &[PlatformResult]) -> StepCounts {
    let mut counts = StepCounts::default();
    for result in results {
        for step in &result.solved.steps {
            let is_source = matches!(
                result.lowered.graph.get(&step.digest).map(|vertex| &vertex.op),
                Some(forge_llb::Op::Source(_)) | None
            );
            match (is_source, step.cached) {
                (true, _) => {}
                (false, true) => counts.cached += 1,
                (false, false) => counts.executed += 1,
            }
        }
    }
    counts
}

fn name_of(definition: &str) -> String {
    definition.split('=').next().unwrap_or_default().to_owned()
}

/// The names of all build arguments.
fn arguments(dockerfile: &Dockerfile) -> BTreeSet<String> {
    let is_arg = |instruction: &&Instruction| instruction.keyword.text.eq_ignore_ascii_case("ARG");
    let names = |instruction: &Instruction| match &instruction.arguments {
        Arguments::Words(words) => words.iter().map(|word| name_of(&word.text)).collect(),
        _ => Vec::new(),
    };
    dockerfile.instructions().iter().filter(is_arg).flat_map(names).collect()
}
