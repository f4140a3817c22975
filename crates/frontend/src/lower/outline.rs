use super::check::timeless;
use super::mounts::UsedMount;
use super::{Inputs, Lowering, Progress, Scope, Turn, take_turn};
use crate::command::{Action, Command};
use crate::doc_comment::doc_comment;
use crate::expand::{Expander, Quotes, Unset, Variables};
use crate::lint::Lint;
use crate::mount::MountType;
use crate::{
    Dockerfile, FrontendError, LowerOptions, Outline, OutlineArg, OutlineCache, OutlineRequirement, Outlined,
    ResolvedImages, Token,
};
use std::collections::{BTreeMap, BTreeSet};

/// Lists what can be handed to a build of the wanted stage: arguments, secrets, SSH agents, and the cache mounts
/// that it uses. Called to a fixpoint as [`lower`](crate::lower()) is.
///
/// # Errors
/// The Dockerfile is wrong.
pub fn outline(
    dockerfile: &Dockerfile,
    options: &LowerOptions,
    images: &ResolvedImages,
) -> Result<Outlined, FrontendError> {
    let lint = Lint::of(dockerfile, options)?;
    let options = &timeless(options);
    let inputs = Inputs { dockerfile, options, images, lint: &lint };
    let turn = take_turn(&inputs, Scope::Target, |lowering, target, _| Ok(Sketch::of(&lowering, target)));
    match turn.map_err(|error| FrontendError { file: dockerfile.name().to_owned(), ..error })? {
        Turn::Need(requests) => Ok(Outlined::Need(requests)),
        Turn::Done(outline) => Ok(Outlined::Done(outline)),
    }
}

/// Collects the outline from stages that were gone through. What two stages declare counts once, as the stage
/// nearer to the target has it.
#[derive(Default)]
struct Sketch {
    args: BTreeMap<String, OutlineArg>,
    secrets: BTreeMap<String, OutlineRequirement>,
    ssh: BTreeMap<String, OutlineRequirement>,
    cache: BTreeMap<String, OutlineCache>,
    /// Variables from before the first FROM that something uses.
    globals: BTreeSet<String>,
}

impl Sketch {
    fn of(lowering: &Lowering<'_>, target: usize) -> Outline {
        let mut sketch = Self::default();
        let earlier = (0..lowering.done.len()).rev().filter(|stage| *stage != target);
        for stage in std::iter::once(target).chain(earlier) {
            if matches!(lowering.done[stage], Progress::Done(_)) && !lowering.plan.stages[stage].replaced {
                sketch.stage(lowering, stage);
            }
        }
        sketch.preamble(lowering);
        let stage = &lowering.plan.program.stages[target];
        Outline {
            name: stage.name.clone().unwrap_or_default(),
            description: doc_comment(&stage.comments, stage.name.as_deref().unwrap_or_default()),
            args: by_line(sketch.args, |arg| arg.span.first_line),
            secrets: by_line(sketch.secrets, |secret| secret.span.first_line),
            ssh: by_line(sketch.ssh, |agent| agent.span.first_line),
            cache: by_line(sketch.cache, |cache| cache.span.first_line),
        }
    }

    fn stage(&mut self, lowering: &Lowering<'_>, index: usize) {
        let stage = &lowering.plan.program.stages[index];
        for word in std::iter::once(&stage.base).chain(&stage.platform) {
            self.globals.extend(uses(lowering, word));
        }
        for command in &stage.commands {
            if let Action::Arg(definitions) = &command.action {
                definitions.iter().for_each(|definition| self.argument(lowering, index, command, definition));
            }
        }
        lowering.mounts.get(&index).into_iter().flatten().for_each(|mount| self.mount(mount));
    }

    /// Each counts once, where it is used first.
    fn mount(&mut self, mount: &UsedMount) {
        let (id, span) = (mount.id.clone(), mount.span);
        let requirement = OutlineRequirement { name: id.clone(), required: mount.required, span };
        match mount.kind {
            MountType::Secret => _ = self.secrets.entry(id).or_insert(requirement),
            MountType::Ssh => _ = self.ssh.entry(id).or_insert(requirement),
            MountType::Cache => _ = self.cache.entry(id.clone()).or_insert(OutlineCache { id, span }),
            MountType::Bind | MountType::Tmpfs => {}
        }
    }

    /// An ARG without a value of its own takes that from before the first FROM, and is told from there.
    fn argument(
        &mut self,
        lowering: &Lowering<'_>,
        stage: usize,
        command: &Command,
        definition: &crate::command::ArgDefinition,
    ) {
        let name = definition.key.text.clone();
        let given = lowering.options.build_args.contains_key(&name);
        if definition.default.is_none() && !given && lowering.plan.globals.get(&name).is_some() {
            self.globals.insert(name);
            return;
        }
        let value = match &lowering.done[stage] {
            Progress::Done(state) => state.args.value(&name).cloned().flatten(),
            _ => None,
        };
        let description = doc_comment(&command.comments, &name);
        self.args.entry(name.clone()).or_insert(OutlineArg { name, description, value, span: command.span });
    }

    /// The arguments from before the first FROM that are used, and those that their defaults use.
    fn preamble(&mut self, lowering: &Lowering<'_>) {
        for command in lowering.plan.program.preamble.iter().rev() {
            let Action::Arg(definitions) = &command.action else { continue };
            for definition in definitions.iter().rev() {
                if !self.globals.contains(&definition.key.text) {
                    continue;
                }
                self.globals.extend(definition.default.iter().flat_map(|default| uses(lowering, default)));
                let name = definition.key.text.clone();
                let value = lowering.plan.globals.get(&name).map(str::to_owned);
                let description = doc_comment(&command.comments, &name);
                self.args.entry(name.clone()).or_insert(OutlineArg { name, description, value, span: command.span });
            }
        }
    }
}

/// The variables that a word uses.
fn uses(lowering: &Lowering<'_>, word: &Token) -> BTreeSet<String> {
    let expander = Expander {
        variables: &lowering.plan.globals,
        escape: lowering.dockerfile.escape(),
        quotes: Quotes::Removed,
        unset: Unset::Empty,
        budget: lowering.budget,
    };
    expander.expand(&word.text).map(|expanded| &expanded.used | &expanded.undefined).unwrap_or_default()
}

fn by_line<T>(found: BTreeMap<String, T>, line: impl Fn(&T) -> u32) -> Vec<T> {
    let mut list: Vec<T> = found.into_values().collect();
    list.sort_by_key(line);
    list
}
