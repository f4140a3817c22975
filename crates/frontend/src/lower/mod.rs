//! Stages to graph and image config.
//!
//! [`plan`] looks at every FROM; here the stages that the target needs are lowered, each behind those it needs,
//! and never another. What a stage needs may only be known once its base is (ONBUILD), so that the walk over the
//! stages asks again after each answer. Nothing recurses: a file may have a hundred thousand stages.

mod base;
mod check;
mod chmod;
mod copy;
mod environment;
mod epoch;
mod from;
mod globals;
mod image;
mod inputs;
mod metadata;
mod mounts;
mod outline;
mod plan;
mod ports;
mod remote;
mod run;
mod scanned;
mod stage;
mod state;
mod title;

pub use check::check;
pub use outline::outline;

use crate::command::{Command, Origin};
use crate::expand::Budget;
use crate::lint::{Lint, check_program};
use crate::parse::check_frontend;
use crate::program::Program;
use crate::span::At;
use crate::{
    Dockerfile, EntitlementUse, FrontendError, ImageKey, ImageRequest, LowerOptions, Lowered, LoweredImage, Problem,
    ResolvedImages, Span,
};
use base::request_step;
use epoch::Epoch;
use forge_image::Platform;
use forge_llb::{Edge, Graph, InstructionSpan, Metadata, Op, Vertex, without_credentials};
use forge_session::PatternMatcher;
use mounts::UsedMount;
use plan::{Base, Plan, SourceName, reads_main_context};
use stage::StageBuilder;
use state::{History, StageState};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Environments, arguments and history entries of all steps together: far beyond any real file, and a bound on
/// what variables of a megabyte in thousands of steps can cost (A114).
const MAX_LOWERED: usize = 256 << 20;

/// Turns a Dockerfile into a graph and a config.
///
/// Pure, and called to a fixpoint: while it answers [`Lowered::Need`], the caller resolves those images, adds
/// them to `images` and calls again. Each turn starts from the beginning; the same input gives the same output.
///
/// # Errors
/// The Dockerfile is wrong, or uses what this version does not have. Errors say where.
pub fn lower(
    dockerfile: &Dockerfile,
    options: &LowerOptions,
    images: &ResolvedImages,
) -> Result<Lowered, FrontendError> {
    lower_file(dockerfile, options, images)
        .map_err(|error| FrontendError { file: dockerfile.name().to_owned(), ..error })
}

fn lower_file(
    dockerfile: &Dockerfile,
    options: &LowerOptions,
    images: &ResolvedImages,
) -> Result<Lowered, FrontendError> {
    if let Some(request) = epoch::request(dockerfile, options)? {
        return Ok(Lowered::NeedTime(request));
    }
    let lint = Lint::of(dockerfile, options)?;
    let inputs = Inputs { dockerfile, options, images, lint: &lint };
    let turn = take_turn(&inputs, Scope::Target, |mut lowering, target, state| {
        let scanned = if options.scans { lowering.scanned(target)? } else { Vec::new() };
        let unused_build_args = unused_build_args(lowering.plan.program, options);
        Ok(LoweredImage { unused_build_args, scanned, ..lowering.finish(state)? })
    })?;
    match turn {
        Turn::Need(requests) => Ok(Lowered::Need(requests)),
        Turn::Done(image) => Ok(Lowered::Done(Box::new(LoweredImage { warnings: lint.finish()?, ..image }))),
    }
}

/// What a turn is taken with.
struct Inputs<'a> {
    dockerfile: &'a Dockerfile,
    options: &'a LowerOptions,
    images: &'a ResolvedImages,
    lint: &'a Lint,
}

/// Which stages a turn goes through.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// The wanted one and those that it needs.
    Target,
    /// All of them: the build checks look at every stage.
    All,
}

/// What a turn came to.
enum Turn<T> {
    /// These images must be known first.
    Need(Vec<ImageRequest>),
    Done(T),
}

