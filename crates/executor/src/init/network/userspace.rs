//! Private networks for who may not change the host's: a program of theirs carries the packets of a namespace through
//! sockets of its own, as any program of an ordinary user could send them.

use super::super::sys;
use super::Reason;
use super::link::{Links, index_of};
use super::wires::{allow_unprivileged, disable_version_6};
use crate::profile::DEFAULT_PATH;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags, open, openat};
use rustix::io::{Errno, Result, retry_on_intr};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal, waitpid};
use std::io::Read;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

/// Far longer than either takes: 20 to 50 ms.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often the namespace is looked at.
const PAUSE: Duration = Duration::from_millis(2);

/// A program that carries packets.
struct Program {
    name: &'static str,
    /// From the first half of the namespace's network and the name of the namespace.
    arguments: fn([u8; 2], &str) -> Vec<String>,
}

/// The quicker one first. Neither lets the namespace reach the host's loopback (A92).
const PROGRAMS: [Program; 2] =
    [Program { name: "pasta", arguments: of_pasta }, Program { name: "slirp4netns", arguments: of_slirp4netns }];

fn of_pasta([a, b]: [u8; 2], namespace: &str) -> Vec<String> {
    let address = address([a, b]).to_string();
    let gateway = format!("{a}.{b}.0.2");
    let fixed = "--foreground --quiet --ipv4-only --config-net --no-map-gw --no-dhcp --no-netns-quit \
                 --tcp-ports none --udp-ports none --tcp-ns none --udp-ns none --netns-only";
    let mut all: Vec<String> = fixed.split_whitespace().map(str::to_owned).collect();
    let more = ["--address", &address, "--netmask", "255.255.255.0", "--gateway", &gateway, "--ns-ifname", "eth0"];
    all.extend(more.iter().chain(&["--netns", namespace]).map(|word| (*word).to_owned()));
    all
}

/// What every namespace is told to be; slirp4netns takes no other one.
pub(super) fn address([a, b]: [u8; 2]) -> Ipv4Addr {
    Ipv4Addr::new(a, b, 0, 100)
}

fn of_slirp4netns([a, b]: [u8; 2], namespace: &str) -> Vec<String> {
    let network = format!("{a}.{b}.0.0/24");
    let fixed = ["--configure", "--mtu=65520", "--disable-host-loopback", "--netns-type=path", "--cidr", &network];
    fixed.iter().chain(&[namespace, "eth0"]).map(|word| (*word).to_owned()).collect()
}

/// The program that carries the packets of one namespace. It ends with this.
pub(super) struct Helper {
    process: OwnedFd,
    /// Were it closed, the program would end with its next word.
    _messages: ChildStderr,
}

impl Drop for Helper {
    fn drop(&mut self) {
        // It fails only for a process that has ended. Whoever reaps all children reaps this one.
        let _ = pidfd_send_signal(&self.process, Signal::KILL);
    }
}

/// Makes a namespace with a way out, with addresses of that network. `point` is a free name where the namespace can be
/// shown for a moment.
pub(super) fn connect(network: [u8; 2], point: &Path) -> std::result::Result<(OwnedFd, Helper), Reason> {
    let installed: Vec<(PathBuf, &Program)> =
        PROGRAMS.iter().filter_map(|program| Some((find(program.name)?, program))).collect();
    if installed.is_empty() {
        return Err("only root of the machine can make one, and neither pasta nor slirp4netns is installed".to_owned());
    }
    let mut reasons = Vec::new();
    for (path, program) in installed {
        let failed = |errno: Errno| format!("a network namespace cannot be made ({errno})");
        let namespace = new_namespace().map_err(failed)?;
        let shown = Shown::new(namespace.as_fd(), point).map_err(failed)?;
        match start(&path, &(program.arguments)(network, &shown.0.to_string_lossy()), namespace.as_fd()) {
            Ok(helper) => return Ok((namespace, helper)),
            Err(reason) => reasons.push(format!("{}: {reason}", program.name)),
        }
    }
    Err(reasons.join("; "))
}

fn find(name: &str) -> Option<PathBuf> {
    DEFAULT_PATH.split(':').map(|folder| Path::new(folder).join(name)).find(|path| path.exists())
}

