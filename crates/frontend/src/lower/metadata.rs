//! Instructions that change the config alone, and WORKDIR, which also makes a folder.

use super::ports::Ports;
use super::stage::StageBuilder;
use super::state::Layer;
use crate::command::{Command, CommandLine};
use crate::duration::format_duration;
use crate::quote::{go_list, go_quoted_list};
use crate::signal::is_signal;
use crate::span::At;
use crate::{FrontendError, Problem, Rule, Span, Token};
use forge_image::Healthcheck;
use forge_llb::{FileAction, FileInput, FileKind, FileOp, MkdirAction, Op, Owner};
use serde_json::{Map, Value};
use std::rc::Rc;

/// Roughly what a port costs in memory: a range of all of them is written in seven bytes.
const PORT_COST: usize = 128;

impl StageBuilder<'_, '_> {
    pub(super) fn expose(&mut self, command: &Command, words: &[Token]) -> Result<(), FrontendError> {
        let mut ports: Vec<String> = Vec::new();
        for token in words {
            for word in self.expand(command, token)?.words {
                let range = Ports::parse(&word).at(token.span)?;
                if range.shouts() {
                    self.report(Rule::ExposeProtoCasing, command, &[&word]);
                }
                if range.maps_host {
                    self.report(Rule::ExposeInvalidFormat, command, &[&word]);
                }
                self.lowering.book(range.count() * PORT_COST)?;
                ports.extend(range.entries());
            }
        }
        add_keys(&mut self.state.config().exposed_ports, &ports);
        self.record(format!("EXPOSE {}", go_list(&ports)), Layer::None)
    }

    pub(super) fn volume(&mut self, command: &Command, words: &[Token]) -> Result<(), FrontendError> {
        let paths: Vec<String> = words.iter().map(|word| self.text(command, word)).collect::<Result<_, _>>()?;
        if paths.iter().any(|path| path.trim().is_empty()) {
            return Err(Problem::value("VOLUME specified can not be an empty string").into());
        }
        add_keys(&mut self.state.config().volumes, &paths);
        self.record(format!("VOLUME {}", go_list(&paths)), Layer::None)
    }

    pub(super) fn user(&mut self, command: &Command, user: &Token) -> Result<(), FrontendError> {
        let user = self.text(command, user)?;
        self.state.config().user.clone_from(&user);
        self.record(format!("USER {user}"), Layer::None)
    }

    pub(super) fn stopsignal(&mut self, command: &Command, signal: &Token) -> Result<(), FrontendError> {
        let name = self.text(command, signal)?;
        if !is_signal(&name) {
            return Err(Problem::value(format!("invalid signal: {name}"))).at(signal.span);
        }
        self.state.config().stop_signal.clone_from(&name);
        self.record(format!("STOPSIGNAL {name}"), Layer::None)
    }

    pub(super) fn maintainer(&mut self, author: &Token) -> Result<(), FrontendError> {
        Rc::make_mut(&mut self.state.image).author = Some(author.text.clone());
        self.record(format!("MAINTAINER {}", author.text), Layer::None)
    }

    pub(super) fn shell(&mut self, shell: &[String]) -> Result<(), FrontendError> {
        self.state.config().shell = shell.to_vec();
        self.record(format!("SHELL {}", go_list(shell)), Layer::None)
    }

    pub(super) fn cmd(&mut self, command: &Command, line: &CommandLine) -> Result<(), FrontendError> {
        let before = self.cmd.replace(command.span);
        self.check_used_once(command, before);
        let args = self.command_line(command, line);
        let config = self.state.config();
        config.cmd = Some(args.clone()).filter(|args| !args.is_empty());
        // For a command in either form, and on every system: clients see it in what docker builds.
        config.args_escaped = true;
        self.record(format!("CMD {}", go_quoted_list(&args)), Layer::None)
    }

    /// A new entry point makes an inherited command meaningless.
    pub(super) fn entrypoint(&mut self, command: &Command, line: &CommandLine) -> Result<(), FrontendError> {
        let before = self.entrypoint.replace(command.span);
        self.check_used_once(command, before);
        let args = self.command_line(command, line);
        let keeps_cmd = self.cmd.is_some();
        let config = self.state.config();
        config.entrypoint = Some(args.clone()).filter(|args| !args.is_empty());
        if !keeps_cmd {
            config.cmd = None;
        }
        self.record(format!("ENTRYPOINT {}", go_quoted_list(&args)), Layer::None)
    }

    /// What is run; a text goes to the shell.
    fn command_line(&self, command: &Command, line: &CommandLine) -> Vec<String> {
        match line {
            CommandLine::Exec(args) => args.clone(),
            CommandLine::Shell(text) => {
                if self.state.image.config.shell.is_empty() {
                    self.report(Rule::JSONArgsRecommended, command, &[&command.keyword.text]);
                }
                self.in_shell(text.clone())
            }
        }
    }

