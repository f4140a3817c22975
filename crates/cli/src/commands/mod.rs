//! What each command does: a request to the engine, then docker's output.

mod archive;
mod ask;
mod build;
mod call;
mod compare;
mod daemon;
mod debug;
mod front_end;
mod images;
mod imagetools;
mod inspect;
mod plan;
mod rebuild;
mod registry;
mod run;
mod store;
mod verify;

use crate::args::{Cli, Command, StoreCommand};
use crate::config;
use crate::environment::Environment;
use crate::failure::{BEFORE_START, Failure};
use crate::host::{self, Host};
use crate::interrupt::Interrupts;
use crate::output;
use crate::progress::Style;
use crate::standing::Standing;
use forge_daemon::FrontEndImages;
use forge_engine::{Engine, EngineError, EngineOptions, ExpectedContainer};
use std::future::Future;
use std::io::IsTerminal;
use tokio_util::sync::CancellationToken;

/// What every command starts from.
struct Start {
    environment: Environment,
    options: EngineOptions,
    /// The daemon that builds, where it is not this process.
    host: Option<Host>,
    /// The front ends that are images which may run in this process.
    front_ends: FrontEndImages,
}

impl Start {
    fn engine(&self) -> Result<Engine, Failure> {
        self.engine_expecting(None)
    }

    /// One that servers know as a builder of BuildKit's kind, besides by its own name: there are servers that ask for it.
    fn engine_of_daemon(&self, version: &str) -> Result<Engine, Failure> {
        let user_agent = Some(format!("buildkit/{version} forge/{}", env!("CARGO_PKG_VERSION")));
        let engine = Engine::open(EngineOptions { user_agent, ..self.options.clone() })?;
        engine.notices_of_store().iter().for_each(|notice| output::note(notice));
        Ok(engine)
    }

    fn engine_expecting(&self, expected: Option<ExpectedContainer>) -> Result<Engine, Failure> {
        let engine = Engine::open_expecting(self.options.clone(), expected)?;
        engine.notices_of_store().iter().for_each(|notice| output::note(notice));
        Ok(engine)
    }

    fn style(&self) -> Style {
        let plain = self.environment.filled("NO_COLOR").is_some() || self.environment.get("TERM") == Some("dumb");
        let lines = self.environment.get("BUILDKIT_TTY_LOG_LINES").and_then(|lines| lines.parse().ok());
        Style { colour: !plain && std::io::stderr().is_terminal(), log_lines: lines.unwrap_or(6) }
    }
}

/// What stands before an error of a command: `docker build`'s own word, forge's name elsewhere.
pub fn error_prefix(command: &Command) -> &'static str {
    match command {
        Command::Build(_) | Command::Plan(_) => "ERROR",
        _ => "forge",
    }
}

/// Runs a command and gives the exit code. `expected` is what was begun for one that runs a container.
///
/// # Errors
/// What the user is to be told, and the exit code.
pub fn run(cli: Cli, standing: &Standing, expected: Option<ExpectedContainer>) -> Result<u8, Failure> {
    let environment = Environment::of_process();
    if let Command::Daemon(args) = &cli.command {
        let (options, config) = config::daemon_options(&cli.global, args, &environment, standing.is_root())?;
        return daemon::daemon(
            &Start { environment, options, host: None, front_ends: FrontEndImages::none() },
            args,
            config,
        );
    }
    let host = host::host(&cli.global, &cli.command, &environment)?;
    let mut options = config::engine_options(&cli.global, &environment, standing.is_root())?;
    if host.is_none() {
        options.oci_runtime = config::oci_runtime(cli.command.oci_runtime(), &environment)
            .map_err(|error| Failure::from(error).with_code(BEFORE_START))?;
        standing.note(&cli.command).inspect(|note| output::note(note));
    }
    let front_ends = match &cli.command {
        Command::Build(_) | Command::Plan(_) => config::front_ends(&cli.global, &environment, standing.is_root())?,
        _ => FrontEndImages::none(),
    };
    let start = Start { environment, options, host, front_ends };
    match cli.command {
        Command::Build(args) => return build::build(&start, &args),
        Command::Plan(args) => return plan::plan(&start, &args),
        Command::Run(args) => return run::run(&start, &args, expected),
        Command::Images(args) => images::images(&start, &args),
        Command::Inspect(args) => return inspect::inspect(&start, &args),
        Command::History(args) => images::history(&start, &args),
        Command::Layers(args) => compare::layers(&start, &args),
        Command::Diff(args) => return compare::diff(&start, &args),
        Command::Verify(args) => return rebuild::rebuild(&start, &args),
        Command::Tag(args) => images::tag(&start, &args),
        Command::Rmi(args) => return images::rmi(&start, &args),
        Command::Pull(args) => return registry::pull(&start, &args),
        Command::Push(args) => return registry::push(&start, &args),
        Command::Imagetools(args) => return imagetools::imagetools(&start, &args),
        Command::Save(args) => archive::save(&start, &args),
        Command::Load(args) => return archive::load(&start, &args),
        Command::Login(args) => registry::login(&start, &args),
        Command::Logout(args) => registry::logout(&start, &args),
        Command::Du(args) => store::du(&start, &args),
        Command::Prune(args) => store::prune(&start, &args),
        Command::Store(args) => match args.what {
            StoreCommand::Verify(args) => return verify::verify(&start, &args),
        },
        Command::Daemon(_) => unreachable!("it reads a configuration of its own, above"),
        Command::Debug(args) => return debug::debug(&start, &args),
        Command::Version(args) => store::version(&args),
        Command::Info(args) => store::info(&start, &args),
    }?;
    Ok(0)
}

/// Waits for short work, or for what others do; this thread is all it needs.
fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(work);
    // What still blocks (a read of standard input) must not hold up the end.
    runtime.shutdown_background();
    result
}

/// Waits for work that does many things at once.
fn block_on_many<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    // The main thread works too: it drives the command itself.
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get() - 1).clamp(1, 8);
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    // As much as the main thread has: the steps of a build and its exports are deep, most of all without optimization.
    builder.thread_stack_size(8 << 20);
    let runtime = builder.worker_threads(threads).enable_all().build()?;
    let result = runtime.block_on(work);
    runtime.shutdown_background(); // as above
    result
}

/// Runs work that stops and cleans up when a signal asks for it; the exit code is the signal's then.
fn interruptible<T, F>(work: impl FnOnce(CancellationToken) -> F) -> Result<T, Failure>
where
    F: Future<Output = Result<T, EngineError>>,
{
    block_on_many(async {
        let interrupts = Interrupts::watch()?;
        let result = work(interrupts.token()).await;
        result.map_err(|error| match interrupts.exit_code() {
            Some(code) => Failure::from(error).with_code(code),
            None => Failure::from(error),
        })
    })
}