/// Goes through stages as far as what is known of images allows, and ends with `finish`, which is given the wanted
/// stage.
fn take_turn<T>(
    inputs: &Inputs<'_>,
    scope: Scope,
    finish: impl FnOnce(Lowering<'_>, usize, StageState) -> Result<T, FrontendError>,
) -> Result<Turn<T>, FrontendError> {
    let Inputs { dockerfile, options, images, lint } = *inputs;
    check_build_args(&options.build_args)?;
    dockerfile.warnings().iter().for_each(|warning| lint.keep(warning.clone(), &[]));
    let program = Program::read(dockerfile)?;
    check_program(&program, lint);
    let budget = Budget::default();
    let plan = Plan::new(&program, options, dockerfile.escape(), lint, &budget)?;
    let target = plan.target()?;
    let epoch = epoch::of(options, &plan, dockerfile.escape())?;
    let mut lowering = Lowering {
        dockerfile,
        options,
        images,
        plan: &plan,
        lint,
        budget: &budget,
        epoch,
        graph: Graph::new(),
        history: History::default(),
        done: vec![Progress::Open; plan.stages.len()],
        waiting: vec![false; plan.stages.len()],
        requests: BTreeMap::new(),
        contexts: BTreeSet::new(),
        folders: HashMap::new(),
        ignored: ignored(options.ignore_patterns())?,
        triggers: Vec::new(),
        entitlements: Vec::new(),
        mounts: HashMap::new(),
        lowered_bytes: 0,
    };
    if scope == Scope::All {
        (0..plan.stages.len()).try_for_each(|stage| lowering.walk(stage).map(drop))?;
    }
    match lowering.walk(target)? {
        Some(state) if lowering.requests.is_empty() => Ok(Turn::Done(finish(lowering, target, state)?)),
        _ => {
            let mut requests: Vec<ImageRequest> = lowering.requests.into_values().collect();
            requests.sort_by_key(|request| request.span);
            Ok(Turn::Need(requests))
        }
    }
}

/// One turn.
struct Lowering<'a> {
    dockerfile: &'a Dockerfile,
    options: &'a LowerOptions,
    images: &'a ResolvedImages,
    plan: &'a Plan<'a>,
    lint: &'a Lint,
    budget: &'a Budget,
    epoch: Epoch,
    graph: Graph,
    history: History,
    done: Vec<Progress>,
    /// The stages that wait for others.
    waiting: Vec<bool>,
    requests: BTreeMap<ImageKey, ImageRequest>,
    /// The contexts that are used.
    contexts: BTreeSet<String>,
    /// The vertices of folders, by their names in the session.
    folders: HashMap<String, Edge>,
    /// Tells what the ignore file leaves out; `None` where it leaves out nothing, or that cannot be known.
    ignored: Option<PatternMatcher>,
    triggers: Vec<String>,
    entitlements: Vec<EntitlementUse>,
    /// The mounts that each stage uses.
    mounts: HashMap<usize, Vec<UsedMount>>,
    lowered_bytes: usize,
}

/// How far a stage is.
#[derive(Clone)]
enum Progress {
    /// Not looked at, or waiting for stages.
    Open,
    /// It needs an image that is not known in this turn.
    Blocked,
    /// Done.
    Done(Box<StageState>),
}

/// What a look at a stage came to.
enum Step {
    /// It is [`Progress::Blocked`] or [`Progress::Done`].
    Settled,
    /// These stages come first.
    Waits(Vec<usize>),
}

