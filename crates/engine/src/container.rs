//! Foreground containers.

use crate::engine::{Engine, blocking};
use crate::limits::bound;
use crate::{EngineError, Limits, Network, PullPolicy, RunOutcome, RunRequest, RunStreams};
use forge_executor::{
    Container, ContainerId, Executor, ExecutorError, MountSource, MountSpec, ProcessSpec, ProcessUser, RootFs,
    SandboxSpec, Stdio, StdioTarget,
};
use forge_image::{ErrorKind, ImageConfig, Platform, Reference};
use forge_session::EventSink;
use forge_store::{ActiveLayer, Image, LayerId, Lease};
use forge_worker::{ProcessNetwork, environment, executor_kind, identity, network_files, rlimit, set_rlimit};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use tokio_util::sync::CancellationToken;

/// docker's exit codes for a container that could not be run.
const EXIT_ENGINE: i32 = 125;
const EXIT_NOT_EXECUTABLE: i32 = 126;
const EXIT_NOT_FOUND: i32 = 127;

/// A container whose process runs. Dropping it kills the process and removes the container's files.
pub struct RunningContainer {
    container: Arc<dyn Container>,
    cancel: CancellationToken,
    notices: Vec<String>,
    /// `None` once the container has ended.
    files: Mutex<Option<ContainerFiles>>,
}

/// What a container holds in the store. The order counts: the files go before the lease that keeps the layers
/// below them.
struct ContainerFiles {
    _own: ActiveLayer,
    _lease: Lease,
}

impl Engine {
    /// Makes a container and starts its process.
    ///
    /// # Errors
    /// [`EngineError::exit_code`] tells as docker does what failed: 125 forge, 126 and 127 the command.
    pub async fn create_container(
        &self,
        request: RunRequest,
        streams: RunStreams,
        events: Arc<dyn EventSink>,
        cancel: CancellationToken,
    ) -> Result<RunningContainer, EngineError> {
        let started = self.start(request, streams, events, cancel).await;
        started.map_err(|error| match error.exit_code() {
            Some(_) => error,
            None => error.with_exit_code(EXIT_ENGINE),
        })
    }

    async fn start(
        &self,
        request: RunRequest,
        streams: RunStreams,
        events: Arc<dyn EventSink>,
        cancel: CancellationToken,
    ) -> Result<RunningContainer, EngineError> {
        let image = self.image_to_run(&request, events, cancel.clone()).await?;
        let engine = self.clone();
        blocking(move || {
            let lease = engine.store().lease("run")?;
            let (container, files) = engine.set_up(&request, &image, streams, &lease)?;
            if let (true, Some((columns, rows))) = (request.terminal, request.terminal_size) {
                container.resize(columns, rows)?;
            }
            container.start().map_err(start_error)?;
            let files = Mutex::new(Some(ContainerFiles { _own: files, _lease: lease }));
            let notices = engine.sandbox_notices();
            Ok(RunningContainer { container, cancel, notices, files })
        })
        .await
    }

    async fn image_to_run(
        &self,
        request: &RunRequest,
        events: Arc<dyn EventSink>,
        cancel: CancellationToken,
    ) -> Result<Image, EngineError> {
        let platform = request.platform.clone().unwrap_or_else(Platform::host);
        let stored = match request.pull {
            PullPolicy::Always => None,
            PullPolicy::Missing | PullPolicy::Never => self.stored_image(&request.image, &platform).await?,
        };
        if let Some(image) = stored {
            return Ok(image);
        }
        if request.pull == PullPolicy::Never {
            let message = format!("No such image: {}", request.image);
            return Err(
                EngineError::new(ErrorKind::UserInput, message).with_hint("run without --pull never to fetch it")
            );
        }
        let reference: Reference = request.image.parse()?;
        self.pull(&reference, Some(&platform), events, cancel).await?;
        let found = self.stored_image(&request.image, &platform).await?;
        found.ok_or_else(|| {
            EngineError::new(ErrorKind::Remote, format!("{} has no image for {platform}", request.image))
        })
    }

