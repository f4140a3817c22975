//! What a step says of its limits, as the sandbox takes it.

use forge_executor::{CpuQuota, ExecutorError, Resources, Rlimit, RlimitResource, SandboxSpec, SwapLimit};
use forge_llb::{ExecOp, StepResources, Ulimit};
use std::path::PathBuf;

/// Sets a step's own limits; what it does not name stays as it is.
pub(crate) fn apply(op: &ExecOp, spec: &mut SandboxSpec) -> Result<(), ExecutorError> {
    for ulimit in &op.ulimits {
        set_rlimit(&mut spec.process.rlimits, rlimit(ulimit)?);
    }
    if !op.cgroup_parent.is_empty() {
        spec.group.parent = Some(PathBuf::from(&op.cgroup_parent));
    }
    Ok(())
}

/// Sets what a step's own control group bounds; what is not named stays as it is.
pub(crate) fn bound(step: &StepResources, resources: &mut Resources) {
    let StepResources { memory, memory_swap, cpu_shares, cpu_period, cpu_quota, cpuset_cpus, cpuset_mems } = step;
    // Negative is unlimited.
    let swap = |bytes: i64| u64::try_from(bytes).map_or(SwapLimit::Unlimited, SwapLimit::Total);
    let quota = (cpu_quota.is_some() || cpu_period.is_some())
        .then(|| CpuQuota { quota_us: *cpu_quota, period_us: cpu_period.unwrap_or(CpuQuota::DEFAULT_PERIOD_US) });
    *resources = Resources {
        memory: memory.or(resources.memory),
        memory_swap: memory_swap.map(swap).or(resources.memory_swap),
        pids: resources.pids,
        cpu_quota: quota.or(resources.cpu_quota),
        cpu_shares: cpu_shares.or(resources.cpu_shares),
        cpuset_cpus: cpuset_cpus.clone().or(resources.cpuset_cpus.take()),
        cpuset_mems: cpuset_mems.clone().or(resources.cpuset_mems.take()),
    };
}

/// Adds a limit, or puts it in the place of the one there is.
pub fn set_rlimit(limits: &mut Vec<Rlimit>, limit: Rlimit) {
    match limits.iter_mut().find(|other| other.resource == limit.resource) {
        Some(place) => *place = limit,
        None => limits.push(limit),
    }
}

/// A limit as docker writes it, in the sandbox's terms.
///
/// # Errors
/// Nothing has that name.
pub fn rlimit(ulimit: &Ulimit) -> Result<Rlimit, ExecutorError> {
    let unknown = || ExecutorError::InvalidSpec { reason: format!("invalid ulimit type: {}", ulimit.name) };
    // Negative is unlimited.
    let value = |number: i64| u64::try_from(number).unwrap_or(u64::MAX);
    let resource = resource(&ulimit.name).ok_or_else(unknown)?;
    Ok(Rlimit { resource, soft: value(ulimit.soft), hard: value(ulimit.hard) })
}

fn resource(name: &str) -> Option<RlimitResource> {
    Some(match name {
        "as" => RlimitResource::As,
        "core" => RlimitResource::Core,
        "cpu" => RlimitResource::Cpu,
        "data" => RlimitResource::Data,
        "fsize" => RlimitResource::Fsize,
        "locks" => RlimitResource::Locks,
        "memlock" => RlimitResource::Memlock,
        "msgqueue" => RlimitResource::Msgqueue,
        "nice" => RlimitResource::Nice,
        "nofile" => RlimitResource::Nofile,
        "nproc" => RlimitResource::Nproc,
        "rss" => RlimitResource::Rss,
        "rtprio" => RlimitResource::Rtprio,
        "rttime" => RlimitResource::Rttime,
        "sigpending" => RlimitResource::Sigpending,
        "stack" => RlimitResource::Stack,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_s_own_bounds_take_the_place_of_the_others() {
        let mut resources = Resources { memory: Some(1), pids: Some(2), cpu_shares: Some(3), ..Resources::default() };
        let step = StepResources {
            memory: Some(7),
            memory_swap: Some(-1),
            cpu_quota: Some(5000),
            cpuset_cpus: Some("0".into()),
            ..StepResources::default()
        };
        bound(&step, &mut resources);
        let expected = Resources {
            memory: Some(7),
            memory_swap: Some(SwapLimit::Unlimited),
            pids: Some(2),
            cpu_quota: Some(CpuQuota { quota_us: Some(5000), period_us: CpuQuota::DEFAULT_PERIOD_US }),
            cpu_shares: Some(3),
            cpuset_cpus: Some("0".into()),
            cpuset_mems: None,
        };
        assert_eq!(resources, expected);
    }

    #[test]
    fn a_limit_takes_the_place_of_the_default() {
        let given = |name: &str| Ulimit { name: name.into(), soft: 10, hard: -1 };
        let mut limits = vec![Rlimit { resource: RlimitResource::Nofile, soft: 1, hard: 2 }];
        set_rlimit(&mut limits, rlimit(&given("nofile")).expect("known"));
        set_rlimit(&mut limits, rlimit(&given("nproc")).expect("known"));
        let expected = |resource| Rlimit { resource, soft: 10, hard: u64::MAX };
        assert_eq!(limits, [expected(RlimitResource::Nofile), expected(RlimitResource::Nproc)]);
        assert!(rlimit(&given("files")).is_err());
    }
}
