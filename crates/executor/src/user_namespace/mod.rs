//! The way of an ordinary user into a namespace where they are root.

mod footing;
mod ranges;
mod refusal;

pub use footing::{Footing, find_footing, stands_as_root};

use crate::ExecutorError;
use crate::init::sys;
use ranges::Account;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};

/// Longer than any look-up of names over a network that newuidmap(1) may do.
const HELPERS_TAKE: Timespec = Timespec { tv_sec: 30, tv_nsec: 0 };

/// Which ids of this machine exist in the namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamespaceIds {
    /// All that there are, as they are: of root that could give them to itself.
    Same,
    /// The user's own as 0, and after it the subordinate ones.
    Subordinate,
    /// The user's own as 0, and nothing else.
    Single {
        /// Why there are no others.
        reason: String,
    },
}

/// Moves this process into a user namespace and a mount namespace of its own, where the user is root.
///
/// The process stays the same: its number, terminal, descriptors and working directory are what they were. Subordinate ids
/// of `/etc/subuid` and `/etc/subgid` follow the user's own from 1 on; only newuidmap(1) and newgidmap(1) can map them.
///
/// To be called before any thread is started.
///
/// # Errors
/// [`ExecutorError::NamespaceRefused`] when the kernel does not let ordinary users do this, and
/// [`ExecutorError::SubordinateIds`] when the files give what is not the user's alone (A95).
pub fn enter_user_namespace() -> Result<NamespaceIds, ExecutorError> {
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let plan = Plan::new(uid, gid)?;
    let ids = match plan {
        Plan::Subordinate(maps) => enter_with_maps(&maps, uid, gid)?,
        Plan::Single { reason } => {
            sys::new_user_namespace().map_err(refusal::explained)?;
            map_single(uid, gid)?;
            NamespaceIds::Single { reason }
        }
    };
    refusal::require_rights()?;
    Ok(ids)
}

/// What is to be mapped, found out beforehand.
enum Plan {
    Subordinate([Map; 2]),
    Single { reason: String },
}

