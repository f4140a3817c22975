//! Control groups: the device policy of every container, limits of those that have some.
//!
//! Layout, below the cgroup this process runs in:
//! ```text
//! forge/            version 2, device program attached, no processes of its own
//!   common/         all containers without limits, of every forge process
//!   <server>-<n>/   one container that could do harm to the group it is in
//! forge-devices/    the same for containers that may open every device, or some beside the usual ones: the program of
//!                   those is on their own group; version 1 has `forge-RULES` for each set of nodes that was granted
//! forge-limits/     version 2, containers with limits, here or where else `unified` finds a place; forge-ID-N in each
//!                   hierarchy of version 1
//! ```
//! `forge` and `common` stay: they hold nothing but the program, and making them again would cost more than a step.
//! Moving a process between cgroups waits for an RCU grace period, 5 to 7 ms after a pause; cloning into one does not.

use super::device_program;
use super::limits::{self, CONTROLLERS, Interface, Level, settings};
use super::rights::Rights;
use super::shared_group;
use super::unified::{Hold, Made, Unified, own_path, path_of, unified_hierarchy};
use crate::message::{Failure, GroupPaths};
use crate::{DeviceKind, DeviceNode, DevicePolicy, GroupPlacement, Resources};
use rustix::fs::{Mode, OFlags, mkdirat, openat};
use rustix::io::{Errno, Result};
use rustix::mount::MountAttrFlags;
use rustix::process::Pid;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

const LIMITED_DEVICES: &str = "forge";
const ALL_DEVICES: &str = "forge-devices";
const COMMON: &str = "common";
/// Where groups with limits are: processes and controllers for children exclude each other, so not in the others.
pub(super) const LIMITS: &str = "forge-limits";
/// With what the names of groups with limits begin.
pub(crate) const GROUP_PREFIX: &str = "forge-c-";

/// What the server found out about this machine, inherited by every init.
pub(super) struct Cgroups {
    policy: Policy,
    /// `None` where version 2 has nothing to limit with.
    unified: Option<Unified>,
}

/// How devices are kept shut.
enum Policy {
    /// Containers are cloned below the first group, or the second if all devices are theirs.
    Program { limited: OwnedFd, all: OwnedFd },
    /// Version 1: the server has joined the group itself; `escape` leads out.
    Controller { escape: PathBuf },
    /// Nothing can be done but to mount roots `nodev`.
    Nodev,
    /// Nothing need be done: nodes cannot be made in a user namespace, and those of a root do not open.
    Namespace,
}

impl Cgroups {
    /// Takes the best means this machine has.
    pub(super) fn establish(rights: &Rights) -> Self {
        let policy = match rights.nodes {
            true => program_policy().or_else(|_| controller_policy()).unwrap_or(Policy::Nodev),
            false => Policy::Namespace,
        };
        Self { policy, unified: Unified::find(rights.trusted) }
    }

    /// Whether version 2 has this controller.
    fn is_unified(&self, controller: &str) -> bool {
        self.unified.as_ref().is_some_and(|unified| unified.has(controller))
    }

    /// The group with limits to clone a container into, where version 2 limits something.
    pub(super) fn limited(
        &self,
        devices: DevicePolicy,
        wish: &Wish<'_>,
        notices: &mut Vec<String>,
    ) -> std::result::Result<Option<Group>, Failure> {
        let Some(unified) = &self.unified else { return Ok(None) };
        let needed = unified.needed_by(wish);
        if needed.is_empty() {
            return Ok(None);
        }
        match unified.make(wish, &needed, notices).and_then(Group::of) {
            Ok(group) => {
                let restricts = devices != DevicePolicy::All;
                if restricts && matches!(self.policy, Policy::Program { .. }) {
                    device_program::attach(group.directory(), devices.granted())
                        .map_err(|errno| failure(&errno.into()))?;
                }
                Ok(Some(group))
            }
            Err(error) if is_closed(&error) => {
                let names = needed.iter().flat_map(|controller| wish.limits(controller));
                notices.extend(names.map(|limit| limits::not_enforced(limit, &error.to_string())));
                Ok(None)
            }
            Err(error) => Err(failure(&error)),
        }
    }

