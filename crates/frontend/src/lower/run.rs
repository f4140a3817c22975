//! RUN.

use super::globals::PROXY_ARGS;
use super::stage::StageBuilder;
use super::state::Layer;
use crate::command::{Command, CommandLine, Origin, RunCommand};
use crate::expand::{Quotes, Variables};
use crate::parse::heredoc_opening;
use crate::{FrontendError, Heredoc, Problem};
use forge_llb::{
    Edge, ExecMount, ExecOp, FileAction, FileInput, FileKind, FileOp, Metadata, MkfileAction, MountKind, NetworkMode,
    Op, SecurityMode,
};

/// Where a heredoc that is a program of its own is shown to the step.
const INLINE_FOLDER: &str = "/dev/pipes";

/// What a RUN comes to.
struct Script {
    args: Vec<String>,
    /// Added to the step's name.
    summary: String,
    /// A program that must be put in place first.
    program: Option<(String, String)>,
}

impl StageBuilder<'_, '_> {
    pub(super) fn run(&mut self, command: &Command, run: &RunCommand) -> Result<(), FrontendError> {
        if command.origin == Origin::ImageTrigger && run.network == Some(NetworkMode::Host) {
            let (trigger, what) = (command.text.clone(), "the host's network");
            return Err(Problem::Trigger { trigger, what }.into());
        }
        let script = self.script(run);
        let env = self.state.env.to_entries();
        if script.args.iter().chain(&env).any(|text| text.contains('\0')) {
            return Err(Problem::value("RUN cannot hold a NUL byte").into());
        }
        self.lowering.book(self.state.env.size() + script.args.iter().map(String::len).sum::<usize>())?;
        let history = format!("RUN {} # buildkit", self.history_text(&script.args));
        let mut inputs: Vec<Edge> = self.state.edge.clone().into_iter().collect();
        let mut mounts = vec![ExecMount { input: (!inputs.is_empty()).then_some(0), ..ExecMount::root() }];
        if let Some((name, text)) = script.program {
            mounts.push(inline_mount(inputs.len()));
            inputs.push(self.inline_program(command, &name, text)?);
        }
        let op = ExecOp {
            env,
            cwd: self.state.image.config.working_dir.clone(),
            user: self.state.image.config.user.clone(),
            mounts,
            network: self.network(run.network),
            security: SecurityMode::Sandbox,
            hostname: self.hostname(),
            extra_hosts: self.lowering.options.extra_hosts.clone(),
            proxy_env: self.proxy_env(),
            ..ExecOp::new(script.args)
        };
        let name = self.step_name(command, Quotes::Kept, &script.summary);
        self.state.edge = Some(self.add_step(command, Op::Exec(op), inputs, name)?);
        self.record(history, Layer::Made)
    }

    /// A heredoc alone is a script for the shell, or a program if it begins with `#!`; with other words it
    /// is the shell's to read.
    fn script(&self, run: &RunCommand) -> Script {
        let text = match &run.line {
            CommandLine::Exec(args) => {
                return Script { args: args.clone(), summary: String::new(), program: None };
            }
            CommandLine::Shell(text) => text,
        };
        let Some(first) = run.heredocs.first() else {
            return Script { args: self.in_shell(text.clone()), summary: String::new(), program: None };
        };
        if !heredoc_opening(text) {
            return Script {
                args: self.in_shell(with_heredocs(text, &run.heredocs)),
                summary: String::new(),
                program: None,
            };
        }
        let summary = format!(" ({})", summary(&first.body.text));
        let script = first.content();
        match script.starts_with("#!") && self.state.platform.os != "windows" && is_file_name(&first.name) {
            true => {
                let path = format!("{INLINE_FOLDER}/{}", first.name);
                let args = self.in_shell(path.clone());
                Script { args, summary, program: Some((first.name.clone(), script)) }
            }
            false => Script { args: self.in_shell(script), summary, program: None },
        }
    }

    fn inline_program(&mut self, command: &Command, name: &str, text: String) -> Result<Edge, FrontendError> {
        let mkfile = MkfileAction {
            path: format!("/{name}"),
            mode: 0o755,
            data: text.into_bytes(),
            owner: None,
            timestamp: self.lowering.epoch,
        };
        let action = FileAction { base: FileInput::Scratch, kind: FileKind::Mkfile(mkfile) };
        let metadata = Metadata {
            name: "[internal] preparing inline document".to_owned(),
            ignore_cache: false,
            span: Some(self.lowering.span(command.span)),
        };
        let platform = Some(self.state.platform.clone());
        self.lowering.add(Op::File(FileOp { actions: vec![action] }), Vec::new(), platform, metadata)
    }

    /// The arguments, behind the ARGs that they may depend on.
    fn history_text(&self, args: &[String]) -> String {
        let declared = self.state.args.entries();
        let values = declared.iter().map(|(key, value)| {
            let value = self.state.env.get(key).or(value.as_deref()).unwrap_or_default();
            format!("{key}={value}")
        });
        let count = (!declared.is_empty()).then(|| format!("|{}", declared.len()));
        count.into_iter().chain(values).chain(args.iter().cloned()).collect::<Vec<_>>().join(" ")
    }

    fn network(&self, asked: Option<NetworkMode>) -> NetworkMode {
        match asked {
            None | Some(NetworkMode::Default) => self.lowering.options.network,
            Some(network) => network,
        }
    }

    fn hostname(&self) -> String {
        let given = self.lowering.options.build_args.get("BUILDKIT_SANDBOX_HOSTNAME");
        given.unwrap_or(&self.lowering.options.hostname).clone()
    }

    /// Proxy settings of build arguments, else of the caller, under their names in both cases, since programs ask
    /// for either. One that is a variable of the step already, by ENV or ARG, is an ordinary one.
    fn proxy_env(&self) -> Vec<String> {
        let mut entries = Vec::new();
        for [upper, lower] in PROXY_ARGS {
            let Some(value) = self.proxy(lower).or_else(|| self.proxy(upper)) else { continue };
            let unset = [upper, lower].into_iter().filter(|name| !self.state.env.contains(name));
            entries.extend(unset.map(|name| format!("{name}={value}")));
        }
        entries
    }

    fn proxy(&self, name: &str) -> Option<&str> {
        let options = self.lowering.options;
        let of_caller = || {
            let entries = options.proxy_env.iter().filter_map(|entry| entry.split_once('='));
            entries.into_iter().find(|(key, _)| *key == name).map(|(_, value)| value)
        };
        options.build_args.get(name).map(String::as_str).or_else(of_caller)
    }
}

fn inline_mount(input: usize) -> ExecMount {
    ExecMount {
        target: INLINE_FOLDER.to_owned(),
        input: Some(input),
        selector: "/".to_owned(),
        output: None,
        readonly: true,
        kind: MountKind::Bind,
    }
}

/// The text with the bodies that it refers to, as a shell reads them.
fn with_heredocs(text: &str, heredocs: &[Heredoc]) -> String {
    let bodies = heredocs.iter().map(|heredoc| format!("\n{}{}", heredoc.body.text, heredoc.name));
    text.to_owned() + &bodies.collect::<String>()
}

/// The first line of a script.
fn summary(script: &str) -> String {
    let mut lines = script.trim().lines();
    let first = lines.next().unwrap_or_default();
    match lines.next() {
        Some(_) => format!("{first}..."),
        None => first.to_owned(),
    }
}

/// Whether a heredoc's name can be that of a file.
pub(super) fn is_file_name(name: &str) -> bool {
    !matches!(name, "." | "..") && !name.contains(['/', '\0'])
}
