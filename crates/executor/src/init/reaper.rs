//! A container's own init (`--init`): the first process stays, and what was asked for becomes its child.

use super::sys;
use nix::sys::signal::{SigSet, Signal};
use rustix::io::{Errno, Result};

/// Returns in the child, which goes on to execute the program. The parent never returns: it hands signals on, takes
/// orphans in, and ends as its child did.
///
/// Called as the container's user, under its filter, which allows all that is needed here.
pub(super) fn stay_behind() -> Result<()> {
    // In a PID namespace it is so anyway.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    // Before the fork, so that no signal is lost.
    let mut handed_on = SigSet::all();
    for fault in [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGFPE, Signal::SIGILL, Signal::SIGABRT, Signal::SIGTRAP] {
        handed_on.remove(fault);
    }
    handed_on.thread_block().map_err(|errno| Errno::from_raw_os_error(errno as i32))?;
    // SAFETY: this process never starts a thread.
    match unsafe { sys::fork()? } {
        None => {
            sys::reset_signals();
            // Where it is not the first of a PID namespace it would go on alone.
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
            sys::new_foreground_session()
        }
        Some(child) => {
            // The caller waits for the end of its channel, which the child closes by executing its program.
            // SAFETY: nothing of this process but the loop below runs again.
            unsafe { sys::close_from(3)? };
            watch(child, &handed_on)
        }
    }
}

fn watch(child: i32, signals: &SigSet) -> ! {
    loop {
        match signals.wait() {
            Ok(Signal::SIGCHLD) => {
                while let Ok(Some(ended)) = sys::wait_any(false) {
                    if ended.pid == child {
                        sys::exit_now(code(ended.status));
                    }
                }
            }
            // Fails for a child that has just ended.
            Ok(signal) => sys::send_signal(child, signal as i32),
            // A real-time signal, which has no name here, is not handed on.
            Err(_) => {}
        }
    }
}

/// As shells report it: the first process of a container cannot end itself by a signal.
fn code(status: i32) -> i32 {
    match libc::WIFEXITED(status) {
        true => libc::WEXITSTATUS(status),
        false => 128 + libc::WTERMSIG(status),
    }
}