/// Whoever leaves the host's namespace cannot come back without rights over it: a child makes the new one.
fn new_namespace() -> Result<OwnedFd> {
    let flags = rustix::pipe::PipeFlags::CLOEXEC;
    let ((made, made_end), (seen, seen_end)) = (rustix::pipe::pipe_with(flags)?, rustix::pipe::pipe_with(flags)?);
    let Some(child) = sys::fork_alone()? else {
        drop((made, seen_end));
        if furnish().and_then(|()| rustix::io::write(&made_end, b"m")).is_ok() {
            // Until the other side has closed its end.
            let _ = rustix::io::read(&seen, &mut [0]);
        }
        sys::exit_now(0)
    };
    drop((made_end, seen));
    let told = retry_on_intr(|| rustix::io::read(&made, &mut [0]))?;
    let path = format!("/proc/{}/ns/net", child.as_raw_nonzero());
    let namespace = match told {
        0 => Err(Errno::PERM),
        _ => open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()),
    };
    drop(seen_end);
    let _ = waitpid(Some(child), WaitOptions::empty());
    namespace
}

fn furnish() -> Result<()> {
    sys::new_network_namespace()?;
    disable_version_6("default");
    allow_unprivileged();
    Links::open()?.configure(index_of("lo")?, None, &[])
}

/// A namespace under a name: descriptors of another process are not for programs that give up rights as they start.
struct Shown(PathBuf);

impl Shown {
    fn new(namespace: BorrowedFd<'_>, point: &Path) -> Result<Self> {
        let flags = OFlags::CREATE | OFlags::RDONLY | OFlags::CLOEXEC;
        let place = openat(CWD, point, flags, Mode::RUSR)?;
        let shown = Self(point.to_owned());
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        let mount = open_tree(namespace, "", flags)?;
        let places = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(&mount, "", &place, "", places)?;
        Ok(shown)
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        // The file is of no harm.
        let _ = unmount(&self.0, UnmountFlags::DETACH);
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Starts a program and waits until there is a way out.
fn start(program: &Path, arguments: &[String], namespace: BorrowedFd<'_>) -> std::result::Result<Helper, Reason> {
    let mut command = Command::new(program);
    command.args(arguments).env_clear().current_dir("/").stdin(Stdio::null()).stdout(Stdio::null());
    sys::end_with_parent(command.stderr(Stdio::piped()));
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let failed = |errno: Errno| errno.to_string();
    let pid = Pid::from_raw(child.id().cast_signed()).ok_or("it has no number")?;
    let process = pidfd_open(pid, PidfdFlags::empty()).map_err(failed)?;
    let messages = child.stderr.take().ok_or("it has no standard error")?;
    let mut helper = Helper { process, _messages: messages };
    match wait(&helper.process, namespace).map_err(failed)? {
        State::Connected => Ok(helper),
        State::Late => Err(format!("no way out within {} seconds", PATIENCE.as_secs())),
        State::Ended => {
            let mut text = String::new();
            let _ = helper._messages.read_to_string(&mut text);
            let last = text.lines().map(str::trim).rfind(|line| !line.is_empty());
            Err(last.unwrap_or("it ended without a word").to_owned())
        }
    }
}

/// What came of a start.
enum State {
    Connected,
    Ended,
    Late,
}

fn wait(process: &OwnedFd, namespace: BorrowedFd<'_>) -> Result<State> {
    // In a child too: from the namespace there is no way back.
    let Some(child) = sys::fork_alone()? else {
        let seen = sys::enter_network(namespace).is_ok_and(|()| has_way_out());
        sys::exit_now(i32::from(!seen))
    };
    let watcher = pidfd_open(child, PidfdFlags::empty())?;
    let mut ends = [PollFd::new(process, PollFlags::IN), PollFd::new(&watcher, PollFlags::IN)];
    let longest = Timespec { tv_sec: PATIENCE.as_secs().cast_signed() + 1, tv_nsec: 0 };
    retry_on_intr(|| poll(&mut ends, Some(&longest)))?;
    let [ended, _] = ends.map(|end| !end.revents().is_empty());
    let _ = pidfd_send_signal(&watcher, Signal::KILL);
    let seen = waitpid(Some(child), WaitOptions::empty())?.and_then(|(_, status)| status.exit_status());
    Ok(match (ended, seen) {
        (true, _) => State::Ended,
        (false, Some(0)) => State::Connected,
        (false, _) => State::Late,
    })
}

/// Waits for a default route.
fn has_way_out() -> bool {
    let begin = Instant::now();
    while begin.elapsed() < PATIENCE {
        let routes = std::fs::read_to_string("/proc/thread-self/net/route").unwrap_or_default();
        if routes.lines().skip(1).any(|line| line.split_whitespace().nth(1) == Some("00000000")) {
            return true;
        }
        std::thread::sleep(PAUSE);
    }
    false
}