    /// The group to clone a container into: the one all share, or one of its own.
    pub(super) fn target(&self, devices: DevicePolicy, own: Option<u64>) -> Result<Option<Group>> {
        let Policy::Program { limited, all } = &self.policy else {
            return Ok(None);
        };
        let parent = match devices {
            DevicePolicy::Standard => limited,
            // The programs of all groups above must agree.
            DevicePolicy::StandardAnd(_) | DevicePolicy::All => all,
        };
        let Some(number) = own else {
            return Ok(Some(Group { directory: open_or_make(parent, COMMON)?, removal: Removal::Kept, hold: None }));
        };
        let name = format!("{}-{number}", std::process::id());
        let directory = open_or_make(parent, &name)?;
        let removal = Removal::Entry(rustix::io::fcntl_dupfd_cloexec(parent, 3)?, name);
        let group = Group { directory, removal, hold: None };
        if let DevicePolicy::StandardAnd(granted) = &devices {
            device_program::attach(group.directory(), granted)?;
        }
        Ok(Some(group))
    }

    /// Prepares, in the server, what [`Self::release_devices`] moves a container into. Version 1's groups stay as `forge`
    /// does: there is one for each set of nodes.
    pub(super) fn prepare_granted(&self, devices: DevicePolicy) -> Result<()> {
        match (&self.policy, devices) {
            (Policy::Controller { escape }, DevicePolicy::StandardAnd(granted)) => {
                let group = granted_group(escape, &granted);
                if group.exists() { Ok(()) } else { make_device_group(&group, rules(&granted)) }
            }
            _ => Ok(()),
        }
    }

    /// Undoes, in a container that may open every device, what it inherited from the server.
    pub(super) fn release_devices(&self, devices: DevicePolicy) -> Result<()> {
        match (&self.policy, devices) {
            (Policy::Controller { escape }, DevicePolicy::All) => join(escape),
            (Policy::Controller { escape }, DevicePolicy::StandardAnd(granted)) => {
                join(&granted_group(escape, &granted))
            }
            _ => Ok(()),
        }
    }

    /// Holds a process that an OCI runtime made to these devices. Runtimes add what they think right: crun opens tun, its last
    /// versions even where the configuration denies everything first.
    pub(super) fn hold_to_devices(&self, process: Pid, devices: DevicePolicy) -> Result<()> {
        if devices == DevicePolicy::All {
            return Ok(());
        }
        let process = process.as_raw_nonzero().to_string();
        match &self.policy {
            Policy::Program { .. } => {
                let path = path_of(&process)?;
                // Otherwise the program that holds this process holds that one too.
                if path != own_path()? {
                    device_program::add(open_group(&path)?.as_fd(), devices.granted())?;
                }
            }
            Policy::Controller { .. } if !devices.granted().iter().flatten().any(is_tun) => {
                let (_, own) = legacy_hierarchy("devices", "self")?;
                let (_, group) = legacy_hierarchy("devices", &process)?;
                if group != own {
                    write(&group.join("devices.deny"), "c 10:200 rw")?;
                }
            }
            Policy::Controller { .. } | Policy::Nodev | Policy::Namespace => {}
        }
        Ok(())
    }

    /// Attributes the root must be mounted with.
    pub(super) fn root_attributes(&self, devices: DevicePolicy) -> MountAttrFlags {
        match (&self.policy, devices) {
            (Policy::Nodev, DevicePolicy::Standard | DevicePolicy::StandardAnd(_)) => MountAttrFlags::MOUNT_ATTR_NODEV,
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
    removal: Removal,
    hold: Option<Hold>,
}

/// What goes with a container.
enum Removal {
    Kept,
    /// Parent and name.
    Entry(OwnedFd, String),
    /// The innermost first.
    Paths(Vec<PathBuf>),
}

impl Group {
    /// The innermost of groups that were made for limits.
    fn of(Made { groups, hold }: Made) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let innermost = groups.first().ok_or(io::ErrorKind::NotFound)?;
        let directory = rustix::fs::open(innermost, flags, Mode::empty())?;
        Ok(Self { directory, removal: Removal::Paths(groups), hold })
    }

    /// To be called when a process is in it.
    pub(super) fn is_taken(&mut self) {
        self.hold = None;
    }

    pub(super) fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Most bytes of memory at once, and how many processes the kernel killed for want of it, in a group with limits.
    pub(super) fn memory(&self) -> Option<(u64, u64)> {
        let Removal::Paths(paths) = &self.removal else { return None };
        let read = |file: &str| std::fs::read_to_string(paths.first()?.join(file)).ok();
        let peak = read("memory.peak")?.trim().parse().ok()?;
        let events = read("memory.events")?;
        let kills = events.lines().find_map(|line| line.strip_prefix("oom_kill "))?.parse().ok()?;
        Some((peak, kills))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        match &self.removal {
            Removal::Kept => {}
            // Left over if something still runs in it; its number is not used again by this process.
            Removal::Entry(parent, name) => drop(rustix::fs::unlinkat(parent, name, rustix::fs::AtFlags::REMOVEDIR)),
            Removal::Paths(paths) => limits::remove(paths),
        }
    }
}

fn program_policy() -> Result<Policy> {
    let own = own_unified_cgroup()?;
    let limited = open_or_make(&own, LIMITED_DEVICES)?;
    device_program::attach(limited.as_fd(), &[])?;
    Ok(Policy::Program { limited, all: open_or_make(&own, ALL_DEVICES)? })
}

/// The version 2 cgroup of this process.
fn own_unified_cgroup() -> Result<OwnedFd> {
    open_group(&own_path()?)
}

fn open_group(path: &Path) -> Result<OwnedFd> {
    let mount = unified_hierarchy()?;
    let relative = path.strip_prefix("/").unwrap_or(path);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(&mount, Path::new(".").join(relative), flags, Mode::empty())
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
        make_device_group(&group, Vec::new())?;
    }
    join(&group)?;
    Ok(Policy::Controller { escape: own })
}

