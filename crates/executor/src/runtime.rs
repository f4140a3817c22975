use crate::{Belongings, Container, ContainerId, Executor, ExecutorError, NamespaceExecutor, SandboxSpec, Stdio};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Runs containers through a program that implements the OCI runtime specification: runc, crun.
///
/// Each container has a shim, the first process of a PID namespace and of a mount namespace of its own, in which the root
/// and the requested mounts are assembled as for [`NamespaceExecutor`], a bundle is written, and the runtime is executed. All
/// that the runtime makes lies within these namespaces, so that nothing but control groups can outlive the shim.
pub struct RuntimeExecutor {
    namespaces: Arc<NamespaceExecutor>,
    runtime: PathBuf,
}

impl RuntimeExecutor {
    /// Takes a runtime, by its absolute path, and what sets the surroundings up.
    pub fn new(namespaces: Arc<NamespaceExecutor>, runtime: &Path) -> Self {
        Self { namespaces, runtime: runtime.to_owned() }
    }
}

impl Executor for RuntimeExecutor {
    fn create(&self, id: &ContainerId, spec: &SandboxSpec, io: Stdio) -> Result<Box<dyn Container>, ExecutorError> {
        self.namespaces.create_with(Some(&self.runtime), id, spec, io)
    }

    fn private_network(&self) -> Result<Ipv4Addr, ExecutorError> {
        self.namespaces.private_network()
    }

    fn notices(&self) -> Vec<String> {
        self.namespaces.notices()
    }

    fn finish(&self, belongings: Option<Belongings>) {
        self.namespaces.finish(belongings);
    }
}
