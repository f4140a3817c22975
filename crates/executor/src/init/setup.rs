use super::apparmor::{self, Profiles};
use super::cgroups::{self, Cgroups, GROUP_PREFIX, Limits, Wish};
use super::devices::{self, Devices, SystemMounts};
use super::early::Early;
use super::launch::{Program, enter_directory};
use super::mounts::{self, Masks, Staging};
use super::paths::{Root, Stub};
use super::rights::Rights;
use super::room::Room;
use super::root;
use super::{identity, reaper, sys};
use crate::message::{Channel, Configuration, Doing, Failure, Message};
use crate::{NetworkMode, ProcessSpec, Resources, SandboxSpec, StubRemoval};
use rustix::fs::{FileType, Gid, Mode, OFlags, Uid, fchown, fstat, open};
use rustix::mount::MountAttrFlags;
use rustix::process::{Signal, set_parent_process_death_signal, setsid};

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::panic::AssertUnwindSafe;
use std::path::Path;

/// What the server found out about this machine.
#[derive(Clone, Copy)]
pub(super) struct Means<'a> {
    pub(super) cgroups: &'a Cgroups,
    pub(super) rights: &'a Rights,
    pub(super) profiles: &'a Profiles,
    /// One that no other living container of the server has.
    pub(super) number: u64,
    /// The process number of the server.
    pub(super) server: u32,
}

/// The life of a container's init, from the clone to the execution of the payload. `control` is where the server speaks.
pub(super) fn run(control: BorrowedFd<'_>, means: &Means<'_>) -> ! {
    // Unwinding would end in the server's loop, of which this process is a copy.
    let _ = std::panic::catch_unwind(AssertUnwindSafe(|| wait_and_live(isolate(control).ok()?, means)));
    sys::exit_now(125)
}

/// Makes ready what every container needs, then waits for one; returns as [`live`] does.
fn wait_and_live(control: Channel, means: &Means<'_>) -> Option<()> {
    let mut ground = Ground::prepare(means);
    let channel = loop {
        let (message, descriptors) = control.receive().ok()??;
        match message {
            Message::Enter => ground = ground.and_then(|ground| ground.enter(descriptors.first())),
            Message::Begin => break Channel::new(descriptors.into_iter().next()?),
            _ => return None,
        }
    };
    if let Err(failure) = ground.and_then(|ground| live(&channel, control, means, ground)) {
        // Without a listener there is nobody to tell.
        let _ = channel.send(&Message::Failed(failure), &[]);
    }
    Some(())
}

/// What an init has before it knows anything of its container.
struct Ground {
    /// `None` where nothing can be mounted.
    room: Option<Room>,
    early: Early,
}

impl Ground {
    fn prepare(means: &Means<'_>) -> Result<Self, Failure> {
        detach()?;
        if !means.rights.mounts {
            return Ok(Self { room: None, early: Early::default() });
        }
        let room = Room::make()?;
        let early = Early::make(means.rights);
        // The first one has time for it while it waits; later ones inherit it.
        crate::seccomp::compile_common();
        Ok(Self { room: Some(room), early })
    }

    /// Enters a network, or makes an empty one.
    fn enter(mut self, network: Option<&OwnedFd>) -> Result<Self, Failure> {
        match network {
            Some(network) => sys::enter_network(network.as_fd()),
            None => sys::new_network_namespace(),
        }
        .doing(|| "enter the network".into())?;
        if self.room.is_some() {
            self.early.show_network();
        }
        Ok(self)
    }
}

