//! Containers of a build, for who steers it: to look around where a step failed, or to run what is no step.

use crate::build::Build;
use crate::job::{Job, JobResult};
use crate::steps::ShownStep;
use crate::{EngineError, Network};
use forge_buildkit_proto::pb;
use forge_image::ErrorKind;
use forge_llb::{NetworkMode, SecurityMode};
use forge_store::MergedTree;
use forge_worker::{BuildContainer, BuildProcess, ProcessRequest};
use std::sync::Arc;

/// A container of a build. Its processes run as steps do, one after another or side by side; nothing of it is kept.
pub struct JobContainer {
    build: Arc<Build>,
    container: BuildContainer,
    network: NetworkMode,
    // The layers that it shows.
    _inputs: Vec<JobResult>,
}

impl Job {
    /// Makes the mounts of a container ready; nothing runs yet. `exec` says of them, of network and names; `inputs` are what its
    /// mounts show.
    ///
    /// # Errors
    /// It cannot be read, or a mount cannot be made.
    pub async fn container(
        &self,
        id: &str,
        exec: pb::ExecOp,
        inputs: Vec<JobResult>,
    ) -> Result<JobContainer, EngineError> {
        let name = format!("container {id}");
        let op = forge_buildkit_proto::decode_exec(exec, inputs.len(), &name);
        let op = op.map_err(|error| EngineError::caused(error.kind(), error))?;
        let build = self.shared_build();
        let mut results = Vec::new();
        for input in &inputs {
            results.push(self.solved(input).await?.result.clone());
        }
        let (network, vertex) = (op.network, ShownStep::digest_of(&name));
        let worker = build.local_worker().await?;
        let container = worker.container(op, &results, vertex, &build.session).await?;
        Ok(JobContainer { build: build.clone(), container, network, _inputs: inputs })
    }
}

impl JobContainer {
    /// Starts a process. The first one makes the sandbox, and ends all others with its own end.
    ///
    /// # Errors
    /// It needs what is not allowed, or cannot be run.
    pub async fn start(&self, request: &ProcessRequest) -> Result<BuildProcess, EngineError> {
        self.check(request.security)?;
        let started = self.container.start(request).await;
        started.map_err(|error| {
            let code = error.exit_code();
            let error = EngineError::from(error);
            code.into_iter().fold(error, EngineError::with_exit_code)
        })
    }

    /// The words are those that BuildKit's clients look for.
    fn check(&self, security: SecurityMode) -> Result<(), EngineError> {
        let request = &self.build.request;
        let has_network = request.allowed.host_network || request.network == Network::Host;
        let refused = |what: &str| Err(EngineError::new(ErrorKind::UserInput, format!("{what} is not allowed")));
        match (self.network, security) {
            (NetworkMode::Host, _) if !has_network => refused("network.host"),
            (_, SecurityMode::Insecure) if !request.allowed.insecure => refused("security.insecure"),
            _ => Ok(()),
        }
    }

    /// What a mount shows, by its place among the mounts.
    ///
    /// # Errors
    /// There is no such mount, or it is no folder that lasts.
    pub fn tree(&self, mount: usize) -> Result<MergedTree, EngineError> {
        let count = self.container.mounts();
        let missing = match mount < count {
            true => format!("mountable {mount} not found"),
            false => format!("mount index {mount} is out of bounds ({count} available)"),
        };
        self.container.tree(mount).ok_or_else(|| EngineError::new(ErrorKind::UserInput, missing))
    }

    /// Kills what runs in it, and removes it. Idempotent.
    ///
    /// # Errors
    /// Something cannot be removed.
    pub async fn release(&self) -> Result<(), EngineError> {
        Ok(self.container.release().await?)
    }
}
