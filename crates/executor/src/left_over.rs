//! What containers and set-up processes that were killed can leave on a machine, and its removal.
//!
//! Mounts, namespaces and interfaces go with the last process that is in them, so that the kernel takes them away. What
//! remains are control groups, which nobody's end removes; everything else in this list is found only where something is
//! wrong.

use crate::init::{GROUP_PREFIX, NETWORK_INTERFACE_PREFIX, SERVER_COMM};
use std::fmt;
use std::path::{Path, PathBuf};

/// One thing that nobody uses and nobody will take away.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum LeftOver {
    /// A control group without processes.
    Group(PathBuf),
    /// Something mounted in the host's table.
    Mount(PathBuf),
    /// A set-up process whose caller has gone.
    Process(u32),
    /// An interface of a private network.
    Interface(String),
}

impl fmt::Display for LeftOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Group(path) => write!(f, "cgroup {}", path.display()),
            Self::Mount(path) => write!(f, "mount {}", path.display()),
            Self::Process(pid) => write!(f, "process {pid}"),
            Self::Interface(name) => write!(f, "network interface {name}"),
        }
    }
}

/// Looks over the machine; `runtime_dir` is what [`crate::NamespaceExecutor::new`] was given.
///
/// What is just being made or taken away may be among it: who wants to be sure looks twice.
pub fn left_over(runtime_dir: &Path) -> Vec<LeftOver> {
    // A group that is about to be used has a set-up process by the time these are asked for.
    let idle = idle_groups();
    let servers = servers();
    let mut all: Vec<_> = unused(idle, &servers).into_iter().map(LeftOver::Group).collect();
    all.extend(mounts(runtime_dir).into_iter().map(LeftOver::Mount));
    all.extend(servers.iter().filter(|server| server.orphaned).map(|server| LeftOver::Process(server.pid)));
    if servers.is_empty() {
        all.extend(interfaces().into_iter().map(LeftOver::Interface));
    }
    all.sort();
    all
}

/// Removes the control groups among it. Looking at all processes takes milliseconds, so that is done only where a group is idle.
pub(crate) fn sweep() {
    let idle = idle_groups();
    if idle.is_empty() {
        return;
    }
    for group in unused(idle, &servers()) {
        // Somebody was faster, or something runs in it after all.
        let _ = std::fs::remove_dir(group);
    }
}

/// A set-up process, or what is still one: a container's first process before it executes its program.
struct Server {
    pid: u32,
    orphaned: bool,
}

fn servers() -> Vec<Server> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(server).collect()
}

fn server(pid: u32) -> Option<Server> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (head, tail) = stat.rsplit_once(')')?;
    let mut fields = tail.split_whitespace();
    let (state, parent) = (fields.next()?, fields.next()?);
    let ours = head.split_once('(')?.1 == SERVER_COMM && state != "Z";
    // In a container forge may be the first process itself.
    let adopted = || parent == "1" && !std::fs::read_to_string("/proc/1/comm").is_ok_and(|name| name.trim() == "forge");
    ours.then(|| Server { pid, orphaned: adopted() })
}

/// A container's group in which nothing runs.
struct Idle {
    name: String,
    /// It and those within it, the innermost first.
    paths: Vec<PathBuf>,
}

fn idle_groups() -> Vec<Idle> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let groups = bases(&mounts, &own).into_iter().flat_map(|base| folders(&base));
    let idle = groups.filter_map(|folder| {
        let name = folder.file_name()?.to_string_lossy().into_owned();
        is_a_container_s(&name).then(|| Idle { name, paths: empty(&folder) })
    });
    idle.filter(|group| !group.paths.is_empty()).collect()
}

/// Those that no living set-up process is about to use, the innermost first.
fn unused(idle: Vec<Idle>, servers: &[Server]) -> Vec<PathBuf> {
    let left = idle.into_iter().filter(|group| !servers.iter().any(|server| names(&group.name, server.pid)));
    let mut found: Vec<_> = left.flat_map(|group| group.paths).collect();
    found.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    found.dedup();
    found
}

