//! What each stage is built on and copies from, before anything is lowered.

use super::environment::Environment;
use super::from::Froms;
use super::globals;
use crate::command::{Action, Command, Origin};
use crate::expand::Budget;
use crate::lint::Lint;
use crate::mount::MountFlag;
use crate::program::Program;
use crate::span::At;
use crate::suggest::nearest;
use crate::{FrontendError, GraphInput, ImageKey, ImageKeySource, LowerOptions, NamedContext, Problem, Span, Token};
use forge_image::{Platform, Reference};
use forge_llb::SourceOp;
use std::collections::{BTreeSet, HashMap};

/// Names that no context can take.
const RESERVED: [&str; 2] = ["scratch", "context"];

/// How often a named context may stand for another one.
const MAX_CONTEXT_DEPTH: usize = 10;

/// Where a file system comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Base {
    /// Nowhere: it is empty.
    Scratch,
    /// An earlier stage.
    Stage(usize),
    /// An image.
    Image {
        key: ImageKey,
        /// As the Dockerfile names it.
        written: String,
        /// The named context that put it there.
        context: Option<String>,
    },
    /// A folder of the session.
    Local {
        name: String,
        exclude: Vec<String>,
        /// The name that the Dockerfile uses; empty for the main context.
        context: String,
    },
    /// What another graph makes.
    Input(GraphInput),
    /// Files from elsewhere.
    Remote {
        /// A repository or a file of a web server.
        source: Box<SourceOp>,
        /// The name that the Dockerfile uses; empty for the main context.
        context: String,
    },
}

/// What is known of a stage before it is lowered.
pub(super) struct StagePlan {
    pub base: Base,
    pub platform: Platform,
    pub platform_was_chosen: bool,
    /// A named context stands for the stage: its instructions do not count.
    pub replaced: bool,
    /// The name in step names; empty where there is but one stage.
    pub title: String,
}

/// All stages, and how to find them by name.
pub(super) struct Plan<'a> {
    pub program: &'a Program,
    pub stages: Vec<StagePlan>,
    pub globals: Environment,
    /// The main context.
    pub main: Base,
    names: HashMap<&'a str, Vec<usize>>,
    pub options: &'a LowerOptions,
}

/// What takes files from somewhere.
#[derive(Clone, Copy)]
pub(super) enum SourceName<'a> {
    /// `COPY --from`.
    Copy(&'a Token),
    /// `RUN --mount=from=…`.
    Mount(&'a MountFlag, &'a Token),
}

impl<'a> SourceName<'a> {
    /// What it names.
    pub fn name(self) -> &'a Token {
        match self {
            Self::Copy(from) | Self::Mount(_, from) => from,
        }
    }

    /// What an instruction takes files from, by name.
    pub fn of(command: &'a Command) -> impl Iterator<Item = SourceName<'a>> {
        let (copy, mounts) = match &command.action {
            Action::Copy(copy) => (copy.from.as_ref(), &[][..]),
            Action::Run(run) => (None, run.mounts.as_slice()),
            _ => (None, &[][..]),
        };
        let mounts = mounts.iter().filter_map(|mount| Some(Self::Mount(mount, mount.from.as_ref()?)));
        copy.map(Self::Copy).into_iter().chain(mounts)
    }
}

/// Whether an instruction may take files from the main context. Of a mount, only its expansion says that.
pub(super) fn reads_main_context(command: &Command) -> bool {
    match &command.action {
        Action::Copy(copy) => copy.from.is_none() && !copy.sources.is_empty(),
        Action::Run(run) => run.mounts.iter().any(|mount| mount.from.is_none()),
        _ => false,
    }
}