/// Returns only if something fails, or when the caller goes away before it says `Start`.
fn live(channel: &Channel, control: Channel, means: &Means<'_>, ground: Ground) -> Result<(), Failure> {
    let Ok(Some((Message::Configure(configuration), descriptors))) = channel.receive() else {
        return Ok(());
    };
    let Configuration { id, spec, streams, runtime_dir, .. } = *configuration;
    means.rights.require(&spec.process.user)?;
    confine(&id, &spec, means, channel)?;
    let mut container = Container::build(&spec, &runtime_dir, means, (channel, control), ground)?;
    let streams = Streams::arrange(&spec.process, || container.terminal(), streams, descriptors, channel)?;
    let program = Program::new(&spec.process)?;
    if channel.send(&Message::Ready, &[]).is_err() || !matches!(channel.receive(), Ok(Some((Message::Start, _)))) {
        return Ok(());
    }
    streams.install(spec.process.user.uid)?;
    enter_directory(&container.root, &spec.process)?;
    container.set_score(&spec.process)?;
    identity::limit(&spec.process)?;
    identity::become_user(&spec, means.rights)?;
    let stays = spec.process.reaper || !means.rights.mounts;
    if let Some(profile) = means.profiles.of(&spec.process) {
        container.enter_profile(profile, stays)?;
    }
    sys::close_on_exec_from(3).doing(|| "mark descriptors".into())?;
    if stays {
        reaper::stay_behind().doing(|| "start the container's init".into())?;
    }
    Err(program.execute())
}

/// Closes what the server had open, but the channel.
pub(super) fn isolate(channel: BorrowedFd<'_>) -> rustix::io::Result<Channel> {
    sys::keep_only(channel).map(Channel::new)
}

/// Leaves the server's session, keyring and signal settings.
pub(super) fn detach() -> Result<(), Failure> {
    set_parent_process_death_signal(Some(Signal::KILL)).doing(|| "set the parent-death signal".into())?;
    setsid().doing(|| "start a session".into())?;
    sys::reset_signals();
    sys::new_session_keyring().doing(|| "join a new session keyring".into())
}

/// Settles the container in its cgroups, and hides all others from it.
fn confine(id: &str, spec: &SandboxSpec, means: &Means<'_>, channel: &Channel) -> Result<(), Failure> {
    let cgroups = means.cgroups;
    let released = cgroups.release_devices(spec.devices);
    released.doing(|| "leave the device cgroup".into())?;
    // Two forge processes may use the same id; their containers' first processes have different numbers outside.
    let outside = sys::pid_outside().doing(|| "find the own process".into())?;
    let wish = Wish {
        name: format!("{GROUP_PREFIX}{id}-{outside}"),
        resources: &group_limits(&spec.resources),
        placement: &spec.group,
    };
    let Limits { groups, notices } = cgroups::limit(&wish, cgroups)?;
    if !groups.is_empty() || !notices.is_empty() {
        // A caller that has gone is noticed at the next message; the groups are then removed by the next container.
        let _ = channel.send(&Message::Confined { groups, notices }, &[]);
    }
    match means.rights.mounts && !spec.shared.cgroup {
        true => sys::new_cgroup_namespace().doing(|| "make a cgroup namespace".into()),
        false => Ok(()),
    }
}

/// The limits that need a control group.
pub(super) fn group_limits(resources: &Resources) -> Resources {
    Resources { pids: resources.pids.filter(|&count| !namespace_bounds(count)), ..resources.clone() }
}

/// Whether `pid_max` of a PID namespace of its own, which Linux has since 6.14, can stand in for a task limit.
fn namespace_bounds(count: u32) -> bool {
    let version = rustix::system::uname();
    let release = version.release().to_string_lossy();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse::<u32>().ok());
    let kernel = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    // On an older kernel the file is the whole machine's. Below some hundreds the kernel refuses the value.
    kernel >= (6, 14) && count >= 1024
}

/// The mounts of a container, once it has been entered.
struct Container {
    root: Root,
    furnishing: Furnishing,
}

/// What there is below `/dev` and `/proc`.
enum Furnishing {
    Own {
        devices: Devices,
        system: SystemMounts,
    },
    /// A changed root has been furnished before; a terminal is one of those outside of it.
    Before {
        terminal: Option<(OwnedFd, OwnedFd)>,
    },
}

