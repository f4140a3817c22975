//! The one hierarchy of version 2: where groups with limits can be made.
//!
//! A group hands controllers on to its children only while no process is in it, the topmost excepted, and nobody changes more
//! of the tree than was delegated to them. So places are tried, the nearest first:
//! ```text
//! root   own group, if nothing but forge is in it, or the topmost that is in sight
//! user   own group, if nothing but forge is in it (`systemd-run --user --scope -p Delegate=yes`), or the groups above it that
//!        are the user's (`user@.service` and its slices, which hold no processes)
//! ```
//! Where forge is all that is in a group, it moves into a group below: `forge-own`.

use super::cgroups::{LIMITS, Wish, is_closed, remove_left_over};
use super::limits::{self, CONTROLLERS, Interface, Level};
use super::mounts::new_filesystem;
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::{Errno, Result};
use rustix::mount::MountAttrFlags;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Where forge goes when its own group is to have groups with limits.
const LEAF: &str = "forge-own";

/// The hierarchy, where it has controllers.
pub(super) struct Unified {
    /// Its root.
    top: PathBuf,
    /// What keeps the root open.
    _mount: OwnedFd,
    /// The group of this process, below the root.
    own: PathBuf,
    controllers: Vec<&'static str>,
    /// Whether this process is root of the machine.
    trusted: bool,
}

impl Unified {
    pub(super) fn find(trusted: bool) -> Option<Self> {
        let mount = unified_hierarchy().ok()?;
        let top = PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd()));
        let controllers = controllers_of(&top);
        let own = own_path().ok()?;
        let own = own.strip_prefix("/").unwrap_or(&own).to_owned();
        (!controllers.is_empty()).then_some(Self { top, _mount: mount, own, controllers, trusted })
    }

    /// Whether a controller is one of version 2 on this machine.
    pub(super) fn has(&self, controller: &str) -> bool {
        self.controllers.contains(&controller)
    }

    /// The controllers that have something to do.
    pub(super) fn needed_by(&self, wish: &Wish<'_>) -> Vec<&'static str> {
        let needed = |controller: &&&str| wish.needs(controller, Interface::Unified);
        self.controllers.iter().filter(needed).copied().collect()
    }

    /// Makes the groups of a container in the first place that allows it.
    pub(super) fn make(&self, wish: &Wish<'_>, needed: &[&'static str], notices: &mut Vec<String>) -> io::Result<Made> {
        let mut outcome = Err(io::ErrorKind::NotFound.into());
        for place in places(&self.top, &self.own, self.trusted, wish.is_absolute()) {
            outcome = Attempt { place: &place, wish, kernel: &Kernel }.make(needed, notices);
            if outcome.as_ref().err().is_none_or(|error| !is_closed(error)) {
                break;
            }
        }
        outcome.map_err(|error| if self.trusted { error } else { explained(&error) })
    }
}

/// Words for an ordinary user, of whom nothing is delegated in most sessions.
fn explained(error: &io::Error) -> io::Error {
    let text = format!("{error}; a control group of forge's own is had by systemd-run --user --scope -p Delegate=yes");
    io::Error::new(error.kind(), text)
}

/// The groups below which one can be tried to be made, the best first.
fn places(top: &Path, own: &Path, trusted: bool, absolute: bool) -> Vec<PathBuf> {
    let above = own.ancestors().skip(1).filter(|path| !path.as_os_str().is_empty()).map(|path| top.join(path));
    let near = std::iter::once(top.join(own));
    match (absolute, trusted) {
        (true, _) => vec![top.to_owned()],
        (false, true) => near.chain([top.to_owned()]).collect(),
        (false, false) => near.chain(above).chain([top.to_owned()]).collect(),
    }
}

fn controllers_of(group: &Path) -> Vec<&'static str> {
    let listed = std::fs::read_to_string(group.join("cgroup.controllers")).unwrap_or_default();
    CONTROLLERS.into_iter().filter(|controller| listed.split_whitespace().any(|one| one == *controller)).collect()
}

