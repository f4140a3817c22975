//! Runs one process in a sandbox on this machine.
//!
//! The crate takes a root file system, a process and a list of restrictions as data, and makes a container of
//! it: namespaces, an overlay root that only the container sees, its own `/dev`, masked paths, capabilities,
//! a seccomp filter, a device policy. It knows nothing of builds, images, layers or stores: whoever calls it has
//! already turned those into directories and a [`SandboxSpec`].
//!
//! Reading order: [`SandboxSpec`] (what to run), [`Executor`] and [`Container`] (the seam), [`NamespaceExecutor`]
//! (the implementation on Linux namespaces) and [`RuntimeExecutor`] (the one that leaves most of it to runc or crun), then
//! `init` (what happens on the other side of the clone).
//!
//! A process that uses [`NamespaceExecutor`] must call [`init_if_requested`] first thing in `main`: containers are
//! set up by a small single-threaded process, which is this same program executed again.
#![warn(missing_docs)]

mod capabilities;
mod container;
mod copied;
mod error;
mod hidden;
mod init;
mod left_over;
mod message;
mod namespace_container;
mod namespaces;
mod profile;
mod resources;
mod runtime;
mod seccomp;
mod set_up_process;
mod spec;
mod streams;
mod sysctl;
mod user_namespace;
mod wire;

pub use capabilities::Capabilities;
pub use container::{Belongings, Container, Executor, ExitStatus, InnerSocket, Stdio, StdioTarget};
pub use error::{ErrorKind, ExecutorError};
pub use hidden::Hidden;
pub use init::{BegunNetwork, RemoveFolder, init_if_requested};
pub use left_over::{LeftOver, left_over};
pub use namespaces::NamespaceExecutor;
pub use resources::{CpuQuota, GroupPlacement, Resources, SharedGroup, SwapLimit, Usage};
pub use runtime::RuntimeExecutor;
pub use seccomp::{SeccompAction, SeccompComparison, SeccompCondition, SeccompProfile, SeccompRule};
pub use set_up_process::SetUpProcess;
pub use spec::{
    AppArmor, ContainerId, DeviceKind, DeviceNode, DevicePolicy, GrantedNodes, IdMap, IdMappings, MountFlags,
    MountSource, MountSpec, NetworkMode, OverlayChanges, ProcessSpec, ProcessUser, Rlimit, RlimitResource, RootFs,
    SandboxSpec, Seccomp, SharedNamespaces, StubRemoval,
};
pub use sysctl::Sysctl;
pub use user_namespace::{Footing, NamespaceIds, enter_user_namespace, find_footing, stands_as_root};