    fn set_up(
        &self,
        request: &RunRequest,
        image: &Image,
        streams: RunStreams,
        lease: &Lease,
    ) -> Result<(Arc<dyn Container>, ActiveLayer), EngineError> {
        self.hold(&image.layers, lease)?;
        let config = self.store().images().config(&image.id)?;
        let files = self.store().layers().prepare(&image.layers)?;
        let executor = self.executor()?;
        let network = ProcessNetwork::of(wanted_network(request.network), &*executor);
        let spec = sandbox(request, &config, &files, network)?;
        let target = |fd: Option<OwnedFd>| fd.map_or(StdioTarget::Null, StdioTarget::Fd);
        let io = Stdio { stdin: target(streams.stdin), stdout: target(streams.stdout), stderr: target(streams.stderr) };
        let id = ContainerId::new(format!("run-{}", LayerId::random()))?;
        let container = executor.create(&id, &spec, io).map_err(start_error)?;
        Ok((container.into(), files))
    }

    fn hold(&self, layers: &[LayerId], lease: &Lease) -> Result<(), EngineError> {
        for layer in layers {
            if !lease.hold_layer(layer)? {
                return Err(EngineError::new(ErrorKind::Environment, format!("layer {layer} of the image is gone"))
                    .with_hint("pull or build the image again"));
            }
        }
        Ok(())
    }
}

fn wanted_network(network: Network) -> forge_llb::NetworkMode {
    match network {
        Network::Default => forge_llb::NetworkMode::Default,
        Network::Host => forge_llb::NetworkMode::Host,
        Network::None => forge_llb::NetworkMode::None,
    }
}

fn sandbox(
    request: &RunRequest,
    config: &ImageConfig,
    files: &ActiveLayer,
    network: ProcessNetwork,
) -> Result<SandboxSpec, EngineError> {
    let user = request.user.as_deref().unwrap_or(&config.config.user);
    let identity = identity(files.lower(), user)
        .map_err(|error| EngineError::caused(ErrorKind::UserInput, error).with_exit_code(EXIT_NOT_EXECUTABLE))?;
    let hostname = request.hostname.clone().unwrap_or_else(|| LayerId::random().as_str()[..12].to_owned());
    let mut process = ProcessSpec::new(arguments(request, config)?);
    let mut env = merged_env(&config.config.env, &request.env);
    if request.terminal && !env.iter().any(|pair| pair.starts_with("TERM=")) {
        env.push("TERM=xterm".to_owned());
    }
    process.env = environment(&[&env], &hostname, &identity.home).into_iter().map(Into::into).collect();
    let workdir = request.workdir.as_deref().unwrap_or(&config.config.working_dir);
    process.cwd = PathBuf::from(if workdir.is_empty() { "/" } else { workdir });
    if !process.cwd.is_absolute() {
        let message = format!("the working directory {workdir:?} is invalid, it needs to be an absolute path");
        return Err(EngineError::new(ErrorKind::UserInput, message));
    }
    process.user = ProcessUser { uid: identity.uid, gid: identity.gid, additional_gids: identity.groups };
    process.terminal = request.terminal;
    let root = RootFs::Overlay {
        lower: files.lower_dirs().to_vec(),
        upper: files.upper().to_owned(),
        work: files.work().to_owned(),
        volatile: true,
    };
    let mut spec = SandboxSpec::for_root(root, process);
    spec.readonly_root = request.readonly_root;
    limit(&mut spec, &request.limits)?;
    spec.network = network.mode();
    spec.mounts.extend(network_files(network, &hostname, &request.extra_hosts, &request.resolver));
    spec.mounts.extend(binds(request));
    spec.hostname = hostname;
    Ok(spec)
}

fn limit(spec: &mut SandboxSpec, limits: &Limits) -> Result<(), EngineError> {
    bound(spec, &limits.resources);
    for ulimit in &limits.ulimits {
        set_rlimit(&mut spec.process.rlimits, rlimit(ulimit)?);
    }
    spec.shm_size = limits.shm_size.unwrap_or(spec.shm_size);
    spec.group.parent = Some(&limits.cgroup_parent).filter(|parent| !parent.is_empty()).map(PathBuf::from);
    Ok(())
}

