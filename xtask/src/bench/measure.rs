use crate::command::output;
use anyhow::Result;
use std::process::Command;
use std::time::{Duration, Instant};

/// The median of some runs of a command, each prepared afresh.
pub fn median(
    runs: usize,
    mut prepare: impl FnMut() -> Result<()>,
    mut command: impl FnMut() -> Command,
) -> Result<Duration> {
    let mut times = Vec::new();
    for _ in 0..runs {
        prepare()?;
        let mut command = command();
        let start = Instant::now();
        output(&mut command)?;
        times.push(start.elapsed());
    }
    times.sort();
    Ok(times[times.len() / 2])
}

/// One run of a command.
pub fn once(command: &mut Command) -> Result<Duration> {
    let start = Instant::now();
    output(command)?;
    Ok(start.elapsed())
}

/// The median of some runs that need no preparation.
pub fn plain(runs: usize, command: impl FnMut() -> Command) -> Result<Duration> {
    median(runs, || Ok(()), command)
}

/// A line of shell.
pub fn shell(line: &str) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", line]);
    shell
}
