//! Limits as files of control groups: what is written where, in both versions of the interface.

use crate::{Resources, SwapLimit};
use std::io;
use std::path::{Path, PathBuf};

/// The controllers that limits need, by the names both versions give them.
pub(super) const CONTROLLERS: [&str; 4] = ["memory", "cpu", "cpuset", "pids"];

/// How often a group that somebody else removed is made again.
const ATTEMPTS: u32 = 20;

/// Which interface a controller has on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Interface {
    /// Version 1: a hierarchy for each controller.
    Legacy,
    /// Version 2: one hierarchy for all.
    Unified,
}

/// One file to write.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) controller: &'static str,
    pub(super) file: &'static str,
    pub(super) text: String,
    /// What the user calls it.
    pub(super) limit: &'static str,
    /// Whether its absence is worth a word: what nobody asked for may be missing.
    pub(super) asked: bool,
}

/// What `resources` mean for one controller, in the order of writing.
pub(super) fn settings(resources: &Resources, controller: &str, interface: Interface) -> Vec<Setting> {
    match (controller, interface) {
        ("memory", Interface::Legacy) => legacy_memory(resources),
        ("memory", Interface::Unified) => unified_memory(resources),
        ("cpu", Interface::Legacy) => legacy_cpu(resources),
        ("cpu", Interface::Unified) => unified_cpu(resources),
        ("cpuset", _) => cpuset(resources),
        ("pids", _) => {
            let pids = resources.pids.map(|count| setting("pids", "pids.max", count.to_string(), "task"));
            pids.into_iter().collect()
        }
        _ => Vec::new(),
    }
}

fn setting(controller: &'static str, file: &'static str, text: String, limit: &'static str) -> Setting {
    Setting { controller, file, text, limit, asked: true }
}

/// Memory and swap together; docker gives as much swap as memory.
fn total(resources: &Resources, memory: u64) -> SwapLimit {
    resources.memory_swap.unwrap_or(SwapLimit::Total(memory.saturating_mul(2)))
}

fn legacy_memory(resources: &Resources) -> Vec<Setting> {
    let Some(memory) = resources.memory else {
        return Vec::new();
    };
    let mut all = vec![setting("memory", "memory.limit_in_bytes", memory.to_string(), "memory")];
    // After the other one, which it may not be lower than.
    if let SwapLimit::Total(bytes) = total(resources, memory) {
        let swap = setting("memory", "memory.memsw.limit_in_bytes", bytes.to_string(), "swap");
        all.push(Setting { asked: resources.memory_swap.is_some(), ..swap });
    }
    all
}

fn unified_memory(resources: &Resources) -> Vec<Setting> {
    let Some(memory) = resources.memory else {
        return Vec::new();
    };
    let swap = match total(resources, memory) {
        SwapLimit::Unlimited => "max".to_owned(),
        SwapLimit::Total(bytes) => bytes.saturating_sub(memory).to_string(),
    };
    let swap = setting("memory", "memory.swap.max", swap, "swap");
    vec![
        setting("memory", "memory.max", memory.to_string(), "memory"),
        Setting { asked: resources.memory_swap.is_some(), ..swap },
    ]
}

fn legacy_cpu(resources: &Resources) -> Vec<Setting> {
    let mut all = Vec::new();
    if let Some(quota) = resources.cpu_quota {
        all.push(setting("cpu", "cpu.cfs_period_us", quota.period_us.to_string(), "processor"));
        all.extend(quota.quota_us.map(|time| setting("cpu", "cpu.cfs_quota_us", time.to_string(), "processor")));
    }
    all.extend(resources.cpu_shares.map(|shares| setting("cpu", "cpu.shares", shares.to_string(), "processor share")));
    all
}

