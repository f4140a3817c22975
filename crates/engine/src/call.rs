//! Questions about a Dockerfile that are answered without building it (`--call`). No step runs; of images, only
//! their configs are asked for.

use crate::build::{Build, refused, unsolved};
use crate::dockerfile::DockerfileText;
use crate::excerpt::SourceLines;
use crate::{BuildRequest, Engine, EngineError};
use forge_frontend::{CheckResults, Checked, Dockerfile, LowerOptions, Outlined, ResolvedImages, Warning};
use forge_image::{ErrorKind, Platform};
use forge_session::EventSink;
use futures_util::future::join_all;
use std::borrow::Cow;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

pub use forge_frontend::{Outline, OutlineArg, OutlineCache, OutlineRequirement, Span, Target};

/// What is asked of a Dockerfile instead of building it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// What the build checks find.
    Check,
    /// What can be handed to a build of the wanted stage.
    Outline,
    /// The stages that can be built.
    Targets,
}

/// An answer, and the file that it is about.
#[derive(Clone, Debug)]
pub struct CallOutcome {
    /// The Dockerfile as the user named it.
    pub file: String,
    /// Its bytes.
    pub source: Vec<u8>,
    /// The answer.
    pub answer: Answer,
}

/// The answer to a [`Call`].
#[derive(Clone, Debug)]
pub enum Answer {
    /// What the build checks found.
    Check(CheckReport),
    /// What can be handed to a build.
    Outline(Outline),
    /// The stages in the order of the file.
    Targets(Vec<Target>),
}

/// What the build checks found.
#[derive(Clone, Debug, Default)]
pub struct CheckReport {
    /// The findings in the order of the file.
    pub findings: Vec<Finding>,
    /// Why the Dockerfile cannot be built at all.
    pub error: Option<CheckError>,
}

/// Something that a build check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The rule's name.
    pub rule: String,
    /// What the rule asks for.
    pub description: Cow<'static, str>,
    /// Where to read on.
    pub url: Option<String>,
    /// What is wrong.
    pub message: String,
    /// Where.
    pub span: Span,
}

/// Why a Dockerfile cannot be built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckError {
    /// One line.
    pub message: String,
    /// Where; `None` where no line is to blame.
    pub span: Option<Span>,
}

impl CallOutcome {
    /// The lines of places, marked, with their neighbours.
    pub fn excerpts(&self, spans: impl IntoIterator<Item = Span>) -> Vec<String> {
        let source = String::from_utf8_lossy(&self.source);
        let lines = SourceLines::new(&self.file, &source);
        spans.into_iter().map(|span| lines.excerpt(span.first_line, span.last_line)).collect()
    }
}

impl Engine {
    /// Answers a question about the Dockerfile of a request. Outputs and names of the request do not matter.
    ///
    /// # Errors
    /// The Dockerfile cannot be read, or it is wrong and the question is not what is wrong with it.
    pub async fn call(
        &self,
        request: BuildRequest,
        call: Call,
        events: Arc<dyn EventSink>,
        cancel: CancellationToken,
    ) -> Result<CallOutcome, EngineError> {
        let build = Build::start(self, request, events, cancel).await?;
        build.answer(call).await.map_err(unsolved)
    }
}

/// What is known once the files of a build are read.
struct Question<'a> {
    text: &'a DockerfileText,
    dockerfile: Dockerfile,
    options: LowerOptions,
}

impl Build {
    async fn answer(self, call: Call) -> Result<CallOutcome, EngineError> {
        let text = self.load_dockerfile().await?;
        let ignore = match call {
            // The stages of a file do not depend on it.
            Call::Targets => Vec::new(),
            Call::Check | Call::Outline => self.load_ignore_patterns().await?,
        };
        self.answer_about(text, &ignore, call).await
    }

    pub(crate) async fn answer_about(
        &self,
        text: DockerfileText,
        ignore: &[String],
        call: Call,
    ) -> Result<CallOutcome, EngineError> {
        let answer = match call {
            Call::Check => Answer::Check(self.check(&text, ignore).await?),
            Call::Outline => Answer::Outline(self.outline(&text, ignore).await?),
            Call::Targets => Answer::Targets(self.targets(&text)?),
        };
        Ok(CallOutcome { file: text.name, source: text.text, answer })
    }

