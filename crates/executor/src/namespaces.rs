use crate::container::{Belongings, Container, Executor, Stdio};
use crate::copied::{self, Copies};
use crate::init::{layout, sys};
use crate::message::{Channel, Configuration, Maker, Message, Order};
use crate::namespace_container::{NamespaceContainer, smallest_memory_limit};
use crate::set_up_process::{SetUpProcess, channel_pair, lock};
use crate::streams::Streams;
use crate::{
    Capabilities, ContainerId, DevicePolicy, ExecutorError, GroupPlacement, NetworkMode, Resources, RootFs,
    SandboxSpec, Sysctl,
};
use rustix::pipe::{PipeFlags, pipe_with};
use std::fs::DirBuilder;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// Runs containers on Linux namespaces, as root.
///
/// One set-up process serves all containers of an executor; it ends, and every container with it, when the executor is
/// dropped or its process dies. Where that process dies itself, or cannot be talked to, its containers end, and the next one
/// has a new process. Cheap to keep, so make one and share it.
pub struct NamespaceExecutor {
    server: Mutex<Arc<SetUpProcess>>,
    runtime_dir: PathBuf,
    /// Whether anything can be mounted. Where nothing can, containers are processes in a changed root.
    mounts: bool,
}

impl NamespaceExecutor {
    /// Prepares `runtime_dir`, which may be shared by any number of processes, and starts the set-up process.
    ///
    /// # Errors
    /// [`ExecutorError::Unsupported`] when the caller is not root.
    pub fn new(runtime_dir: &Path) -> Result<Self, ExecutorError> {
        Self::with(SetUpProcess::start()?, runtime_dir)
    }

    /// The same with a set-up process that was started before.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with(server: SetUpProcess, runtime_dir: &Path) -> Result<Self, ExecutorError> {
        prepare_directory(runtime_dir)
            .map_err(|source| ExecutorError::system(format!("prepare {}", runtime_dir.display()), source))?;
        let runtime_dir = runtime_dir
            .canonicalize()
            .map_err(|source| ExecutorError::system(format!("resolve {}", runtime_dir.display()), source))?;
        let mounts = sys::permitted().is_ok_and(|held| held.contains(Capabilities::SYS_ADMIN));
        Ok(Self { server: Mutex::new(Arc::new(server)), runtime_dir, mounts })
    }

    /// Creates a container, through an OCI runtime if one is given.
    pub(crate) fn create_with(
        &self,
        oci_runtime: Option<&Path>,
        id: &ContainerId,
        spec: &SandboxSpec,
        io: Stdio,
    ) -> Result<Box<dyn Container>, ExecutorError> {
        check(spec)?;
        let mut spec = spec.clone();
        let (copies, listeners) = self.copies(&mut spec, id)?;
        let streams = Streams::collect(io, spec.process.terminal)?;
        let configuration = Configuration {
            id: id.as_str().into(),
            spec,
            streams: streams.given,
            runtime_dir: self.runtime_dir.clone(),
            oci_runtime: oci_runtime.map(Path::to_owned),
        };
        let mut container = self.spawn(&configuration, &streams)?;
        container.keep(copies, if self.mounts { None } else { Some(listeners) });
        Ok(Box::new(container))
    }
}

impl NamespaceExecutor {
    /// The set-up process, a new one where the last one was given up.
    fn server(&self) -> Result<Arc<SetUpProcess>, ExecutorError> {
        let mut server = lock(&self.server);
        if server.has_failed() {
            *server = Arc::new(server.start_again(&self.runtime_dir)?);
        }
        Ok(Arc::clone(&server))
    }

    /// Asks the set-up process, and a new one once more where it cannot be talked to: what it was asked for is not made then.
    fn ask<T>(
        &self,
        question: impl Fn(&SetUpProcess) -> Result<T, ExecutorError>,
    ) -> Result<(T, Arc<SetUpProcess>), ExecutorError> {
        let server = self.server()?;
        match question(&server) {
            Err(_) if server.has_failed() => {
                let server = self.server()?;
                Ok((question(&server)?, server))
            }
            answer => Ok((answer?, server)),
        }
    }

    fn spawn(&self, configuration: &Configuration, streams: &Streams) -> Result<NamespaceContainer, ExecutorError> {
        let container = self.ordered(configuration)?;
        match container.configure(configuration.clone(), &streams.borrowed()) {
            // A set-up process that is killed takes with it what it was told last.
            Err(_) if container.is_unheard_of() => {
                let container = self.ordered(configuration)?;
                container.configure(configuration.clone(), &streams.borrowed())?;
                Ok(container)
            }
            configured => configured.map(|()| container),
        }
    }

    /// A container that is being cloned.
    fn ordered(&self, configuration: &Configuration) -> Result<NamespaceContainer, ExecutorError> {
        let failed = |source| ExecutorError::system("talk to the sandbox set-up process", source);
        let (ours, theirs) = channel_pair().map_err(failed)?;
        let (exit_read, exit_write) = pipe_with(PipeFlags::CLOEXEC).map_err(|errno| failed(errno.into()))?;
        let order = order(configuration);
        let maker = order.maker;
        let request = Message::Spawn(Box::new(order));
        let memory_limit = smallest_memory_limit(&configuration.spec);
        // The answer comes through the container's own channel, so that nobody waits for anybody else's clone.
        let ((), server) = self.ask(|server| server.request(&request, &[theirs.as_fd(), exit_write.as_fd()]))?;
        Ok(NamespaceContainer::new(server, maker, Channel::new(ours), exit_read, memory_limit))
    }

