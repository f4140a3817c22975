//! Limits as docker's flags write them.

use crate::args::LimitArgs;
use anyhow::{Context, bail};
use forge_engine::{CpuQuota, Limits, Resources, SwapLimit, Ulimit};

/// docker's lower bound: no program starts with less.
const LEAST_MEMORY: u64 = 6 << 20;

/// Reads the flags.
///
/// # Errors
/// Names the flag that makes no sense, in docker's words.
pub fn limits(args: &LimitArgs) -> anyhow::Result<Limits> {
    let resources = Resources {
        memory: args.memory.as_deref().map(|text| bytes("memory", text)).transpose()?.filter(|bytes| *bytes > 0),
        memory_swap: args.memory_swap.as_deref().map(swap).transpose()?.flatten(),
        pids: args.pids_limit.map(pids).transpose()?.flatten(),
        cpu_quota: cpu_quota(args)?,
        cpu_shares: args.cpu_shares.filter(|shares| *shares > 0),
        cpuset_cpus: list(&args.cpuset_cpus),
        cpuset_mems: list(&args.cpuset_mems),
    };
    check(&resources)?;
    Ok(Limits {
        resources,
        ulimits: args.ulimits.iter().map(|text| ulimit(text)).collect::<anyhow::Result<_>>()?,
        shm_size: args.shm_size.as_deref().map(|text| bytes("shm-size", text)).transpose()?.filter(|size| *size > 0),
        cgroup_parent: args.cgroup_parent.clone(),
    })
}

fn list(text: &Option<String>) -> Option<String> {
    text.clone().filter(|text| !text.is_empty())
}

fn check(resources: &Resources) -> anyhow::Result<()> {
    match (resources.memory, resources.memory_swap) {
        (Some(memory), _) if memory < LEAST_MEMORY => bail!("Minimum memory limit allowed is 6MB"),
        (Some(memory), Some(SwapLimit::Total(total))) if total < memory => {
            bail!("Minimum memoryswap limit should be larger than memory limit, see usage")
        }
        (None, Some(SwapLimit::Total(_))) => {
            bail!("You should always set the Memory limit when using Memoryswap limit, see usage")
        }
        _ => Ok(()),
    }
}

/// Adds `KEY=VALUE` pairs, as buildx's `--resource` writes them, to limits.
///
/// # Errors
/// An unknown key, or a value that is no such limit.
pub fn resource_pairs(mut base: Resources, flag: &str, texts: &[String]) -> anyhow::Result<Resources> {
    let mut args = LimitArgs::default();
    for pair in texts.iter().flat_map(|text| text.split(',')) {
        let (key, value) = pair.split_once('=').with_context(|| format!("--{flag} {pair:?}: expected KEY=VALUE"))?;
        let text = Some(value.to_owned());
        let number = |what: &str| format!("--{flag} {what}={value}: expected a number");
        match key {
            "memory" => args.memory = text,
            "memory-swap" => args.memory_swap = text,
            "cpus" => args.cpus = Some(value.parse().with_context(|| number(key))?),
            "cpu-shares" => args.cpu_shares = Some(value.parse().with_context(|| number(key))?),
            "cpu-period" => args.cpu_period = Some(value.parse().with_context(|| number(key))?),
            "cpu-quota" => args.cpu_quota = Some(value.parse().with_context(|| number(key))?),
            "cpuset-cpus" => args.cpuset_cpus = text,
            "cpuset-mems" => args.cpuset_mems = text,
            "pids" => args.pids_limit = Some(value.parse().with_context(|| number(key))?),
            other => bail!("--{flag}: {other:?} is no resource"),
        }
    }
    let given = limits(&args).with_context(|| format!("--{flag}"))?.resources;
    base.memory = given.memory.or(base.memory);
    base.memory_swap = given.memory_swap.or(base.memory_swap);
    base.pids = given.pids.or(base.pids);
    base.cpu_quota = given.cpu_quota.or(base.cpu_quota);
    base.cpu_shares = given.cpu_shares.or(base.cpu_shares);
    base.cpuset_cpus = given.cpuset_cpus.or(base.cpuset_cpus);
    base.cpuset_mems = given.cpuset_mems.or(base.cpuset_mems);
    Ok(base)
}

fn cpu_quota(args: &LimitArgs) -> anyhow::Result<Option<CpuQuota>> {
    let quota = args.cpu_quota.and_then(|quota| u64::try_from(quota).ok()).filter(|quota| *quota > 0);
    let period = args.cpu_period.filter(|period| *period > 0);
    match args.cpus.filter(|cpus| *cpus != 0.0) {
        Some(_) if period.is_some() || quota.is_some() => {
            bail!("Conflicting options: CPU period or quota and --cpus cannot both be set")
        }
        Some(cpus) if !cpus.is_finite() || cpus < 0.01 => {
            bail!("Range of CPUs is from 0.01 upwards, as there are no smaller parts of one")
        }
        Some(cpus) => return Ok(Some(CpuQuota::of_cpus(cpus))),
        None => {}
    }
    if period.is_some_and(|period| !(1000..=1_000_000).contains(&period)) {
        bail!("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)");
    }
    if quota.is_some_and(|quota| quota < 1000) {
        bail!("CPU cfs quota can not be less than 1ms (i.e. 1000)");
    }
    let both = (quota.is_some() || period.is_some()).then_some(quota);
    Ok(both.map(|quota_us| CpuQuota { quota_us, period_us: period.unwrap_or(CpuQuota::DEFAULT_PERIOD_US) }))
}

