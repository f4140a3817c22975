//! The life of a shim: the first process of a PID namespace in which an OCI runtime makes a container.
//!
//! It assembles the root as an init does, in a mount namespace of its own, but leaves the rest to the runtime: the bundle, the
//! runtime's own state and its console socket are in memory that goes with the namespace. When the shim ends, however that
//! is, the kernel ends the container with it.

use super::bundle::{self, Surroundings};
use super::cgroups::{GROUP_PREFIX, Wish};
use super::launch;
use super::limits::not_enforced;
use super::memory_group::MemoryGroup;
use super::mounts::{self, LOCKED, Prepared, Staging, attach, tmpfs};
use super::paths::{PointKind, Root};
use super::setup::{self, Means};
use super::shared_group::{self, SharedGroup};
use super::{apparmor, identity, root, runtime_init, sys};
use crate::message::{self, Channel, Configuration, Doing, Failure, Message};
use crate::{DevicePolicy, SandboxSpec};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{CWD, Mode, OFlags, fstatfs, openat};
use rustix::io::{Errno, retry_on_intr};
use rustix::mount::{MountAttrFlags, UnmountFlags, unmount};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What the runtime knows the container as; nobody else sees its state.
const NAME: &str = "container";
const CONFIG: &str = "config.json";
const CONSOLE: &str = "console.sock";
const LOG: &str = "log.json";
const PID_FILE: &str = "pid";
const STATE: &str = "state";

/// As `setup::run`, with the same end.
pub(super) fn run(channel: BorrowedFd<'_>, means: &Means<'_>, entered: rustix::io::Result<()>) -> ! {
    let channel = setup::isolate(channel);
    // Unwinding would end in the server's loop, of which this process is a copy.
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| {
        channel.as_ref().map(|channel| (channel, live(channel, means, entered)))
    }));
    if let Ok(Ok((channel, Err(failure)))) = outcome {
        // Without a listener there is nobody to tell.
        let _ = channel.send(&Message::Failed(failure), &[]);
    }
    sys::exit_now(0)
}

/// Returns when the container has ended, or when there is nobody left to have one for.
fn live(channel: &Channel, means: &Means<'_>, entered: rustix::io::Result<()>) -> Result<(), Failure> {
    entered.doing(|| "enter the network".into())?;
    setup::detach()?;
    let Ok(Some((Message::Configure(configuration), descriptors))) = channel.receive() else {
        return Ok(());
    };
    let Configuration { id, spec, streams, runtime_dir, oci_runtime } = *configuration;
    let Some(program) = oci_runtime else {
        return Err(Failure::InvalidSpec { reason: "no OCI runtime".into() });
    };
    means.rights.require(&spec.process.user)?;
    means.profiles.of(&spec.process).map_or(Ok(()), apparmor::require)?;
    means.cgroups.release_devices(DevicePolicy::All).doing(|| "leave the device cgroup".into())?;
    root::make_private()?;
    show_own_processes()?;
    if bundle::shares_names(&spec) {
        sys::new_host_namespace()
            .and_then(|()| rustix::system::setdomainname(spec.domain.as_bytes()))
            .doing(|| "set the domain name".into())?;
    }
    let signals = sys::child_signal_descriptor().doing(|| "watch for children".into())?;
    let folder = Assembly { id: &id, spec: &spec, runtime_dir: &runtime_dir, means }.write(channel)?;
    let runtime = Runtime { program, folder };
    let (first, terminal) = runtime.create(&spec, streams, descriptors)?;
    let shared = SharedGroup::of(first.pid, &spec.group);
    let held =
        means.cgroups.hold_to_devices(first.pid, spec.devices).doing(|| "hold the container to its devices".into());
    held.inspect_err(|_| runtime.delete())?;
    let notices = shared.limit(&spec.group).inspect_err(|_| runtime.delete())?;
    // A caller that has gone wants no notice.
    notices.into_iter().for_each(|notice| drop(channel.send(&Message::Notice(notice), &[])));
    if let Some(terminal) = terminal {
        // A caller that has gone is noticed when it is waited for, here and below.
        let _ = channel.send(&Message::Terminal, &[terminal.as_fd()]);
    }
    let _ = channel.send(&Message::Process, &[first.handle.as_fd()]);
    let _ = channel.send(&Message::Ready, &[]);
    let ended = Watch { channel, signals, first: &first, runtime: &runtime }.until_the_end();
    let (group_peak_bytes, memory_kills) = first.memory.counts();
    runtime.delete();
    shared.remove();
    if let Some(status) = ended? {
        let _ = channel.send(&Message::Ended { status, group_peak_bytes, memory_kills }, &[]);
    }
    Ok(())
}

