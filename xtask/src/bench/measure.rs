use crate::command::output;
use anyhow::{Context, Result};
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

/// What is touched before a run that moves about as much.
const WARMED: usize = 2 << 30;

/// Waits until everything is on the disk, so that nobody shares it with what was prepared, and has memory at hand: what nobody
/// uses a virtual machine gives back to its host, and to have it again costs 2 ms a megabyte, several times what is measured.
pub fn settle() -> Result<()> {
    rustix::fs::sync();
    std::hint::black_box(vec![1_u8; WARMED]);
    Ok(())
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

/// What a command took.
#[derive(Clone, Copy)]
pub struct Used {
    pub time: Duration,
    /// The most memory that it had at once.
    pub kilobytes: u64,
    /// What its threads calculated, beside what the kernel did for them.
    pub calculated: Duration,
}

impl Used {
    pub fn shown(&self) -> String {
        format!("{:.1} ms", self.time.as_secs_f64() * 1000.0)
    }
}

/// Runs a command under time(1), which is told by the kernel what it used.
pub fn used(command: &mut Command) -> Result<Used> {
    let report = tempfile::NamedTempFile::new()?;
    let mut timed = Command::new("time");
    timed.args(["-f", "%M %U", "-o"]).arg(report.path()).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        timed.env(name, value.unwrap_or_default());
    }
    let time = once(&mut timed)?;
    let report = std::fs::read_to_string(report.path())?;
    let (kilobytes, seconds) = report.trim().split_once(' ').context("time(1) says two numbers")?;
    Ok(Used { time, kilobytes: kilobytes.parse()?, calculated: Duration::from_secs_f64(seconds.parse()?) })
}
