//! Control groups: the device policy of every container, limits of those that have some.
//!
//! Layout, below the cgroup this process runs in:
//! ```text
//! forge/            version 2, device program attached, no processes of its own
//!   common/         all containers without limits, of every forge process
//!   <server>-<n>/   one container that could do harm to the group it is in
//! forge-devices/    the same for containers that may open every device
//! ```
//! `forge` and `common` stay: they hold nothing but the program, and making them again would cost more than a step.
//! Moving a process between cgroups waits for an RCU grace period, 5 to 7 ms after a pause; cloning into one does not.

use super::device_program;
use super::mounts::new_filesystem;
use crate::{DevicePolicy, Resources};
use rustix::fs::{Mode, OFlags, mkdirat, openat};
use rustix::io::{Errno, Result};
use rustix::mount::MountAttrFlags;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

const LIMITED_DEVICES: &str = "forge";
const ALL_DEVICES: &str = "forge-devices";
const COMMON: &str = "common";

/// What the server found out about this machine, inherited by every init.
pub(super) struct Cgroups {
    policy: Policy,
}

/// How devices are kept shut.
enum Policy {
    /// Containers are cloned below the first group, or the second if all devices are theirs.
    Program { limited: OwnedFd, all: OwnedFd },
    /// Version 1: the server has joined the group itself; `escape` leads out.
    Controller { escape: PathBuf },
    /// Nothing can be done but to mount roots `nodev`.
    Nodev,
}

impl Cgroups {
    /// Takes the best means this machine has.
    pub(super) fn establish() -> Self {
        let policy = program_policy().or_else(|_| controller_policy());
        Self { policy: policy.unwrap_or(Policy::Nodev) }
    }

    /// The group to clone a container into: the one all share, or one of its own.
    pub(super) fn target(&self, devices: DevicePolicy, own: Option<u64>) -> Result<Option<Group>> {
        let Policy::Program { limited, all } = &self.policy else {
            return Ok(None);
        };
        let parent = match devices {
            DevicePolicy::Standard => limited,
            DevicePolicy::All => all,
        };
        let Some(number) = own else {
            return Ok(Some(Group { directory: open_or_make(parent, COMMON)?, removal: None }));
        };
        let name = format!("{}-{number}", std::process::id());
        let directory = open_or_make(parent, &name)?;
        let removal = Some((rustix::io::fcntl_dupfd_cloexec(parent, 3)?, name));
        Ok(Some(Group { directory, removal }))
    }

    /// Undoes, in a container that may open every device, what it inherited from the server.
    pub(super) fn release_devices(&self, devices: DevicePolicy) -> Result<()> {
        match (&self.policy, devices) {
            (Policy::Controller { escape }, DevicePolicy::All) => join(escape),
            _ => Ok(()),
        }
    }

    /// Attributes the root must be mounted with.
    pub(super) fn root_attributes(&self, devices: DevicePolicy) -> MountAttrFlags {
        match (&self.policy, devices) {
            (Policy::Nodev, DevicePolicy::Standard) => MountAttrFlags::MOUNT_ATTR_NODEV,
            _ => MountAttrFlags::empty(),
        }
    }

    /// What is not enforced here.
    pub(super) fn notices(&self) -> Vec<String> {
        match self.policy {
            Policy::Nodev => vec![
                "no device controller: root file systems are mounted nodev, so device nodes made by a step do not open"
                    .into(),
            ],
            _ => Vec::new(),
        }
    }
}

/// A cgroup for one container, or for all.
pub(super) struct Group {
    directory: OwnedFd,
    /// Parent and name of a group that goes with its container.
    removal: Option<(OwnedFd, String)>,
}

impl Group {
    pub(super) fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some((parent, name)) = &self.removal {
            // Left over if something still runs in it; its number is not used again by this process.
            let _ = rustix::fs::unlinkat(parent, name, rustix::fs::AtFlags::REMOVEDIR);
        }
    }
}

fn program_policy() -> Result<Policy> {
    let own = own_unified_cgroup()?;
    let limited = open_or_make(&own, LIMITED_DEVICES)?;
    device_program::attach(limited.as_fd())?;
    Ok(Policy::Program { limited, all: open_or_make(&own, ALL_DEVICES)? })
}

/// The version 2 cgroup of this process, through a mount of our own: hosts mount that hierarchy here or there or not.
fn own_unified_cgroup() -> Result<OwnedFd> {
    let mount = new_filesystem("cgroup2", &[], MountAttrFlags::empty()).map_err(|_| Errno::NODEV)?;
    let path = own_path("0::")?;
    let relative = path.strip_prefix("/").unwrap_or(&path);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(&mount, Path::new(".").join(relative), flags, Mode::empty())
}

/// The path after `prefix` in `/proc/self/cgroup`.
fn own_path(prefix: &str) -> Result<PathBuf> {
    let text = std::fs::read_to_string("/proc/self/cgroup").map_err(|_| Errno::NOENT)?;
    let line = text.lines().find_map(|line| line.split_once(prefix));
    line.map(|(_, path)| PathBuf::from(path)).ok_or(Errno::NOENT)
}

fn open_or_make(parent: &OwnedFd, name: &str) -> Result<OwnedFd> {
    match mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}

fn controller_policy() -> Result<Policy> {
    let own = legacy_cgroup("devices")?;
    let group = own.join(LIMITED_DEVICES);
    if !group.exists() {
        make_device_group(&group)?;
    }
    join(&group)?;
    Ok(Policy::Controller { escape: own })
}

