use super::Lowering;
use super::base::check_platform;
use super::environment::Environment;
use super::epoch;
use super::plan::Base;
use super::state::{Layer, StageState};
use crate::command::{Action, Command, Origin};
use crate::expand::{Expanded, Expander, Quotes, Unset};
use crate::span::At;
use crate::suggest::nearest;
use crate::{FrontendError, ImageKeySource, Problem, Rule, Span, Token};
use forge_llb::{Edge, Metadata, Op};
use std::rc::Rc;

/// No stage has more variables among which one could be meant.
const MAX_SUGGESTIONS: usize = 1_000;

/// Goes through the instructions of one stage.
pub(super) struct StageBuilder<'l, 'a> {
    pub lowering: &'l mut Lowering<'a>,
    pub state: StageState,
    pub index: usize,
    /// How many steps the stage has, and how many of them are named.
    pub steps: usize,
    pub step: usize,
    /// Where the stage's CMD, ENTRYPOINT and HEALTHCHECK were last set.
    pub cmd: Option<Span>,
    pub entrypoint: Option<Span>,
    pub healthcheck: Option<Span>,
    pub workdir_was_set: bool,
}

impl<'l, 'a> StageBuilder<'l, 'a> {
    /// Begins with what the stage is built on.
    pub fn start(lowering: &'l mut Lowering<'a>, index: usize, triggers: usize) -> Result<Self, FrontendError> {
        let plan = lowering.plan;
        let (planned, stage) = (&plan.stages[index], &plan.program.stages[index]);
        let own = stage.commands.iter().filter(|command| is_step(command)).count();
        let from = usize::from(!matches!(planned.base, Base::Scratch | Base::Stage(_)));
        let state = StageState::empty(planned.platform.clone(), &mut lowering.history);
        let (cmd, entrypoint, healthcheck) = (None, None, None);
        let steps = own + from + triggers;
        let workdir_was_set = false;
        let mut builder =
            Self { lowering, state, index, steps, step: 0, cmd, entrypoint, healthcheck, workdir_was_set };
        builder.state = builder.base_state(&planned.base, stage.span)?;
        builder.workdir_was_set = builder.state.workdir_was_set;
        builder.fire_triggers();
        Ok(builder)
    }

    fn base_state(&mut self, base: &Base, span: Span) -> Result<StageState, FrontendError> {
        let planned = &self.lowering.plan.stages[self.index];
        let platform = planned.platform.clone();
        let mut state = match base {
            Base::Stage(stage) => match &self.lowering.done[*stage] {
                super::Progress::Done(state) => return Ok((**state).clone()),
                _ => StageState::empty(platform, &mut self.lowering.history),
            },
            Base::Scratch => StageState::empty(platform, &mut self.lowering.history),
            Base::Local { .. } | Base::Remote { .. } => {
                let edge = self.lowering.base_edge(base, span, "")?;
                let empty = StageState::empty(platform, &mut self.lowering.history);
                StageState { edge, ..empty }
            }
            Base::Input(input) => {
                let edge = self.lowering.base_edge(base, span, "")?;
                let history = &mut self.lowering.history;
                match input.config() {
                    Some(config) => StageState::from_image(config.clone(), edge, platform, history),
                    None => StageState { edge, ..StageState::empty(platform, history) },
                }
            }
            Base::Image { key, written, context } => {
                let name = match context {
                    Some(context) => format!("[context {context}] "),
                    None => format!("{}FROM ", self.step_prefix(Origin::Stage)),
                };
                let edge = self.lowering.base_edge(base, span, &name)?;
                let image = self.lowering.image(key).config.clone();
                if matches!(key.source, ImageKeySource::Image(_)) && context.is_none() {
                    check_platform(self.lowering.lint, written, &platform, &image, span);
                }
                let state = StageState::from_image(image, edge, platform, &mut self.lowering.history);
                StageState { base: Some(key.clone()), ..state }
            }
        };
        state.platform_was_chosen = planned.platform_was_chosen;
        Ok(state)
    }

