//! `SOURCE_DATE_EPOCH`: a number of seconds, or the name of a source whose time is asked for.

use super::environment::Environment;
use super::plan::{Base, Plan};
use super::remote::Remote;
use crate::command::{Action, ArgDefinition, CopyCommand};
use crate::expand::{Budget, Expander, Quotes, Unset, Variables};
use crate::lint::Lint;
use crate::program::{Program, Stage};
use crate::span::At;
use crate::{Dockerfile, FrontendError, LowerOptions, Problem, SourceTime, Span, TimeRequest, Token};
use forge_llb::{HttpSource, SourceOp};

/// The build argument.
pub(super) const NAME: &str = "SOURCE_DATE_EPOCH";

/// The time of a build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Epoch {
    /// Seconds since the epoch; `None` where times are what they are.
    pub seconds: Option<i64>,
    /// Whether the build argument names a source, so that ARG gives its time and not what was written.
    pub named: bool,
}

/// Asks for the time of the source that the build argument names, unless that was done or it names none.
///
/// # Errors
/// The Dockerfile is wrong.
pub(super) fn request(
    dockerfile: &Dockerfile,
    options: &LowerOptions,
) -> Result<Option<Box<TimeRequest>>, FrontendError> {
    let declared = || dockerfile.instructions().iter().any(|instruction| instruction.text.contains(NAME));
    let may_be_named = match options.build_args.get(NAME) {
        Some(text) => !text.is_empty() && text.parse::<i64>().is_err(),
        None => declared(),
    };
    if options.source_time != SourceTime::Unasked || !may_be_named {
        return Ok(None);
    }
    let program = Program::read(dockerfile)?;
    let (lint, budget) = (Lint::of(dockerfile, options)?, Budget::default());
    let plan = Plan::new(&program, options, dockerfile.escape(), &lint, &budget)?;
    match value(options, &plan) {
        Value::Named(name) => source(name, options, &plan, dockerfile.escape()).map(|found| found.map(Box::new)),
        _ => Ok(None),
    }
}

/// The time of the build as far as it is known.
///
/// # Errors
/// The build argument is no number, and names no source.
pub(super) fn of(options: &LowerOptions, plan: &Plan<'_>, escape: char) -> Result<Epoch, FrontendError> {
    let seconds = match value(options, plan) {
        Value::Unset => options.source_date_epoch,
        Value::Seconds(seconds) => seconds,
        Value::Named(name) => {
            source(name, options, plan, escape)?;
            let seconds = match options.source_time {
                SourceTime::Seconds(seconds) => Some(seconds),
                SourceTime::None | SourceTime::Unasked => None,
            };
            return Ok(Epoch { seconds, named: true });
        }
    };
    match seconds {
        Some(seconds) if seconds < 0 => Err(Problem::value(format!("invalid {NAME}: {seconds:?}")).into()),
        seconds => Ok(Epoch { seconds, named: false }),
    }
}

/// What is written.
enum Value<'a> {
    /// Nothing.
    Unset,
    /// A number; an empty text sets the time back.
    Seconds(Option<i64>),
    /// A name.
    Named(&'a str),
}

/// The build argument, else an ARG before the first FROM.
fn value<'a>(options: &'a LowerOptions, plan: &'a Plan<'_>) -> Value<'a> {
    let given = options.build_args.get(NAME).map(String::as_str);
    match given.or_else(|| plan.globals.get(NAME)) {
        None => Value::Unset,
        Some("") => Value::Seconds(None),
        Some(text) => text.parse().map_or(Value::Named(text), |seconds| Value::Seconds(Some(seconds))),
    }
}

/// The source of that name; `None` where it has no time of its own, as a folder.
fn source(
    name: &str,
    options: &LowerOptions,
    plan: &Plan<'_>,
    escape: char,
) -> Result<Option<TimeRequest>, FrontendError> {
    let ask = |source: &SourceOp, step: String| Some(TimeRequest { source: source.clone(), step, span: None });
    if name == "context" {
        let step = "[internal] resolve main build context metadata".to_owned();
        return Ok(remote(&plan.main).and_then(|source| ask(&source, step)));
    }
    let stage = match plan.context(name, &options.platform)? {
        Some(Base::Stage(stage)) => Some(stage),
        Some(base) => {
            let step = format!("[internal] resolve {NAME} named context {name}");
            return Ok(remote(&base).and_then(|source| ask(&source, step)));
        }
        None => plan.first_stage(name),
    };
    let Some(stage) = stage.map(|index| &plan.program.stages[index]) else {
        return Err(Problem::value(format!("invalid {NAME}: {name}")).into());
    };
    let reader = StageReader { options, plan, escape, budget: Budget::default() };
    let (source, span) = reader.source(stage).at(stage.span)?;
    let step = format!("[internal] resolve {NAME} source stage {}", stage.name.as_deref().unwrap_or(name));
    Ok(Some(TimeRequest { source, step, span: Some(span) }))
}

