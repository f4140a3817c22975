use crate::{ContainerId, ExecutorError, wire};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// The kernel's default for a quota's period, which docker uses for `--cpus`.
const PERIOD_US: u64 = 100_000;

/// Upper bounds, enforced where the kernel has a controller; [`crate::Executor::notices`] names the rest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Memory and swap together. Where `None`, twice the memory, as docker has it.
    pub memory_swap: Option<SwapLimit>,
    /// Tasks, threads included.
    pub pids: Option<u32>,
    /// Time of the processors.
    pub cpu_quota: Option<CpuQuota>,
    /// Share of the processors' time when they are contended; 1024 is an ordinary group's.
    pub cpu_shares: Option<u64>,
    /// Processors that may be used, `0-2,5`.
    pub cpuset_cpus: Option<String>,
    /// Memory nodes that may be used, `0,1`.
    pub cpuset_mems: Option<String>,
}

/// How much memory and swap together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SwapLimit {
    /// Any amount of swap beyond the memory.
    Unlimited,
    /// So many bytes of both.
    Total(u64),
}

/// Microseconds of processor time in each period.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuQuota {
    /// Time that may be used in a period; `None` sets only the period.
    pub quota_us: Option<u64>,
    /// Length of a period.
    pub period_us: u64,
}

impl CpuQuota {
    /// The kernel's default length of a period.
    pub const DEFAULT_PERIOD_US: u64 = PERIOD_US;

    /// So many processors' worth of time, e.g. 1.5.
    pub fn of_cpus(cpus: f64) -> Self {
        // The kernel takes no quota below a millisecond.
        let quota = (cpus * PERIOD_US as f64) as u64;
        Self { quota_us: Some(quota.max(1000)), period_us: PERIOD_US }
    }
}

/// Which control groups a container is put into, and what they share.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupPlacement {
    /// Group below which the container's own is made, from the root of each hierarchy if absolute, else from the
    /// caller's own group. Made when missing, and left.
    #[serde(with = "wire::optional")]
    pub parent: Option<PathBuf>,
    /// A group that several containers share, which bounds them together.
    pub shared: Option<SharedGroup>,
}

/// Bounds of several containers together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedGroup {
    /// The same for all of them, and for nobody else.
    pub id: ContainerId,
    /// What bounds them.
    pub resources: Resources,
}

impl GroupPlacement {
    pub(crate) fn check(&self) -> Result<(), ExecutorError> {
        let climbs = |path: &PathBuf| path.components().any(|part| part == std::path::Component::ParentDir);
        match self.parent.as_ref().filter(|path| climbs(path)) {
            Some(path) => {
                let reason = format!("the cgroup parent {} contains \"..\"", path.display());
                Err(ExecutorError::InvalidSpec { reason })
            }
            None => Ok(()),
        }
    }
}

/// What a container used, children included, from its set-up to the death of its last process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Processor time in user mode.
    pub user: Duration,
    /// Processor time in the kernel.
    pub system: Duration,
    /// Most bytes of memory at once: of all processes together where the container had a memory group of its own,
    /// else of the largest process.
    pub peak_memory: u64,
}

impl Usage {
    /// All processor time.
    pub fn cpu(&self) -> Duration {
        self.user + self.system
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_a_quota_of_docker_s_period() {
        assert_eq!(CpuQuota::of_cpus(1.5), CpuQuota { quota_us: Some(150_000), period_us: 100_000 });
        assert_eq!(CpuQuota::of_cpus(0.001).quota_us, Some(1000));
    }

    #[test]
    fn a_parent_group_does_not_climb() {
        let placement = |path: &str| GroupPlacement { parent: Some(path.into()), shared: None };
        assert!(placement("/a/b").check().is_ok());
        assert!(placement("/a/../../b").check().is_err());
    }
}
