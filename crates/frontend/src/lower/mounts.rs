//! `RUN --mount`.

use super::inputs::Inputs;
use super::metadata::join;
use super::plan::SourceName;
use super::stage::StageBuilder;
use crate::command::{Command, Origin, RunCommand};
use crate::mount::{Mount, MountFlag, MountType};
use crate::span::At;
use crate::{FrontendError, Problem, Span, Token, TriggerRight};
use forge_llb::{
    Edge, ExecMount, FileAction, FileInput, FileKind, FileOp, Metadata, MkdirAction, MountKind, Op, Owner, SecretEnv,
    SecretMount,
};
use std::collections::HashSet;

/// Where secrets are found that name no place.
const SECRETS: &str = "/run/secrets";

/// Where agents are found that name no place, with a number behind it.
const AGENT: &str = "/run/buildkit/ssh_agent";

/// The folder that is made to give a cache mount its owner.
const OWNED_FOLDER: &str = "/cache";

/// Everything that a step sees, and the inputs that it takes it from.
pub(super) struct StepMounts {
    inputs: Inputs,
    /// Of trees and memory; the root first.
    trees: Vec<ExecMount>,
    secrets: Vec<ExecMount>,
    agents: Vec<ExecMount>,
    pub secret_env: Vec<SecretEnv>,
    targets: HashSet<String>,
}

/// A mount that a stage uses.
pub(super) struct UsedMount {
    pub kind: MountType,
    /// The id of what is mounted; empty where it has none.
    pub id: String,
    pub required: bool,
    /// The instruction.
    pub span: Span,
}

impl StepMounts {
    /// The root file system; `None` for an empty one.
    pub fn new(root: Option<Edge>) -> Self {
        let mut inputs = Inputs::default();
        let root = ExecMount { input: root.map(|edge| inputs.index(edge)), ..ExecMount::root() };
        let (secrets, agents, secret_env) = (Vec::new(), Vec::new(), Vec::new());
        Self { inputs, trees: vec![root], secrets, agents, secret_env, targets: HashSet::new() }
    }

    /// The input that an edge is.
    pub fn input(&mut self, edge: Edge) -> usize {
        self.inputs.index(edge)
    }

    /// Adds a tree, or memory.
    pub fn add(&mut self, mount: ExecMount) -> Result<(), Problem> {
        self.take(&mount.target)?;
        self.trees.push(mount);
        Ok(())
    }

    /// Notes that a path is taken.
    fn take(&mut self, target: &str) -> Result<(), Problem> {
        if target == "/" {
            return Err(Problem::value("invalid mount target \"/\""));
        }
        match self.targets.insert(target.to_owned()) {
            true => Ok(()),
            false => Err(Problem::value(format!("duplicate mount target {target:?}"))),
        }
    }

    /// Whether something is mounted there.
    pub fn has(&self, target: &str) -> bool {
        self.targets.contains(target)
    }

    /// Where the first agent is found, for `SSH_AUTH_SOCK`.
    pub fn agent(&self) -> Option<&str> {
        self.agents.first().map(|agent| agent.target.as_str())
    }

    /// The mounts in the order in which they are made: trees by their targets, so that a folder comes before what is
    /// in it; then secrets and agents as they are written.
    pub fn finish(mut self) -> (Vec<Edge>, Vec<ExecMount>) {
        self.trees.sort_by(|a, b| a.target.cmp(&b.target));
        (self.inputs.into_edges(), self.trees.into_iter().chain(self.secrets).chain(self.agents).collect())
    }
}

impl StageBuilder<'_, '_> {
    /// Reads the mounts of a RUN, variables expanded.
    pub(super) fn read_mounts(&self, command: &Command, run: &RunCommand) -> Result<Vec<Mount>, FrontendError> {
        let read = |flag: &MountFlag| {
            let span = flag.token.span;
            let expand = |value: &str| self.text(command, &Token { text: value.to_owned(), span });
            let mount = flag.resolve(expand).at(span)?;
            match [&mount.source, &mount.target, &mount.id].iter().any(|text| text.contains('\0')) {
                true => Err(FrontendError::from(Problem::value("a mount cannot hold a NUL byte")).or_at(span)),
                false => Ok(mount),
            }
        };
        run.mounts.iter().map(read).collect()
    }