/// A procfs of the shim's PID namespace, by which the runtime knows itself and its children. Runtimes also join groups of
/// version 2 beside those of version 1, or refuse a machine that has both: they get to see version 1 alone there. Who cannot
/// take the mount away, since it is the host's, covers it.
fn show_own_processes() -> Result<(), Failure> {
    const TMPFS_MAGIC: u32 = 0x0102_1994;
    let proc = mounts::new_filesystem("proc", &[], LOCKED)?;
    open_folder(Path::new("/proc"))
        .and_then(|point| attach(proc.as_fd(), point.as_fd()))
        .doing(|| "mount the shim's /proc".into())?;
    let legacy = open_folder(Path::new("/sys/fs/cgroup")).and_then(|top| fstatfs(&top));
    if legacy.is_ok_and(|top| top.f_type as u32 == TMPFS_MAGIC) {
        let unified = Path::new("/sys/fs/cgroup/unified");
        // Where there is none there is nothing to hide.
        if unmount(unified, UnmountFlags::DETACH) == Err(Errno::INVAL)
            && let Ok(point) = open_folder(unified)
        {
            let empty = tmpfs(Some("0"), 0o555, LOCKED | MountAttrFlags::MOUNT_ATTR_RDONLY)?;
            attach(empty.as_fd(), point.as_fd()).doing(|| "hide version 2 of the control groups".into())?;
        }
    }
    Ok(())
}

fn open_folder(path: &Path) -> rustix::io::Result<OwnedFd> {
    openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// What a bundle is made of.
struct Assembly<'a> {
    id: &'a str,
    spec: &'a SandboxSpec,
    runtime_dir: &'a Path,
    means: &'a Means<'a>,
}