    /// The shell with a text to run.
    pub(super) fn in_shell(&self, text: String) -> Vec<String> {
        let mut args = self.state.shell();
        args.push(text);
        args
    }

    /// Of several, only the last one counts: the warning points at the one that does not.
    fn check_used_once(&self, command: &Command, before: Option<Span>) {
        if let Some(span) = before {
            let words = [command.keyword.text.as_str()];
            self.lowering.lint.report(Rule::MultipleInstructionsDisallowed, span, &words, &command.comments);
        }
    }

    pub(super) fn healthcheck(&mut self, command: &Command, check: &Healthcheck) -> Result<(), FrontendError> {
        let before = self.healthcheck.replace(command.span);
        self.check_used_once(command, before);
        self.state.config().healthcheck = Some(check.clone());
        let text = format!(
            "HEALTHCHECK {{Test:{} Interval:{} Timeout:{} StartPeriod:{} StartInterval:{} Retries:{}}}",
            go_list(&check.test),
            format_duration(check.interval),
            format_duration(check.timeout),
            format_duration(check.start_period),
            format_duration(check.start_interval),
            check.retries
        );
        self.record(text, Layer::None)
    }

    /// docker's history does not have it.
    pub(super) fn onbuild(&mut self, trigger: &str) -> Result<(), FrontendError> {
        self.lowering.book(trigger.len())?;
        self.state.config().on_build.push(trigger.to_owned());
        Ok(())
    }

    pub(super) fn workdir(&mut self, command: &Command, path: &Token) -> Result<(), FrontendError> {
        let written = self.text(command, path)?;
        if written.contains('\0') {
            return Err(Problem::value("WORKDIR cannot hold a NUL byte")).at(path.span);
        }
        if !self.workdir_was_set && !written.starts_with('/') {
            self.report(Rule::WorkdirRelativePath, command, &[&written]);
        }
        self.workdir_was_set = true;
        let folder = working_directory(&self.state.image.config.working_dir, &written);
        self.state.config().working_dir.clone_from(&folder);
        if folder == "/" {
            return self.record(format!("WORKDIR {folder}"), Layer::None);
        }
        self.make_folder(command, &folder)?;
        self.record(format!("WORKDIR {folder}"), Layer::Made)
    }

    /// The folder belongs to the user who will work in it.
    fn make_folder(&mut self, command: &Command, folder: &str) -> Result<(), FrontendError> {
        let mkdir = MkdirAction {
            path: join("/", folder),
            mode: 0o755,
            make_parents: true,
            owner: owner(&self.state.image.config.user),
            timestamp: self.lowering.epoch.seconds,
        };
        let inputs: Vec<_> = self.state.edge.clone().into_iter().collect();
        let base = if inputs.is_empty() { FileInput::Scratch } else { FileInput::Input(0) };
        let op = FileOp { actions: vec![FileAction { base, kind: FileKind::Mkdir(mkdir) }] };
        let name = self.step_name(command);
        self.state.edge = Some(self.add_step(command, Op::File(op), inputs, name)?);
        Ok(())
    }
}

/// Adds keys with empty objects.
fn add_keys(map: &mut Map<String, Value>, keys: &[String]) {
    for key in keys {
        map.insert(key.clone(), Value::Object(Map::new()));
    }
}

/// What WORKDIR makes of a path. BuildKit writes an absolute one into images as it stands, and cleans what it joins.
fn working_directory(folder: &str, path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { join(folder, path) }
}

/// A path seen from a folder, cleaned: absolute, without `.`, `..` and empty parts.
pub(super) fn join(folder: &str, path: &str) -> String {
    let whole = if path.starts_with('/') { path.to_owned() } else { format!("{folder}/{path}") };
    let mut parts: Vec<&str> = Vec::new();
    for part in whole.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// `user[:group]` as an owner; `None` for an empty text.
pub(super) fn owner(text: &str) -> Option<Owner> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group.to_owned()).filter(|group| !group.is_empty())),
        None => (text, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    (!text.is_empty()).then(|| Owner { user: user.to_owned(), group })
}

#[cfg(test)]
mod tests {
    use super::join;

    #[test]
    fn folders_are_joined_and_cleaned() {
        let check = |folder: &str, path: &str, expect: &str| assert_eq!(join(folder, path), expect);
        check("/", "app", "/app");
        check("/a", "b/../c", "/a/c");
        check("/a", "/b//./c/", "/b/c");
        check("/a", "../../..", "/");
        check("/a", "", "/a");
    }
}