/// What is asked of the kernel beside files that hold limits.
trait Groups {
    /// Hands controllers on to the children of a group.
    fn enable(&self, group: &Path, controllers: &[&str]) -> io::Result<()>;
    /// The processes in a group.
    fn processes(&self, group: &Path) -> Vec<u32>;
    /// Whether a process is forge, or a child of this one.
    fn is_ours(&self, process: u32) -> bool;
    /// Moves a process into a group.
    fn enter(&self, group: &Path, process: u32) -> io::Result<()>;
}

struct Kernel;

impl Groups for Kernel {
    fn enable(&self, group: &Path, controllers: &[&str]) -> io::Result<()> {
        let text: Vec<String> = controllers.iter().map(|controller| format!("+{controller}")).collect();
        std::fs::write(group.join("cgroup.subtree_control"), text.join(" "))
    }

    fn processes(&self, group: &Path) -> Vec<u32> {
        let text = std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    fn is_ours(&self, process: u32) -> bool {
        let (own, caller) = (std::process::id(), rustix::process::getppid());
        let caller = caller.and_then(|pid| u32::try_from(pid.as_raw_nonzero().get()).ok());
        process == own || Some(process) == caller || parent(process) == Some(own)
    }

    fn enter(&self, group: &Path, process: u32) -> io::Result<()> {
        std::fs::write(group.join("cgroup.procs"), process.to_string())
    }
}

fn parent(process: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The second field is the command in parentheses and may hold anything, so count from its end.
    stat.rsplit(") ").next()?.split(' ').nth(1)?.parse().ok()
}

/// The groups of one container, the innermost first, and what keeps others from removing them while they are empty.
pub(super) struct Made {
    pub(super) groups: Vec<PathBuf>,
    pub(super) hold: Option<Hold>,
}

/// A lock on the group that holds those of containers: shared by who makes some, exclusive for who removes those that are left
/// over.
pub(super) struct Hold(OwnedFd);

impl Hold {
    /// How often a lock is tried, each millisecond, that somebody has who may be about to give it back. Whoever sees the group
    /// can lock it for ever, so there is no waiting for it.
    const ATTEMPTS: u32 = 20;