/// Where groups are made: where this process is in each hierarchy, and the top of each; on version 2 within forge's own.
fn bases(mounts: &str, own: &str) -> Vec<PathBuf> {
    const OWN: &[&str] = &["", "forge-limits", "forge", "forge-devices"];
    let paths: Vec<_> = own.lines().filter_map(|line| line.splitn(3, ':').nth(2)).chain(["/"]).collect();
    let mut all = Vec::new();
    for line in mounts.lines() {
        let Some((head, tail)) = line.split_once(" - cgroup") else { continue };
        let names = match tail {
            version if version.starts_with(' ') => &OWN[..1],
            version if version.starts_with("2 ") => OWN,
            _ => continue,
        };
        let Some(point) = head.split(' ').nth(4) else { continue };
        let places = paths.iter().map(|path| Path::new(point).join(path.trim_start_matches('/')));
        all.extend(places.flat_map(|place| names.iter().map(move |name| place.join(name))));
    }
    all.sort();
    all.dedup();
    all.retain(|place| place.is_dir());
    all
}

fn folders(place: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(place).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

/// `forge-c-…`, or the `<server>-<n>` of version 2.
fn is_a_container_s(name: &str) -> bool {
    let numbers = |(one, other): (&str, &str)| [one, other].iter().all(|part| part.parse::<u64>().is_ok());
    name.starts_with(GROUP_PREFIX) || name.split_once('-').is_some_and(numbers)
}

fn names(group: &str, pid: u32) -> bool {
    group.split('-').any(|part| part.parse() == Ok(pid))
}

/// The group and those within it, if nothing runs in any of them.
fn empty(group: &Path) -> Vec<PathBuf> {
    let mut all: Vec<_> = folders(group).iter().flat_map(|inner| empty(inner)).collect();
    let procs = std::fs::read_to_string(group.join("cgroup.procs"));
    let complete = all.len() >= folders(group).len();
    if complete && procs.is_ok_and(|procs| procs.is_empty()) {
        all.push(group.to_owned());
    }
    all
}

fn mounts(runtime_dir: &Path) -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    points.filter(|point| point.starts_with(runtime_dir) && point != runtime_dir).collect()
}

fn interfaces() -> Vec<String> {
    let names = std::fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    let ours = |name: &String| {
        let rest = name.strip_prefix(NETWORK_INTERFACE_PREFIX);
        rest.is_some_and(|rest| rest.len() == 4 && rest.bytes().all(|byte| byte.is_ascii_hexdigit()))
    };
    names.filter(ours).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_containers_are_known_by_their_names() {
        for name in ["forge-c-step-7-0-12", "4711-123456"] {
            assert!(is_a_container_s(name), "{name}");
        }
        for name in ["common", "forge", "forge-devices", "forge-limits", "user-1000.slice", "12"] {
            assert!(!is_a_container_s(name), "{name}");
        }
        assert!(names("forge-c-x-4711-9", 4711) && !names("forge-c-x-14711-9", 4711));
    }

    #[test]
    fn hierarchies_of_both_versions_are_looked_at() {
        let folder = tempfile::tempdir().expect("directory");
        let point = |name: &str| folder.path().join(name).display().to_string();
        std::fs::create_dir_all(point("memory/a")).expect("directory");
        std::fs::create_dir_all(point("unified/forge-limits")).expect("directory");
        let mounts = format!(
            "1 2 0:1 / {} rw - cgroup cgroup rw,memory\n3 2 0:2 / {} rw - cgroup2 cgroup2 rw\n4 2 0:3 / /x rw - tmpfs t rw\n",
            point("memory"),
            point("unified")
        );
        let found = bases(&mounts, "4:memory:/a\n0::/\n");
        let expected = ["memory", "memory/a", "unified", "unified/forge-limits"];
        assert_eq!(found, expected.map(|name| PathBuf::from(point(name))));
    }

    #[test]
    fn a_group_counts_only_when_nothing_runs_within_it() {
        let folder = tempfile::tempdir().expect("directory");
        let make = |name: &str, procs: &str| {
            std::fs::create_dir_all(folder.path().join(name)).expect("directory");
            std::fs::write(folder.path().join(name).join("cgroup.procs"), procs).expect("file");
        };
        make("idle", "");
        make("idle/inner", "");
        make("busy", "");
        make("busy/inner", "12\n");
        assert_eq!(empty(&folder.path().join("idle")).len(), 2);
        assert_eq!(empty(&folder.path().join("busy")), Vec::<PathBuf>::new());
    }
}