fn unified_cpu(resources: &Resources) -> Vec<Setting> {
    let mut all = Vec::new();
    if let Some(quota) = resources.cpu_quota {
        let time = quota.quota_us.map_or("max".to_owned(), |time| time.to_string());
        all.push(setting("cpu", "cpu.max", format!("{time} {}", quota.period_us), "processor"));
    }
    // As OCI runtimes map 2..262144 to 1..10000.
    let weight = |shares: u64| 1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142;
    let weight = resources.cpu_shares.map(|shares| weight(shares).to_string());
    all.extend(weight.map(|weight| setting("cpu", "cpu.weight", weight, "processor share")));
    all
}

fn cpuset(resources: &Resources) -> Vec<Setting> {
    let file = |file, list: &Option<String>, limit| list.clone().map(|text| setting("cpuset", file, text, limit));
    let cpus = file("cpuset.cpus", &resources.cpuset_cpus, "processor set");
    cpus.into_iter().chain(file("cpuset.mems", &resources.cpuset_mems, "memory node")).collect()
}

/// One group on the way down to a container's own.
#[derive(Debug)]
pub(super) struct Level {
    pub(super) name: PathBuf,
    pub(super) settings: Vec<Setting>,
    /// Whether it goes when the last container has gone.
    pub(super) kept: bool,
}

/// Makes the groups below `base` one in the other and sets their limits; returns what is to be removed at the end, the
/// innermost first.
///
/// Somebody else may remove an empty group at any moment: then all of it is done again.
pub(super) fn descend(
    base: &Path,
    levels: &[Level],
    prepare: &dyn Fn(&Path) -> io::Result<()>,
    enter: &dyn Fn(&Path) -> io::Result<()>,
    notices: &mut Vec<String>,
) -> io::Result<Vec<PathBuf>> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        match descend_once(base, levels, prepare, notices).and_then(|made| {
            let innermost = made.first().cloned().unwrap_or_else(|| base.to_owned());
            enter(&innermost).inspect_err(|_| remove(&made)).map(|()| made)
        }) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && attempt < ATTEMPTS => {}
            other => return other,
        }
    }
}

fn descend_once(
    base: &Path,
    levels: &[Level],
    prepare: &dyn Fn(&Path) -> io::Result<()>,
    notices: &mut Vec<String>,
) -> io::Result<Vec<PathBuf>> {
    let (mut path, mut made) = (base.to_owned(), Vec::new());
    for level in levels {
        let work = prepare(&path).and_then(|()| {
            path.push(&level.name);
            make(&path, level.kept)
        });
        if work.is_ok() && !level.kept {
            made.insert(0, path.clone());
        }
        let set = work.and_then(|()| inherit_cpuset(&path)).and_then(|()| write_all(&path, &level.settings, notices));
        if let Err(error) = set {
            remove(&made);
            return Err(error);
        }
    }
    Ok(made)
}

pub(super) fn make(path: &Path, recursive: bool) -> io::Result<()> {
    let made = if recursive { std::fs::create_dir_all(path) } else { std::fs::create_dir(path) };
    match made {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// A new cpuset of version 1 is empty, and nobody may enter it.
fn inherit_cpuset(path: &Path) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let Ok(own) = std::fs::read_to_string(path.join(file)) else { continue };
        let effective = path.join(file.replace("cpuset.", "cpuset.effective_"));
        // Version 2 has no file of that name, and inherits by itself.
        if !own.trim().is_empty() || !effective.exists() {
            continue;
        }
        let above = path.parent().unwrap_or(path).join(file);
        std::fs::write(path.join(file), std::fs::read_to_string(above)?.trim())?;
    }
    Ok(())
}

pub(super) fn write_all(path: &Path, settings: &[Setting], notices: &mut Vec<String>) -> io::Result<()> {
    for Setting { controller, file, text, limit, asked } in settings {
        match std::fs::write(path.join(file), text) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && path.exists() => missing(limit, *asked, notices),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => missing(limit, *asked, notices),
            Err(error) => {
                let reason = format!("{controller}: cannot set the {limit} limit to {text:?}: {error}");
                return Err(io::Error::new(error.kind(), reason));
            }
            Ok(()) => {}
        }
    }
    Ok(())
}

