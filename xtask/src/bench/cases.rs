use super::Size;
use super::measure::{plain, shell};
use crate::demo::Forge;
use anyhow::{Result, bail};
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// Where the cases run.
pub struct Bench {
    pub forge: Forge,
    pub folder: PathBuf,
    pub size: Size,
}

/// A measured case.
pub(super) struct Row<'a> {
    pub case: &'a str,
    pub forge: Duration,
    pub bare: Duration,
    pub goal: &'a str,
    pub bare_job: &'a str,
}

impl Row<'_> {
    pub fn print(&self) {
        let ms = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1000.0);
        let ratio = self.forge.as_secs_f64() / self.bare.as_secs_f64();
        println!(
            "{:<44} {:>10} {:>10} {ratio:>7.2} {:>8}   {}",
            self.case,
            ms(self.forge),
            ms(self.bare),
            self.goal,
            self.bare_job
        );
    }
}

/// Measures one job and prints its rows.
type Case = fn(&Bench) -> Result<()>;

impl Bench {
    pub fn run(&self, wanted: &[&str]) -> Result<()> {
        let cases: [(&str, Case); 9] = [
            ("steps", Self::steps),
            ("growth", Self::growth),
            ("cached", Self::cached),
            ("hundred", Self::hundred_cached),
            ("container", Self::container),
            ("contexts", Self::contexts),
            ("curves", Self::curves),
            ("layer", Self::layer),
            ("pull", Self::pull),
        ];
        if let Some(unknown) = wanted.iter().find(|name| cases.iter().all(|(case, _)| case != *name)) {
            bail!("there is no case {unknown:?}");
        }
        let mut chosen = cases.iter().filter(|(case, _)| wanted.is_empty() || wanted.contains(case));
        chosen.try_for_each(|(_, run)| run(self))
    }

    /// A context with a Dockerfile.
    pub(super) fn context_of(&self, name: &str, dockerfile: &str) -> Result<PathBuf> {
        let folder = self.folder.join(name);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("Dockerfile"), dockerfile)?;
        Ok(folder)
    }

    pub(super) fn scaled(&self, full: usize) -> usize {
        match self.size {
            Size::Full | Size::Million => full,
            Size::Quick => full / 10,
        }
    }

    fn steps(&self) -> Result<()> {
        let count = self.scaled(60);
        let context = self.context_of("steps", &chain("step", count)?)?;
        let build = || self.forge.command(&format!("build --no-cache -q -t steps {}", context.display()));
        let forge = plain(3, build)?;
        let bare_line = format!("for i in $(seq {count}); do unshare -mpfiu --mount-proc true; done");
        let bare = plain(3, || shell(&bare_line))?;
        Row {
            case: &format!("{count} x RUN echo, cold, exported"),
            forge,
            bare,
            goal: "2.2",
            bare_job: "as many unshare -mpfiu --mount-proc true",
        }
        .print();
        Ok(())
    }

    /// The last steps of a long chain beside its first ones.
    fn growth(&self) -> Result<()> {
        const SAMPLES: usize = 9;
        let count = self.scaled(1000);
        let part = count / 10;
        let below = runs("below", count - part)?;
        let time = |name: &str, runs: &str| -> Result<Duration> {
            let context = self.context_of(name, &format!("FROM busybox\n{runs}"))?;
            plain(1, || self.forge.command(&format!("build -q -t chain {}", context.display())))
        };
        time("below", &below)?;
        // Each is new only once. In turn, so that what slows the machine down for a while slows down both.
        let (mut first, mut last) = (Vec::new(), Vec::new());
        for number in 0..SAMPLES {
            let name = format!("first-{number}");
            first.push(time(&name, &runs(&name, part)?)?);
            let name = format!("last-{number}");
            last.push(time(&name, &(below.clone() + &runs(&name, part)?))?);
        }
        first.sort_unstable();
        last.sort_unstable();
        Row {
            case: &format!("steps {} to {count} of a chain", count - part + 1),
            forge: last[SAMPLES / 2],
            bare: first[SAMPLES / 2],
            goal: "1.2",
            bare_job: &format!("steps 1 to {part}, the middle of {SAMPLES} in turn"),
        }
        .print();
        Ok(())
    }

    fn hundred_cached(&self) -> Result<()> {
        let context = self.context_of("hundred", &chain("hundred", 100)?)?;
        let build = || self.forge.command(&format!("build -q -t hundred {}", context.display()));
        plain(1, build)?;
        let forge = plain(11, build)?;
        let bare = plain(11, unshared)?;
        Row {
            case: "100 steps, nothing changed",
            forge,
            bare,
            goal: "9.1",
            bare_job: "unshare (20 ms where it takes 2.2)",
        }
        .print();
        Ok(())
    }

    fn cached(&self) -> Result<()> {
        let dockerfile =
            "FROM busybox\nWORKDIR /srv\nCOPY Dockerfile .\nRUN echo 1 > one\nRUN echo 2 > two\nRUN echo 3 > three\n";
        let context = self.context_of("cached", dockerfile)?;
        let build = || self.forge.command(&format!("build -q -t cached {}", context.display()));
        plain(1, build)?;
        let forge = plain(21, build)?;
        let bare = plain(21, unshared)?;
        Row {
            case: "5 steps, nothing changed",
            forge,
            bare,
            goal: "3.6",
            bare_job: "unshare (8 ms where it takes 2.2)",
        }
        .print();
        Ok(())
    }

    fn container(&self) -> Result<()> {
        let forge = plain(21, || self.forge.command("run --rm busybox true"))?;
        let bare = plain(21, unshared)?;
        Row { case: "run --rm busybox true", forge, bare, goal: "2.7", bare_job: "unshare (6 ms where it takes 2.2)" }
            .print();
        Ok(())
    }
}

/// What a container costs at least, by which the machine's speed of the hour is known.
fn unshared() -> Command {
    crate::command::command("unshare -mpfiu --mount-proc true")
}

/// So many steps, each of which writes a file.
fn chain(name: &str, steps: usize) -> Result<String> {
    Ok("FROM busybox\n".to_owned() + &runs(name, steps)?)
}

/// The lines of these steps.
fn runs(name: &str, steps: usize) -> Result<String> {
    let mut lines = String::new();
    for step in 0..steps {
        writeln!(lines, "RUN echo {step} > /{name}-{step}")?;
    }
    Ok(lines)
}
