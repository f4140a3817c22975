use super::cgroups::{Cgroups, GROUP_PREFIX, Group, Wish};
use super::network::{Networks, PrivateNetwork};
use super::rights::Rights;
use super::setup::Means;
use super::waiting::Waiting;
use super::{join, setup, shim, sys};
use crate::message::{self, Channel, Doing, ExitReport, Failure, Maker, Message, Order};
use crate::{DevicePolicy, GroupPlacement, NetworkMode, Resources, SharedNamespaces};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::retry_on_intr;
use rustix::process::{Signal, pidfd_send_signal};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// Namespaces every container is cloned into; an init makes its mount namespace itself.
const NAMESPACES: u64 = (libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS) as u64;

const TIME_NAMESPACE: u64 = libc::CLONE_NEWTIME as u64;

/// Those that a shim gets; an OCI runtime makes the others.
const OF_SHIMS: u64 = (libc::CLONE_NEWNS | libc::CLONE_NEWPID) as u64;

/// A container whose end has to be reported.
struct Child {
    pid: i32,
    pidfd: OwnedFd,
    maker: Maker,
    /// The caller reads the status from the other end; closing it unwritten says that the server died.
    exit: OwnedFd,
    group: Option<Group>,
    /// Its private network, and whether the next container may have it.
    network: Option<(PrivateNetwork, bool)>,
    /// What keeps the mounts of an init.
    control: Option<Channel>,
}

/// What the server works with.
struct Machine {
    namespaces: u64,
    rights: Rights,
    cgroups: Cgroups,
    networks: Networks,
    /// The caller wants no more containers.
    finishing: bool,
    /// What will be the next container.
    spare: Option<Waiting>,
    /// The network of the last container, if a spare would have done for it.
    likely: Option<NetworkMode>,
    /// What keeps the mounts of containers that have ended.
    ended: Vec<Channel>,
}

/// Serves the caller on standard input until it goes away, then kills every container and exits.
pub(super) fn run() -> ! {
    match serve() {
        Ok(()) => sys::exit_now(0),
        Err(_) => sys::exit_now(1),
    }
}

fn serve() -> io::Result<()> {
    let control = prepare()?;
    let signals = sys::child_signal_descriptor()?;
    let rights = Rights::find();
    let namespaces = match rights.mounts {
        true => NAMESPACES | time_namespace(),
        false => {
            // What containers leave behind is to be found.
            rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
            0
        }
    };
    let cgroups = Cgroups::establish(&rights);
    let notices = cgroups.notices();
    let networks = Networks::new(rights.trusted);
    let mut machine = Machine {
        namespaces,
        rights,
        cgroups,
        networks,
        finishing: false,
        spare: None,
        likely: None,
        ended: Vec::new(),
    };
    control.send(&Message::Serving { notices }, &[])?;
    machine.begin_spare(None);
    crate::seccomp::compile_common();
    let mut children = Vec::new();
    let served = serve_until_the_end(&control, &signals, &mut machine, &mut children);
    // Whoever asks for more hears at once that there will be no answer.
    control.end();
    end_all(children, &mut machine);
    sweep_afterwards();
    served
}

/// Liveness: every iteration answers one request or reaps; nothing else in the loop blocks.
fn serve_until_the_end(
    control: &Channel,
    signals: &OwnedFd,
    machine: &mut Machine,
    children: &mut Vec<Child>,
) -> io::Result<()> {
    loop {
        let (request, child_ended) = wait_for_work(control, signals)?;
        if child_ended {
            drain(signals);
            reap(children, machine);
            // Beside what the caller does with the result; what takes time for nobody's sake comes last.
            if let Some(network) = machine.likely {
                machine.begin_spare(Some(network));
            }
            machine.ended.clear();
        }
        if request && !answer(control, machine, children)? || machine.finishing && children.is_empty() {
            return Ok(());
        }
    }
}