fn granted_group(own: &Path, granted: &[Option<DeviceNode>]) -> PathBuf {
    own.join(format!("{LIMITED_DEVICES}-{}", rules(granted).join("-").replace([' ', ':'], "_")))
}

fn is_tun(node: &DeviceNode) -> bool {
    node.kind == DeviceKind::Character
        && node.major.is_none_or(|major| major == 10)
        && node.minor.is_none_or(|minor| minor == 200)
}

/// Version 1's words for nodes that are granted.
fn rules(granted: &[Option<DeviceNode>]) -> Vec<String> {
    let rule = |node: &DeviceNode| {
        let kind = if node.kind == DeviceKind::Block { 'b' } else { 'c' };
        let access = [(node.read, "r"), (node.write, "w")].map(|(has, letter)| if has { letter } else { "" });
        let number = |number: Option<u32>| number.map_or("*".to_owned(), |number| number.to_string());
        format!("{kind} {}:{} {}m", number(node.major), number(node.minor), access.concat())
    };
    granted.iter().flatten().map(rule).collect()
}

/// Prepares the group under another name: whoever finds it by its own must find it complete.
fn make_device_group(group: &Path, granted: Vec<String>) -> Result<()> {
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
    rules.extend(granted);
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
    legacy_hierarchy(controller, "self").map(|(_, own)| own)
}

/// Where a version 1 hierarchy is mounted, and the directory in it of a process, which is a number or `self`.
fn legacy_hierarchy(controller: &str, process: &str) -> Result<(PathBuf, PathBuf)> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").map_err(|error| errno(&error))?;
    let text = std::fs::read_to_string(format!("/proc/{process}/cgroup")).map_err(|error| errno(&error))?;
    find_legacy(&mounts, &text, controller).ok_or(Errno::NOENT)
}

/// Joins what `mountinfo` says of the hierarchy with what `cgroup` says of the process.
pub(super) fn find_legacy(mounts: &str, cgroups: &str, controller: &str) -> Option<(PathBuf, PathBuf)> {
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
    Some((PathBuf::from(point), Path::new(point).join(below)))
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
    pub(super) groups: Vec<GroupPaths>,
    /// What could not be limited.
    pub(super) notices: Vec<String>,
}

/// What is asked of the control groups of one container.
pub(super) struct Wish<'a> {
    /// A name no other container's groups have.
    pub(super) name: String,
    pub(super) resources: &'a Resources,
    pub(super) placement: &'a GroupPlacement,
}

