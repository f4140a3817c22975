//! Bounds on what processes take from the machine.

use crate::engine::Engine;
use forge_executor::{
    Belongings, Container, ContainerId, Executor, ExecutorError, Resources, SandboxSpec, SharedGroup, Stdio, SwapLimit,
};
use forge_llb::{StepResources, Ulimit};
use forge_store::LayerId;
use std::net::Ipv4Addr;
use std::sync::Arc;

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

    fn finish(&self, belongings: Option<Belongings>) {
        if let Some(executor) = self.engine.started_executor() {
            executor.finish(belongings);
        }
    }
}

/// Sets limits where there is none yet; the number of tasks has a default, which gives way.
pub(crate) fn bound(spec: &mut SandboxSpec, resources: &Resources) {
    let own = std::mem::take(&mut spec.resources);
    spec.resources = Resources {
        memory: own.memory.or(resources.memory),
        memory_swap: own.memory_swap.or(resources.memory_swap),
        pids: resources.pids.or(own.pids),
        cpu_quota: own.cpu_quota.or(resources.cpu_quota),
        cpu_shares: own.cpu_shares.or(resources.cpu_shares),
        cpuset_cpus: own.cpuset_cpus.or_else(|| resources.cpuset_cpus.clone()),
        cpuset_mems: own.cpuset_mems.or_else(|| resources.cpuset_mems.clone()),
    };
}

/// The same as a graph says it, where there is a limit.
pub(crate) fn of_steps(resources: &Resources) -> Option<Arc<StepResources>> {
    let step = StepResources {
        memory: resources.memory,
        memory_swap: resources.memory_swap.map(|swap| match swap {
            SwapLimit::Unlimited => -1,
            SwapLimit::Total(bytes) => i64::try_from(bytes).unwrap_or(i64::MAX),
        }),
        cpu_shares: resources.cpu_shares,
        cpu_period: resources.cpu_quota.map(|quota| quota.period_us),
        cpu_quota: resources.cpu_quota.and_then(|quota| quota.quota_us),
        cpuset_cpus: resources.cpuset_cpus.clone(),
        cpuset_mems: resources.cpuset_mems.clone(),
    };
    (step != StepResources::default()).then(|| Arc::new(step))
}
