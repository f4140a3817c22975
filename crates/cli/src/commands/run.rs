use super::{Start, block_on, block_on_many};
use crate::args::RunArgs;
use crate::detach_keys::DetachKeys;
use crate::failure::{BEFORE_START, Failure};
use crate::front::Back;
use crate::output;
use crate::progress::{Display, Mode};
use crate::request::{check_terminal, run_request};
use crate::terminal::{self, Changed};
use anyhow::{Context, bail};
use forge_engine::{Engine, ExpectedContainer, RunOutcome, RunRequest, RunStreams, RunningContainer};
use rustix::process::Signal as ProcessSignal;
use std::fs::File;
use std::io::{IsTerminal, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

/// Signals that go to the container's process instead of ending forge.
const FORWARDED: [SignalKind; 6] = [
    SignalKind::interrupt(),
    SignalKind::terminate(),
    SignalKind::hangup(),
    SignalKind::quit(),
    SignalKind::user_defined1(),
    SignalKind::user_defined2(),
];
/// A signal that comes before the container waits this long for it.
const START_GRACE: Duration = Duration::from_millis(200);
/// So many requests to end make forge end the container itself, as docker's client does.
const PATIENCE: u32 = 3;
const KILL: ProcessSignal = ProcessSignal::KILL;
/// How long `docker stop` waits.
const DEFAULT_PATIENCE: Duration = Duration::from_secs(10);

pub fn run(start: &Start, args: &RunArgs, expected: Option<ExpectedContainer>) -> Result<u8, Failure> {
    run_inner(start, args, expected).map_err(|failure| match failure.code {
        1 => failure.with_code(BEFORE_START),
        _ => failure,
    })
}

fn run_inner(start: &Start, args: &RunArgs, expected: Option<ExpectedContainer>) -> Result<u8, Failure> {
    let folder = std::env::current_dir().context("cannot find the working directory")?;
    let request = RunRequest { terminal_size: terminal::size(), ..run_request(args, &start.environment, &folder)? };
    check_terminal(args, std::io::stdin().is_terminal())?;
    let expected = expected.or_else(ExpectedContainer::begin);
    expected.iter().for_each(|expected| expected.expect_network(&start.options.root, request.network));
    if !args.rm {
        output::note("forge: containers are not kept yet: this one is removed when it ends, as with --rm");
    }
    make_bind_sources(&request)?;
    let stop = StopPolicy::read(args)?;
    let keys = DetachKeys::parse(args.detach_keys.as_deref().unwrap_or_default())?;
    let back = Back::of(&start.environment);
    if let Some(back) = back {
        back.end_with_front();
    }
    let detach = back.map(|back| (keys, back));
    let id_file = args.cidfile.as_deref().map(IdFile::reserve).transpose()?;
    let mode = if args.quiet { Mode::None } else { Mode::read(None, std::io::stderr().is_terminal())? };
    let busy = !request.ports.is_empty() || request.publish_all;
    let attached = attached(start, (request, expected), mode, Manner { stop, id_file, detach });
    // One that waits for a container needs no threads of its own, and starts sooner without.
    if busy { block_on_many(attached) } else { block_on(attached) }
}

/// How a container is started and left.
struct Manner {
    stop: Option<StopPolicy>,
    id_file: Option<IdFile>,
    /// What is typed to leave it, where it can be.
    detach: Option<(DetachKeys, Back)>,
}

/// How SIGTERM ends a container where `--stop-signal` or `--stop-timeout` is given: as `docker stop`.
#[derive(Clone, Copy)]
struct StopPolicy {
    signal: i32,
    /// `None` to wait for ever.
    patience: Option<Duration>,
}

impl StopPolicy {
    fn read(args: &RunArgs) -> anyhow::Result<Option<Self>> {
        if args.stop_signal.is_none() && args.stop_timeout.is_none() {
            return Ok(None);
        }
        let signal = args.stop_signal.as_deref().map_or(Ok(ProcessSignal::TERM.as_raw()), signal_number)?;
        let patience = match args.stop_timeout {
            None => Some(DEFAULT_PATIENCE),
            Some(seconds) => u64::try_from(seconds).ok().map(Duration::from_secs),
        };
        Ok(Some(Self { signal, patience }))
    }

    fn begin(self, container: &Arc<RunningContainer>) {
        // Fails only for a container that has just ended, here and below.
        let _ = container.signal(self.signal);
        let Some(patience) = self.patience else { return };
        let container = Arc::clone(container);
        tokio::spawn(async move {
            tokio::time::sleep(patience).await;
            let _ = container.signal(KILL.as_raw());
        });
    }
}

/// A signal by number or by name, with or without `SIG`.
fn signal_number(text: &str) -> anyhow::Result<i32> {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM",
        "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF",
        "WINCH", "IO", "PWR", "SYS",
    ];
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let by_name = NAMES.iter().position(|known| *known == name).map(|index| index as i32 + 1);
    let by_number = text.parse().ok().filter(|number| (1..=31).contains(number));
    by_name.or(by_number).with_context(|| format!("invalid signal: {text}"))
}

