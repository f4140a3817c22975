use super::belongings::Belongings;
use super::cgroups::Group;
use super::machine::{Child, Machine};
use super::network::Wire;
use super::{RemoveFolder, join, sys};
use crate::message::{self, Channel, ExitReport, Failure, Maker, Message};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::process::{Signal, pidfd_send_signal};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// How long mounts of containers that have ended are kept for when the next one is asked for.
const UNASKED: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// Serves the caller on standard input until it goes away, then kills every container and exits.
pub(super) fn run(remove: RemoveFolder) -> ! {
    match serve(remove) {
        Ok(()) => sys::exit_now(0),
        Err(_) => sys::exit_now(1),
    }
}

fn serve(remove: RemoveFolder) -> io::Result<()> {
    let control = prepare()?;
    let signals = sys::child_signal_descriptor()?;
    let mut machine = Machine::find()?;
    let notices = machine.cgroups.notices().into_iter().chain(machine.profiles.notices()).collect();
    control.send(&Message::Serving { notices }, &[])?;
    machine.begin_spare();
    let mut children = Vec::new();
    let served = serve_until_the_end(&control, &signals, &mut machine, &mut children);
    // Whoever asks for more hears at once that there will be no answer.
    control.end();
    end_all(children, &mut machine);
    sweep_afterwards(machine.belongings.take(), remove);
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
        let patience = (!machine.ended.is_empty()).then_some(&UNASKED);
        let (request, child_ended) = wait_for_work(control, signals, patience)?;
        if child_ended {
            drain(signals);
            reap(children, machine);
            // The network of the container that has ended is free now.
            machine.expect_next();
        } else if !request {
            machine.ended.clear();
        }
        if request && !answer(control, machine, children)? || machine.finishing && children.is_empty() {
            return Ok(());
        }
    }
}

/// Removes what killed containers left, and what a killed caller left, in a process of its own: the caller, who waits for the end
/// of this one, does not wait for it, and no container shares the processor with it. That process also has the last descriptors of
/// networks and their rules, which the kernel takes up to 15 ms to take apart.
fn sweep_afterwards(belongings: Option<Belongings>, remove: RemoveFolder) {
    // SAFETY: this process never starts a thread.
    if let Ok(None) = unsafe { sys::fork() } {
        // It serves nobody any more, and is not to be taken for one that was forgotten. The next command goes first.
        let _ = rustix::thread::set_name(c"forge-sweep");
        let _ = rustix::process::setpriority_process(None, 19);
        belongings.into_iter().for_each(|belongings| belongings.remove_if_orphaned(remove));
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
    // A caller that was killed listens to nothing, and there is something to do after that.
    sys::survive_broken_pipes();
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

/// Says whether there is a request, and whether a child has ended: neither when `patience` is at its end.
fn wait_for_work(control: &Channel, signals: &OwnedFd, patience: Option<&Timespec>) -> io::Result<(bool, bool)> {
    let mut descriptors = [PollFd::new(control, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
    retry_on_intr(|| poll(&mut descriptors, patience))?;
    Ok((!descriptors[0].revents().is_empty(), !descriptors[1].revents().is_empty()))
}

/// Answers one request; `false` when the caller has gone.
fn answer(control: &Channel, machine: &mut Machine, children: &mut Vec<Child>) -> io::Result<bool> {
    let Some((message, descriptors)) = control.receive()? else {
        return Ok(false);
    };
    match message {
        Message::PrepareNetwork { runtime_dir, begun } => {
            let begun = begun.map(|network| (network, || receive_wire(control)));
            let answer = machine.networks.prepare(&runtime_dir, begun);
            let is_there = answer.is_ok();
            control.send(&Message::Network(answer), &[])?;
            if is_there {
                machine.connect_spare();
            }
        }
        Message::Finish { belongings } => {
            machine.finishing = true;
            machine.belongings = Belongings::of(belongings, descriptors);
            machine.dismiss_spare();
        }
        Message::Spawn(order) => {
            let [channel, exit] = <[OwnedFd; 2]>::try_from(descriptors).map_err(|_| io::ErrorKind::InvalidData)?;
            let is_first = machine.likely.is_none();
            match machine.spawn(&order, &channel, exit) {
                Ok(child) => children.push(child),
                Err(failure) => refuse(channel, failure),
            }
            // The container's first process has enough to do by now, and the caller waits for it. Who had a second container
            // made will want a third.
            machine.ended.clear();
            // The first one compiled it for itself while it waited; all others inherit it.
            crate::seccomp::compile_common();
            if !is_first && machine.likely.is_some() {
                machine.begin_spare();
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

/// The network that the caller has made. What goes wrong with the conversation shows with the next message.
fn receive_wire(control: &Channel) -> Option<Wire> {
    match control.receive() {
        Ok(Some((Message::Wire(Some(address)), descriptors))) => {
            Some(Wire { namespace: descriptors.into_iter().next()?, address })
        }
        _ => None,
    }
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
