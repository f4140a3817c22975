//! RUN.

use super::globals::PROXY_ARGS;
use super::metadata::join;
use super::mounts::StepMounts;
use super::stage::StageBuilder;
use super::state::Layer;
use crate::command::{Command, CommandLine, RunCommand};
use crate::expand::Variables;
use crate::parse::heredoc_opening;
use crate::span::At;
use crate::{Entitlement, EntitlementUse, FrontendError, Heredoc, Problem, Span, TriggerRight};
use forge_llb::{
    CdiDevice, Edge, ExecMount, ExecOp, FileAction, FileInput, FileKind, FileOp, Metadata, MkfileAction, MountKind,
    NetworkMode, Op, SecurityMode,
};

/// Where a heredoc that is a program of its own is shown to the step.
const INLINE_FOLDER: &str = "/dev/pipes";

/// What programs find an SSH agent by.
const AGENT_VARIABLE: &str = "SSH_AUTH_SOCK";

/// Where programs expect shared memory.
const SHARED_MEMORY: &str = "/dev/shm";

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
        let mounts = self.read_mounts(command, run)?;
        let script = self.script(run);
        let mut env = self.state.env.to_entries();
        if script.args.iter().chain(&env).any(|text| text.contains('\0')) {
            return Err(Problem::value("RUN cannot hold a NUL byte").into());
        }
        self.lowering.book(self.state.env.size() + script.args.iter().map(String::len).sum::<usize>())?;
        let history = format!("RUN {} # buildkit", self.history_text(&script.args));
        let mut step = StepMounts::new(self.state.edge.clone());
        for (flag, mount) in run.mounts.iter().zip(&mounts) {
            self.mount(command, flag, mount, &mut step).at(flag.token.span)?;
        }
        if let Some((name, text)) = script.program {
            let edge = self.inline_program(command, &name, text)?;
            let input = step.input(edge);
            step.add(inline_mount(input))?;
        }
        self.add_shared_memory(&mut step)?;
        if let Some(agent) = step.agent().filter(|_| !self.state.env.contains(AGENT_VARIABLE)) {
            env.push(format!("{AGENT_VARIABLE}={agent}"));
        }
        let masked: Vec<String> = step.secret_env.iter().map(|secret| secret.name.clone()).collect();
        let secret_env = std::mem::take(&mut step.secret_env);
        let (inputs, mounts) = step.finish();
        let options = self.lowering.options;
        let op = ExecOp {
            env,
            cwd: join("/", &self.state.image.config.working_dir),
            user: self.state.image.config.user.clone(),
            mounts,
            network: self.network(command, run)?,
            security: self.security(command, run)?,
            hostname: self.hostname(),
            extra_hosts: options.extra_hosts.clone(),
            proxy_env: self.proxy_env(),
            secret_env,
            ulimits: options.ulimits.clone(),
            cgroup_parent: options.cgroup_parent.clone(),
            devices: self.devices(command, run)?,
            remove_mount_stubs: true,
            ..ExecOp::new(script.args)
        };
        let name = self.run_name(command, &script.summary, &masked);
        self.state.edge = Some(self.add_step(command, Op::Exec(op), inputs, name)?);
        self.record(history, Layer::Made)
    }

    /// `/dev/shm` in the size that the caller asks for, unless the step mounts it itself.
    fn add_shared_memory(&self, step: &mut StepMounts) -> Result<(), FrontendError> {
        let Some(size) = self.lowering.options.shm_size.filter(|size| *size > 0 && !step.has(SHARED_MEMORY)) else {
            return Ok(());
        };
        let kind = MountKind::Tmpfs { size: Some(size) };
        let (target, selector) = (SHARED_MEMORY.to_owned(), "/".to_owned());
        Ok(step.add(ExecMount { target, input: None, selector, output: None, readonly: false, kind })?)
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
            timestamp: self.lowering.epoch.seconds,
        };
        let action = FileAction { base: FileInput::Scratch, kind: FileKind::Mkfile(mkfile) };
        let metadata = Metadata {
            name: "[internal] preparing inline document".to_owned(),
            span: Some(self.lowering.span(command.span)),
            ..Metadata::default()
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

    fn network(&mut self, command: &Command, run: &RunCommand) -> Result<NetworkMode, FrontendError> {
        let asked = run.network.as_ref().filter(|asked| asked.value != NetworkMode::Default);
        let (network, span) =
            asked.map_or((self.lowering.options.network, command.span), |asked| (asked.value, asked.span));
        if network == NetworkMode::Host {
            if asked.is_some() {
                self.check_trigger(command, TriggerRight::HostNetwork).at(span)?;
            }
            self.lowering.entitlements.push(EntitlementUse { entitlement: Entitlement::NetworkHost, span });
        }
        Ok(network)
    }

    fn security(&mut self, command: &Command, run: &RunCommand) -> Result<SecurityMode, FrontendError> {
        let Some(span) = run.insecure else { return Ok(SecurityMode::Sandbox) };
        self.check_trigger(command, TriggerRight::Insecure).at(span)?;
        self.lowering.entitlements.push(EntitlementUse { entitlement: Entitlement::SecurityInsecure, span });
        Ok(SecurityMode::Insecure)
    }

    /// Those of all steps, then the step's own.
    fn devices(&mut self, command: &Command, run: &RunCommand) -> Result<Vec<CdiDevice>, FrontendError> {
        let own = run.devices.iter().map(|asked| (&asked.value, asked.span));
        let of_all = self.lowering.options.devices.iter().map(|device| (device, command.span));
        let devices: Vec<(&CdiDevice, Span)> = of_all.chain(own).collect();
        if let Some(asked) = run.devices.first() {
            self.check_trigger(command, TriggerRight::Device).at(asked.span)?;
        }
        for (device, span) in &devices {
            let entitlement = Entitlement::Device(device.name.clone());
            self.lowering.entitlements.push(EntitlementUse { entitlement, span: *span });
        }
        Ok(devices.into_iter().map(|(device, _)| device.clone()).collect())
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
