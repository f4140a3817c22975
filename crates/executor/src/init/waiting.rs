//! The first process of a container, which begins before it is known which container that will be.
//!
//! Everything that all containers have in common is done by then: namespaces, the way out of the host's mounts, `/proc`,
//! `/dev`. Most of what a short step waits for is that.

use super::cgroups::Group;
use super::network::PrivateNetwork;
use super::setup::{self, Means};
use super::sys;
use crate::message::{Channel, Message};
use crate::set_up_process::channel_pair;
use rustix::process::{Signal, pidfd_send_signal};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// An init that has been cloned and has not been told what to become.
pub(super) struct Waiting {
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
    /// What it is in, if that is not the server's.
    pub(super) group: Option<Group>,
    pub(super) network: Option<PrivateNetwork>,
    /// The other end is the init's. A descriptor of its mount namespace is on the way here and is never received: it keeps
    /// the namespace, so that taking that apart does not delay the container's end.
    pub(super) control: Channel,
}

impl Waiting {
    /// Clones one, with these namespaces of its own.
    pub(super) fn clone(flags: u64, mut group: Option<Group>, means: &Means<'_>) -> io::Result<Self> {
        let (ours, theirs) = channel_pair()?;
        // SAFETY: this process never starts a thread.
        match unsafe { sys::clone3(flags, group.as_ref().map(Group::directory)) }? {
            sys::Cloned::Child => setup::run(theirs.as_fd(), means),
            sys::Cloned::Parent { pid, pidfd } => {
                group.iter_mut().for_each(Group::is_taken);
                Ok(Self { pid, pidfd, group, network: None, control: Channel::new(ours) })
            }
        }
    }

    /// Has it enter a network that was made ready.
    pub(super) fn enter(&mut self, network: PrivateNetwork) -> io::Result<()> {
        self.control.send(&Message::Enter, &[network.namespace()])?;
        self.network = Some(network);
        Ok(())
    }

    /// Has it make a network of its own, in which there is nothing.
    pub(super) fn isolate(&self) -> io::Result<()> {
        self.control.send(&Message::Enter, &[])
    }

    /// Makes it the init of the container that this is the channel of.
    pub(super) fn begin(&self, channel: BorrowedFd<'_>) -> io::Result<()> {
        self.control.send(&Message::Begin, &[channel])
    }

    /// Ends one that is not wanted, and waits for that.
    pub(super) fn dismiss(self) {
        // It fails only for a process that has ended.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        sys::wait_for(self.pid);
    }
}
