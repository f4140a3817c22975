//! What the kernel counts for the memory group that somebody else made for a process.

use super::cgroups::find_legacy;
use rustix::process::Pid;
use std::path::PathBuf;

/// The group, as long as it exists.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum MemoryGroup {
    Legacy(PathBuf),
    Unified(PathBuf),
    Unknown,
}

impl MemoryGroup {
    /// Looks a living process up.
    pub(super) fn of(process: Pid) -> Self {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", process.as_raw_nonzero())).unwrap_or_default();
        Self::find(&mounts, &groups)
    }

    fn find(mounts: &str, groups: &str) -> Self {
        if let Some((_, group)) = find_legacy(mounts, groups, "memory") {
            return Self::Legacy(group);
        }
        let point = mounts.lines().find_map(|line| line.split_once(" - cgroup2 ")?.0.split(' ').nth(4));
        let path = groups.lines().find_map(|line| line.strip_prefix("0::/"));
        point.zip(path).map_or(Self::Unknown, |(point, path)| Self::Unified(PathBuf::from(point).join(path)))
    }

    /// Most bytes of memory at once, and how many processes were killed for want of it.
    pub(super) fn counts(&self) -> (u64, u64) {
        let (folder, peak, events) = match self {
            Self::Legacy(folder) => (folder, "memory.max_usage_in_bytes", "memory.oom_control"),
            Self::Unified(folder) => (folder, "memory.peak", "memory.events"),
            Self::Unknown => return (0, 0),
        };
        let read = |file: &str| std::fs::read_to_string(folder.join(file)).unwrap_or_default();
        let kills = read(events).lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok());
        (read(peak).trim().parse().unwrap_or(0), kills.unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_found_in_both_versions() {
        let legacy = "35 31 0:32 / /sys/fs/cgroup/memory rw shared:1 - cgroup cgroup rw,memory\n";
        let unified = "30 21 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let found = |mounts: &str, groups: &str| MemoryGroup::find(mounts, groups);
        assert_eq!(found(legacy, "4:memory:/a/b\n0::/\n"), MemoryGroup::Legacy("/sys/fs/cgroup/memory/a/b".into()));
        assert_eq!(found(unified, "0::/a/b\n"), MemoryGroup::Unified("/sys/fs/cgroup/a/b".into()));
        assert_eq!(found("", "0::/a\n"), MemoryGroup::Unknown);
    }
}
