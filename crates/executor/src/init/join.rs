//! A further process in a container that runs: cloned into its namespaces and control groups, under the same profile.
//!
//! A process cannot enter a PID namespace itself, only its children do. So a go-between enters all the others, clones what
//! becomes the process as a child of the server's (`CLONE_PARENT`), hands its number over and ends. The server hears of the
//! process's end like of every other one's.

use super::apparmor;
use super::cgroups::find_legacy;
use super::launch::{Program, enter_directory};
use super::paths::Root;
use super::rights::Rights;
use super::setup::{Streams, detach, isolate};
use super::unified::unified_hierarchy;
use super::{devices, identity, sys};
use crate::message::{Channel, Configuration, Doing, Failure, Message};
use crate::set_up_process::channel_pair;
use nix::sched::{CloneFlags, setns};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{CWD, Mode, OFlags, openat, stat};
use rustix::io::{Errno, retry_on_intr};
use rustix::process::{DumpableBehavior, Pid, WaitOptions, set_dumpable_behavior, waitpid};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::panic::AssertUnwindSafe;
use std::path::Path;

/// The namespaces of a process by their names below `/proc/PID/ns`.
const NAMESPACES: [(&str, i32); 7] = [
    ("ipc", libc::CLONE_NEWIPC),
    ("uts", libc::CLONE_NEWUTS),
    ("net", libc::CLONE_NEWNET),
    ("cgroup", libc::CLONE_NEWCGROUP),
    ("time", libc::CLONE_NEWTIME),
    ("pid", libc::CLONE_NEWPID),
    ("mnt", libc::CLONE_NEWNS),
];

/// Clones a process into the container whose first process that is; gives its number and a handle on it.
pub(super) fn spawn(
    first: BorrowedFd<'_>,
    channel: BorrowedFd<'_>,
    rights: &Rights,
) -> Result<(i32, OwnedFd), Failure> {
    if !rights.mounts {
        return Err(Failure::Unsupported { what: "a further process in a changed root".into() });
    }
    let (ours, theirs) = channel_pair().map_err(|_| Errno::MFILE).doing(|| "make a socket".into())?;
    // SAFETY: this process never starts a thread.
    match unsafe { sys::fork() }.doing(|| "start a process".into())? {
        None => go_between(first, channel, &Channel::new(theirs), rights),
        Some(between) => {
            drop(theirs);
            let answer = Channel::new(ours).receive();
            if let Some(between) = Pid::from_raw(between) {
                // It fails for one that was reaped already.
                let _ = retry_on_intr(|| waitpid(Some(between), WaitOptions::empty()));
            }
            match answer {
                Ok(Some((Message::Joined { process }, mut handles))) if handles.len() == 1 => {
                    Ok((process, handles.remove(0)))
                }
                Ok(Some((Message::Failed(failure), _))) => Err(failure),
                _ => Err(Errno::SRCH).doing(|| "join a container".into()),
            }
        }
    }
}

fn go_between(first: BorrowedFd<'_>, channel: BorrowedFd<'_>, server: &Channel, rights: &Rights) -> ! {
    // Unwinding would end in the server's loop, of which this process is a copy.
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| {
        let cloned = enter(first).and_then(|()| {
            // SAFETY: this process, a copy of one that never starts a thread, has one.
            unsafe { sys::clone3(libc::CLONE_PARENT as u64, None) }.doing(|| "start a process in a container".into())
        });
        match cloned {
            Ok(sys::Cloned::Child) => run(channel, rights),
            // A server that has gone takes the container with it.
            Ok(sys::Cloned::Parent { pid, pidfd }) => server.send(&Message::Joined { process: pid }, &[pidfd.as_fd()]),
            Err(failure) => server.send(&Message::Failed(failure), &[]),
        }
    }));
    sys::exit_now(i32::from(outcome.is_err()))
}

/// Moves this process into the groups and namespaces of another one.
fn enter(first: BorrowedFd<'_>) -> Result<(), Failure> {
    let doing = || "join a container".into();
    let number = process_of(first).doing(doing)?;
    let groups = foreign_groups(number).doing(|| "find the control groups of a container".into())?;
    let namespaces = foreign_namespaces(number).doing(|| "find the namespaces of a container".into())?;
    let profile = apparmor::confinement_of(number);
    // Whoever still lives had that number all the time.
    if has_ended(first).doing(doing)? {
        return Err(Errno::SRCH).doing(doing);
    }
    // Inherited by what this process clones, and in force when that executes its program.
    if let Some(profile) = profile {
        apparmor::enter(&profile, false, |file, text| {
            openat(CWD, Path::new("/proc/self").join(file), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
                .and_then(|file| rustix::io::write(&file, text.as_bytes()))
                .map(drop)
                .doing(|| format!("enter AppArmor's profile {profile}"))
        })?;
    }
    for group in groups {
        rustix::io::write(&group, b"0").doing(|| "join the control groups of a container".into())?;
    }
    // What runs in the container already must not look into what comes (ptrace(2)); executing a program ends that.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).doing(doing)?;
    setns(first, namespaces).map_err(|errno| Errno::from_raw_os_error(errno as i32)).doing(doing)
}

fn has_ended(process: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    let mut waiting = [PollFd::from_borrowed_fd(process, PollFlags::IN)];
    Ok(poll(&mut waiting, Some(&rustix::event::Timespec::default()))? > 0)
}

/// The number of a process by its handle, in the procfs that is in sight.
fn process_of(handle: BorrowedFd<'_>) -> rustix::io::Result<i32> {
    let path = format!("/proc/self/fdinfo/{}", handle.as_raw_fd());
    let text = std::fs::read_to_string(path).map_err(|_| Errno::SRCH)?;
    let number = text.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok());
    number.filter(|number| *number > 0).ok_or(Errno::SRCH)
}