/// Bind mounts of the host; a missing source is an error of the executor.
fn binds(request: &RunRequest) -> impl Iterator<Item = MountSpec> {
    let mount =
        |bind: &crate::Bind| MountSpec::new(&bind.target, MountSource::Bind(bind.source.clone()), bind.readonly);
    request.binds.iter().map(mount)
}

/// What is run: the entry point and the command, each from the command line before the image. A new entry point
/// does away with the image's command.
fn arguments(request: &RunRequest, config: &ImageConfig) -> Result<Vec<String>, EngineError> {
    let (entrypoint, default_command) = match request.entrypoint.as_deref() {
        Some("") => (Vec::new(), Vec::new()),
        Some(program) => (vec![program.to_owned()], Vec::new()),
        None => (config.config.entrypoint.clone().unwrap_or_default(), config.config.cmd.clone().unwrap_or_default()),
    };
    let command = if request.command.is_empty() { default_command } else { request.command.clone() };
    let arguments = [entrypoint, command].concat();
    match arguments.is_empty() {
        true => Err(EngineError::new(ErrorKind::UserInput, "no command specified")
            .with_hint("the image sets none: name one after the image")),
        false => Ok(arguments),
    }
}

/// The image's environment with that of the command line; of equal names the last one stays, in the first's place.
fn merged_env(image: &[String], given: &[String]) -> Vec<String> {
    let name = |pair: &String| pair.split('=').next().unwrap_or_default().to_owned();
    let mut merged: Vec<String> = image.to_vec();
    for pair in given {
        match merged.iter_mut().find(|other| name(other) == name(pair)) {
            Some(place) => place.clone_from(pair),
            None => merged.push(pair.clone()),
        }
    }
    merged
}

fn start_error(error: ExecutorError) -> EngineError {
    let code = match &error {
        ExecutorError::NotFound { .. } => EXIT_NOT_FOUND,
        ExecutorError::NotExecutable { .. } => EXIT_NOT_EXECUTABLE,
        _ => EXIT_ENGINE,
    };
    EngineError::caused(executor_kind(&error), error).with_exit_code(code)
}

impl RunningContainer {
    /// What could not be enforced or set up for containers of this engine, one line each.
    pub fn notices(&self) -> Vec<String> {
        self.notices.clone()
    }

    /// The controlling side of the container's terminal, if it has one. A new descriptor each time.
    pub fn pty(&self) -> Option<OwnedFd> {
        self.container.pty()
    }

    /// Sends a signal to the container's first process.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn signal(&self, signal: i32) -> Result<(), EngineError> {
        Ok(self.container.signal(signal)?)
    }

    /// Sets the size of the container's terminal.
    ///
    /// # Errors
    /// The container has no terminal.
    pub fn resize(&self, columns: u16, rows: u16) -> Result<(), EngineError> {
        Ok(self.container.resize(columns, rows)?)
    }

    /// Waits until every process of the container has ended, and removes its files. Cancellation kills them.
    ///
    /// # Errors
    /// The container cannot be waited for.
    pub async fn wait(&self) -> Result<RunOutcome, EngineError> {
        let container = self.container.clone();
        let mut ended = tokio::task::spawn_blocking(move || container.wait());
        let status = tokio::select! {
            status = &mut ended => status,
            () = self.cancel.cancelled() => {
                self.container.kill_all()?;
                ended.await
            }
        };
        let code = status??.code();
        let (container, files) = (self.container.clone(), self.take_files());
        blocking(move || {
            container.delete()?;
            drop(files);
            Ok(RunOutcome { code })
        })
        .await
    }

    fn take_files(&self) -> Option<ContainerFiles> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Drop for RunningContainer {
    fn drop(&mut self) {
        // There is nobody left to tell: what cannot be removed is found by the next start.
        let _ = self.container.delete();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_wins_over_the_image() {
        let image = ["A=1".to_owned(), "B=2".to_owned()];
        let merged = merged_env(&image, &["B=3".to_owned(), "C=4".to_owned()]);
        assert_eq!(merged, ["A=1", "B=3", "C=4"]);
    }
}
