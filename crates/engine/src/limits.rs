//! Bounds on what processes take from the machine.

use crate::engine::Engine;
use forge_executor::{Container, ContainerId, Executor, ExecutorError, Resources, SandboxSpec, SharedGroup, Stdio};
use forge_llb::Ulimit;
use forge_store::LayerId;
use std::net::Ipv4Addr;

/// Bounds of one process and its children.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// What control groups bound.
    pub resources: Resources,
    /// What setrlimit(2) bounds.
    pub ulimits: Vec<Ulimit>,
    /// Bytes of `/dev/shm`; docker's 64 MiB where `None`.
    pub shm_size: Option<u64>,
    /// Group below which the process's is made; empty for forge's own.
    pub cgroup_parent: String,
}

/// The engine's executor under the limits of a build, started with the first step that really runs: a cached build
/// needs none.
pub(crate) struct BoundedExecutor {
    engine: Engine,
    each: Resources,
    together: Option<SharedGroup>,
}

impl BoundedExecutor {
    /// Bounds each step, and all of them together.
    pub(crate) fn new(engine: Engine, each: Resources, together: Resources) -> Result<Self, ExecutorError> {
        let shared = |resources| {
            ContainerId::new(format!("build-{}", LayerId::random())).map(|id| SharedGroup { id, resources })
        };
        let bounded = together != Resources::default();
        Ok(Self { engine, each, together: bounded.then(|| shared(together)).transpose()? })
    }
}

impl Executor for BoundedExecutor {
    fn create(&self, id: &ContainerId, spec: &SandboxSpec, io: Stdio) -> Result<Box<dyn Container>, ExecutorError> {
        let mut spec = spec.clone();
        bound(&mut spec, &self.each);
        spec.group.shared.clone_from(&self.together);
        self.engine.executor()?.create(id, &spec, io)
    }

    fn private_network(&self) -> Result<Ipv4Addr, ExecutorError> {
        self.engine.executor()?.private_network()
    }

    fn notices(&self) -> Vec<String> {
        self.engine.executor().map(|executor| executor.notices()).unwrap_or_default()
    }

    fn finish(&self) {
        self.engine.finish_containers();
    }
}

/// Sets limits; the default number of tasks stays where none is given.
pub(crate) fn bound(spec: &mut SandboxSpec, resources: &Resources) {
    let pids = resources.pids.or(spec.resources.pids);
    spec.resources = Resources { pids, ..resources.clone() };
}
