//! Steps that failed in a build that somebody steers: what there is of them can be looked at until the build ends.

use crate::build::Build;
use crate::definition::default_config;
use crate::job::{Job, JobResult};
use forge_buildkit_proto::pb;
use forge_cache::ResultRef;
use forge_frontend::LoweredImage;
use forge_image::{Digest, Platform};
use forge_llb::Graph;
use forge_solver::{FailedPart, FailedStep, SolveError};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What is known of them, by their vertices. It names layers only, which the build's lease holds.
#[derive(Default)]
pub(crate) struct FailedSteps(Mutex<HashMap<Digest, Known>>);

#[derive(Clone)]
struct Known {
    step: FailedStep,
    op: Option<pb::Op>,
}

/// A step that failed, and results that are what it was given and what it left.
pub struct FailedOp {
    /// What it was to do; `None` where the format has no words for it.
    pub op: Option<pb::Op>,
    /// What it was given: for a process by its mounts, for file actions by the inputs of the step.
    pub inputs: Vec<Option<JobResult>>,
    /// What it left: each mount of a process, the tree of each file action.
    pub left: Vec<Option<JobResult>>,
    /// What of it failed.
    pub part: FailedPart,
}

impl FailedSteps {
    fn known(&self) -> MutexGuard<'_, HashMap<Digest, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of a failure of a graph's step.
    pub(crate) fn note(&self, error: &SolveError, graph: &Graph) {
        let SolveError::Step { vertex, failed: Some(failed), .. } = error else { return };
        let op = forge_buildkit_proto::encode_vertex(graph, vertex);
        self.known().insert(vertex.digest().clone(), Known { step: FailedStep::clone(failed), op });
    }
}

impl Job {
    /// What there is of a step that failed in this build; `None` where nothing is known of it.
    pub fn failed_step(&self, vertex: &Digest) -> Option<FailedOp> {
        let build = self.shared_build();
        let Known { step, op } = build.failures.as_ref()?.known().get(vertex)?.clone();
        let results = |all: Vec<Option<ResultRef>>| {
            all.into_iter().map(|result| result.map(|result| JobResult::there(build, result))).collect()
        };
        Some(FailedOp { op, inputs: results(step.inputs), left: results(step.left), part: step.part })
    }
}

/// An image of which nothing is to be said: of a result that nobody exports.
pub(crate) fn nameless(build: &Arc<Build>) -> LoweredImage {
    let platform = Platform::host();
    LoweredImage {
        graph: Graph::new(),
        config: default_config(&platform),
        base_history: 0,
        base: None,
        warnings: Vec::new(),
        unused_build_args: Vec::new(),
        context_names_used: Vec::new(),
        entitlements: Vec::new(),
        source_date_epoch: build.request.source_date_epoch,
        triggers: Vec::new(),
        scanned: Vec::new(),
    }
}