    fn shared(group: &Path) -> Option<Self> {
        let folder = Self::open(group)?;
        let is_held = (0..Self::ATTEMPTS).any(|_| {
            let held = flock(&folder, FlockOperation::NonBlockingLockShared).is_ok();
            if !held {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            held
        });
        is_held.then_some(Self(folder))
    }

    /// For who removes; nothing while somebody makes groups.
    pub(super) fn exclusive(group: &Path) -> Option<Self> {
        let folder = Self::open(group)?;
        flock(&folder, FlockOperation::NonBlockingLockExclusive).ok()?;
        Some(Self(folder))
    }

    fn open(group: &Path) -> Option<OwnedFd> {
        rustix::fs::open(group, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // Of a container that was cloned meanwhile, too, which has a copy of the descriptor. It fails for no lock.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

/// The groups of one container below one place.
struct Attempt<'a> {
    place: &'a Path,
    wish: &'a Wish<'a>,
    kernel: &'a dyn Groups,
}

impl Attempt<'_> {
    /// With as many of the controllers as there are here; the limits of the others are named.
    fn make(&self, needed: &[&'static str], notices: &mut Vec<String>) -> io::Result<Made> {
        let here = controllers_of(self.place);
        let (usable, missing): (Vec<&str>, Vec<&str>) = needed.iter().partition(|name| here.contains(name));
        if usable.is_empty() {
            let text = format!("the control group {} has no {} controller", self.shown(), missing.join(" and no "));
            return Err(io::Error::new(io::ErrorKind::NotFound, text));
        }
        remove_left_over(&self.place.join(LIMITS));
        self.make_way(&usable)?;
        let mut levels = self.wish.levels(&usable, Interface::Unified);
        let mut hold = None;
        if self.wish.placement.parent.is_none() {
            levels.insert(0, Level { name: LIMITS.into(), settings: Vec::new(), kept: true });
            limits::make(&self.place.join(LIMITS), true)?;
            hold = Hold::shared(&self.place.join(LIMITS));
        }
        let prepare = |group: &Path| self.kernel.enable(group, &usable);
        let groups = limits::descend(self.place, &levels, &prepare, &|_| Ok(()), notices)?;
        for limit in missing.iter().flat_map(|controller| self.wish.limits(controller)) {
            notices.push(limits::not_enforced(
                limit,
                &format!("the control group {} has no controller for it", self.shown()),
            ));
        }
        Ok(Made { groups, hold })
    }

    /// Moves forge out of the place's way, if nobody else is in it.
    fn make_way(&self, controllers: &[&str]) -> io::Result<()> {
        let refused = match self.kernel.enable(self.place, controllers) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => error,
            other => return other,
        };
        let processes = self.kernel.processes(self.place);
        if processes.is_empty() || !processes.iter().all(|process| self.kernel.is_ours(*process)) {
            return Err(refused);
        }
        let leaf = self.place.join(LEAF);
        match std::fs::create_dir(&leaf) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        processes.into_iter().try_for_each(|process| self.kernel.enter(&leaf, process))?;
        self.kernel.enable(self.place, controllers)
    }

    /// The place as in `/proc/self/cgroup`, from the first name on that is not that of the mount.
    fn shown(&self) -> String {
        let text = self.place.display().to_string();
        let below = text.strip_prefix("/proc/self/fd/").and_then(|rest| rest.split_once('/'));
        below.map_or(text.clone(), |(_, path)| format!("/{path}"))
    }
}

/// The root of the version 2 hierarchy, where the host has mounted it, or else in a mount of our own.
///
/// A mount of our own sets the hierarchy's options anew, for which the kernel waits for an RCU grace period or two: 8 to
/// 18 ms after a pause.
pub(super) fn unified_hierarchy() -> Result<OwnedFd> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    match writable_unified(&mounts).find_map(open_unified) {
        Some(mounted) => Ok(mounted),
        None => new_filesystem("cgroup2", &[], MountAttrFlags::empty()).map_err(|_| Errno::NODEV),
    }
}

/// Where `mountinfo` has the whole hierarchy with nothing but the group's permissions against writing.
fn writable_unified(mounts: &str) -> impl Iterator<Item = &Path> {
    mounts.lines().filter_map(|line| {
        let (head, _) = line.split_once(" - cgroup2 ")?;
        let fields: Vec<_> = head.split(' ').collect();
        let (root, point, options) = (*fields.get(3)?, *fields.get(4)?, *fields.get(5)?);
        (root == "/" && options.split(',').any(|option| option == "rw")).then_some(Path::new(point))
    })
}

/// Opens it, unless something else is mounted over it.
fn open_unified(point: &Path) -> Option<OwnedFd> {
    const CGROUP2_SUPER_MAGIC: u32 = 0x6367_7270;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mounted = rustix::fs::open(point, flags, Mode::empty()).ok()?;
    let kind = rustix::fs::fstatfs(&mounted).ok()?.f_type as u32;
    (kind == CGROUP2_SUPER_MAGIC).then_some(mounted)
}

/// The path of this process's group.
pub(super) fn own_path() -> Result<PathBuf> {
    path_of("self")
}

/// The path of the group of a process, which is a number or `self`.
pub(super) fn path_of(process: &str) -> Result<PathBuf> {
    let text = std::fs::read_to_string(format!("/proc/{process}/cgroup")).map_err(|_| Errno::NOENT)?;
    text.lines().find_map(|line| line.strip_prefix("0::")).map(PathBuf::from).ok_or(Errno::NOENT)
}

#[cfg(test)]
mod tests {
    use super::super::cgroups::GROUP_PREFIX;
    use super::*;
    use crate::{GroupPlacement, Resources};
    use std::fs;

    #[test]
    fn the_unified_hierarchy_is_taken_where_it_is_whole_and_writable() {
        let mounts = "28 21 0:25 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
                      30 21 0:27 / /ro ro,relatime shared:9 - cgroup2 cgroup2 rw\n\
                      31 21 0:27 /a/b /part rw,relatime - cgroup2 cgroup2 rw\n\
                      32 21 0:27 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n";
        let found: Vec<_> = writable_unified(mounts).collect();
        assert_eq!(found, [Path::new("/sys/fs/cgroup/unified")]);
    }