impl Assembly<'_> {
    /// Mounts the root, and everything in it but what the runtime mounts; gives the folder of the bundle, which becomes the
    /// working directory.
    fn write(&self, channel: &Channel) -> Result<PathBuf, Failure> {
        let Self { spec, runtime_dir, means, .. } = *self;
        let mounts::Preparation { mounts: prepared, listeners, .. } =
            mounts::prepare(&spec.mounts, runtime_dir, means.rights, Staging::Attached)?;
        for listener in listeners {
            // A caller that has gone accepts nothing.
            let _ = channel.send(&Message::Listener, &[listener.as_fd()]);
        }
        let folder = self.folder()?;
        let (devices, others) = prepared.into_iter().partition::<Vec<_>, _>(|one| one.target().starts_with("/dev"));
        let root = Root::of(root::mount_root(spec, runtime_dir, means)?);
        root::check(&root)?;
        let mut stubs = Vec::new();
        let furnished = self.furnish(&root, &others, &mut stubs);
        setup::announce(stubs, spec.stubs, channel);
        furnished?;
        launch::make_directory(&root, &spec.process)?;
        let program = launch::find(&root, &spec.process)?;
        let devices = devices.iter().enumerate().map(|(number, device)| place(device, number, &folder));
        let mut devices = devices.collect::<Result<Vec<_>, _>>()?;
        if spec.process.reaper {
            devices.push(place_init(&folder)?);
        }
        let around = Surroundings {
            root: &runtime_dir.join(root::layout::ROOT),
            devices: &devices,
            initialised: spec.process.reaper.then_some(&*program),
            group: self.group(channel)?,
            held: sys::permitted().doing(|| "read capabilities".into())?,
            rights: means.rights,
            profile: means.profiles.of(&spec.process),
            hard_limit: &identity::hard_limit,
        };
        let config = bundle::config(spec, &around)?;
        written(&folder.join(CONFIG), config.to_string().as_bytes())?;
        Ok(folder)
    }

    /// The bundle's folder: in memory, since secrets are in it, and where the kernel can do it never swapped out.
    fn folder(&self) -> Result<PathBuf, Failure> {
        let folder = self.runtime_dir.join(root::layout::BUNDLE);
        let memory = mounts::new_filesystem("tmpfs", &[mounts::FsOption::Flag("noswap")], LOCKED)
            .or_else(|_| tmpfs(None, 0o700, LOCKED))?;
        open_folder(&folder)
            .and_then(|point| attach(memory.as_fd(), point.as_fd()))
            .and_then(|()| rustix::process::chdir(&folder))
            .and_then(|()| rustix::fs::chmod(".", Mode::from_raw_mode(0o700)))
            .doing(|| "make a bundle".into())?;
        Ok(folder)
    }

    /// What lies below `/proc`, `/sys` and `/dev` is the runtime's. That nothing is made there, empty file systems see to, over
    /// which the runtime mounts its own.
    fn furnish(
        &self,
        root: &Root,
        mounts: &[Prepared<'_>],
        stubs: &mut Vec<super::paths::Stub>,
    ) -> Result<(), Failure> {
        for path in ["/proc", "/sys", "/dev"] {
            let point = root.open_or_create(Path::new(path), PointKind::Directory, stubs)?;
            let empty = tmpfs(Some("0"), 0o555, LOCKED | MountAttrFlags::MOUNT_ATTR_RDONLY)?;
            attach(empty.as_fd(), point.as_fd()).doing(|| format!("cover {path}"))?;
        }
        mounts::attach_all(mounts, root, stubs)
    }

    /// Below the shim's own group, or where the caller wants it. Runtimes end when they may not make the group they are told,
    /// and go without where they are told none: an ordinary user's are.
    fn group(&self, channel: &Channel) -> Result<Option<String>, Failure> {
        let own = format!("{GROUP_PREFIX}{}-{}-{}", self.id, self.means.server, self.means.number);
        if !self.means.rights.trusted {
            let wish = Wish { name: own, resources: &self.spec.resources, placement: &self.spec.group };
            for limit in wish.all_limits() {
                let notice = not_enforced(limit, "an OCI runtime without root of the machine makes no control groups");
                // A caller that has gone wants no notice.
                let _ = channel.send(&Message::Notice(notice), &[]);
            }
            return Ok(None);
        }
        let parent = self.spec.group.parent.clone().unwrap_or_default();
        let shared = self.spec.group.shared.as_ref().map(shared_group::name);
        let path = parent.join(shared.unwrap_or_default()).join(own).into_os_string().into_string();
        path.map(Some).map_err(|_| Failure::Unsupported { what: "a cgroup parent that is not UTF-8".into() })
    }
}

/// Puts what belongs below `/dev` where the runtime can bind it from: source and target.
fn place(device: &Prepared<'_>, number: usize, folder: &Path) -> Result<(String, String), Failure> {
    let name = format!("device-{number}");
    device.place(&open_folder(folder).doing(|| "open the bundle".into())?, &name)?;
    let unsupported = || Failure::Unsupported { what: "a path that is not UTF-8 with an OCI runtime".into() };
    let source = folder.join(&name).into_os_string().into_string().map_err(|_| unsupported())?;
    let target = device.target().to_str().ok_or_else(unsupported)?;
    Ok((source, target.to_owned()))
}