impl<'a> Plan<'a> {
    /// Looks at every FROM, needed or not.
    ///
    /// # Errors
    /// A base or a platform is blank, is none, or cannot be expanded; stages form a circle.
    pub fn new(
        program: &'a Program,
        options: &'a LowerOptions,
        escape: char,
        lint: &Lint,
        budget: &Budget,
    ) -> Result<Self, FrontendError> {
        let automatic = globals::automatic(options, program);
        let given = globals::declared(automatic.clone(), &program.globals, &options.build_args, escape, budget)?;
        let defaults = globals::declared(automatic, &program.globals, &Default::default(), escape, budget).ok();
        let mut plan =
            Self { program, stages: Vec::new(), globals: given, main: Base::Scratch, names: HashMap::new(), options };
        for (index, stage) in program.stages.iter().enumerate() {
            if let Some(name) = &stage.name {
                plan.names.entry(name).or_default().push(index);
            }
        }
        plan.main = plan.context_base("", &options.main_context, "context", &options.platform)?;
        for (index, stage) in program.stages.iter().enumerate() {
            let froms = Froms { plan: &plan, stage, escape, lint, budget };
            let planned = froms.plan_stage(index).at(stage.span)?;
            if let Some(defaults) = &defaults {
                froms.check_default_base(defaults);
            }
            plan.stages.push(planned);
        }
        if let [only] = plan.stages.as_mut_slice() {
            only.title.clear();
        }
        plan.check_circles()?;
        Ok(plan)
    }

    /// The stage that is wanted.
    pub fn target(&self) -> Result<usize, FrontendError> {
        let Some(name) = &self.options.target else { return Ok(self.stages.len() - 1) };
        let index = || name.parse().ok().filter(|index| *index < self.stages.len());
        let named = self.names.get(name.to_lowercase().as_str()).and_then(|stages| stages.last().copied());
        named.or_else(index).ok_or_else(|| {
            let suggestion = nearest(name, self.names.keys().copied());
            let error = FrontendError::from(Problem::UnknownTarget { name: name.clone() });
            FrontendError { suggestion, ..error }
        })
    }

    /// The names of all stages.
    pub fn stage_names(&self) -> impl Iterator<Item = &str> {
        self.names.keys().copied()
    }

    /// The last stage of that name before `index`.
    pub fn stage_before(&self, name: &str, index: usize) -> Option<usize> {
        let stages = self.names.get(name.to_lowercase().as_str())?;
        stages[..stages.partition_point(|stage| *stage < index)].last().copied()
    }

    /// What a name stands for that is no stage.
    ///
    /// # Errors
    /// It is no image name.
    pub fn outside(&self, name: &str, platform: &Platform) -> Result<Base, FrontendError> {
        if name == "scratch" {
            return Ok(Base::Scratch);
        }
        if let Some(base) = self.context(name, platform)? {
            return Ok(base);
        }
        let reference: Reference =
            name.parse().map_err(|source| Problem::Reference { name: name.to_owned(), source })?;
        let key = ImageKey { source: ImageKeySource::Image(reference), platform: platform.clone() };
        Ok(Base::Image { key, written: name.to_owned(), context: None })
    }

    /// The named context of a stage or an image: by the name as written or in docker's short form, for the
    /// platform first.
    fn named_context(&self, name: &str, platform: &Platform) -> Option<(&'a str, &'a NamedContext)> {
        let contexts = &self.options.named_contexts;
        if contexts.is_empty() || RESERVED.iter().any(|reserved| name.eq_ignore_ascii_case(reserved)) {
            return None;
        }
        let familiar = name.parse::<Reference>().ok().map(|reference| reference.familiar());
        let short = familiar.as_deref().map(|name| name.strip_suffix(":latest").unwrap_or(name));
        let names = [Some(name), short, familiar.as_deref()];
        names.into_iter().flatten().find_map(|name| {
            let found = contexts.get_key_value(&format!("{name}::{platform}"));
            found.or_else(|| contexts.get_key_value(name)).map(|(key, context)| (key.as_str(), context))
        })
    }