/// Removes what killed containers left, in a process of its own: the caller, who waits for the end of this one, does not wait
/// for it, and no container shares the processor with it.
fn sweep_afterwards() {
    // SAFETY: this process never starts a thread.
    if let Ok(None) = unsafe { sys::fork() } {
        crate::left_over::sweep();
        sys::exit_now(0);
    }
}

/// Detaches from whoever started us: no terminal, no stray descriptors, no ignored signals.
fn prepare() -> io::Result<Channel> {
    // SAFETY: this is the beginning of the process's work; standard input is the socket and nobody else's.
    let input = unsafe { sys::take_standard_input() };
    let control = rustix::io::fcntl_dupfd_cloexec(&input, 3)?;
    let null = rustix::fs::open(
        "/dev/null",
        rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    for stream in 0..=2 {
        sys::replace_standard_stream(null.as_fd(), stream)?;
    }
    // Descriptor 0 stays open for the life of the process; it is /dev/null now.
    std::mem::forget(input);
    drop(null);
    let control = place_at_three(control)?;
    rustix::process::chdir("/")?;
    sys::reset_signals();
    // Modes given to files and nodes are meant exactly; the payload gets a mask of its own.
    rustix::process::umask(rustix::fs::Mode::empty());
    // Ctrl-C in a terminal must reach forge, which then ends its containers in order, and not this process.
    rustix::process::setsid()?;
    let name = std::ffi::CString::new(super::SERVER_COMM).map_err(|_| io::ErrorKind::InvalidInput)?;
    rustix::thread::set_name(&name)?;
    Ok(Channel::new(control))
}

/// Leaves descriptor 3 as the only one above the standard streams: what a careless parent left open is closed.
fn place_at_three(control: OwnedFd) -> io::Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    if control.as_raw_fd() == 3 {
        // SAFETY: nothing above 3 is owned by any object of this process yet.
        unsafe { sys::close_from(4)? };
        return Ok(control);
    }
    // SAFETY: whatever has number 3 was inherited and is owned by no object of this process.
    unsafe { sys::close_only(3) };
    let moved = rustix::io::fcntl_dupfd_cloexec(&control, 3)?;
    drop(control);
    // SAFETY: as above.
    unsafe { sys::close_from(4)? };
    Ok(moved)
}

/// A time namespace, where the kernel has them. The cgroup namespace waits until the container is in its cgroup.
fn time_namespace() -> u64 {
    match std::path::Path::new("/proc/self/ns/time").exists() {
        true => TIME_NAMESPACE,
        false => 0,
    }
}