/// Puts the init where the runtime can bind it from, as [`place`] does; on memory of its own, from which programs are executed.
fn place_init(folder: &Path) -> Result<(String, String), Failure> {
    let point = folder.join("init");
    let file = point.join("forge-init");
    let memory = tmpfs(Some("64k"), 0o755, MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV)?;
    std::fs::create_dir(&point).map_err(|error| system("make a folder for the init", &error))?;
    open_folder(&point)
        .and_then(|point| attach(memory.as_fd(), point.as_fd()))
        .doing(|| "mount memory for the init".into())?;
    written(&file, &runtime_init::program()?)?;
    rustix::fs::chmod(&file, Mode::from_raw_mode(0o555)).doing(|| "make the init executable".into())?;
    let source = file.into_os_string().into_string();
    let source =
        source.map_err(|_| Failure::Unsupported { what: "a path that is not UTF-8 with an OCI runtime".into() })?;
    Ok((source, runtime_init::PATH.to_owned()))
}

fn written(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    std::fs::write(path, bytes).map_err(|error| system("write the bundle", &error))
}

fn system(action: &str, error: &io::Error) -> Failure {
    let errno = Errno::from_io_error(error).unwrap_or(Errno::IO);
    Failure::System { action: action.into(), errno: errno.raw_os_error() }
}

/// The container's first process.
struct First {
    pid: Pid,
    handle: OwnedFd,
    memory: MemoryGroup,
}

/// The program, and the folder it works in.
struct Runtime {
    program: PathBuf,
    folder: PathBuf,
}

impl Runtime {
    /// Has the container made up to the point where its program could be executed.
    fn create(
        &self,
        spec: &SandboxSpec,
        given: [bool; 3],
        descriptors: Vec<OwnedFd>,
    ) -> Result<(First, Option<OwnedFd>), Failure> {
        let mut words = vec!["create", "--pid-file", PID_FILE];
        let console = match spec.process.terminal {
            true => Some(UnixListener::bind(CONSOLE).map_err(|error| system("make a console socket", &error))?),
            false => None,
        };
        if console.is_some() {
            words.extend(["--console-socket", CONSOLE]);
        }
        words.push(NAME);
        let mut descriptors = descriptors.into_iter();
        let mut stream =
            |given: bool| if given { descriptors.next().map_or(Stdio::null(), Stdio::from) } else { Stdio::null() };
        let [input, output, error] = given.map(&mut stream);
        self.call(&words, [input, output, error]).map_err(|failure| explained(failure, spec))?;
        let terminal = console.map(|console| {
            let (connection, _) = console.accept()?;
            message::receive_descriptor(connection.as_fd())
        });
        let terminal = terminal.transpose().map_err(|error| system("take the terminal over", &error))?;
        Ok((self.first()?, terminal))
    }

    fn first(&self) -> Result<First, Failure> {
        let text = std::fs::read_to_string(self.folder.join(PID_FILE));
        let text = text.map_err(|error| system("read the runtime's pid file", &error))?;
        let pid = text.trim().parse().ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| self.failure("its pid file holds no number".into()))?;
        let handle = pidfd_open(pid, PidfdFlags::empty()).doing(|| "open the container's process".into())?;
        Ok(First { pid, handle, memory: MemoryGroup::of(pid) })
    }

    fn start(&self) -> Result<(), Failure> {
        self.call(&["start", NAME], [Stdio::null(), Stdio::null(), Stdio::null()])
    }

    /// What fails here has no consequence but groups that stay, which the next container removes.
    fn delete(&self) {
        let _ = self.call(&["delete", "--force", NAME], [Stdio::null(), Stdio::null(), Stdio::null()]);
    }

    fn call(&self, words: &[&str], [input, output, error]: [Stdio; 3]) -> Result<(), Failure> {
        let state = self.folder.join(STATE);
        let log = self.folder.join(LOG);
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(state).arg("--log").arg(&log).args(["--log-format", "json"]).args(words);
        command.env_clear().env("PATH", crate::profile::DEFAULT_PATH);
        let status = command.stdin(input).stdout(output).stderr(error).status();
        match status {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => {
                let told = last_error(&std::fs::read_to_string(log).unwrap_or_default());
                Err(self.failure(told.unwrap_or_else(|| format!("it ended with {status} and said nothing"))))
            }
            Err(error) => Err(self.failure(error.to_string())),
        }
    }

    fn failure(&self, message: String) -> Failure {
        Failure::Runtime { runtime: self.program.clone(), message }
    }
}