/// The namespaces in which another process is and this one is not.
fn foreign_namespaces(number: i32) -> rustix::io::Result<CloneFlags> {
    let mut foreign = CloneFlags::empty();
    for (name, flag) in NAMESPACES {
        let of = |process: &str| stat(format!("/proc/{process}/ns/{name}")).map(|stat| (stat.st_dev, stat.st_ino));
        let theirs = match of(&number.to_string()) {
            // A kernel without them.
            Err(Errno::NOENT) if of("self").is_err() => continue,
            other => other?,
        };
        if of("self")? != theirs {
            foreign |= CloneFlags::from_bits_retain(flag);
        }
    }
    Ok(foreign)
}

/// The lists of processes of the groups in which another process is and this one is not, of each hierarchy.
fn foreign_groups(number: i32) -> rustix::io::Result<Vec<OwnedFd>> {
    let read = |path: &str| std::fs::read_to_string(path).map_err(|_| Errno::SRCH);
    let theirs = read(&format!("/proc/{number}/cgroup"))?;
    let (own, mounts) = (read("/proc/self/cgroup")?, read("/proc/self/mountinfo")?);
    let mut groups = Vec::new();
    for line in theirs.lines().filter(|line| !own.lines().any(|own| own == *line)) {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let list = match controllers.split(',').next() {
            None | Some("") => {
                let below = Path::new(".").join(path.trim_start_matches('/')).join("cgroup.procs");
                openat(unified_hierarchy()?, below, flags, Mode::empty())?
            }
            Some(controller) => {
                let (_, group) = find_legacy(&mounts, &theirs, controller).ok_or(Errno::NOENT)?;
                openat(CWD, group.join("cgroup.procs"), flags, Mode::empty())?
            }
        };
        groups.push(list);
    }
    Ok(groups)
}

/// The life of the process, from the clone to the execution of its program.
fn run(channel: BorrowedFd<'_>, rights: &Rights) -> ! {
    let channel = isolate(channel);
    if let Ok(channel) = &channel
        && let Ok(Err(failure)) = std::panic::catch_unwind(AssertUnwindSafe(|| live(channel, rights)))
    {
        // Without a listener there is nobody to tell.
        let _ = channel.send(&Message::Failed(failure), &[]);
    }
    sys::exit_now(125)
}

/// Returns only if something fails, or when the caller goes away before it says `Start`.
fn live(channel: &Channel, rights: &Rights) -> Result<(), Failure> {
    detach()?;
    let Ok(Some((Message::Configure(configuration), descriptors))) = channel.receive() else {
        return Ok(());
    };
    let Configuration { spec, streams, .. } = *configuration;
    rights.require(&spec.process.user)?;
    let root = Root::current()?;
    let terminal = || devices::inner_terminal(&root);
    let streams = Streams::arrange(&spec.process, terminal, streams, descriptors, channel)?;
    let program = Program::new(&spec.process)?;
    if channel.send(&Message::Ready, &[]).is_err() || !matches!(channel.receive(), Ok(Some((Message::Start, _)))) {
        return Ok(());
    }
    streams.install(spec.process.user.uid)?;
    enter_directory(&root, &spec.process)?;
    identity::limit(&spec.process)?;
    identity::become_user(&spec, rights)?;
    sys::close_on_exec_from(3).doing(|| "mark descriptors".into())?;
    Err(program.execute())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{PidfdFlags, getpid, pidfd_open};

    #[test]
    fn a_process_shares_all_with_itself() {
        let handle = pidfd_open(getpid(), PidfdFlags::empty()).expect("a handle on this process");
        let number = process_of(handle.as_fd()).expect("its number");
        assert_eq!(number, getpid().as_raw_nonzero().get());
        assert!(!has_ended(handle.as_fd()).expect("it lives"));
        assert!(foreign_groups(number).expect("groups").is_empty());
        assert!(foreign_namespaces(number).expect("namespaces").is_empty());
    }
}