impl Container {
    fn build(
        spec: &SandboxSpec,
        runtime: &Path,
        means: &Means<'_>,
        (channel, control): (&Channel, Channel),
        ground: Ground,
    ) -> Result<Self, Failure> {
        let Ground { room: Some(room), mut early } = ground else {
            let terminal = spec.process.terminal.then(devices::outer_terminal).transpose()?;
            return Ok(Self { root: root::change(spec)?, furnishing: Furnishing::Before { terminal } });
        };
        let staging = staging(means.rights)?;
        // While the host's tree is still in sight.
        let mounts::Preparation { mounts: prepared, listeners, staging } =
            mounts::prepare(&spec.mounts, runtime, means.rights, staging)?;
        for listener in listeners {
            // A caller that has gone accepts nothing.
            let _ = channel.send(&Message::Listener, &[listener.as_fd()]);
        }
        let tasks = spec.resources.pids.filter(|&count| namespace_bounds(count));
        let system = SystemMounts::prepare(spec, tasks, means.rights, &mut early)?;
        for notice in &system.notices {
            // A caller that has gone wants no notice.
            let _ = channel.send(&Message::Notice((*notice).to_owned()), &[]);
        }
        let tree = root::tree(spec, runtime, means)?;
        room.enter_with(tree.as_fd(), staging.as_ref().map(AsFd::as_fd))?;
        let root = Root::current()?;
        root::check(&root)?;
        let mut stubs = Vec::new();
        let devices = Self::furnish(spec, &root, (&system, &mut early), &prepared, &mut stubs);
        if stubs.is_empty() {
            // Not received, only kept: see [`super::waiting::Waiting`]. What was made to be mounted upon is found by its name
            // afterwards, for which nothing may be mounted there any more.
            let _ = control.send(&Message::Room, &[room.namespace()]);
        }
        // Also when something failed: what has been made must be removed.
        announce(stubs, spec.stubs, channel);
        let devices = devices?;
        name_host(spec)?;
        if spec.readonly_root {
            let change =
                sys::MountChange { set: u64::from(MountAttrFlags::MOUNT_ATTR_RDONLY.bits()), ..Default::default() };
            sys::mount_setattr(tree.as_fd(), change).doing(|| "make the root read-only".into())?;
        }
        Ok(Self { root, furnishing: Furnishing::Own { devices, system } })
    }

    /// The controlling and the process side of a terminal.
    fn terminal(&mut self) -> Result<(OwnedFd, OwnedFd), Failure> {
        match &mut self.furnishing {
            Furnishing::Own { devices, .. } => devices.terminal(),
            Furnishing::Before { terminal } => {
                let none = || Failure::Unsupported { what: "a second terminal".into() };
                terminal.take().ok_or_else(none)
            }
        }
    }

    /// Tells the kernel how readily it may kill the process for want of memory.
    fn set_score(&self, process: &ProcessSpec) -> Result<(), Failure> {
        let Some(score) = process.oom_score else { return Ok(()) };
        match &self.furnishing {
            Furnishing::Own { system, .. } => system.write("self/oom_score_adj", &score.to_string()),
            Furnishing::Before { .. } => {
                Err(Failure::Unsupported { what: "a score of processes (--oom-score-adj) in a changed root".into() })
            }
        }
    }

    /// Has AppArmor confine this process, or the program alone.
    fn enter_profile(&self, profile: &str, at_once: bool) -> Result<(), Failure> {
        match &self.furnishing {
            Furnishing::Own { system, .. } => {
                apparmor::enter(profile, at_once, |file, text| system.write(Path::new("self").join(file), text))
            }
            Furnishing::Before { .. } => {
                Err(Failure::Unsupported { what: "an AppArmor profile in a changed root".into() })
            }
        }
    }