    /// What a named context comes to. One may stand for a stage or for another context.
    ///
    /// # Errors
    /// Contexts stand for each other in a circle, or for a stage that there is none of.
    fn context_base(
        &self,
        context: &str,
        named: &NamedContext,
        written: &str,
        platform: &Platform,
    ) -> Result<Base, FrontendError> {
        let mut named = named;
        for _ in 0..=MAX_CONTEXT_DEPTH {
            let NamedContext::Stage(target) = named else { return Ok(files(named, context, written, platform)) };
            match (self.named_context(target, platform), self.names.get(target.to_lowercase().as_str())) {
                (Some((_, next)), _) => named = next,
                (None, Some(stages)) => return Ok(Base::Stage(*stages.last().expect("a name has a stage"))),
                (None, None) => return Err(Problem::UnknownTarget { name: target.clone() }.into()),
            }
        }
        Err(Problem::value(format!("context recursion limit exceeded: the named context {context:?} leads to itself"))
            .into())
    }

    /// The named context of that name.
    ///
    /// # Errors
    /// It leads nowhere.
    pub fn context(&self, name: &str, platform: &Platform) -> Result<Option<Base>, FrontendError> {
        let found = self.named_context(name, platform);
        found.map(|(context, named)| self.context_base(context, named, name, platform)).transpose()
    }

    /// The first stage of that name.
    pub fn first_stage(&self, name: &str) -> Option<usize> {
        self.names.get(name.to_lowercase().as_str())?.first().copied()
    }

    /// What a COPY or a mount takes files from.
    ///
    /// # Errors
    /// The name cannot be resolved, or is that of a stage that comes later.
    pub fn source(&self, index: usize, from: SourceName<'_>) -> Result<Base, FrontendError> {
        let name = from.name();
        let source = match self.named_stage(from)?.map(|stage| stage.seen_from(index)) {
            Some(stage) if stage < index => Ok(Base::Stage(stage)),
            Some(stage) if stage == index => Err(Problem::CircularStage { stage: self.title(index) }.into()),
            Some(_) => Err(self.late_stage(index, from).into()),
            None => self.outside(&name.text, &self.options.platform),
        };
        source.at(name.span)
    }

    fn late_stage(&self, index: usize, from: SourceName<'_>) -> Problem {
        match from {
            SourceName::Copy(from) => Problem::LateStage { from: from.text.clone(), stage: self.title(index) },
            SourceName::Mount(mount, from) => {
                Problem::LateMount { from: from.text.clone(), target: mount.written_target().to_owned() }
            }
        }
    }

