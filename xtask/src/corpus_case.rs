//! Realistic Dockerfiles with what their images must do: `testdata/corpus/<name>/`. Also read by the tests of the binary.
//!
//! Each folder is a build context; its file `expect` says what to do, line by line:
//!
//! ```text
//! # a remark
//! network                        needs a Debian base and Debian's, Python's, Node's or Rust's servers
//! build -t {image} {context}     commands of forge, split at blanks, "with quotes"; this one is left out where it is plain
//! run --rm {image}               …
//! > a line of the whole standard output
//! ~ a part of the standard output
//! !~ what must not be in it
//! ```

use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};

/// One folder of the corpus.
pub struct Case {
    /// The folder's name.
    pub name: String,
    folder: PathBuf,
    /// Whether it needs servers.
    pub needs_network: bool,
    commands: Vec<Expected>,
}

/// A command and what it must print.
struct Expected {
    words: Vec<String>,
    lines: Vec<String>,
    parts: Vec<String>,
    absent: Vec<String>,
}

/// All cases, sorted by name.
///
/// # Errors
/// A folder cannot be read, or its file `expect` not be understood.
pub fn read_all(corpus: &Path) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for entry in fs::read_dir(corpus).with_context(|| format!("cannot read {}", corpus.display()))? {
        cases.push(Case::read(entry?.path())?);
    }
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(cases)
}

impl Case {
    fn read(folder: PathBuf) -> Result<Self> {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let path = folder.join("expect");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut case = Self { name, folder, needs_network: false, commands: Vec::new() };
        for line in text.lines() {
            case.line(line).with_context(|| format!("{}: {line:?}", path.display()))?;
        }
        if !case.commands.iter().any(|command| command.words[0] == "build") {
            case.commands.insert(0, Expected::of("build -t {image} {context}")?);
        }
        Ok(case)
    }

    fn line(&mut self, line: &str) -> Result<()> {
        let text = |rest: &str| rest.strip_prefix(' ').unwrap_or(rest).to_owned();
        if line.is_empty() || line.starts_with('#') {
            return Ok(());
        }
        if line == "network" {
            self.needs_network = true;
            return Ok(());
        }
        let last = self.commands.last_mut().context("the first line must be a command");
        if let Some(rest) = line.strip_prefix('>') {
            last?.lines.push(text(rest));
        } else if let Some(rest) = line.strip_prefix('~') {
            last?.parts.push(text(rest));
        } else if let Some(rest) = line.strip_prefix("!~") {
            last?.absent.push(text(rest));
        } else {
            self.commands.push(Expected::of(line)?);
        }
        Ok(())
    }

    /// Runs all commands; `run` gives the standard output of a forge command that succeeded.
    ///
    /// # Errors
    /// A command failed, or printed something else.
    pub fn check(&self, mut run: impl FnMut(&[String]) -> Result<String>) -> Result<()> {
        let (image, context) = (format!("corpus-{}", self.name), self.folder.to_string_lossy());
        for command in &self.commands {
            let put_in = |word: &String| word.replace("{image}", &image).replace("{context}", &context);
            let words: Vec<String> = command.words.iter().map(put_in).collect();
            let stdout = run(&words).with_context(|| self.name.clone())?;
            command.check(&stdout).with_context(|| format!("{}: forge {}", self.name, words.join(" ")))?;
        }
        Ok(())
    }
}

impl Expected {
    fn of(line: &str) -> Result<Self> {
        let words = split(line)?;
        ensure!(!words.is_empty(), "there is no command");
        Ok(Self { words, lines: Vec::new(), parts: Vec::new(), absent: Vec::new() })
    }

    fn check(&self, stdout: &str) -> Result<()> {
        if !self.lines.is_empty() && stdout.lines().ne(self.lines.iter().map(String::as_str)) {
            bail!("expected:\n{}\ngot:\n{stdout}", self.lines.join("\n"));
        }
        if let Some(part) = self.parts.iter().find(|part| !stdout.contains(*part)) {
            bail!("expected {part:?} in:\n{stdout}");
        }
        match self.absent.iter().find(|part| stdout.contains(*part)) {
            Some(part) => bail!("did not expect {part:?} in:\n{stdout}"),
            None => Ok(()),
        }
    }
}

/// Words separated by blanks; blanks between double quotes belong to a word.
fn split(line: &str) -> Result<Vec<String>> {
    let mut words = Vec::new();
    let (mut word, mut quoted) = (None::<String>, false);
    for c in line.chars() {
        match c {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            ' ' if !quoted => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    ensure!(!quoted, "a quote is not closed");
    words.extend(word);
    Ok(words)
}