    /// Adds one mount.
    pub(super) fn mount(
        &mut self,
        command: &Command,
        flag: &MountFlag,
        mount: &Mount,
        step: &mut StepMounts,
    ) -> Result<(), FrontendError> {
        let used = UsedMount { kind: mount.kind, id: own_id(mount), required: mount.required, span: command.span };
        self.lowering.mounts.entry(self.index).or_default().push(used);
        match mount.kind {
            MountType::Secret => {
                self.check_trigger(command, TriggerRight::Secret)?;
                self.secret(mount, step)
            }
            MountType::Ssh => {
                self.check_trigger(command, TriggerRight::Ssh)?;
                self.agent(mount, step)
            }
            MountType::Bind | MountType::Cache | MountType::Tmpfs => self.tree(command, flag, mount, step),
        }
    }

    /// Whether an instruction may have something that triggers of images may not (A41).
    pub(super) fn check_trigger(&self, command: &Command, right: TriggerRight) -> Result<(), FrontendError> {
        if command.origin != Origin::ImageTrigger || self.lowering.options.allow_in_triggers.contains(&right) {
            return Ok(());
        }
        let what = match right {
            TriggerRight::Secret => "a secret",
            TriggerRight::Ssh => "an SSH agent",
            TriggerRight::HostNetwork => "the host's network",
            TriggerRight::Insecure => "all privileges",
            TriggerRight::Device => "a device",
        };
        Err(Problem::Trigger { trigger: command.text.clone(), what, right }.into())
    }

    fn tree(
        &mut self,
        command: &Command,
        flag: &MountFlag,
        mount: &Mount,
        step: &mut StepMounts,
    ) -> Result<(), FrontendError> {
        let source = join("/", &mount.source);
        let (edge, selector) = match self.mounted_tree(command, flag, mount)? {
            edge if source == "/" && mount.asks_for_owner() => {
                (Some(self.owned_folder(command, edge, mount)?), OWNED_FOLDER.to_owned())
            }
            edge => (edge, source),
        };
        let kind = match mount.kind {
            MountType::Tmpfs => MountKind::Tmpfs { size: Some(mount.size).filter(|size| *size > 0) },
            MountType::Cache => {
                MountKind::Cache { id: self.cache_id(mount), sharing: mount.sharing.unwrap_or_default() }
            }
            _ => MountKind::Bind,
        };
        let selector = if mount.kind == MountType::Tmpfs { "/".to_owned() } else { selector };
        let input = edge.map(|edge| step.input(edge));
        let target = self.mount_target(&mount.target);
        Ok(step.add(ExecMount { target, input, selector, output: None, readonly: mount.readonly, kind })?)
    }

    /// The tree that is mounted, or that a cache begins with; `None` for an empty one.
    fn mounted_tree(
        &mut self,
        command: &Command,
        flag: &MountFlag,
        mount: &Mount,
    ) -> Result<Option<Edge>, FrontendError> {
        match (mount.kind, &flag.from) {
            (MountType::Tmpfs, _) | (MountType::Cache, None) => Ok(None),
            (_, None) => {
                let main = &self.lowering.plan.main;
                self.lowering.base_edge(main, command.span, "[internal] ")
            }
            (_, Some(from)) => {
                let base = self.lowering.plan.source(self.index, SourceName::Mount(flag, from))?;
                self.lowering.source_edge(&base, command.span)
            }
        }
    }

    /// Relative targets are seen from the working directory.
    fn mount_target(&self, target: &str) -> String {
        join(&self.state.image.config.working_dir, target)
    }

    /// The namespace, and the target where the mount has no name of its own.
    fn cache_id(&self, mount: &Mount) -> String {
        let options = self.lowering.options;
        let given = options.build_args.get("BUILDKIT_CACHE_MOUNT_NS");
        let namespace = given.unwrap_or(&options.cache_mount_namespace);
        format!("{namespace}/{}", own_id(mount))
    }