impl Lowering<'_> {
    /// Lowers a stage and all that it needs; `None` where images are missing.
    fn walk(&mut self, target: usize) -> Result<Option<StageState>, FrontendError> {
        let mut stack = vec![target];
        while let Some(&index) = stack.last() {
            match self.advance(index)? {
                Step::Settled => drop(stack.pop()),
                Step::Waits(stages) => {
                    // Whoever waits is built on by what is looked at now.
                    self.waiting[index] = true;
                    if let Some(circle) = stages.iter().find(|stage| self.waiting[**stage]) {
                        let problem = Problem::CircularStage { stage: self.plan.title(*circle) };
                        return Err(FrontendError::from(problem).or_at(self.plan.program.stages[index].span));
                    }
                    stack.extend(stages);
                }
            }
        }
        match &self.done[target] {
            Progress::Done(state) => Ok(Some((**state).clone())),
            _ => Ok(None),
        }
    }

    /// Goes as far with a stage as what is known allows.
    fn advance(&mut self, index: usize) -> Result<Step, FrontendError> {
        if !matches!(self.done[index], Progress::Open) {
            return Ok(Step::Settled);
        }
        self.waiting[index] = false;
        let planned = &self.plan.stages[index];
        let commands: &[Command] = if planned.replaced { &[] } else { &self.plan.program.stages[index].commands };
        let span = self.plan.program.stages[index].span;
        let mut needs = Needs::default();
        self.need(&planned.base, span, &mut needs);
        self.need_sources(index, commands, &mut needs)?;
        let triggers = match needs.base_is_ready(&planned.base) {
            true => self.triggers_of(&planned.base, span)?,
            false => Vec::new(),
        };
        self.need_sources(index, &triggers, &mut needs)?;
        if !needs.stages.is_empty() {
            return Ok(Step::Waits(needs.stages));
        }
        self.done[index] = match needs.blocked {
            true => Progress::Blocked,
            false => Progress::Done(Box::new(self.lower_stage(index, triggers, commands)?)),
        };
        Ok(Step::Settled)
    }

    fn need_sources(&mut self, index: usize, commands: &[Command], needs: &mut Needs) -> Result<(), FrontendError> {
        let plan = self.plan;
        for command in commands {
            for from in SourceName::of(command) {
                let source = plan.source(index, from)?;
                self.need(&source, from.name().span, needs);
            }
            if reads_main_context(command) {
                self.need(&plan.main, command.span, needs);
            }
        }
        Ok(())
    }

    /// Notes what must be there before a base can be used, and asks for images that are not known.
    fn need(&mut self, base: &Base, span: Span, needs: &mut Needs) {
        match base {
            Base::Scratch | Base::Local { .. } | Base::Remote { .. } | Base::Input(_) => {}
            Base::Stage(stage) => match self.done[*stage] {
                Progress::Open => needs.stages.push(*stage),
                Progress::Blocked => needs.blocked = true,
                Progress::Done(_) => {}
            },
            Base::Image { key, context, .. } => {
                if !self.images.contains_key(key) {
                    needs.blocked = true;
                    needs.images.insert(key.clone());
                    let step = request_step(key, context.as_deref(), self.options.multi_platform);
                    let request = ImageRequest { key: key.clone(), span, step };
                    self.requests.entry(key.clone()).or_insert(request);
                }
            }
        }
    }

    /// The ONBUILD instructions that a base brings.
    fn triggers_of(&self, base: &Base, span: Span) -> Result<Vec<Command>, FrontendError> {
        match base {
            Base::Stage(stage) => match &self.done[*stage] {
                Progress::Done(state) => plan::read_triggers(&state.image.config.on_build, span, Origin::StageTrigger),
                _ => Ok(Vec::new()),
            },
            Base::Image { key, .. } => match self.images.get(key) {
                Some(image) => plan::read_triggers(&image.config.config.on_build, span, Origin::ImageTrigger),
                None => Ok(Vec::new()),
            },
            Base::Input(input) => match input.config() {
                Some(config) => plan::read_triggers(&config.config.on_build, span, Origin::StageTrigger),
                None => Ok(Vec::new()),
            },
            _ => Ok(Vec::new()),
        }
    }

    fn lower_stage(
        &mut self,
        index: usize,
        triggers: Vec<Command>,
        commands: &[Command],
    ) -> Result<StageState, FrontendError> {
        let mut builder = StageBuilder::start(self, index, triggers.len())?;
        for command in triggers.iter().chain(commands) {
            builder.apply(command).at(command.span)?;
        }
        Ok(builder.finish())
    }

    fn add(
        &mut self,
        op: Op,
        inputs: Vec<Edge>,
        platform: Option<Platform>,
        metadata: Metadata,
    ) -> Result<Edge, FrontendError> {
        // One long instruction may come to thousands of vertices, and each carries its text.
        self.book(metadata.name.len() + metadata.span.as_ref().map_or(0, |span| span.text.len()))?;
        let metadata = shown(metadata);
        Ok(self.graph.add(Vertex { op, inputs, platform, metadata }).map_err(Problem::Graph)?)
    }

    /// A span as vertices carry it.
    fn span(&self, span: Span) -> InstructionSpan {
        InstructionSpan {
            file: self.dockerfile.name().to_owned(),
            first_line: span.first_line,
            last_line: span.last_line,
            text: String::from_utf8_lossy(span.slice(self.dockerfile.source())).into_owned(),
        }
    }

    /// Books what a step adds to the graph and the config.
    fn book(&mut self, bytes: usize) -> Result<(), FrontendError> {
        self.lowered_bytes += bytes;
        match self.lowered_bytes > MAX_LOWERED {
            true => Err(Problem::TooLarge { what: "what all steps need together", limit: "256 MiB" }.into()),
            false => Ok(()),
        }
    }
}