/// One of the two maps, and the way in which it is written.
enum Map {
    /// By a program that may.
    Helper { program: &'static str, arguments: Vec<String> },
    /// By this process, which may itself.
    Own { file: &'static str, lines: String },
}

impl Plan {
    fn new(uid: u32, gid: u32) -> Result<Self, ExecutorError> {
        let name = ranges::name_of(&read(Path::new("/etc/passwd")), uid);
        let sides = [("/etc/subuid", "newuidmap", uid), ("/etc/subgid", "newgidmap", gid)];
        let mut maps = Vec::new();
        for (file, helper, id) in sides {
            let account = Account { name: name.clone(), id, uid };
            let own = ranges::of_account(&read(Path::new(file)), &account)
                .map_err(|reason| ExecutorError::SubordinateIds { file: file.into(), reason })?;
            if own.is_empty() {
                let who = name.clone().unwrap_or_else(|| uid.to_string());
                return Ok(Self::Single { reason: format!("{file} has no line for {who}") });
            }
            maps.push(Map::Helper { program: helper, arguments: ranges::arguments(&account, &own) });
        }
        let maps = <[Map; 2]>::try_from(maps).map_err(|_| ExecutorError::Protocol { detail: "two maps".into() })?;
        Ok(Self::Subordinate(maps))
    }
}

/// A file that is missing gives nobody anything.
fn read(path: &Path) -> String {
    std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// Maps must be written from outside of the namespace, and so by a child that was there before it.
fn enter_with_maps(maps: &[Map; 2], uid: u32, gid: u32) -> Result<NamespaceIds, ExecutorError> {
    let (entered, told) = unshare_mapped(maps)?;
    entered.map_err(refusal::explained)?;
    match told.strip_prefix("newuidmap: ") {
        _ if told == DONE => {
            forget_groups()?;
            Ok(NamespaceIds::Subordinate)
        }
        // Nothing is mapped yet, so that the user alone still can be.
        Some(reason) => {
            map_single(uid, gid)?;
            Ok(NamespaceIds::Single { reason: format!("newuidmap failed: {reason}") })
        }
        None => Err(ExecutorError::SubordinateIds { file: "/etc/subgid".into(), reason: told }),
    }
}

/// Enters the namespaces, has the maps written, and gives what came of both.
fn unshare_mapped(maps: &[Map; 2]) -> Result<(rustix::io::Result<()>, String), ExecutorError> {
    let failed = |errno: Errno| ExecutorError::system("start the mapping of ids", errno);
    let (go_read, go_write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(failed)?;
    let (told_read, told_write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(failed)?;
    let target = std::process::id();
    // Before the namespace, so that the child stays outside.
    let Some(child) = sys::fork_alone().map_err(failed)? else {
        drop((go_write, told_read));
        map_when_told(maps, target, File::from(go_read), File::from(told_write));
    };
    drop((go_read, told_write));
    let entered = sys::new_user_namespace();
    let mut told = String::new();
    if entered.is_ok() {
        // A child that died says nothing, which is no success.
        let _ = File::from(go_write).write_all(b"g");
        told = answer(told_read, child);
    } else {
        drop(go_write);
    }
    let _ = waitpid(Some(child), WaitOptions::empty());
    Ok((entered, told))
}

/// What the child tells, unless it takes too long.
fn answer(told: OwnedFd, child: Pid) -> String {
    let mut waiting = [PollFd::new(&told, PollFlags::IN)];
    if let Ok(1..) = retry_on_intr(|| poll(&mut waiting, Some(&HELPERS_TAKE))) {
        let mut text = String::new();
        let _ = File::from(told).read_to_string(&mut text);
        return text;
    }
    // Its helper, which belongs to root, is left alone: it ends when it is done.
    let _ = kill_process(child, Signal::KILL);
    format!("newuidmap: no answer within {} seconds", HELPERS_TAKE.tv_sec)
}

/// What the child says when both maps are written.
const DONE: &str = "done";

/// The life of the child: waits for a byte, runs both helpers, tells what came of it.
fn map_when_told(maps: &[Map; 2], target: u32, mut go: File, mut told: File) -> ! {
    let mut byte = [0];
    if go.read_exact(&mut byte).is_ok() {
        let outcome = maps.iter().try_for_each(|map| map.write(target));
        let text = outcome.err().unwrap_or_else(|| DONE.to_owned());
        // Whoever has gone need not be told.
        let _ = told.write_all(text.as_bytes());
    }
    sys::exit_now(0)
}

impl Map {
    fn write(&self, target: u32) -> Result<(), String> {
        match self {
            Self::Helper { program, arguments } => run_helper(program, target, arguments),
            Self::Own { file, lines } => {
                std::fs::write(format!("/proc/{target}/{file}"), lines).map_err(|error| format!("{file}: {error}"))
            }
        }
    }
}

fn run_helper(program: &str, target: u32, arguments: &[String]) -> Result<(), String> {
    let mut command = Command::new(program);
    command.arg(target.to_string()).args(arguments).stdin(Stdio::null());
    let said = |text: String| format!("{program}: {text}");
    let output = command.output().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => said("it is not installed (package uidmap)".into()),
        _ => said(error.to_string()),
    })?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let text = String::from_utf8_lossy(&output.stderr);
            let text = text.trim().trim_start_matches(program).trim_start_matches(": ");
            Err(said(text.lines().next().unwrap_or("it says nothing").to_owned()))
        }
    }
}

/// The user's own ids, which need no helper. The kernel asks for setgroups(2) to be given up first: who is kept out of
/// something by a group must not get in by leaving it (CVE-2014-8989).
fn map_single(uid: u32, gid: u32) -> Result<(), ExecutorError> {
    let write = |file: &str, text: &str| {
        std::fs::write(file, text).map_err(|source| ExecutorError::system(format!("write {file}"), source))
    };
    write("/proc/self/setgroups", "deny")?;
    write("/proc/self/gid_map", &format!("0 {gid} 1"))?;
    write("/proc/self/uid_map", &format!("0 {uid} 1"))
}

/// Groups of the machine are of no use in the namespace, and would be a step's.
fn forget_groups() -> Result<(), ExecutorError> {
    sys::forget_groups().map_err(|errno| ExecutorError::system("leave the user's groups", errno))
}