    /// A folder with the owner and the permission bits that a mount asks for.
    fn owned_folder(&mut self, command: &Command, tree: Option<Edge>, mount: &Mount) -> Result<Edge, FrontendError> {
        let inputs: Vec<Edge> = tree.into_iter().collect();
        let base = if inputs.is_empty() { FileInput::Scratch } else { FileInput::Input(0) };
        let number = |id: Option<u32>| id.unwrap_or(0).to_string();
        let mkdir = MkdirAction {
            path: OWNED_FOLDER.to_owned(),
            mode: mount.mode.unwrap_or(0o755),
            make_parents: false,
            owner: Some(Owner { user: number(mount.uid), group: Some(number(mount.gid)) }),
            timestamp: None,
        };
        let metadata = Metadata {
            name: "[internal] setting cache mount permissions".to_owned(),
            span: Some(self.lowering.span(command.span)),
            ..Metadata::default()
        };
        let op = FileOp { actions: vec![FileAction { base, kind: FileKind::Mkdir(mkdir) }] };
        self.lowering.add(Op::File(op), inputs, Some(self.state.platform.clone()), metadata)
    }

    /// A secret as a file, unless it is asked for in the environment alone.
    fn secret(&self, mount: &Mount, step: &mut StepMounts) -> Result<(), FrontendError> {
        let id = own_id(mount);
        let optional = !mount.required;
        if let Some(name) = &mount.env {
            if name.is_empty() || name.contains(['=', '\0']) {
                return Err(Problem::value(format!("invalid name of a variable for a secret: {name:?}")).into());
            }
            step.secret_env.push(SecretEnv { id: id.clone(), name: name.clone(), optional });
        }
        let target = match (mount.target.as_str(), &mount.env) {
            ("", Some(_)) => return Ok(()),
            ("", None) => format!("{SECRETS}/{}", base_name(&id)),
            (target, _) => self.mount_target(target),
        };
        step.take(&target)?;
        let secret = session_file(mount, id, 0o400);
        step.secrets.push(session_mount(target, MountKind::Secret(secret)));
        Ok(())
    }

    fn agent(&self, mount: &Mount, step: &mut StepMounts) -> Result<(), FrontendError> {
        let id = own_id(mount);
        let target = match mount.target.as_str() {
            "" => format!("{AGENT}.{}", step.agents.len()),
            target => self.mount_target(target),
        };
        step.take(&target)?;
        let agent = session_file(mount, id, 0o600);
        step.agents.push(session_mount(target, MountKind::Ssh(agent)));
        Ok(())
    }
}

/// The name of a cache, a secret or an agent, which follows from other keys where it is not written.
fn own_id(mount: &Mount) -> String {
    match mount.kind {
        MountType::Secret if !mount.source.is_empty() => mount.source.clone(),
        _ if !mount.id.is_empty() => mount.id.clone(),
        MountType::Secret => base_name(&mount.target),
        MountType::Ssh => "default".to_owned(),
        MountType::Cache => cleaned(&mount.target),
        MountType::Bind | MountType::Tmpfs => String::new(),
    }
}

fn session_file(mount: &Mount, id: String, mode: u32) -> SecretMount {
    SecretMount {
        id,
        uid: mount.uid.unwrap_or(0),
        gid: mount.gid.unwrap_or(0),
        mode: mount.mode.unwrap_or(mode),
        optional: !mount.required,
    }
}

fn session_mount(target: String, kind: MountKind) -> ExecMount {
    ExecMount { target, input: None, selector: "/".to_owned(), output: None, readonly: false, kind }
}

/// The last part of a path, as Go's `path.Base` gives it.
fn base_name(path: &str) -> String {
    let trimmed = path.trim_end_matches('/');
    match trimmed.rsplit('/').next() {
        Some("") | None if path.is_empty() => ".".to_owned(),
        Some("") | None => "/".to_owned(),
        Some(name) => name.to_owned(),
    }
}

/// A path without `.`, `..` and empty parts, as far as they can be taken out: Go's `path.Clean`.
fn cleaned(path: &str) -> String {
    if path.starts_with('/') {
        return join("/", path);
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    if parts.is_empty() { ".".to_owned() } else { parts.join("/") }
}

#[cfg(test)]
mod tests {
    use super::{base_name, cleaned};

    #[test]
    fn paths_are_cut_as_go_does() {
        for (path, base, clean) in [
            ("", ".", "."),
            ("/", "/", "/"),
            ("a/b/", "b", "a/b"),
            ("/a//b/../c", "c", "/a/c"),
            ("./x", "x", "x"),
            ("../../x/..", "..", "../.."),
        ] {
            assert_eq!((base_name(path).as_str(), cleaned(path).as_str()), (base, clean), "{path}");
        }
    }
}