/// With patterns that take in again, a folder may be left out and a file in it not: nothing is said then.
fn ignored(patterns: &[String]) -> Result<Option<PatternMatcher>, FrontendError> {
    let matcher = PatternMatcher::new(patterns)
        .map_err(|error| Problem::value(format!("invalid pattern in the ignore file: {error}")))?;
    Ok(Some(matcher).filter(|matcher| !matcher.is_empty() && !matcher.has_inclusions()))
}

/// What a stage waits for.
#[derive(Default)]
struct Needs {
    stages: Vec<usize>,
    images: BTreeSet<ImageKey>,
    blocked: bool,
}

impl Needs {
    fn base_is_ready(&self, base: &Base) -> bool {
        match base {
            Base::Stage(stage) => !self.stages.contains(stage),
            Base::Image { key, .. } => !self.images.contains(key),
            _ => true,
        }
    }
}

/// Build arguments that would change the front end itself.
fn check_build_args(build_args: &BTreeMap<String, String>) -> Result<(), FrontendError> {
    if let Some(image) = build_args.get("BUILDKIT_SYNTAX") {
        check_frontend(image)?;
    }
    match ["BUILDKIT_DISABLE_FILEOP", "override-copy-image"].iter().find(|name| build_args.contains_key(**name)) {
        Some(name) => Err(Problem::value(format!("build argument {name} is no longer supported")).into()),
        None => Ok(()),
    }
}

/// Build arguments that nothing in the file asks for. Those that steer the build itself count as used.
fn unused_build_args(program: &Program, options: &LowerOptions) -> Vec<String> {
    use crate::command::Action;
    let commands = program.stages.iter().flat_map(|stage| &stage.commands);
    let in_stages = commands.filter_map(|command| match &command.action {
        Action::Arg(definitions) => Some(definitions),
        _ => None,
    });
    let declared = in_stages.flatten().chain(&program.globals).map(|definition| definition.key.text.as_str());
    let automatic = globals::automatic(options, program);
    let known: BTreeSet<&str> =
        declared.chain(globals::PROXY_ARGS.into_iter().flatten()).chain(automatic.names()).collect();
    let steers = |name: &str| name.starts_with("BUILDKIT_") || name == epoch::NAME;
    let names = options.build_args.keys().filter(|name| !known.contains(name.as_str()) && !steers(name));
    names.cloned().collect()
}

/// Takes credentials out of what is shown and recorded of a vertex (A102).
fn shown(metadata: Metadata) -> Metadata {
    let hidden = |text: String| match without_credentials(&text) {
        Cow::Borrowed(_) => text,
        Cow::Owned(hidden) => hidden,
    };
    let span = metadata.span.map(|span| InstructionSpan { text: hidden(span.text), ..span });
    Metadata { name: hidden(metadata.name), span, ..metadata }
}
