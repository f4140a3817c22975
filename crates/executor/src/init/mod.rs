//! The far side of the set-up: a small single-threaded process, started from the same binary, that clones containers.
//!
//! `server` loops over requests and children; `machine` is what it clones them with; `waiting` is an init that has no container yet, which `room` and `early` make
//! ready for any; `setup` is the life of one container's init from the clone to execve(2), with `mounts`, `root`, `devices`,
//! `identity` and `launch` as its chapters; `join` is that of a further process in a container; `shim` is that of a process which
//! has an OCI runtime do most of it, by a `bundle`.

mod apparmor;
mod belongings;
mod bpf;
mod bundle;
mod cgroups;
mod device_program;
mod devices;
mod early;
mod identity;
mod join;
mod launch;
mod limits;
mod machine;
mod memory_group;
mod mounts;
mod network;
mod overlay;
mod paths;
mod reaper;
mod rights;
mod room;
mod root;
mod runtime_init;
mod server;
mod setup;
mod shared_group;
mod shim;
pub(crate) mod sys;
mod unified;
mod waiting;

use std::path::Path;

pub(crate) use cgroups::GROUP_PREFIX;
pub(crate) use devices::NODES;
pub use network::BegunNetwork;
pub(crate) use network::{PREFIX as NETWORK_INTERFACE_PREFIX, Wire};
pub(crate) use paths::{PointKind, Root, Stub, open_in, restore_mtime};
pub(crate) use rights::is_trusted;
pub(crate) use root::layout;

/// Name under which the server is executed; no user types it.
pub(crate) const SERVER_NAME: &str = "forge-sandbox-init";

/// What its first thread is called, by which it is found among the processes of a machine.
pub(crate) const SERVER_COMM: &str = "forge-init";

/// Becomes the sandbox set-up process if that is what this process was executed for, and never returns then.
///
/// Must be the first call in `main` of every program that uses [`crate::NamespaceExecutor`], before any thread is
/// started. Returns at once in an ordinary run. `remove` is for the [`crate::Belongings`] of a caller who is killed.
pub fn init_if_requested(remove: RemoveFolder) {
    if std::env::args_os().next().is_some_and(|name| name == SERVER_NAME) {
        server::run(remove);
    }
}

/// Removes a folder in which strangers may have made anything, as far as that can be done.
pub type RemoveFolder = fn(&Path);