    /// A tree of folders in which the kernel's rules hold: processes and controllers of children exclude each other below
    /// the top, and nobody hands on what they were not given.
    struct Folders {
        folder: tempfile::TempDir,
        ours: Vec<u32>,
    }

    impl Folders {
        /// Groups with their controllers and processes; the first is the top.
        fn new(groups: &[(&str, &str, &str)], ours: &[u32]) -> Self {
            let folder = tempfile::tempdir().expect("folder");
            for (name, controllers, processes) in groups {
                let group = folder.path().join(name);
                fs::create_dir_all(&group).expect("folder");
                fs::write(group.join("cgroup.controllers"), controllers).expect("file");
                fs::write(group.join("cgroup.procs"), processes.replace(' ', "\n")).expect("file");
            }
            Self { folder, ours: ours.to_vec() }
        }

        fn read(&self, file: &str) -> String {
            fs::read_to_string(self.folder.path().join(file)).unwrap_or_default()
        }

        /// What comes of a wish for memory and processors, for a process in `own`: the group below the top, or the error.
        fn make(&self, own: &str, trusted: bool) -> (std::result::Result<String, String>, Vec<String>) {
            let resources = Resources { memory: Some(1 << 20), cpuset_cpus: Some("0".into()), ..Resources::default() };
            let wish = Wish { name: "c".into(), resources: &resources, placement: &GroupPlacement::default() };
            let (mut notices, mut outcome) = (Vec::new(), Err("no place".to_owned()));
            for place in places(self.folder.path(), Path::new(own), trusted, false) {
                let made =
                    Attempt { place: &place, wish: &wish, kernel: self }.make(&["memory", "cpuset"], &mut notices);
                let below =
                    |made: Made| made.groups[0].strip_prefix(self.folder.path()).expect("below").display().to_string();
                outcome = made.map(below).map_err(|error| format!("{:?}", error.kind()));
                if outcome.is_ok() {
                    break;
                }
            }
            (outcome, notices)
        }
    }

    impl Groups for Folders {
        fn enable(&self, group: &Path, controllers: &[&str]) -> io::Result<()> {
            if fs::metadata(group)?.permissions().readonly() {
                return Err(io::ErrorKind::PermissionDenied.into());
            }
            if group != self.folder.path() && !self.processes(group).is_empty() {
                return Err(io::ErrorKind::ResourceBusy.into());
            }
            let given = match group.join("cgroup.controllers").exists() {
                true => group.join("cgroup.controllers"),
                false => group.parent().expect("above").join("cgroup.subtree_control"),
            };
            let given = fs::read_to_string(given)?;
            match controllers.iter().all(|controller| given.contains(controller)) {
                true => fs::write(group.join("cgroup.subtree_control"), controllers.join(" ")),
                false => Err(io::ErrorKind::NotFound.into()),
            }
        }

        fn processes(&self, group: &Path) -> Vec<u32> {
            Kernel.processes(group)
        }

        fn is_ours(&self, process: u32) -> bool {
            self.ours.contains(&process)
        }

        fn enter(&self, group: &Path, process: u32) -> io::Result<()> {
            let from = group.parent().expect("above").join("cgroup.procs");
            let left: Vec<String> = fs::read_to_string(&from)?
                .lines()
                .filter(|line| **line != process.to_string())
                .map(str::to_owned)
                .collect();
            fs::write(&from, left.join("\n"))?;
            let there = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
            fs::write(group.join("cgroup.procs"), format!("{there}{process}\n"))
        }
    }

    const ALL: &str = "cpuset cpu io memory pids";