fn wait_for_work(control: &Channel, signals: &OwnedFd) -> io::Result<(bool, bool)> {
    let mut descriptors = [PollFd::new(control, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
    retry_on_intr(|| poll(&mut descriptors, None))?;
    Ok((!descriptors[0].revents().is_empty(), !descriptors[1].revents().is_empty()))
}

/// Answers one request; `false` when the caller has gone.
fn answer(control: &Channel, machine: &mut Machine, children: &mut Vec<Child>) -> io::Result<bool> {
    let Some((message, descriptors)) = control.receive()? else {
        return Ok(false);
    };
    match message {
        Message::PrepareNetwork { runtime_dir } => {
            let answer = machine.networks.prepare(&runtime_dir);
            let is_there = answer.is_ok();
            control.send(&Message::Network(answer), &[])?;
            if is_there {
                machine.connect_spare();
            }
        }
        Message::Finish => {
            machine.finishing = true;
            machine.dismiss_spare();
        }
        Message::Spawn(order) => {
            let [channel, exit] = <[OwnedFd; 2]>::try_from(descriptors).map_err(|_| io::ErrorKind::InvalidData)?;
            match spawn(&order, machine, &channel, exit) {
                Ok(child) => children.push(child),
                Err(failure) => refuse(channel, failure),
            }
        }
        Message::Join => {
            let [channel, exit, first] =
                <[OwnedFd; 3]>::try_from(descriptors).map_err(|_| io::ErrorKind::InvalidData)?;
            match join::spawn(first.as_fd(), channel.as_fd(), &machine.rights) {
                Ok((pid, pidfd)) => {
                    let spawned = Message::Spawned { address: None, notices: Vec::new() };
                    // A caller that has given it up is no reason to end the others.
                    let _ = message::send(channel.as_fd(), &spawned, &[pidfd.as_fd()]);
                    children.push(Child {
                        pid,
                        pidfd,
                        maker: Maker::Init,
                        exit,
                        group: None,
                        network: None,
                        control: None,
                    });
                }
                Err(failure) => refuse(channel, failure),
            }
        }
        _ => return Err(io::ErrorKind::InvalidData.into()),
    }
    Ok(true)
}

/// Clones what becomes, or makes, a container.
fn spawn(order: &Order, machine: &mut Machine, channel: &OwnedFd, exit: OwnedFd) -> Result<Child, Failure> {
    let mut notices = Vec::new();
    let child = match order.maker {
        Maker::Init => machine.init(order, channel, exit, &mut notices)?,
        Maker::Shim => machine.shim(order, channel, exit, &mut notices)?,
    };
    let network = child.network.as_ref().map(|(network, _)| network);
    let apart = network.filter(|network| !network.is_routed()).map(PrivateNetwork::namespace);
    let descriptors: Vec<_> = std::iter::once(child.pidfd.as_fd()).chain(apart).collect();
    let spawned = Message::Spawned { address: network.map(|network| network.address), notices };
    // A caller that has given this container up is no reason to end the others.
    let _ = message::send(channel.as_fd(), &spawned, &descriptors);
    Ok(child)
}

impl Machine {
    /// The first process of a container: the one that waits for it, if that is as it has to be, or a new one.
    fn init(
        &mut self,
        order: &Order,
        channel: &OwnedFd,
        exit: OwnedFd,
        notices: &mut Vec<String>,
    ) -> Result<Child, Failure> {
        let plain = is_plain(order);
        self.likely = plain.then_some(order.network);
        let fits = |spare: &mut Waiting| plain && (spare.network.is_none() || order.network == NetworkMode::Private);
        let spare = self.spare.take_if(fits);
        let connected = spare.as_ref().is_some_and(|spare| spare.network.is_some());
        let network = if connected { None } else { self.network(order.network)? };
        let mut init = match spare {
            Some(spare) => spare,
            None => self.begin(order, channel_number(channel), notices)?,
        };
        let told = match (network, order.network) {
            (Some(network), _) => init.enter(network),
            (None, NetworkMode::None) => init.isolate(),
            (None, _) => Ok(()),
        };
        if told.and_then(|()| init.begin(channel.as_fd())).is_err() {
            init.dismiss();
            return Err(Failure::Unsupported { what: "a container whose first process ended at once".into() });
        }
        let Waiting { pid, pidfd, group, network, control } = init;
        let network = network.map(|network| (network, !order.owns_network));
        Ok(Child { pid, pidfd, maker: Maker::Init, exit, group, network, control: Some(control) })
    }

    fn begin(&self, order: &Order, number: u64, notices: &mut Vec<String>) -> Result<Waiting, Failure> {
        let group = self.group(order, number, notices)?;
        let namespaces = self.namespaces & !kept(order.shared);
        Waiting::clone(namespaces, group, &self.means(number)).map_err(|error| Failure::System {
            action: "create namespaces".into(),
            errno: error.raw_os_error().unwrap_or(libc::EIO),
        })
    }

    /// Begins the first process of the next container.
    fn begin_spare(&mut self, network: Option<NetworkMode>) {
        if self.spare.is_some() || self.finishing || !self.rights.mounts {
            return;
        }
        // What cannot be had now is told when it is asked for.
        let Ok(group) = self.cgroups.target(DevicePolicy::Standard, None) else { return };
        self.spare = Waiting::clone(self.namespaces, group, &self.means(0)).ok();
        if network == Some(NetworkMode::Private) {
            self.connect_spare();
        }
    }

    /// Has the process that waits enter a private network.
    fn connect_spare(&mut self) {
        let Some(spare) = self.spare.as_mut().filter(|spare| spare.network.is_none()) else { return };
        let Ok(network) = self.networks.take() else { return };
        if spare.enter(network).is_err() {
            self.dismiss_spare();
        }
    }

    fn dismiss_spare(&mut self) {
        if let Some(spare) = self.spare.take() {
            spare.dismiss();
        }
    }

    /// A process that has an OCI runtime make the container.
    fn shim(
        &mut self,
        order: &Order,
        channel: &OwnedFd,
        exit: OwnedFd,
        notices: &mut Vec<String>,
    ) -> Result<Child, Failure> {
        self.likely = None;
        let network = self.network(order.network)?;
        let number = channel_number(channel);
        let group = self.group(order, number, notices)?;
        let means = self.means(number);
        let namespaces = match self.rights.mounts {
            true => OF_SHIMS | self.namespaces & TIME_NAMESPACE,
            false => 0,
        };
        // SAFETY: this process never starts a thread.
        let cloned = unsafe { sys::clone3(namespaces, group.as_ref().map(Group::directory)) };
        match cloned.doing(|| "create namespaces".into())? {
            sys::Cloned::Child => {
                let entered = network.map_or(Ok(()), |network| sys::enter_network(network.namespace()));
                shim::run(channel.as_fd(), &means, entered)
            }
            sys::Cloned::Parent { pid, pidfd } => {
                let network = network.map(|network| (network, !order.owns_network));
                Ok(Child { pid, pidfd, maker: Maker::Shim, exit, group, network, control: None })
            }
        }
    }

    fn means(&self, number: u64) -> Means<'_> {
        Means { cgroups: &self.cgroups, rights: &self.rights, number, server: std::process::id() }
    }

    /// The group to clone into: one with limits, or what the device policy asks for.
    fn group(&self, order: &Order, number: u64, notices: &mut Vec<String>) -> Result<Option<Group>, Failure> {
        let Order { devices, .. } = *order;
        let wish = Wish {
            name: format!("{GROUP_PREFIX}{}-{}-{number}", order.id, std::process::id()),
            resources: &setup::group_limits(&order.resources),
            placement: &order.group,
        };
        self.cgroups.prepare_granted(devices).doing(|| "make a device cgroup".into())?;
        match self.cgroups.limited(devices, &wish, notices)? {
            Some(group) => Ok(Some(group)),
            None => {
                let own = order.own_group.then_some(number);
                self.cgroups.target(devices, own).doing(|| "make a cgroup".into())
            }
        }
    }

    /// A network that was made ready, where one is wanted.
    fn network(&mut self, wanted: NetworkMode) -> Result<Option<PrivateNetwork>, Failure> {
        match wanted {
            NetworkMode::Host => Ok(None),
            NetworkMode::None if !self.rights.mounts => Err(Failure::Unsupported {
                what: "a process without a network, where forge may make no namespaces,".into(),
            }),
            NetworkMode::None => Ok(None),
            NetworkMode::Private => match self.networks.take() {
                Ok(network) => Ok(Some(network)),
                Err(reason) => Err(Failure::Unsupported { what: format!("a private network ({reason})") }),
            },
        }
    }
}

/// Whether the first process can be cloned without knowing the order.
fn is_plain(order: &Order) -> bool {
    order.devices == DevicePolicy::Standard
        && !order.own_group
        && order.shared == SharedNamespaces::default()
        && order.group == GroupPlacement::default()
        && setup::group_limits(&order.resources) == Resources::default()
}

/// The flags for namespaces that are the caller's.
fn kept(shared: SharedNamespaces) -> u64 {
    let flag = |shared: bool, flag: i32| if shared { flag as u64 } else { 0 };
    flag(shared.ipc, libc::CLONE_NEWIPC) | flag(shared.uts, libc::CLONE_NEWUTS)
}

/// A number no other living container of this server has: that of its channel's inode.
fn channel_number(channel: &OwnedFd) -> u64 {
    rustix::fs::fstat(channel).map(|stat| stat.st_ino).unwrap_or_default()
}

fn refuse(channel: OwnedFd, failure: Failure) {
    // A caller that has gone need not be told.
    let _ = message::send(channel.as_fd(), &Message::Failed(failure), &[]);
}

fn drain(signals: &OwnedFd) {
    let mut buffer = [0; size_of::<libc::signalfd_siginfo>() * 8];
    while rustix::io::read(signals, &mut buffer).is_ok_and(|count| count == buffer.len()) {}
}

/// Reports every child that has ended.
fn reap(children: &mut Vec<Child>, machine: &mut Machine) {
    while let Ok(Some(ended)) = sys::wait_any(false) {
        report(children, &ended, machine);
    }
}

fn report(children: &mut Vec<Child>, ended: &sys::Ended, machine: &mut Machine) {
    machine.spare.take_if(|spare| spare.pid == ended.pid);
    let Some(index) = children.iter().position(|child| child.pid == ended.pid) else {
        return;
    };
    let child = children.swap_remove(index);
    if !machine.rights.mounts {
        end_strays(children);
    }
    let (group_peak_bytes, memory_kills) = child.group.as_ref().and_then(Group::memory).unwrap_or_default();
    // Before the caller hears of the end, after which nothing may be left. Mounts of the last container go before that, too:
    // the caller may want to unmount what they are of.
    drop(child.group);
    if !machine.finishing {
        machine.ended.extend(child.control);
    }
    if let Some((network, true)) = child.network {
        machine.networks.give_back(network);
    }
    let report = ExitReport {
        status: ended.status,
        user_us: ended.user_us,
        system_us: ended.system_us,
        peak_bytes: ended.peak_kib * 1024,
        group_peak_bytes,
        memory_kills,
    };
    // A caller that has closed its end no longer wants to know.
    let _ = rustix::io::write(&child.exit, &report.to_bytes());
}

/// Kills what a container left behind where it had no PID namespace: everything that lost its parent became a child of the
/// container's first process, and with the end of that one of this process, whose other children are first processes. What
/// those left behind in turn shows when they are dead.
fn end_strays(children: &[Child]) {
    loop {
        let is_stray = |pid: &i32| children.iter().all(|child| child.pid != *pid);
        let strays: Vec<i32> = own_children().into_iter().filter(is_stray).collect();
        if strays.is_empty() {
            return;
        }
        strays.iter().for_each(|pid| sys::send_signal(*pid, libc::SIGKILL));
        for pid in strays.into_iter().filter_map(rustix::process::Pid::from_raw) {
            // It fails for one that was reaped already.
            let _ = retry_on_intr(|| rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()));
        }
    }
}

/// The processes whose parent is this one.
fn own_children() -> Vec<i32> {
    let own = std::process::id().to_string();
    let child = |entry: std::fs::DirEntry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        // The second field is the command in parentheses and may hold anything, so count from its end.
        let parent = stat.rsplit(") ").next()?.split(' ').nth(1)?;
        (parent == own).then_some(pid)
    };
    std::fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(child).collect()
}

/// The parent-death signal is cleared by set-user-ID programs, so each init is killed by hand.
fn end_all(mut children: Vec<Child>, machine: &mut Machine) {
    machine.dismiss_spare();
    // A shim notices by itself that the caller has gone, and has its runtime clean up.
    for child in children.iter().filter(|child| child.maker == Maker::Init) {
        // It fails only for a child that has ended.
        let _ = pidfd_send_signal(&child.pidfd, Signal::KILL);
    }
    while !children.is_empty() {
        match retry_on_intr(|| sys::wait_any(true)) {
            Ok(Some(ended)) => report(&mut children, &ended, machine),
            _ => return,
        }
    }
}
