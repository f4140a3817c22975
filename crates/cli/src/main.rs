//! The command line of forge: arguments in, rendering and exit codes out.
//!
//! Everything that is done is done by [`forge_engine::Engine`]; this crate knows flags, docker's output shapes,
//! terminals and signals. It is the only place that reads the environment.
//!
//! Reading order: [`args`], [`request`] (flags to requests), [`commands`], [`progress`], [`failure`].
#![forbid(unsafe_code)]

mod ahead;
mod args;
mod commands;
mod config;
mod detach_keys;
mod environment;
mod failure;
mod front;
mod gc_config;
mod host;
mod interrupt;
mod output;
mod progress;
mod request;
mod sanitise;
mod standing;
mod table;
mod template;
mod terminal;
mod units;

use clap::error::ErrorKind;
use failure::{BEFORE_START, Failure};
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    // Sandboxed processes start as a copy of this program; nothing may happen before that is known.
    forge_engine::init_if_requested();
    std::panic::set_hook(Box::new(report_defect));
    let expected = ahead::container(std::env::args_os());
    let cli = match args::Cli::read(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => return ExitCode::from(usage(&error)),
    };
    let prefix = commands::error_prefix(&cli.command);
    if let Some(code) = front::stand(&cli.command) {
        return ExitCode::from(code);
    }
    // While there is one thread: a process with several cannot enter a user namespace.
    let standing = match standing::Standing::establish(&cli.command, host::is_named(&cli)) {
        Ok(standing) => standing,
        Err(error) => return ExitCode::from(report(&Failure::from(error).with_code(BEFORE_START), prefix)),
    };
    match commands::run(cli, &standing, expected) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => ExitCode::from(report(&failure, prefix)),
    }
}

fn report(failure: &Failure, prefix: &str) -> u8 {
    // Nothing can be done about a standard error that is gone.
    let _ = std::io::stderr().write_all(failure.text(prefix).as_bytes());
    failure.code
}

/// Help and versions are asked for; a wrong flag is docker's 125, a missing argument its 1.
fn usage(error: &clap::Error) -> u8 {
    let _ = error.print();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => 0,
        ErrorKind::MissingRequiredArgument
        | ErrorKind::MissingSubcommand
        | ErrorKind::InvalidSubcommand
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
        | ErrorKind::TooManyValues
        | ErrorKind::TooFewValues => 1,
        _ => BEFORE_START,
    }
}

/// One line instead of a backtrace.
fn report_defect(panic: &std::panic::PanicHookInfo<'_>) {
    let what = panic.payload_as_str().unwrap_or("unknown");
    let place = panic.location().map(|place| format!(" at {}:{}", place.file(), place.line())).unwrap_or_default();
    let text = format!(
        "forge: internal error: {}{place}\nhint: this is a defect in forge; please report it\n",
        sanitise::line(what)
    );
    let _ = std::io::stderr().write_all(text.as_bytes());
}