    fn targets(&self, text: &DockerfileText) -> Result<Vec<Target>, EngineError> {
        let dockerfile = forge_frontend::parse(&text.name, &text.text).map_err(|error| refused(&error, text))?;
        forge_frontend::targets(&dockerfile).map_err(|error| refused(&error, text))
    }

    fn question<'a>(&self, text: &'a DockerfileText, dockerfile: Dockerfile, ignore: &[String]) -> Question<'a> {
        let platform = self.request.platforms.first().cloned().unwrap_or_else(Platform::host);
        Question { text, dockerfile, options: self.lower_options(ignore, &platform) }
    }

    /// What the checks find; where an instruction cannot be read and nothing else was found, what stands before it is looked
    /// at without it.
    pub(crate) async fn check(&self, text: &DockerfileText, ignore: &[String]) -> Result<CheckReport, EngineError> {
        let report = self.check_whole(text, ignore).await?;
        let wrong = report.error.as_ref().and_then(|error| error.span).filter(|_| report.findings.is_empty());
        let Some(wrong) = wrong else { return Ok(report) };
        let lines = text.text.split_inclusive(|byte| *byte == b'\n');
        let before: Vec<u8> = lines.take(wrong.first_line.saturating_sub(1) as usize).flatten().copied().collect();
        if forge_frontend::parse(&text.name, &before).is_err() {
            return Ok(report);
        }
        let before = DockerfileText { name: text.name.clone(), text: before };
        let found = self.check_whole(&before, ignore).await?;
        Ok(CheckReport { findings: found.findings, ..report })
    }

    async fn check_whole(&self, text: &DockerfileText, ignore: &[String]) -> Result<CheckReport, EngineError> {
        let dockerfile = match forge_frontend::parse(&text.name, &text.text) {
            Ok(dockerfile) => dockerfile,
            Err(error) => return Ok(report(CheckResults { warnings: Vec::new(), error: Some(error) })),
        };
        let question = self.question(text, dockerfile, ignore);
        let mut known = ResolvedImages::new();
        loop {
            match forge_frontend::check(&question.dockerfile, &question.options, &known) {
                Checked::Done(results) => return Ok(report(results)),
                Checked::Need { requests, found: warnings } => {
                    let found = join_all(requests.iter().map(|request| self.resolve(request, text))).await;
                    for (request, found) in requests.into_iter().zip(found) {
                        match found {
                            Ok(image) => _ = known.insert(request.key, image),
                            Err(error) if error.kind() == ErrorKind::Cancelled => return Err(error),
                            Err(error) => {
                                let error = CheckError { message: error.to_string(), span: Some(request.span) };
                                return Ok(CheckReport {
                                    error: Some(error),
                                    ..report(CheckResults { warnings, error: None })
                                });
                            }
                        }
                    }
                }
            }
        }
    }

    async fn outline(&self, text: &DockerfileText, ignore: &[String]) -> Result<Outline, EngineError> {
        let dockerfile = forge_frontend::parse(&text.name, &text.text).map_err(|error| refused(&error, text))?;
        let question = self.question(text, dockerfile, ignore);
        let mut known = ResolvedImages::new();
        loop {
            let turn = forge_frontend::outline(&question.dockerfile, &question.options, &known);
            match turn.map_err(|error| refused(&error, question.text))? {
                Outlined::Done(outline) => return Ok(outline),
                Outlined::Need(requests) => {
                    for request in requests {
                        let image = self.resolve(&request, text).await?;
                        known.insert(request.key, image);
                    }
                }
            }
        }
    }
}

fn report(results: CheckResults) -> CheckReport {
    let error = results.error.map(|error| CheckError { message: error.to_string(), span: error.span });
    CheckReport { findings: results.warnings.into_iter().map(finding).collect(), error }
}

fn finding(warning: Warning) -> Finding {
    Finding {
        rule: warning.rule.to_string(),
        description: warning.rule.description().into(),
        url: warning.url,
        message: warning.message,
        span: warning.span,
    }
}