/// The last error in a log of lines of JSON.
fn last_error(log: &str) -> Option<String> {
    let line = |line: &str| {
        let entry: serde_json::Value = serde_json::from_str(line).ok()?;
        (entry.get("level")? == "error").then(|| entry.get("msg")?.as_str().map(str::to_owned))?
    };
    log.lines().rev().find_map(line)
}

/// Tells a program that cannot be executed from everything else, by the words that both runtimes take from the kernel.
fn explained(failure: Failure, spec: &SandboxSpec) -> Failure {
    let Failure::Runtime { message, .. } = &failure else { return failure };
    let program = spec.process.args.first().cloned().unwrap_or_default();
    let errno = |errno: Errno| Failure::NotExecutable { program: program.clone(), errno: errno.raw_os_error() };
    let executing = message.contains("exec") || message.contains("open executable");
    match message.to_ascii_lowercase() {
        text if executing && text.contains("permission denied") => errno(Errno::ACCESS),
        text if executing && text.contains("exec format error") => errno(Errno::NOEXEC),
        text if executing && text.contains("executable file") && text.contains("not found") => {
            Failure::NotFound { program }
        }
        _ => failure,
    }
}

/// Waits for what happens first.
struct Watch<'a> {
    channel: &'a Channel,
    signals: OwnedFd,
    first: &'a First,
    runtime: &'a Runtime,
}

impl Watch<'_> {
    /// Gives the status of the first process, if it was not killed for want of a caller.
    ///
    /// Liveness: every iteration reads a message or reaps; nothing else blocks but the runtime's `start`.
    fn until_the_end(&self) -> Result<Option<i32>, Failure> {
        let mut listening = true;
        loop {
            let wanted = if listening { PollFlags::IN } else { PollFlags::empty() };
            let mut descriptors = [PollFd::new(self.channel, wanted), PollFd::new(&self.signals, PollFlags::IN)];
            retry_on_intr(|| poll(&mut descriptors, None)).doing(|| "wait for the container".into())?;
            let heard = listening && !descriptors[0].revents().is_empty();
            if !descriptors[1].revents().is_empty() {
                drain(&self.signals);
                if let Some(status) = self.reaped() {
                    return Ok(Some(status));
                }
            }
            match heard.then(|| self.channel.receive()) {
                None => {}
                Some(Ok(Some((Message::Start, _)))) => {
                    self.runtime.start().inspect_err(|_| self.kill())?;
                    let _ = self.channel.send(&Message::Started, &[]);
                }
                // Nobody wants the container any more.
                Some(_) => {
                    self.kill();
                    listening = false;
                }
            }
        }
    }

    fn kill(&self) {
        // It fails only for a process that has ended.
        let _ = pidfd_send_signal(&self.first.handle, Signal::KILL);
    }

    fn reaped(&self) -> Option<i32> {
        let mut status = None;
        while let Ok(Some(ended)) = sys::wait_any(false) {
            if ended.pid == self.first.pid.as_raw_nonzero().get() {
                status = Some(ended.status);
            }
        }
        status
    }
}

fn drain(signals: &OwnedFd) {
    let mut buffer = [0; size_of::<libc::signalfd_siginfo>() * 8];
    while rustix::io::read(signals, &mut buffer).is_ok_and(|count| count == buffer.len()) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_of_a_log_is_what_went_wrong() {
        let log = "{\"level\":\"warning\",\"msg\":\"x\"}\n{\"level\":\"error\",\"msg\":\"first\"}\nnot json\n\
                   {\"msg\":\"second\",\"level\":\"error\",\"time\":\"now\"}\n";
        assert_eq!(last_error(log).as_deref(), Some("second"));
        assert_eq!(last_error(""), None);
    }
}