/// Prepares the group under another name: whoever finds it by its own must find it complete.
fn make_device_group(group: &Path) -> Result<()> {
    let draft = group.with_extension(std::process::id().to_string());
    make_directory(&draft)?;
    write(&draft.join("devices.deny"), "a")?;
    let mut rules = vec!["b *:* m".to_owned(), "c *:* m".to_owned()];
    for (major, first, last) in device_program::ALLOWED {
        match last {
            u32::MAX => rules.push(format!("c {major}:* rwm")),
            _ => rules.extend((first..=last).map(|minor| format!("c {major}:{minor} rwm"))),
        }
    }
    for rule in &rules {
        write(&draft.join("devices.allow"), rule)?;
    }
    match std::fs::rename(&draft, group) {
        Ok(()) => Ok(()),
        // Somebody was faster.
        Err(_) => std::fs::remove_dir(&draft).map_err(|error| errno(&error)),
    }
}

/// This process's directory in a version 1 hierarchy.
pub(super) fn legacy_cgroup(controller: &str) -> Result<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").map_err(|error| errno(&error))?;
    let text = std::fs::read_to_string("/proc/self/cgroup").map_err(|error| errno(&error))?;
    find_legacy(&mounts, &text, controller).ok_or(Errno::NOENT)
}

/// Joins what `mountinfo` says of the hierarchy with what `cgroup` says of the process.
fn find_legacy(mounts: &str, cgroups: &str, controller: &str) -> Option<PathBuf> {
    let lists = |names: &str| names.split(',').any(|name| name == controller);
    let (root, point) = mounts.lines().find_map(|line| {
        let (head, tail) = line.split_once(" - cgroup ")?;
        let fields: Vec<_> = head.split(' ').collect();
        let options = tail.split(' ').nth(1)?;
        lists(options).then_some((*fields.get(3)?, *fields.get(4)?))
    })?;
    let path = cgroups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        lists(fields.next()?).then(|| fields.next())?
    })?;
    let below = Path::new(path).strip_prefix(root).ok()?;
    Some(Path::new(point).join(below))
}

fn join(group: &Path) -> Result<()> {
    write(&group.join("cgroup.procs"), "0")
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(|error| errno(&error))
}

fn make_directory(path: &Path) -> Result<()> {
    std::fs::create_dir(path).map_err(|error| errno(&error))
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// The cgroups made for one container's limits.
#[derive(Default)]
pub(super) struct Limits {
    /// To be removed when the container has ended.
    pub(super) groups: Vec<PathBuf>,
    /// What could not be limited.
    pub(super) notices: Vec<String>,
}

/// One limit as one controller's file.
struct Limit {
    name: &'static str,
    controller: &'static str,
    /// File and text, in the order of writing.
    settings: Vec<(&'static str, String)>,
}

/// Moves this process below limits of its own. Task counts that the PID namespace itself can bound are not included.
pub(super) fn limit(resources: &Resources, group: &str, pids: Option<u32>) -> Limits {
    let mut limits = Limits::default();
    for limit in legacy_limits(resources, pids) {
        match apply(&limit, group) {
            Ok(path) => limits.groups.push(path),
            Err(_) => limits
                .notices
                .push(format!("no {} controller: the {} limit is not enforced", limit.controller, limit.name)),
        }
    }
    limits
}

fn legacy_limits(resources: &Resources, pids: Option<u32>) -> Vec<Limit> {
    let limit = |name, controller, settings| Limit { name, controller, settings };
    // The kernel's default period, 100 ms.
    let quota = |cpus: f64| ((cpus * 100_000.0) as u64).max(1000).to_string();
    let mut all = Vec::new();
    if let Some(bytes) = resources.memory {
        let settings = vec![("memory.limit_in_bytes", bytes.to_string())];
        all.push(limit("memory", "memory", settings));
    }
    if let Some(count) = pids {
        all.push(limit("task", "pids", vec![("pids.max", count.to_string())]));
    }
    if let Some(cpus) = resources.cpus {
        let settings = vec![("cpu.cfs_period_us", "100000".into()), ("cpu.cfs_quota_us", quota(cpus))];
        all.push(limit("processor", "cpu", settings));
    }
    all
}

fn apply(limit: &Limit, group: &str) -> Result<PathBuf> {
    let path = legacy_cgroup(limit.controller)?.join(group);
    make_directory(&path)?;
    let settings = limit.settings.iter().try_for_each(|(file, text)| write(&path.join(file), text));
    match settings.and_then(|()| join(&path)) {
        Ok(()) => Ok(path),
        Err(errno) => {
            // Nothing is in it.
            let _ = std::fs::remove_dir(&path);
            Err(errno)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn legacy_hierarchies_are_found_by_controller_not_by_name() {
        let mounts = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
                      35 31 0:32 /docker/7 /sys/fs/cgroup/memory rw,relatime shared:1 - cgroup cgroup rw,memory\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        let cgroups = "9:name=systemd:/\n4:memory:/docker/7/a\n1:cpu,cpuacct:/b\n0::/\n";
        let found = |controller| find_legacy(mounts, cgroups, controller);
        assert_eq!(found("cpu"), Some("/sys/fs/cgroup/cpu,cpuacct/b".into()));
        assert_eq!(found("memory"), Some("/sys/fs/cgroup/memory/a".into()));
        assert_eq!(found("pids"), None);
    }
}