    /// The stages that a name may mean. Numbers that are those of no stage may still be images to a mount.
    fn named_stage(&self, from: SourceName<'_>) -> Result<Option<NamedStage<'_>>, FrontendError> {
        let name = from.name();
        let is_copy = matches!(from, SourceName::Copy(_));
        if is_copy && name.text.contains('$') {
            let reason = "variable expansion is not supported for --from, \
                          define a new stage with FROM using ARG from global scope as a workaround";
            return Err(FrontendError::from(Problem::value(reason)).or_at(name.span));
        }
        let number = name.text.parse::<i64>();
        let index = number.as_ref().ok().and_then(|number| usize::try_from(*number).ok());
        match (index.filter(|index| *index < self.stages.len()), number) {
            (Some(index), _) => Ok(Some(NamedStage::Number(index))),
            (None, Ok(_)) if is_copy => {
                let problem = Problem::StageIndex { index: name.text.clone() };
                Err(FrontendError::from(problem).or_at(name.span))
            }
            _ => Ok(self.names.get(name.text.to_lowercase().as_str()).map(|stages| NamedStage::Name(stages))),
        }
    }

    /// What messages call a stage.
    pub fn title(&self, index: usize) -> String {
        let name = self.program.stages[index].name.clone();
        name.unwrap_or_else(|| format!("stage-{index}"))
    }

    /// Stages that need each other. Only references to later stages can close a circle, so that files without
    /// any are done at once.
    fn check_circles(&self) -> Result<(), FrontendError> {
        let mut needs: Vec<Vec<(usize, Span)>> = Vec::with_capacity(self.stages.len());
        let mut forward = false;
        for (index, planned) in self.stages.iter().enumerate() {
            let mut stages = Vec::new();
            if let Base::Stage(base) = planned.base {
                forward |= base >= index;
                stages.push((base, self.program.stages[index].span));
            }
            for from in self.program.stages[index].commands.iter().flat_map(SourceName::of) {
                if let Some(stage) = self.named_stage(from)?.map(|stage| stage.seen_from(index)) {
                    forward |= stage >= index;
                    stages.push((stage, from.name().span));
                }
            }
            needs.push(stages);
        }
        if forward { self.find_circle(&needs) } else { Ok(()) }
    }

    /// Takes away stages that need nothing, until none are left or those that are left form circles.
    fn find_circle(&self, needs: &[Vec<(usize, Span)>]) -> Result<(), FrontendError> {
        let mut open: Vec<usize> = needs.iter().map(Vec::len).collect();
        let mut users: Vec<Vec<usize>> = vec![Vec::new(); needs.len()];
        for (user, stages) in needs.iter().enumerate() {
            stages.iter().for_each(|(stage, _)| users[*stage].push(user));
        }
        let mut free: Vec<usize> = (0..needs.len()).filter(|stage| open[*stage] == 0).collect();
        while let Some(stage) = free.pop() {
            for user in &users[stage] {
                open[*user] -= 1;
                if open[*user] == 0 {
                    free.push(*user);
                }
            }
        }
        let Some(mut stage) = open.iter().position(|count| *count > 0) else { return Ok(()) };
        // Each stage that is left needs one that is left: going on from one to the next ends in a circle.
        let mut seen = BTreeSet::new();
        loop {
            let (next, span) = *needs[stage]
                .iter()
                .find(|(needed, _)| open[*needed] > 0)
                .expect("what is left needs something that is left");
            if !seen.insert(stage) {
                let problem = Problem::CircularStage { stage: self.title(stage) };
                return Err(FrontendError::from(problem).or_at(span));
            }
            stage = next;
        }
    }
}

/// What `--from` says of a stage.
enum NamedStage<'a> {
    Number(usize),
    /// All stages of that name, in order.
    Name(&'a [usize]),
}

impl NamedStage<'_> {
    /// The stage that is meant: the nearest of that name before a stage, else the first behind it.
    fn seen_from(&self, index: usize) -> usize {
        match self {
            Self::Number(number) => *number,
            Self::Name(stages) => {
                let behind = stages.partition_point(|stage| *stage < index);
                stages[behind.saturating_sub(1)]
            }
        }
    }
}

/// A named context that is not another name of something.
fn files(named: &NamedContext, context: &str, written: &str, platform: &Platform) -> Base {
    let context = context.to_owned();
    let (source, written) = match named.clone() {
        NamedContext::Scratch | NamedContext::Stage(_) => return Base::Scratch,
        NamedContext::Graph(input) => return Base::Input(input),
        NamedContext::Local { name, exclude } => return Base::Local { name, exclude, context },
        NamedContext::Git(git) => return Base::Remote { source: Box::new(SourceOp::Git(git)), context },
        NamedContext::Http(http) => return Base::Remote { source: Box::new(SourceOp::Http(http)), context },
        NamedContext::Image(reference) => (ImageKeySource::Image(reference), written.to_owned()),
        NamedContext::OciLayout { name, tag, digest } => {
            (ImageKeySource::OciLayout { name, tag, digest }, written.to_owned())
        }
    };
    Base::Image { key: ImageKey { source, platform: platform.clone() }, written, context: Some(context) }
}

/// Reads the triggers that a base brings, as instructions of the stage whose FROM stands at `span`.
pub(super) fn read_triggers(texts: &[String], span: Span, origin: Origin) -> Result<Vec<Command>, FrontendError> {
    let read = |text: &String| {
        let instruction = crate::parse::parse_trigger(text, span)?;
        let command = Command::read(&instruction)?;
        match &command.action {
            Action::Onbuild(_) => {
                let reason = "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed";
                Err(FrontendError::from(Problem::syntax(reason)).or_at(span))
            }
            _ => Ok(Command { origin, ..command }),
        }
    };
    texts.iter().map(read).collect()
}