/// The file that a container's id goes to.
struct IdFile(File);

impl IdFile {
    fn reserve(path: &Path) -> anyhow::Result<Self> {
        match File::create_new(path) {
            Ok(file) => Ok(Self(file)),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => bail!(
                "container ID file found, make sure the other container isn't running or delete {}",
                path.display()
            ),
            Err(error) => Err(error).with_context(|| format!("cannot make {}", path.display())),
        }
    }

    fn fill(mut self, id: &str) -> anyhow::Result<()> {
        self.0.write_all(id.as_bytes()).context("cannot write the container's id")
    }
}

/// docker makes missing folders of the host.
fn make_bind_sources(request: &RunRequest) -> anyhow::Result<()> {
    for bind in request.binds.iter().filter(|bind| bind.create) {
        if std::fs::symlink_metadata(&bind.source).is_err() {
            std::fs::create_dir_all(&bind.source).with_context(|| format!("cannot make {}", bind.source.display()))?;
        }
    }
    Ok(())
}

async fn attached(
    start: &Start,
    (request, expected): (RunRequest, Option<ExpectedContainer>),
    mode: Mode,
    manner: Manner,
) -> Result<u8, Failure> {
    let Manner { stop, id_file, detach } = manner;
    let (terminal, interactive) = (request.terminal, request.interactive);
    let signals = Signals::watch(stop)?;
    let quiet = matches!(mode, Mode::None);
    let engine = start.engine_expecting(expected)?;
    let container = create(&engine, Display::start(mode, start.style()), request, &signals).await?;
    if !quiet {
        container.notices().iter().for_each(|notice| output::note(&format!("forge: {notice}")));
    }
    if let Some(file) = id_file {
        file.fill(container.id())?;
    }
    let outcome = match container.pty() {
        Some(pty) if terminal => with_terminal(&container, pty, interactive, detach).await?,
        _ => container.wait().await?,
    };
    if let Some(limit) = outcome.memory_limit {
        output::note(&format!("forge: the container ran out of memory (limit {limit} bytes)"));
    }
    Ok(u8::try_from(outcome.code & 0xff).unwrap_or(BEFORE_START))
}

async fn create(
    engine: &Engine,
    display: Display,
    request: RunRequest,
    signals: &Signals,
) -> Result<Arc<RunningContainer>, Failure> {
    let streams = streams(&request)?;
    let container = engine.create_container(request, streams, display.events(), signals.token.clone()).await;
    let container = container.map(Arc::new).inspect(|container| signals.started(container));
    display.finish();
    container.map_err(|error| match signals.exit_code() {
        Some(code) => Failure::from(error).with_code(code),
        None => Failure::from(error),
    })
}

/// forge's own streams, or none where the process gets a terminal.
fn streams(request: &RunRequest) -> anyhow::Result<RunStreams> {
    if request.terminal {
        return Ok(RunStreams::default());
    }
    let copy = |stream: &dyn AsFd| stream.as_fd().try_clone_to_owned().context("cannot hand a standard stream on");
    Ok(RunStreams {
        stdin: request.interactive.then(|| copy(&std::io::stdin())).transpose()?,
        stdout: Some(copy(&std::io::stdout())?),
        stderr: Some(copy(&std::io::stderr())?),
    })
}

/// Copies between the user's terminal and the container's until the container ends.
async fn with_terminal(
    container: &Arc<RunningContainer>,
    pty: OwnedFd,
    interactive: bool,
    detach: Option<(DetachKeys, Back)>,
) -> Result<RunOutcome, Failure> {
    let stdin = std::io::stdin();
    let raw = (interactive && stdin.is_terminal()).then(|| Changed::raw(&stdin)).transpose()?;
    resize(container);
    let resizing = tokio::spawn(follow_size(Arc::clone(container)));
    let (left, leaving) = oneshot::channel();
    let (keys, back) = detach.unzip();
    if interactive {
        let to = File::from(pty.try_clone().context("cannot copy the terminal's descriptor")?);
        // Ends with the process: a read of standard input cannot be called off.
        std::thread::spawn(move || match keys {
            Some(keys) => type_until(keys, std::io::stdin(), to).then(|| left.send(())),
            None => {
                copy(std::io::stdin(), to);
                None
            }
        });
    }
    let output = tokio::task::spawn_blocking(move || copy(File::from(pty), std::io::stdout()));
    let ended = container.wait();
    tokio::pin!(ended);
    let outcome = tokio::select! {
        outcome = &mut ended => outcome?,
        Ok(()) = leaving => {
            drop(raw);
            resizing.abort();
            let own = std::process::id();
            output::note(&format!("forge: the container goes on without this terminal; process {own} hands signals on to it"));
            if let Some(back) = back {
                back.leave().context("cannot leave the terminal")?;
            }
            return Ok(ended.await?);
        }
    };
    // What the container wrote last is still in the terminal's buffer.
    let _ = tokio::time::timeout(Duration::from_secs(1), output).await;
    resizing.abort();
    drop(raw);
    Ok(outcome)
}

