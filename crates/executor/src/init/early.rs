//! File systems that every container gets, made before it is known which one that is.

use super::devices::{self, TERMINAL_GROUP};
use super::mounts::{LOCKED, new_filesystem, tmpfs};
use super::rights::Rights;
use crate::profile;
use rustix::fs::FileType;
use rustix::mount::MountAttrFlags;
use std::os::fd::OwnedFd;

/// What is ready. What is not, because it could not be made or is not as the container wants it, is made when it is needed,
/// and why it cannot be is told then.
#[derive(Default)]
pub(super) struct Early {
    /// Of this process's PID namespace, without bounds.
    pub(super) proc: Option<OwnedFd>,
    /// Of the private network that was entered, read-only.
    pub(super) sys: Option<OwnedFd>,
    /// A complete `/dev`, with nothing mounted in it and without a console.
    pub(super) devices: Option<OwnedFd>,
    pub(super) terminals: Option<OwnedFd>,
    /// Of docker's size.
    pub(super) shared_memory: Option<OwnedFd>,
    pub(super) queues: Option<OwnedFd>,
}

impl Early {
    /// Makes all of them but the sysfs, which shows a network.
    pub(super) fn make(rights: &Rights) -> Self {
        let size = profile::SHM_SIZE.to_string();
        Self {
            proc: new_filesystem("proc", &[], LOCKED).ok(),
            sys: None,
            devices: rights.nodes.then(|| devices::populated(FileType::CharacterDevice).ok()).flatten(),
            terminals: devices::new_terminals(rights.has_group(TERMINAL_GROUP)).ok(),
            shared_memory: tmpfs(Some(&size), 0o1777, LOCKED).ok(),
            queues: devices::queues().ok(),
        }
    }

    /// Makes the sysfs of the network that this process has entered.
    pub(super) fn show_network(&mut self) {
        self.sys = new_filesystem("sysfs", &[], LOCKED | MountAttrFlags::MOUNT_ATTR_RDONLY).ok();
    }

    /// The shared memory, if it has that many bytes.
    pub(super) fn take_shared_memory(&mut self, bytes: u64) -> Option<OwnedFd> {
        self.shared_memory.take_if(|_| bytes == profile::SHM_SIZE)
    }
}