    fn furnish(
        spec: &SandboxSpec,
        root: &Root,
        (system, early): (&SystemMounts, &mut Early),
        prepared: &[mounts::Prepared<'_>],
        stubs: &mut Vec<Stub>,
    ) -> Result<Devices, Failure> {
        system.mount_proc(root, stubs)?;
        let devices = Devices::mount(spec, root, system, early, stubs)?;
        system.mount_sys(root, stubs)?;
        mounts::attach_all(prepared, root, stubs)?;
        for path in &spec.readonly_paths {
            mounts::make_readonly(root, path)?;
        }
        let mut masks = Masks::new(root, devices.null.as_fd());
        for path in &spec.masked_paths {
            masks.add(path)?;
        }
        Ok(devices)
    }
}

/// Where generated files go. Where they have to be attached, this process takes a copy of the host's mounts to do so.
fn staging(rights: &Rights) -> Result<Staging, Failure> {
    if rights.detached {
        return Ok(Staging::Detached);
    }
    sys::new_mount_namespace().doing(|| "make a mount namespace".into())?;
    root::make_private()?;
    Ok(Staging::Attached)
}

pub(super) fn announce(stubs: Vec<Stub>, removal: StubRemoval, channel: &Channel) {
    for stub in stubs.into_iter().filter(|stub| stub.is_point || removal == StubRemoval::WithParents) {
        // A caller that has gone cleans nothing up.
        let _ = channel.send(&Message::Stub(stub.record), &[stub.parent.as_fd()]);
    }
}

fn name_host(spec: &SandboxSpec) -> Result<(), Failure> {
    if !spec.hostname.is_empty() && !spec.shared.uts {
        rustix::system::sethostname(spec.hostname.as_bytes()).doing(|| "set the host name".into())?;
    }
    if !spec.domain.is_empty() && !spec.shared.uts {
        rustix::system::setdomainname(spec.domain.as_bytes()).doing(|| "set the domain name".into())?;
    }
    match spec.network {
        // A private one was made ready before.
        NetworkMode::Host | NetworkMode::Private => Ok(()),
        NetworkMode::None => sys::loopback_up().doing(|| "switch loopback on".into()),
    }
}

/// What becomes descriptors 0, 1 and 2.
pub(super) enum Streams {
    Separate([OwnedFd; 3]),
    Terminal(OwnedFd),
}

impl Streams {
    /// Takes what is given; `terminal` is asked for one where the process is to have it.
    pub(super) fn arrange(
        process: &ProcessSpec,
        terminal: impl FnOnce() -> Result<(OwnedFd, OwnedFd), Failure>,
        given: [bool; 3],
        descriptors: Vec<OwnedFd>,
        channel: &Channel,
    ) -> Result<Self, Failure> {
        if process.terminal {
            let (controlling, side) = terminal()?;
            // A caller that has gone is noticed at the next message.
            let _ = channel.send(&Message::Terminal, &[controlling.as_fd()]);
            return Ok(Self::Terminal(side));
        }
        let mut descriptors = descriptors.into_iter();
        let mut stream = |given: bool| match descriptors.next_if(given) {
            Some(descriptor) => Ok(descriptor),
            None => open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).doing(|| "open /dev/null".into()),
        };
        let [input, output, error] = given;
        Ok(Self::Separate([stream(input)?, stream(output)?, stream(error)?]))
    }

    /// Puts them in place, owned by the user, who may want to open `/dev/stdout` anew.
    pub(super) fn install(&self, uid: u32) -> Result<(), Failure> {
        let chosen = match self {
            Self::Separate(streams) => streams.each_ref(),
            Self::Terminal(side) => {
                devices::adopt_terminal(side, uid)?;
                [side; 3]
            }
        };
        for (stream, number) in chosen.into_iter().zip(0..) {
            if uid != 0 {
                give_pipe(stream, uid);
            }
            sys::replace_standard_stream(stream.as_fd(), number)
                .doing(|| format!("set up descriptor {}", stream.as_raw_fd()))?;
        }
        Ok(())
    }
}

/// Makes a pipe or socket the user's. Files and devices of the host keep their owner.
fn give_pipe(stream: &OwnedFd, uid: u32) {
    let anonymous = |mode| matches!(FileType::from_raw_mode(mode), FileType::Fifo | FileType::Socket);
    if fstat(stream).is_ok_and(|stat| anonymous(stat.st_mode)) {
        // A pipe the user cannot reopen still works.
        let _ = fchown(stream, Some(Uid::from_raw(uid)), None::<Gid>);
    }
}

/// `Iterator::next`, if it is wanted.
trait NextIf: Iterator {
    fn next_if(&mut self, wanted: bool) -> Option<Self::Item> {
        if wanted { self.next() } else { None }
    }
}

impl<I: Iterator> NextIf for I {}