impl Wish<'_> {
    /// Whether a controller has something to do.
    pub(super) fn needs(&self, controller: &str, interface: Interface) -> bool {
        let shared = self.placement.shared.as_ref().map(|shared| &shared.resources);
        let all = [Some(self.resources), shared].into_iter().flatten();
        self.placement.parent.is_some() || all.into_iter().any(|r| !settings(r, controller, interface).is_empty())
    }

    /// The limits that a controller would enforce.
    pub(super) fn limits(&self, controller: &str) -> Vec<&'static str> {
        let shared = self.placement.shared.as_ref().map(|shared| &shared.resources);
        let of = |resources| settings(resources, controller, Interface::Legacy);
        let all = [Some(self.resources), shared].into_iter().flatten().flat_map(of);
        let mut names: Vec<_> = all.filter(|setting| setting.asked).map(|setting| setting.limit).collect();
        names.dedup();
        names
    }

    /// All that is asked for, by the names that users give it.
    pub(super) fn all_limits(&self) -> Vec<&'static str> {
        CONTROLLERS.iter().flat_map(|controller| self.limits(controller)).collect()
    }

    /// The groups from the base down to the container's own.
    pub(super) fn levels(&self, controllers: &[&str], interface: Interface) -> Vec<Level> {
        let of = |resources: &Resources| {
            controllers.iter().flat_map(|controller| settings(resources, controller, interface)).collect()
        };
        let parent = self.placement.parent.as_deref().unwrap_or(Path::new(""));
        let parts = parent.components().filter_map(|part| match part {
            Component::Normal(name) => Some(Level { name: name.into(), settings: Vec::new(), kept: true }),
            _ => None,
        });
        let shared = self.placement.shared.as_ref().map(|shared| Level {
            name: shared_group::name(shared).into(),
            settings: of(&shared.resources),
            kept: false,
        });
        let own = Level { name: self.name.clone().into(), settings: of(self.resources), kept: false };
        parts.chain(shared).chain([own]).collect()
    }

    pub(super) fn is_absolute(&self) -> bool {
        self.placement.parent.as_ref().is_some_and(|path| path.has_root())
    }
}

/// Moves this process into groups of version 1, for the controllers that version 2 has not.
pub(super) fn limit(wish: &Wish<'_>, cgroups: &Cgroups) -> std::result::Result<Limits, Failure> {
    let mut limits = Limits::default();
    for controller in CONTROLLERS {
        if cgroups.is_unified(controller) || !wish.needs(controller, Interface::Legacy) {
            continue;
        }
        let Ok((point, own)) = legacy_hierarchy(controller, "self") else {
            let names = wish.limits(controller).into_iter();
            let why = format!("this machine has no {controller} controller");
            limits.notices.extend(names.map(|limit| limits::not_enforced(limit, &why)));
            continue;
        };
        let base = if wish.is_absolute() { point } else { own };
        remove_left_over(&base);
        let levels = wish.levels(&[controller], Interface::Legacy);
        let enter = |path: &Path| std::fs::write(path.join("cgroup.procs"), "0");
        match limits::descend(&base, &levels, &|_| Ok(()), &enter, &mut limits.notices) {
            Ok(groups) => limits.groups.push(GroupPaths(groups)),
            Err(error) if is_closed(&error) => {
                let names = wish.limits(controller).into_iter();
                limits.notices.extend(names.map(|limit| limits::not_enforced(limit, &error.to_string())));
            }
            Err(error) => return Err(failure(&error)),
        }
    }
    Ok(limits)
}

/// Whether this machine does not let forge use a hierarchy, as opposed to a limit that makes no sense.
pub(super) fn is_closed(error: &io::Error) -> bool {
    use io::ErrorKind::{NotFound, PermissionDenied, ReadOnlyFilesystem, ResourceBusy, Unsupported};
    matches!(error.kind(), NotFound | PermissionDenied | ReadOnlyFilesystem | ResourceBusy | Unsupported)
}

pub(super) fn failure(error: &io::Error) -> Failure {
    Failure::InvalidSpec { reason: error.to_string() }
}

/// Removes the groups of containers whose forge was killed. Those in use are busy, those that are just being made held.
pub(super) fn remove_left_over(base: &Path) {
    let Some(_hold) = Hold::exclusive(base) else { return };
    let Ok(entries) = std::fs::read_dir(base) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if name.as_encoded_bytes().starts_with(GROUP_PREFIX.as_bytes()) {
            let inner = std::fs::read_dir(entry.path()).into_iter().flatten().flatten();
            limits::remove(&inner.map(|entry| entry.path()).filter(|path| path.is_dir()).collect::<Vec<_>>());
            limits::remove(&[entry.path()]);
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
        let found = |controller| find_legacy(mounts, cgroups, controller).map(|(_, own)| own);
        assert_eq!(found("cpu"), Some("/sys/fs/cgroup/cpu,cpuacct/b".into()));
        assert_eq!(found("memory"), Some("/sys/fs/cgroup/memory/a".into()));
        assert_eq!(found("pids"), None);
    }
}