    /// Copies in the place of overlays that cannot be mounted, and of everything else where nothing can.
    fn copies(&self, spec: &mut SandboxSpec, id: &ContainerId) -> Result<(Copies, Vec<OwnedFd>), ExecutorError> {
        let reason = match self.mounts {
            true => copied::upper_of(spec).and_then(copied::refusal),
            false => Some("forge may mount nothing".to_owned()),
        };
        let Some(reason) = reason else { return Ok((Copies::default(), Vec::new())) };
        let notice = format!("the layers are copied for each step, which takes time and space: {reason}");
        self.server()?.note([notice]);
        let mut copies = Copies::replace(spec, &self.runtime_dir, id.as_str())?;
        let listeners = if self.mounts { Vec::new() } else { copies.place(spec)? };
        Ok((copies, listeners))
    }
}

fn prepare_directory(runtime: &Path) -> io::Result<()> {
    let mut private = DirBuilder::new();
    private.recursive(true).mode(0o700).create(runtime)?;
    let mut open = DirBuilder::new();
    open.recursive(true).mode(0o755);
    for name in [layout::ROOT, layout::STAGING, layout::EMPTY, layout::BUNDLE] {
        open.create(runtime.join(name))?;
    }
    prepare_stubs(&runtime.join(layout::STUBS), &[])?;
    prepare_stubs(&runtime.join(layout::STUBS_NET), &layout::NET_FILES)?;
    prepare_stubs(&runtime.join(layout::STUBS_ETC), &layout::ETC_FILES)
}

/// Makes a lowest layer with the standard mount points, and these files.
fn prepare_stubs(layer: &Path, files: &[&str]) -> io::Result<()> {
    // The last one is made last.
    if layer.join(files.last().unwrap_or(&"sys")).exists() {
        return Ok(());
    }
    let mut open = DirBuilder::new();
    open.recursive(true).mode(0o755);
    for name in layout::DIRECTORIES {
        open.create(layer.join(name))?;
    }
    for name in files {
        let path = layer.join(name);
        path.parent().map_or(Ok(()), |folder| open.create(folder))?;
        if !path.exists() {
            std::fs::File::create(path)?;
        }
    }
    Ok(())
}

impl Executor for NamespaceExecutor {
    fn create(&self, id: &ContainerId, spec: &SandboxSpec, io: Stdio) -> Result<Box<dyn Container>, ExecutorError> {
        self.create_with(None, id, spec, io)
    }

    fn private_network(&self) -> Result<Ipv4Addr, ExecutorError> {
        let (answer, _) = self.ask(|server| server.private_network(&self.runtime_dir))?;
        answer.map_err(|reason| ExecutorError::Unsupported { what: format!("a private network ({reason})") })
    }

    fn notices(&self) -> Vec<String> {
        lock(&self.server).notices()
    }

    fn finish(&self, belongings: Option<Belongings>) {
        lock(&self.server).finish(belongings);
    }
}

/// Refuses what can be refused without trying.
fn check(spec: &SandboxSpec) -> Result<(), ExecutorError> {
    let invalid = |reason: &str| Err(ExecutorError::InvalidSpec { reason: reason.to_owned() });
    if spec.id_mappings.is_some() {
        return Err(ExecutorError::Unsupported { what: "a user namespace".into() });
    }
    if let RootFs::Overlay { lower, .. } = &spec.root
        && lower.len() > 500
    {
        return invalid("more than 500 layers");
    }
    if spec.process.args.first().is_none_or(|program| program.is_empty()) {
        return invalid("no program given");
    }
    spec.sysctls.iter().try_for_each(|sysctl| sysctl.check(spec.network, spec.shared))?;
    spec.group.check()
}

/// What is to be cloned for a container. An OCI runtime makes groups and empty networks itself.
fn order(configuration: &Configuration) -> Order {
    let Configuration { id, spec, oci_runtime, .. } = configuration;
    let holds = |capability| spec.process.capabilities.contains(capability);
    let order = Order {
        maker: Maker::Init,
        network: spec.network,
        owns_network: holds(Capabilities::NET_ADMIN) || spec.sysctls.iter().any(Sysctl::is_of_network),
        shared: spec.shared,
        devices: spec.devices,
        own_group: matches!(spec.devices, DevicePolicy::StandardAnd(_))
            || spec.writable_sys
            || holds(Capabilities::SYS_ADMIN),
        id: id.clone(),
        resources: spec.resources.clone(),
        group: spec.group.clone(),
    };
    match oci_runtime {
        None => order,
        Some(_) => Order {
            maker: Maker::Shim,
            network: if spec.network == NetworkMode::None { NetworkMode::Host } else { spec.network },
            resources: Resources::default(),
            group: GroupPlacement::default(),
            ..order
        },
    }
}