    /// Meant to fail with the processes of the group not looked at, and with them not moved.
    #[test]
    fn root_takes_its_own_group_if_it_is_alone_there() {
        let tree = Folders::new(&[("", ALL, "1 2"), ("system.slice/forge.service", ALL, "70 71")], &[70, 71]);
        let (made, notices) = tree.make("system.slice/forge.service", true);
        assert_eq!((made.as_deref(), notices.len()), (Ok("system.slice/forge.service/forge-limits/c"), 0));
        assert_eq!(tree.read("system.slice/forge.service/forge-own/cgroup.procs"), "70\n71\n");
        assert_eq!(tree.read("system.slice/forge.service/cgroup.subtree_control"), "memory cpuset");
        assert_eq!(tree.read("system.slice/forge.service/forge-limits/cgroup.subtree_control"), "memory cpuset");
        assert_eq!(tree.read("system.slice/forge.service/forge-limits/c/memory.max"), "1048576");
        assert_eq!(tree.read("system.slice/forge.service/forge-limits/c/cpuset.cpus"), "0");
        // Again, by which time nobody is in the way.
        assert!(tree.make("system.slice/forge.service", true).0.is_ok());
        // A shell beside it is left where it is.
        let tree = Folders::new(&[("", ALL, "1 2"), ("user.slice/session-3.scope", ALL, "50 70 71")], &[70, 71]);
        assert_eq!(tree.make("user.slice/session-3.scope", true).0.as_deref(), Ok("forge-limits/c"));
        assert_eq!(tree.read("user.slice/session-3.scope/cgroup.procs"), "50\n70\n71");
    }

    /// Others remove what is left over, which a group looks like that nobody is in yet. Seen to fail without the lock.
    #[test]
    fn a_group_that_was_just_made_is_not_taken_for_one_that_is_left_over() {
        let tree = Folders::new(&[("", ALL, "1")], &[]);
        let wish = Wish {
            name: format!("{GROUP_PREFIX}new"),
            resources: &Resources { memory: Some(1 << 20), ..Resources::default() },
            placement: &GroupPlacement::default(),
        };
        let attempt = Attempt { place: tree.folder.path(), wish: &wish, kernel: &tree };
        let made = attempt.make(&["memory"], &mut Vec::new()).expect("makes");
        let group = made.groups[0].clone();
        // A group of the kernel's can be removed with the files in it.
        fs::remove_file(group.join("memory.max")).expect("file");
        fs::remove_file(group.join("memory.swap.max")).expect("file");
        remove_left_over(&tree.folder.path().join(LIMITS));
        assert!(group.exists());
        drop(made);
        remove_left_over(&tree.folder.path().join(LIMITS));
        assert!(!group.exists());
    }

    #[test]
    fn a_container_s_root_group_is_as_good_as_any() {
        // In a namespace of control groups the own group looks like the topmost, and is not.
        let tree = Folders::new(&[("", ALL, "1 2")], &[1, 2]);
        assert_eq!(tree.make("", true).0.as_deref(), Ok("forge-limits/c"));
    }

    /// The delegated part ends where folders can no longer be written to.
    #[test]
    fn a_user_takes_the_nearest_delegated_group_without_processes() {
        let user = "user.slice/user-7.slice/user@7.service";
        let scope = format!("{user}/app.slice/terminal.scope");
        let groups = [
            ("", ALL, "1"),
            ("user.slice", ALL, ""),
            ("user.slice/user-7.slice", ALL, ""),
            (user, "cpu memory pids", ""),
            (&format!("{user}/app.slice"), "cpu memory pids", ""),
            (&scope, "memory pids", "50 70 71"),
        ];
        let tree = Folders::new(&groups, &[70, 71]);
        let (made, notices) = tree.make(&scope, false);
        assert_eq!(made, Ok(format!("{user}/app.slice/forge-limits/c")));
        assert_eq!(notices.len(), 1, "{notices:?}");
        assert!(notices[0].starts_with("the processor set limit is not enforced: the control group "), "{notices:?}");
        // A scope of its own, with `Delegate=yes`.
        let tree = Folders::new(&[("", ALL, "1"), ("user.slice/run-1.scope", "memory", "70 71")], &[70, 71]);
        assert_eq!(
            tree.make("user.slice/run-1.scope", false).0.as_deref(),
            Ok("user.slice/run-1.scope/forge-limits/c")
        );
        assert_eq!(tree.read("user.slice/run-1.scope/forge-own/cgroup.procs"), "70\n71\n");
    }

    /// A group of the real hierarchy, and what it took to have it.
    struct Real {
        top: PathBuf,
        group: PathBuf,
        enabled: bool,
        process: std::process::Child,
        _mount: OwnedFd,
    }