    /// Triggers are gone from the config once they have fired; those of images are shown to the user.
    fn fire_triggers(&mut self) {
        if self.state.image.config.on_build.is_empty() {
            return;
        }
        let fired = std::mem::take(&mut self.state.config().on_build);
        if matches!(self.lowering.plan.stages[self.index].base, Base::Image { .. }) {
            self.lowering.triggers.extend(fired);
        }
    }

    /// The stage as it stands at its end.
    pub fn finish(self) -> StageState {
        StageState { workdir_was_set: self.workdir_was_set, ..self.state }
    }

    /// Goes through one instruction.
    pub fn apply(&mut self, command: &Command) -> Result<(), FrontendError> {
        match &command.action {
            Action::Arg(definitions) => self.arg(command, definitions),
            Action::Env(pairs) => self.env(command, pairs),
            Action::Label(pairs) => self.label(command, pairs),
            Action::Expose(words) => self.expose(command, words),
            Action::Volume(words) => self.volume(command, words),
            Action::User(user) => self.user(command, user),
            Action::Workdir(path) => self.workdir(command, path),
            Action::Stopsignal(signal) => self.stopsignal(command, signal),
            Action::Maintainer(author) => self.maintainer(author),
            Action::Shell(shell) => self.shell(shell),
            Action::Cmd(line) => self.cmd(command, line),
            Action::Entrypoint(line) => self.entrypoint(command, line),
            Action::Healthcheck(check) => self.healthcheck(command, check),
            Action::Onbuild(text) => self.onbuild(text),
            Action::Run(run) => self.run(command, run),
            Action::Copy(copy) => self.copy(command, copy),
        }
    }

    /// Expands a word of an instruction, quotes removed.
    pub fn expand(&self, command: &Command, token: &Token) -> Result<Expanded, FrontendError> {
        self.expand_quoted(command, token, Quotes::Removed)
    }

    /// Expands a word of an instruction.
    pub fn expand_quoted(&self, command: &Command, token: &Token, quotes: Quotes) -> Result<Expanded, FrontendError> {
        let expander = Expander {
            variables: &*self.state.env,
            escape: self.lowering.dockerfile.escape(),
            quotes,
            unset: Unset::Empty,
            budget: self.lowering.budget,
        };
        let expanded = expander.expand(&token.text).at(token.span)?;
        self.check_undefined(command, &expanded);
        Ok(expanded)
    }

    /// Expands a word to text.
    pub fn text(&self, command: &Command, token: &Token) -> Result<String, FrontendError> {
        self.expand(command, token).map(|expanded| expanded.text)
    }

    fn check_undefined(&self, command: &Command, expanded: &Expanded) {
        for name in expanded.undefined.iter().filter(|name| !self.state.args.contains(name)) {
            if !self.lowering.lint.wants(Rule::UndefinedVar, &command.comments) {
                return;
            }
            let suggestion = nearest(name, self.state.env.names().take(MAX_SUGGESTIONS)).unwrap_or_default();
            self.report(Rule::UndefinedVar, command, &[name, &suggestion]);
        }
    }

    /// Takes a finding of the build checks. Those about triggers of images are not the user's.
    pub fn report(&self, rule: Rule, command: &Command, words: &[&str]) {
        if command.origin != Origin::ImageTrigger {
            self.lowering.lint.report(rule, command.span, words, &command.comments);
        }
    }

    /// Adds a history entry.
    pub fn record(&mut self, text: String, layer: Layer) -> Result<(), FrontendError> {
        self.lowering.book(text.len())?;
        self.state.record(&mut self.lowering.history, text, layer);
        Ok(())
    }

    /// Adds the vertex of an instruction.
    pub fn add_step(
        &mut self,
        command: &Command,
        op: Op,
        inputs: Vec<Edge>,
        name: String,
    ) -> Result<Edge, FrontendError> {
        let resources = self.lowering.options.resources.clone().filter(|_| matches!(op, Op::Exec(_)));
        let span = Some(self.lowering.span(command.span));
        let metadata = Metadata { name, ignore_cache: self.ignores_cache(), span, resources };
        self.lowering.add(op, inputs, Some(self.state.platform.clone()), metadata)
    }