/// As `copy`, until keys are typed that leave the container; whether they were.
fn type_until(mut keys: DetachKeys, mut from: impl Read, mut to: impl Write) -> bool {
    let mut buffer = [0; 16 * 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return false,
            Ok(length) => {
                let Some(passed) = keys.pass(&buffer[..length]) else { return true };
                if to.write_all(&passed).is_err() {
                    return false;
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
}

/// Copies until either side ends. A terminal whose other side is closed answers with an error (EIO).
fn copy(mut from: impl Read, mut to: impl Write) {
    let mut buffer = [0; 16 * 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) => {
                if to.write_all(&buffer[..length]).and_then(|()| to.flush()).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

fn resize(container: &RunningContainer) {
    if let Some((columns, rows)) = terminal::size() {
        // A container that just ended has no terminal to resize.
        let _ = container.resize(columns, rows);
    }
}

async fn follow_size(container: Arc<RunningContainer>) {
    let Ok(mut changes) = signal(SignalKind::window_change()) else { return };
    while changes.recv().await.is_some() {
        resize(&container);
    }
}

/// Signals go to the container's process. Until there is one, those that ask for the end end forge.
struct Signals {
    token: CancellationToken,
    container: watch::Sender<Option<Arc<RunningContainer>>>,
    caught: Arc<AtomicU8>,
}

impl Signals {
    fn watch(stop: Option<StopPolicy>) -> std::io::Result<Self> {
        let (container, _) = watch::channel(None);
        let signals = Self { token: CancellationToken::new(), container, caught: Arc::default() };
        for kind in FORWARDED {
            let route = Route {
                kind,
                stop: stop.filter(|_| kind == SignalKind::terminate()),
                container: signals.container.subscribe(),
                token: signals.token.clone(),
                caught: Arc::clone(&signals.caught),
            };
            tokio::spawn(route.follow(signal(kind)?));
        }
        Ok(signals)
    }

    fn started(&self, container: &Arc<RunningContainer>) {
        self.container.send_replace(Some(Arc::clone(container)));
    }

    fn exit_code(&self) -> Option<u8> {
        match self.caught.load(Ordering::Relaxed) {
            0 => None,
            signal => Some(128 + signal),
        }
    }
}

/// The way of one kind of signal.
struct Route {
    kind: SignalKind,
    /// What this signal asks for, where it is not simply handed on.
    stop: Option<StopPolicy>,
    container: watch::Receiver<Option<Arc<RunningContainer>>>,
    token: CancellationToken,
    caught: Arc<AtomicU8>,
}

impl Route {
    async fn follow(mut self, mut signals: Signal) {
        let mut count = 0;
        while signals.recv().await.is_some() {
            count += 1;
            // A process may have started and be known to nobody yet: its signals are not to end forge.
            let container = tokio::time::timeout(START_GRACE, self.container.wait_for(Option::is_some)).await;
            match container.ok().and_then(Result::ok).and_then(|container| container.clone()) {
                Some(container) => self.forward(&container, count),
                None => self.end_forge(),
            }
        }
    }

    fn forward(&self, container: &Arc<RunningContainer>, count: u32) {
        if let (Some(stop), 1) = (self.stop, count) {
            return stop.begin(container);
        }
        let asks_to_end = self.kind == SignalKind::interrupt() || self.kind == SignalKind::terminate();
        let kill = asks_to_end && count >= PATIENCE;
        let number = if kill { KILL.as_raw() } else { self.kind.as_raw_value() };
        // Fails only for a container that has just ended.
        let _ = container.signal(number);
    }

    /// The first request cancels, the second one does not wait.
    fn end_forge(&self) {
        let ends = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        if !ends.contains(&self.kind) {
            return;
        }
        let number = u8::try_from(self.kind.as_raw_value()).unwrap_or(0);
        if self.caught.swap(number, Ordering::Relaxed) != 0 {
            std::process::exit(i32::from(128 + number));
        }
        self.token.cancel();
    }
}