    impl Real {
        /// A group with a process, and a controller that forge has no use for, where this machine has one for version 2.
        fn new() -> Option<Self> {
            let mount = unified_hierarchy().ok().filter(|_| rustix::process::geteuid().is_root())?;
            let top = PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd()));
            let lists = |file: &str| {
                let text = fs::read_to_string(top.join(file)).unwrap_or_default();
                text.split_whitespace().any(|name| name == "hugetlb")
            };
            let (there, enabled) = (lists("cgroup.controllers"), lists("cgroup.subtree_control"));
            there.then(|| Kernel.enable(&top, &["hugetlb"]).ok())??;
            let group = top.join(format!("forge-test-{}", std::process::id()));
            fs::create_dir(&group).ok()?;
            let process = std::process::Command::new("sleep").arg("60").spawn().ok()?;
            Kernel.enter(&group, process.id()).ok()?;
            Some(Self { top, group, enabled, process, _mount: mount })
        }
    }

    impl Drop for Real {
        fn drop(&mut self) {
            let _ = (self.process.kill(), self.process.wait());
            for name in [LEAF, "child", ""] {
                let _ = fs::remove_dir(self.group.join(name));
            }
            if !self.enabled {
                let _ = fs::write(self.top.join("cgroup.subtree_control"), "-hugetlb");
            }
        }
    }

    /// What the tree of folders imitates.
    #[test]
    #[expect(clippy::print_stdout, reason = "a skipped test says so")]
    fn privileged_the_kernel_has_these_rules() {
        let Some(real) = Real::new() else {
            return println!("SKIPPED (needs root and hugetlb in version 2): privileged_the_kernel_has_these_rules");
        };
        let busy = Kernel.enable(&real.group, &["hugetlb"]).expect_err("a process is in it");
        assert_eq!(busy.kind(), io::ErrorKind::ResourceBusy);
        let (resources, placement) = (Resources::default(), GroupPlacement::default());
        let wish = Wish { name: "c".into(), resources: &resources, placement: &placement };
        let attempt = Attempt { place: &real.group, wish: &wish, kernel: &Kernel };
        attempt.make_way(&["hugetlb"]).expect("its only process is a child of this one");
        assert_eq!(Kernel.processes(&real.group), Vec::<u32>::new());
        assert_eq!(Kernel.processes(&real.group.join(LEAF)), [real.process.id()]);
        fs::create_dir(real.group.join("child")).expect("a group");
        let files = fs::read_dir(real.group.join("child")).expect("a group").flatten();
        assert!(files.map(|file| file.file_name()).any(|name| name.to_string_lossy().starts_with("hugetlb.")));
        let missing = Kernel.enable(&real.group.join("child"), &["memory"]).expect_err("it was not handed on");
        assert!(is_closed(&missing), "{missing}");
    }

    #[test]
    fn where_nothing_is_delegated_there_is_no_group() {
        let groups = [("", ALL, "1"), ("user.slice", "", ""), ("user.slice/session-3.scope", "", "50 70")];
        let tree = Folders::new(&groups, &[70]);
        let closed = |name: &str, mode| {
            let mode: fs::Permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
            fs::set_permissions(tree.folder.path().join(name), mode).expect("mode");
        };
        closed("", 0o555);
        let (made, _) = tree.make("user.slice/session-3.scope", false);
        closed("", 0o755);
        assert_eq!(made, Err("PermissionDenied".to_owned()));
    }

    #[test]
    fn a_parent_of_the_caller_s_is_looked_for_from_the_top() {
        let top = Path::new("/top");
        assert_eq!(places(top, Path::new("a/b"), false, true), [top]);
        assert_eq!(places(top, Path::new("a/b"), true, false), ["/top/a/b", "/top"].map(PathBuf::from));
        assert_eq!(places(top, Path::new("a/b"), false, false), ["/top/a/b", "/top/a", "/top"].map(PathBuf::from));
        let text = explained(&io::ErrorKind::PermissionDenied.into()).to_string();
        assert!(text.contains("systemd-run --user --scope -p Delegate=yes"), "{text}");
    }
}