fn missing(limit: &str, asked: bool, notices: &mut Vec<String>) {
    if asked {
        notices.push(not_enforced(limit, "the kernel has no file for it"));
    }
}

/// The line about one limit.
pub(super) fn not_enforced(limit: &str, why: &str) -> String {
    format!("the {limit} limit is not enforced: {why}")
}

/// Removes groups that nothing runs in, the innermost first; those that others still use stay.
pub(super) fn remove(groups: &[PathBuf]) {
    for group in groups {
        // Busy, or somebody was faster.
        let _ = std::fs::remove_dir(group);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CpuQuota;

    fn resources() -> Resources {
        Resources {
            memory: Some(64 << 20),
            memory_swap: None,
            pids: Some(100),
            cpu_quota: Some(CpuQuota::of_cpus(1.5)),
            cpu_shares: Some(1024),
            cpuset_cpus: Some("0-1".into()),
            cpuset_mems: None,
        }
    }

    fn dump(resources: &Resources, interface: Interface) -> String {
        let all = CONTROLLERS.iter().flat_map(|controller| settings(resources, controller, interface));
        all.map(|setting| format!("{}={}", setting.file, setting.text)).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn limits_become_files_of_version_1() {
        let expect = "memory.limit_in_bytes=67108864\nmemory.memsw.limit_in_bytes=134217728\n\
                      cpu.cfs_period_us=100000\ncpu.cfs_quota_us=150000\ncpu.shares=1024\ncpuset.cpus=0-1\npids.max=100";
        assert_eq!(dump(&resources(), Interface::Legacy), expect);
    }

    #[test]
    fn limits_become_files_of_version_2() {
        let expect = "memory.max=67108864\nmemory.swap.max=67108864\ncpu.max=150000 100000\ncpu.weight=39\n\
                      cpuset.cpus=0-1\npids.max=100";
        assert_eq!(dump(&resources(), Interface::Unified), expect);
        let unlimited = Resources { memory: Some(1), memory_swap: Some(SwapLimit::Unlimited), ..Resources::default() };
        assert_eq!(dump(&unlimited, Interface::Unified), "memory.max=1\nmemory.swap.max=max");
        assert_eq!(dump(&unlimited, Interface::Legacy), "memory.limit_in_bytes=1");
    }

    #[test]
    fn groups_are_made_one_in_the_other_and_removed_from_within() {
        let top = tempfile::tempdir().expect("directory");
        let level = |name: &str, kept, settings| Level { name: name.into(), settings, kept };
        let limits = || settings(&resources(), "memory", Interface::Unified);
        let levels = [level("a/b", true, Vec::new()), level("shared", false, limits()), level("own", false, limits())];
        let made = descend(top.path(), &levels, &|_| Ok(()), &|_| Ok(()), &mut Vec::new()).expect("makes");
        assert_eq!(made, [top.path().join("a/b/shared/own"), top.path().join("a/b/shared")]);
        assert_eq!(std::fs::read_to_string(made[0].join("memory.max")).expect("written"), "67108864");
    }

    #[test]
    fn a_group_that_vanishes_is_made_again() {
        let top = tempfile::tempdir().expect("directory");
        let turns = std::cell::Cell::new(0);
        let enter = |path: &Path| {
            turns.set(turns.get() + 1);
            match turns.get() {
                1 => std::fs::remove_dir(path).and_then(|()| std::fs::read(path.join("x")).map(drop)),
                _ => Ok(()),
            }
        };
        let levels = [Level { name: "own".into(), settings: Vec::new(), kept: false }];
        descend(top.path(), &levels, &|_| Ok(()), &enter, &mut Vec::new()).expect("makes");
        assert_eq!(turns.get(), 2);
        assert!(top.path().join("own").exists());
    }
}
