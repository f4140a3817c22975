//! Foreground containers.

use crate::engine::{Engine, blocking};
use crate::ports::{self, Published};
use crate::running::{self, Entry, Record};
use crate::sandbox::{sandbox, wanted_network};
use crate::{EngineError, Network, Port, PullPolicy, RunOutcome, RunRequest, RunStreams};
use forge_executor::{Container, ContainerId, ExecutorError, ExitStatus, Stdio, StdioTarget};
use forge_image::{ErrorKind, Platform, Reference};
use forge_session::EventSink;
use forge_store::{ActiveLayer, Image, LayerId, Lease};
use forge_worker::{ProcessNetwork, executor_kind};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use tokio_util::sync::CancellationToken;

/// docker's exit codes for a container that could not be run.
const EXIT_ENGINE: i32 = 125;
pub(crate) const EXIT_NOT_EXECUTABLE: i32 = 126;
const EXIT_NOT_FOUND: i32 = 127;

/// A container whose process runs. Dropping it kills the process and removes the container's files.
pub struct RunningContainer {
    container: Arc<dyn Container>,
    cancel: CancellationToken,
    id: String,
    notices: Vec<String>,
    /// What hands connections on.
    ports: Vec<tokio::task::JoinHandle<()>>,
    /// `None` once the container has ended.
    files: Arc<Mutex<Option<ContainerFiles>>>,
}

/// What a container holds in the store. The order counts: the files go before the lease that keeps the layers
/// below them.
struct ContainerFiles {
    _own: ActiveLayer,
    _lease: Lease,
    _entry: Entry,
}

impl Engine {
    /// Makes a container and starts its process. It is taken to be the last one: what made it ends with it, and another one has to
    /// wait for a new process that makes it.
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
        self.warm_up(request.network);
        let image = self.image_to_run(&request, events, cancel.clone()).await?;
        let wanted = self.ports(&request, &image).await?;
        let published = Published::take(&wanted).await?;
        let engine = self.clone();
        let mut running = blocking(move || {
            let lease = engine.store().lease("run")?;
            let id = [LayerId::random().to_string(), LayerId::random().to_string()].concat();
            let (name, labels) = (request.name.clone(), request.labels.clone());
            let record = Record { id: id.clone(), name, image: request.image.clone(), labels };
            let entry = running::enter(&engine.store().root().join("run"), &record)?;
            let (container, files) = engine.set_up(&request, &image, streams, &lease, &id)?;
            if let (true, Some((columns, rows))) = (request.terminal, request.terminal_size) {
                container.resize(columns, rows)?;
            }
            engine.finish_containers();
            container.start().map_err(start_error)?;
            let files = Arc::new(Mutex::new(Some(ContainerFiles { _own: files, _lease: lease, _entry: entry })));
            let notices = engine.sandbox_notices();
            Ok(RunningContainer { container, cancel, id, notices, ports: Vec::new(), files })
        })
        .await?;
        match ports::way_to(&running.container) {
            Some(way) => {
                running.notices.extend_from_slice(published.notices());
                running.ports = published.lead_to(&way);
            }
            None if !wanted.is_empty() => {
                running
                    .notices
                    .push("published ports lead nowhere: the container has no network of its own".to_owned());
            }
            None => {}
        }
        Ok(running)
    }

    /// Starts the sandbox, and the private network where one is wanted, beside the search for the image.
    fn warm_up(&self, network: Network) {
        let engine = self.clone();
        tokio::task::spawn_blocking(move || {
            // What fails is told when it is needed.
            if let (Ok(executor), Network::Default) = (engine.executor(), network) {
                let _ = executor.private_network();
            }
        });
    }

    /// The ports of the flags, and those that are exposed where all of them are wanted. One that a flag leads somewhere
    /// is not published twice.
    async fn ports(&self, request: &RunRequest, image: &Image) -> Result<Vec<Port>, EngineError> {
        let mut all = request.ports.clone();
        if request.publish_all {
            let id = image.id.clone();
            let mut config = self.blocking(move |engine| Ok(engine.store().images().config(&id)?)).await?;
            let added = request.exposed.iter().map(|port| (port.clone(), serde_json::Value::Null));
            config.config.exposed_ports.extend(added);
            let published =
                |port: &Port| all.iter().any(|one| (one.container, one.protocol) == (port.container, port.protocol));
            let more: Vec<_> = ports::exposed(&config).into_iter().filter(|port| !published(port)).collect();
            all.extend(more);
        }
        Ok(all)
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
            self.bring_to_run(&image, events, cancel).await?;
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
        id: &str,
    ) -> Result<(Arc<dyn Container>, ActiveLayer), EngineError> {
        self.hold(&image.layers, lease)?;
        let config = self.store().images().config(&image.id)?;
        let files = self.store().layers().prepare(&image.layers)?;
        let executor = self.executor()?;
        let network = ProcessNetwork::of(wanted_network(request.network), &*executor);
        let spec = sandbox(request, &config, &files, network)?;
        let target = |fd: Option<OwnedFd>| fd.map_or(StdioTarget::Null, StdioTarget::Fd);
        let io = Stdio { stdin: target(streams.stdin), stdout: target(streams.stdout), stderr: target(streams.stderr) };
        let id = ContainerId::new(id)?;
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

fn start_error(error: ExecutorError) -> EngineError {
    let code = match &error {
        ExecutorError::NotFound { .. } => EXIT_NOT_FOUND,
        ExecutorError::NotExecutable { .. } => EXIT_NOT_EXECUTABLE,
        _ => EXIT_ENGINE,
    };
    EngineError::caused(executor_kind(&error), error).with_exit_code(code)
}

impl RunningContainer {
    /// The container's id, 64 hexadecimal digits.
    pub fn id(&self) -> &str {
        &self.id
    }

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
        let (container, files) = (self.container.clone(), self.files.clone());
        let mut ended = tokio::task::spawn_blocking(move || {
            let status = container.wait()?;
            container.delete()?;
            drop(files.lock().unwrap_or_else(PoisonError::into_inner).take());
            Ok::<_, ExecutorError>(status)
        });
        let status = tokio::select! {
            status = &mut ended => status,
            () = self.cancel.cancelled() => {
                self.container.kill_all()?;
                ended.await
            }
        };
        let status = status??;
        let memory_limit = match status {
            ExitStatus::OutOfMemory { limit } => Some(limit),
            _ => None,
        };
        Ok(RunOutcome { code: status.code(), memory_limit })
    }
}

impl Drop for RunningContainer {
    fn drop(&mut self) {
        self.ports.iter().for_each(tokio::task::JoinHandle::abort);
        // There is nobody left to tell: what cannot be removed is found by the next start.
        let _ = self.container.delete();
    }
}
