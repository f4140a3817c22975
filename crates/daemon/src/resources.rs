//! What a client bounds of steps, in the attributes of the front end for Dockerfiles.

use forge_engine::{CpuQuota, Resources, SwapLimit};
use forge_llb::is_set_of_numbers;
use std::collections::HashMap;
use tonic::Status;

/// Reads the attributes; what they do not say is as `base` has it. The words of refusals are BuildKit's.
pub(crate) fn read(options: &HashMap<String, String>, base: &Resources) -> Result<Resources, Status> {
    let get = |name: &str| options.get(name).map(String::as_str).filter(|value| !value.is_empty());
    let number = |name: &str| get(name).map(|text| positive(name, text)).transpose();
    let list = |name: &str| get(name).map(|text| set(name, text)).transpose();
    let (period, quota) = (number("cpuperiod")?, number("cpuquota")?);
    let cpu_quota = (period.is_some() || quota.is_some())
        .then(|| CpuQuota { quota_us: quota, period_us: period.unwrap_or(CpuQuota::DEFAULT_PERIOD_US) });
    Ok(Resources {
        memory: number("memory")?.or(base.memory),
        memory_swap: get("memswap").map(swap).transpose()?.or(base.memory_swap),
        pids: base.pids,
        cpu_quota: cpu_quota.or(base.cpu_quota),
        cpu_shares: number("cpushares")?.or(base.cpu_shares),
        cpuset_cpus: list("cpusetcpus")?.or_else(|| base.cpuset_cpus.clone()),
        cpuset_mems: list("cpusetmems")?.or_else(|| base.cpuset_mems.clone()),
    })
}

fn refused(name: &str, value: &str, why: &str) -> Status {
    Status::unknown(format!("failed to parse resource limits: invalid {name} value: {value:.100}{why}"))
}

fn positive(name: &str, text: &str) -> Result<u64, Status> {
    match text.parse::<i64>() {
        Ok(number @ 1..) => Ok(number.cast_unsigned()),
        Ok(_) => Err(refused(name, text, ": must be > 0")),
        Err(_) => Err(refused(name, text, "")),
    }
}

fn swap(text: &str) -> Result<SwapLimit, Status> {
    match text.parse::<i64>() {
        Ok(-1) => Ok(SwapLimit::Unlimited),
        Ok(bytes @ 1..) => Ok(SwapLimit::Total(bytes.cast_unsigned())),
        Ok(_) => Err(refused("memswap", text, ": must be -1 (unlimited) or > 0")),
        Err(_) => Err(refused("memswap", text, "")),
    }
}

fn set(name: &str, text: &str) -> Result<String, Status> {
    match is_set_of_numbers(text) {
        true => Ok(text.to_owned()),
        false => Err(refused(name, text, "")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> Result<Resources, String> {
        let options = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let base = Resources { memory: Some(1), pids: Some(2), ..Resources::default() };
        read(&options, &base).map_err(|status| status.message().to_owned())
    }

    #[test]
    fn attributes_become_limits() {
        let all = [
            ("memory", "67108864"),
            ("memswap", "-1"),
            ("cpushares", "512"),
            ("cpuquota", "50000"),
            ("cpusetcpus", "0-1"),
            ("cpusetmems", "0"),
        ];
        let expected = Resources {
            memory: Some(64 << 20),
            memory_swap: Some(SwapLimit::Unlimited),
            pids: Some(2),
            cpu_quota: Some(CpuQuota { quota_us: Some(50_000), period_us: 100_000 }),
            cpu_shares: Some(512),
            cpuset_cpus: Some("0-1".into()),
            cpuset_mems: Some("0".into()),
        };
        assert_eq!(of(&all).unwrap(), expected);
        assert_eq!(of(&[("memory", "")]).unwrap().memory, Some(1));
        assert_eq!(
            of(&[("memory", "0")]).unwrap_err(),
            "failed to parse resource limits: invalid memory value: 0: must be > 0"
        );
        for (name, value) in [("memory", "x"), ("memswap", "-2"), ("cpusetcpus", "a"), ("cpuperiod", "-1")] {
            assert!(of(&[(name, value)]).unwrap_err().contains(&format!("invalid {name} value: {value}")), "{name}");
        }
    }
}
