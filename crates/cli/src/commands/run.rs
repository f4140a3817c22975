use super::{Start, block_on_many};
use crate::args::RunArgs;
use crate::failure::{BEFORE_START, Failure};
use crate::interrupt::Interrupts;
use crate::output;
use crate::progress::{Display, Mode};
use crate::request::{check_terminal, run_request};
use crate::terminal::{self, Changed};
use anyhow::Context;
use forge_engine::{RunRequest, RunStreams, RunningContainer};
use rustix::process::Signal;
use std::fs::File;
use std::io::{IsTerminal, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// Signals that go to the container's process instead of ending forge.
const FORWARDED: [SignalKind; 6] = [
    SignalKind::interrupt(),
    SignalKind::terminate(),
    SignalKind::hangup(),
    SignalKind::quit(),
    SignalKind::user_defined1(),
    SignalKind::user_defined2(),
];
/// So many requests to end make forge end the container itself, as docker's client does.
const PATIENCE: u32 = 3;

pub fn run(start: &Start, args: &RunArgs) -> Result<u8, Failure> {
    run_inner(start, args).map_err(|failure| match failure.code {
        1 => failure.with_code(BEFORE_START),
        _ => failure,
    })
}

fn run_inner(start: &Start, args: &RunArgs) -> Result<u8, Failure> {
    let folder = std::env::current_dir().context("cannot find the working directory")?;
    let request = run_request(args, &start.environment, &folder)?;
    check_terminal(args, std::io::stdin().is_terminal())?;
    if !args.rm {
        output::note("forge: containers are not kept yet: this one is removed when it ends, as with --rm");
    }
    make_bind_sources(&request)?;
    let mode = if args.quiet { Mode::None } else { Mode::read(None, std::io::stderr().is_terminal())? };
    block_on_many(attached(start, request, mode))
}

/// docker makes missing folders of the host.
fn make_bind_sources(request: &RunRequest) -> anyhow::Result<()> {
    for bind in &request.binds {
        if std::fs::symlink_metadata(&bind.source).is_err() {
            std::fs::create_dir_all(&bind.source).with_context(|| format!("cannot make {}", bind.source.display()))?;
        }
    }
    Ok(())
}

async fn attached(start: &Start, request: RunRequest, mode: Mode) -> Result<u8, Failure> {
    let (terminal, interactive) = (request.terminal, request.interactive);
    let container = create(start, request, mode).await?;
    let forwarding = forward_signals(Arc::clone(&container))?;
    let code = match container.pty() {
        Some(pty) if terminal => with_terminal(&container, pty, interactive).await?,
        _ => container.wait().await?.code,
    };
    forwarding.iter().for_each(tokio::task::JoinHandle::abort);
    Ok(u8::try_from(code & 0xff).unwrap_or(BEFORE_START))
}

/// Makes the container; until it runs, Ctrl-C ends forge.
async fn create(start: &Start, request: RunRequest, mode: Mode) -> Result<Arc<RunningContainer>, Failure> {
    let engine = start.engine()?;
    let interrupts = Interrupts::watch()?;
    let display = Display::start(mode, start.style());
    let streams = streams(&request)?;
    let container = engine.create_container(request, streams, display.events(), interrupts.token()).await;
    display.finish();
    interrupts.end();
    container.map(Arc::new).map_err(|error| match interrupts.exit_code() {
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
async fn with_terminal(container: &Arc<RunningContainer>, pty: OwnedFd, interactive: bool) -> Result<i32, Failure> {
    let stdin = std::io::stdin();
    let raw = (interactive && stdin.is_terminal()).then(|| Changed::raw(&stdin)).transpose()?;
    resize(container);
    let resizing = tokio::spawn(follow_size(Arc::clone(container)));
    if interactive {
        let to = File::from(pty.try_clone().context("cannot copy the terminal's descriptor")?);
        // Ends with the process: a read of standard input cannot be called off.
        std::thread::spawn(move || copy(std::io::stdin(), to));
    }
    let output = tokio::task::spawn_blocking(move || copy(File::from(pty), std::io::stdout()));
    let code = container.wait().await?.code;
    // What the container wrote last is still in the terminal's buffer.
    let _ = tokio::time::timeout(Duration::from_secs(1), output).await;
    resizing.abort();
    drop(raw);
    Ok(code)
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

fn forward_signals(container: Arc<RunningContainer>) -> Result<Vec<tokio::task::JoinHandle<()>>, Failure> {
    let mut tasks = Vec::new();
    for kind in FORWARDED {
        let mut signals = signal(kind)?;
        let container = Arc::clone(&container);
        tasks.push(tokio::spawn(async move {
            let mut count = 0;
            while signals.recv().await.is_some() {
                count += 1;
                let asks_to_end = kind == SignalKind::interrupt() || kind == SignalKind::terminate();
                let number = if asks_to_end && count >= PATIENCE { Signal::KILL.as_raw() } else { kind.as_raw_value() };
                // Fails only for a container that has just ended.
                let _ = container.signal(number);
            }
        }));
    }
    Ok(tasks)
}