/// Zero and less mean no limit.
fn pids(count: i64) -> anyhow::Result<Option<u32>> {
    match count {
        ..=0 => Ok(None),
        count => u32::try_from(count).map(Some).with_context(|| format!("--pids-limit {count} is too large")),
    }
}

fn swap(text: &str) -> anyhow::Result<Option<SwapLimit>> {
    match text {
        "-1" => Ok(Some(SwapLimit::Unlimited)),
        text => Ok(Some(bytes("memory-swap", text)?).filter(|bytes| *bytes > 0).map(SwapLimit::Total)),
    }
}

/// A number of bytes with docker's binary units: `b`, `k`, `m`, `g`, `t`, `p`, each also as `kb` or `kib`.
pub fn bytes(flag: &str, text: &str) -> anyhow::Result<u64> {
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
    let (number, unit) = lower.split_at(digits);
    let unit = unit.trim();
    let letter = unit.strip_suffix("ib").or_else(|| unit.strip_suffix('b')).unwrap_or(unit);
    let power = ["", "k", "m", "g", "t", "p"].iter().position(|known| *known == letter);
    let number: Option<f64> = number.parse().ok();
    match (number, power) {
        (Some(number), Some(power)) if number.is_finite() => Ok((number * 1024f64.powi(power as i32)) as u64),
        _ => bail!("--{flag} {text:?}: invalid size"),
    }
}

/// `TYPE=SOFT[:HARD]`; -1 is unlimited.
fn ulimit(text: &str) -> anyhow::Result<Ulimit> {
    const NAMES: [&str; 16] = [
        "as",
        "core",
        "cpu",
        "data",
        "fsize",
        "locks",
        "memlock",
        "msgqueue",
        "nice",
        "nofile",
        "nproc",
        "rss",
        "rtprio",
        "rttime",
        "sigpending",
        "stack",
    ];
    let invalid = || format!("invalid ulimit argument: {text}");
    let (name, values) = text.split_once('=').with_context(invalid)?;
    if !NAMES.contains(&name) {
        bail!("invalid ulimit type: {name}");
    }
    let value = |text: &str| text.parse::<i64>().ok().filter(|number| *number >= -1).with_context(invalid);
    let (soft, hard) = match values.split_once(':') {
        Some((soft, hard)) => (value(soft)?, value(hard)?),
        None => (value(values)?, value(values)?),
    };
    if hard != -1 && (soft == -1 || soft > hard) {
        bail!("ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}");
    }
    Ok(Ulimit { name: name.to_owned(), soft, hard })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        limits: LimitArgs,
    }

    fn read(line: &str) -> anyhow::Result<Limits> {
        limits(&Line::try_parse_from(["x"].into_iter().chain(line.split_whitespace()))?.limits)
    }

    fn error(line: &str) -> String {
        read(line).unwrap_err().to_string()
    }

    #[test]
    fn docker_s_flags_become_limits() {
        let limits = read(
            "-m 64m --memory-swap -1 --cpus 1.5 -c 512 --cpuset-cpus 0-1 --cpuset-mems 0 --pids-limit 100 \
             --ulimit nofile=10:20 --ulimit core=-1 --shm-size 1g --cgroup-parent /x",
        )
        .unwrap();
        let ulimit = |name: &str, soft, hard| Ulimit { name: name.into(), soft, hard };
        assert_eq!(limits.ulimits, [ulimit("nofile", 10, 20), ulimit("core", -1, -1)]);
        assert_eq!((limits.shm_size, limits.cgroup_parent.as_str()), (Some(1 << 30), "/x"));
        let expected = Resources {
            memory: Some(64 << 20),
            memory_swap: Some(SwapLimit::Unlimited),
            pids: Some(100),
            cpu_quota: Some(CpuQuota { quota_us: Some(150_000), period_us: 100_000 }),
            cpu_shares: Some(512),
            cpuset_cpus: Some("0-1".into()),
            cpuset_mems: Some("0".into()),
        };
        assert_eq!(limits.resources, expected);
        assert_eq!(read("--memory 0 --pids-limit -1 --cpu-quota -1").unwrap().resources, Resources::default());
    }

    #[test]
    fn sizes_have_docker_s_units() {
        let read = |text| bytes("memory", text).unwrap();
        assert_eq!(["7", "7b", "2k", "2KB", "2KiB", "1.5m"].map(read), [7, 7, 2048, 2048, 2048, 1_572_864]);
        for wrong in ["", "m", "-1", "1x", "1mm", "1 . m"] {
            assert!(bytes("memory", wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_in_docker_s_words() {
        assert_eq!(error("-m 1m"), "Minimum memory limit allowed is 6MB");
        assert!(error("-m 64m --memory-swap 32m").starts_with("Minimum memoryswap limit"));
        assert!(error("--memory-swap 32m").starts_with("You should always set the Memory limit"));
        assert!(error("--cpus 1 --cpu-quota 5000").starts_with("Conflicting options"));
        assert_eq!(error("--ulimit files=1"), "invalid ulimit type: files");
        assert!(error("--ulimit nofile=5:2").starts_with("ulimit soft limit must be"));
        assert!(error("--ulimit nofile").starts_with("invalid ulimit argument"));
    }

    #[test]
    fn pairs_override_flags() {
        let base = read("-m 64m --cpus 1").unwrap().resources;
        let both = resource_pairs(base, "resource", &["memory=32m,pids=7".into()]).unwrap();
        assert_eq!((both.memory, both.pids, both.cpu_quota.is_some()), (Some(32 << 20), Some(7), true));
        assert!(resource_pairs(Resources::default(), "resource", &["disk=1".into()]).is_err());
    }
}