/// The source of a context from elsewhere, as the build will use it.
fn remote(base: &Base) -> Option<SourceOp> {
    let Base::Remote { source, .. } = base else { return None };
    Some(match &**source {
        SourceOp::Http(http) => SourceOp::Http(named_download(http)),
        other => other.clone(),
    })
}

/// A download as a context, with the name that its file has.
pub(super) fn named_download(http: &HttpSource) -> HttpSource {
    let filename = http.filename.clone().unwrap_or_else(|| "context".to_owned());
    HttpSource { filename: Some(filename), ..http.clone() }
}

/// Reads a stage that holds a source and nothing else.
struct StageReader<'a> {
    options: &'a LowerOptions,
    plan: &'a Plan<'a>,
    escape: char,
    budget: Budget,
}

fn wrong<T>(reason: impl Into<String>) -> Result<T, FrontendError> {
    Err(Problem::value(reason).into())
}

impl StageReader<'_> {
    fn expand(&self, token: &Token, variables: &Environment) -> Result<String, FrontendError> {
        let (quotes, unset) = (Quotes::Removed, Unset::Empty);
        let expander = Expander { variables, escape: self.escape, quotes, unset, budget: &self.budget };
        expander.expand(&token.text).at(token.span).map(|expanded| expanded.text)
    }

    /// The one ADD of a stage on `scratch`.
    fn source(&self, stage: &Stage) -> Result<(SourceOp, Span), FrontendError> {
        let mut variables = Environment::default();
        let globals = self.plan.globals.entries().iter().filter(|(name, _)| name != NAME);
        globals.for_each(|(name, value)| variables.set(name, value.clone()));
        if self.expand(&stage.base, &variables)? != "scratch" {
            return wrong(format!("{NAME} stage must use FROM scratch"));
        }
        let mut found = None;
        for command in &stage.commands {
            match &command.action {
                Action::Arg(definitions) => self.declare(definitions, &mut variables)?,
                Action::Copy(copy) if copy.add && found.is_none() => {
                    found = Some((self.add(copy, &variables).at(command.span)?, command.span));
                }
                Action::Copy(copy) if copy.add => {
                    return wrong(format!("{NAME} stage must contain exactly one remote ADD"));
                }
                _ => {
                    return wrong(format!(
                        "{NAME} stage does not meet source-only requirements: unsupported {} instruction",
                        command.keyword.text
                    ));
                }
            }
        }
        found.map_or_else(|| wrong(format!("{NAME} stage must contain exactly one remote ADD")), Ok)
    }

    fn declare(&self, definitions: &[ArgDefinition], variables: &mut Environment) -> Result<(), FrontendError> {
        for definition in definitions {
            let key = &definition.key.text;
            let value = match (self.options.build_args.get(key), &definition.default) {
                (Some(value), _) => value.clone(),
                (None, Some(default)) => self.expand(default, variables)?,
                (None, None) => continue,
            };
            variables.set(key, value);
        }
        Ok(())
    }

    fn add(&self, copy: &CopyCommand, variables: &Environment) -> Result<SourceOp, FrontendError> {
        let ([source], []) = (copy.sources.as_slice(), copy.heredocs.as_slice()) else {
            return wrong(format!("{NAME} stage must contain exactly one remote ADD source"));
        };
        let checksum = copy.checksum.as_ref().map_or(Ok(String::new()), |token| self.expand(token, variables))?;
        match Remote::read(copy, &self.expand(source, variables)?, &checksum)? {
            Some(remote) => Ok(remote.source().clone()),
            None => wrong(format!("{NAME} stage source must be a single HTTP(S) or Git ADD")),
        }
    }
}
