//! What a step says of its limits, as the sandbox takes it.

use forge_executor::{ExecutorError, Rlimit, RlimitResource, SandboxSpec};
use forge_llb::{ExecOp, Ulimit};
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
