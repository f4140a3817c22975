//! The process that a shell waits for while a container has its terminal.
//!
//! By its detach keys a user leaves such a container, which goes on. Everything of it belongs to the process that started it,
//! which therefore cannot end: where it can come to that, the process of the shell starts another one, which does everything, and
//! waits until that ends or says that it goes on without a terminal.

use crate::args::Command;
use crate::environment::Environment;
use nix::sys::signal::{SigSet, Signal as Caught};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::process::{Pid, Signal, getpid, getppid, kill_process, set_parent_process_death_signal, setsid};
use std::io::{self, IsTerminal};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command as Program, ExitStatus};

/// Tells the second process the number of the first.
const FRONT: &str = "FORGE_FRONT";

/// What is handed on. The terminal's own reach both processes, which are in one group.
const HANDED_ON: [Caught; 6] =
    [Caught::SIGINT, Caught::SIGTERM, Caught::SIGHUP, Caught::SIGQUIT, Caught::SIGUSR1, Caught::SIGUSR2];

/// How the kernel marks signals that no process has sent.
const BY_KERNEL: i32 = 0x80;

/// Starts a second process where the command may have to be left, and waits for it; gives the exit code.
///
/// `None` in the second process, for every other command, and where there can be no second process: then keys are not looked for.
pub fn stand(command: &Command) -> Option<u8> {
    let Command::Run(args) = command else { return None };
    if !args.tty || !args.interactive || !io::stdin().is_terminal() || Back::of(&Environment::of_process()).is_some() {
        return None;
    }
    let wanted: SigSet = HANDED_ON.into_iter().chain([Caught::SIGCHLD]).collect();
    wanted.thread_block().ok()?;
    let outcome = wait(&wanted);
    // In vain where the process ends with it; else everything is as it was.
    let _ = wanted.thread_unblock();
    outcome.ok()
}

fn wait(wanted: &SigSet) -> io::Result<u8> {
    let signals = SignalFd::with_flags(wanted, SfdFlags::SFD_CLOEXEC)?;
    let mut words = std::env::args_os();
    let mut program = Program::new("/proc/self/exe");
    program.arg0(words.next().unwrap_or_default()).args(words).env(FRONT, getpid().as_raw_nonzero().to_string());
    let mut child = program.spawn()?;
    // Nothing can be done here about a terminal or process that is gone: what is left is to wait.
    loop {
        let Ok(Some(caught)) = signals.read_signal() else { return Ok(code(child.wait()?)) };
        let by_child = caught.ssi_pid == child.id();
        match Caught::try_from(caught.ssi_signo.cast_signed()) {
            Ok(Caught::SIGCHLD) => {
                if let Some(status) = child.try_wait()? {
                    return Ok(code(status));
                }
            }
            Ok(Caught::SIGUSR1) if by_child => return Ok(0),
            Ok(signal) if caught.ssi_code != BY_KERNEL => hand_on(&child, signal),
            _ => {}
        }
    }
}

fn hand_on(child: &Child, signal: Caught) {
    let (pid, signal) = (Pid::from_raw(child.id().cast_signed()), Signal::from_named_raw(signal as i32));
    if let (Some(pid), Some(signal)) = (pid, signal) {
        // It fails only for a process that has ended, which is told next.
        let _ = kill_process(pid, signal);
    }
}

fn code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(code & 0xff).unwrap_or(1)
}

/// What the second process knows of the first.
#[derive(Clone, Copy)]
pub struct Back {
    front: Pid,
}

impl Back {
    /// Whether this is the second process.
    pub fn of(environment: &Environment) -> Option<Self> {
        let number = environment.get(FRONT)?.parse().ok()?;
        let front = Pid::from_raw(number)?;
        (getppid() == Some(front)).then_some(Self { front })
    }

    /// Ends with the first process, as with a terminal that is closed. To be called once rights are what they stay: the kernel
    /// forgets it when they change.
    pub fn end_with_front(self) {
        // What the kernel does not have is not missed by whoever ends in order.
        let _ = set_parent_process_death_signal(Some(Signal::HUP));
    }

    /// Goes on without terminal, and lets the first process end.
    ///
    /// # Errors
    /// The terminal cannot be left.
    pub fn leave(self) -> io::Result<()> {
        set_parent_process_death_signal(None)?;
        setsid()?;
        let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdin(&null)?;
        rustix::stdio::dup2_stdout(&null)?;
        rustix::stdio::dup2_stderr(&null)?;
        Ok(kill_process(self.front, Signal::USR1)?)
    }
}