    fn ignores_cache(&self) -> bool {
        let options = self.lowering.options;
        let name = self.lowering.plan.program.stages[self.index].name.as_deref();
        options.no_cache
            || name.is_some_and(|name| options.no_cache_stages.iter().any(|no| no.eq_ignore_ascii_case(name)))
    }

    fn arg(&mut self, command: &Command, definitions: &[crate::command::ArgDefinition]) -> Result<(), FrontendError> {
        let mut shown = vec!["ARG".to_owned()];
        for definition in definitions {
            let key = self.text(command, &definition.key)?;
            if crate::lint::names_a_secret(&key) {
                self.report(Rule::SecretsUsedInArgOrEnv, command, &["ARG", &key]);
            }
            let value = self.arg_value(command, &key, definition.default.as_ref())?;
            shown.push(value.as_ref().map_or_else(|| key.clone(), |value| format!("{key}={value}")));
            if let Some(value) = value.clone().filter(|_| !super::globals::NOT_EXPORTED.contains(&key.as_str())) {
                Rc::make_mut(&mut self.state.env).set(&key, value);
            }
            Rc::make_mut(&mut self.state.args).set(&key, value);
        }
        self.record(shown.join(" "), Layer::None)
    }

    /// A build argument wins over the default, and that over the value before the first FROM.
    fn arg_value(
        &self,
        command: &Command,
        key: &str,
        default: Option<&Token>,
    ) -> Result<Option<String>, FrontendError> {
        use crate::expand::Variables;
        // Where it names a source, what was found takes its place.
        let is_name = key == epoch::NAME && self.lowering.epoch.named;
        if is_name && let Some(seconds) = self.lowering.epoch.seconds {
            return Ok(Some(seconds.to_string()));
        }
        if let Some(value) = self.lowering.options.build_args.get(key).filter(|_| !is_name) {
            return Ok(Some(value.clone()));
        }
        match default {
            Some(default) => self.text(command, default).map(Some),
            None if is_name => Ok(None),
            None => Ok(self.lowering.plan.globals.get(key).map(str::to_owned)),
        }
    }

    fn env(&mut self, command: &Command, pairs: &[crate::Pair]) -> Result<(), FrontendError> {
        let mut shown = String::from("ENV");
        for (key, value) in self.pairs(command, pairs, "ENV")? {
            if crate::lint::names_a_secret(&key) {
                self.report(Rule::SecretsUsedInArgOrEnv, command, &["ENV", &key]);
            }
            shown += &format!(" {key}={value}");
            let set = |environment: &mut Rc<Environment>| Rc::make_mut(environment).set(&key, value.clone());
            set(&mut self.state.env);
            set(&mut self.state.image_env);
        }
        self.record(shown, Layer::None)
    }

    fn label(&mut self, command: &Command, pairs: &[crate::Pair]) -> Result<(), FrontendError> {
        let mut shown = String::from("LABEL");
        for (key, value) in self.pairs(command, pairs, "LABEL")? {
            shown += &format!(" {key}={value}");
            self.state.config().labels.insert(key, value.into());
        }
        self.record(shown, Layer::None)
    }

    /// All pairs of one instruction see the variables as they are before it.
    fn pairs(
        &self,
        command: &Command,
        pairs: &[crate::Pair],
        keyword: &str,
    ) -> Result<Vec<(String, String)>, FrontendError> {
        if pairs.iter().any(|pair| pair.legacy) {
            self.report(Rule::LegacyKeyValueFormat, command, &[keyword]);
        }
        let expand = |pair: &crate::Pair| {
            let (key, value) = (self.text(command, &pair.key)?, self.text(command, &pair.value)?);
            match key.contains('\0') || value.contains('\0') {
                true => Err(FrontendError::from(Problem::value(format!("{keyword} cannot hold a NUL byte")))),
                false => Ok((key, value)),
            }
        };
        pairs.iter().map(expand).collect()
    }
}

/// Whether an instruction is counted among the steps that users see.
fn is_step(command: &Command) -> bool {
    matches!(command.action, Action::Run(_) | Action::Copy(_) | Action::Workdir(_))
}
