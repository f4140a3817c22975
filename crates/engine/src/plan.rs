//! What a build would do, without doing it.

use crate::build::{Build, refused, unsolved};
use crate::context_report::{self, ContextReport};
use crate::{BuildRequest, Engine, EngineError, Explain, Job, JobImage, JobResult};
use forge_cache::{BuildId, Change, EntryChange};
use forge_image::Platform;
use forge_llb::Vertex;
use forge_session::EventSink;
use forge_solver::{Forecast, MissCause, NamedChange, Remembered, StepForecast};
use futures_util::future::try_join_all;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// The output of a daemon that stands for a plan: it answers with [`PlatformPlan`]s in JSON under this name.
pub const PLAN_OUTPUT: &str = "forge.plan";

/// What a build would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildPlan {
    /// One for each platform, in the order of the request.
    pub platforms: Vec<PlatformPlan>,
    /// What is in the main context, where that is a folder and was asked for.
    pub context: Option<ContextReport>,
}

/// What a build would do for one platform.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlatformPlan {
    /// The platform.
    pub platform: Platform,
    /// The steps in the order of the graph.
    pub steps: Vec<PlannedStep>,
}

/// What would become of a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedStep {
    /// What users see, `[build 2/5] RUN make`.
    pub name: String,
    /// The first line of its instruction, where it has one.
    pub line: Option<u32>,
    /// Whether it brings something in from elsewhere, and runs nothing.
    pub is_source: bool,
    /// What would become of it.
    pub fate: StepFate,
    /// For what is unknown: the first of the steps that would run and that it depends on. A base that is not in the store
    /// is such a step.
    pub after: Option<String>,
    /// Milliseconds that it took when it, or what it was in the last build, last ran.
    pub expected_ms: Option<u64>,
    /// Bytes of the layers that it made then.
    pub expected_bytes: Option<u64>,
}

/// What would become of a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StepFate {
    /// The cache has its result, or that of everything that needs it.
    Cached,
    /// It would run.
    Runs(Reason),
    /// An earlier step would run, and it depends on what comes of that.
    Unknown,
}

/// Why a step would run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// One word: `first-build`, `new-step`, `asked`, `lost` or `changed`; `not-cached` where builds are not compared with earlier
    /// ones.
    pub kind: Cow<'static, str>,
    /// One line.
    pub text: String,
    /// What changed.
    pub changes: Vec<ChangeReport>,
}

/// Something that changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeReport {
    /// One word: `value`, `added`, `removed`, `type`, `bytes`, `mode`, `owner`, `attributes` or `input`.
    pub kind: Cow<'static, str>,
    /// The name of the value, or the path; nothing for an input.
    pub subject: String,
    /// One line.
    pub text: String,
}

impl BuildPlan {
    /// Whether a step would run.
    pub fn runs_anything(&self) -> bool {
        self.platforms.iter().flat_map(|plan| &plan.steps).any(|step| !step.is_source && step.fate != StepFate::Cached)
    }
}

impl Engine {
    /// Says what a build of this request would do. Files are looked at and images resolved, as for a build; no step runs,
    /// and nothing is written but what files hashed to.
    ///
    /// # Errors
    /// The Dockerfile is refused, or something that a step reads is missing.
    pub async fn plan(
        &self,
        request: BuildRequest,
        report: ReportContext,
        events: Arc<dyn EventSink>,
        cancel: CancellationToken,
    ) -> Result<BuildPlan, EngineError> {
        let build = Build::start(self, request, events, cancel).await?;
        build.plan(report).await.map_err(unsolved)
    }
}

/// Whether the main context is reported on, which means walking all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReportContext {
    /// No.
    No,
    /// Yes.
    Yes,
}

impl Build {
    async fn plan(self, report: ReportContext) -> Result<BuildPlan, EngineError> {
        let text = self.load_dockerfile().await?;
        let dockerfile = forge_frontend::parse(&text.name, &text.text).map_err(|error| refused(&error, &text))?;
        let ignore = self.load_ignore_patterns().await?;
        let platforms = self.platforms();
        let lowered = platforms.iter().map(|platform| self.lower(&dockerfile, &text, &ignore, platform));
        let lowered = try_join_all(lowered).await?;
        let solver = self.solver().await?;
        let mut plans = Vec::new();
        for (image, platform) in lowered.iter().zip(platforms) {
            let remembered = self.remembered(&dockerfile, &platform);
            let forecasts = solver.forecast(&image.graph, self.session.clone(), remembered).await;
            let forecasts = forecasts.map_err(|error| crate::build::step_failed(error, &text))?;
            let planned = |forecast: StepForecast| step(image.graph.get(&forecast.digest), forecast);
            plans.push(PlatformPlan { platform, steps: forecasts.into_iter().map(planned).collect() });
        }
        let context = match report {
            ReportContext::No => None,
            ReportContext::Yes => self.context_report(ignore).await?,
        };
        Ok(BuildPlan { platforms: plans, context })
    }

    async fn context_report(&self, ignore: Vec<String>) -> Result<Option<ContextReport>, EngineError> {
        let Some(files) = self.main_files() else { return Ok(None) };
        let used = self.used_files();
        crate::engine::blocking(move || context_report::of(&*files, &ignore, &used).map(Some)).await
    }
}

impl Job {
    /// Says what making the results would do, as [`Engine::plan`] does. What an image asks of the store besides its files is not
    /// looked at.
    ///
    /// # Errors
    /// Something that a step reads is missing.
    pub async fn plan(&self, images: &[JobImage]) -> Result<Vec<PlatformPlan>, EngineError> {
        let mut plans = Vec::new();
        for image in images {
            let steps = match &image.result {
                Some(result) => result.forecast().await?,
                None => Vec::new(),
            };
            plans.push(PlatformPlan { platform: image.platform.clone(), steps });
        }
        Ok(plans)
    }
}

impl JobResult {
    async fn forecast(&self) -> Result<Vec<PlannedStep>, EngineError> {
        let nothing = || Remembered { id: BuildId::new(&[]), arguments: BTreeSet::new(), explain: Explain::Everything };
        let remembered = self.remembered().cloned();
        let is_compared = remembered.is_some();
        let (build, graph) = (self.build(), self.graph());
        let solver = build.solver().await?;
        let forecasts = solver.forecast(graph, build.session.clone(), remembered.unwrap_or_else(nothing)).await;
        let forecasts = match forecasts {
            Ok(forecasts) => forecasts,
            Err(error) => return Err(self.failed(error).await),
        };
        let planned = |forecast: StepForecast| {
            let step = step(graph.get(&forecast.digest), forecast);
            let fate = match step.fate {
                // Such a build is not noted: there is none to be compared with.
                StepFate::Runs(Reason { kind, .. }) if !is_compared && matches!(&*kind, "first-build" | "new-step") => {
                    let text = "the cache has no result of it".to_owned();
                    StepFate::Runs(Reason { kind: "not-cached".into(), text, changes: Vec::new() })
                }
                fate => fate,
            };
            PlannedStep { fate, ..step }
        };
        Ok(forecasts.into_iter().map(planned).collect())
    }
}

fn step(vertex: Option<&Vertex>, forecast: StepForecast) -> PlannedStep {
    PlannedStep {
        line: vertex.and_then(|vertex| vertex.metadata.span.as_ref()).map(|span| span.first_line),
        name: forecast.name,
        after: forecast.after,
        is_source: forecast.is_source,
        fate: match forecast.forecast {
            Forecast::Cached => StepFate::Cached,
            Forecast::Unknown => StepFate::Unknown,
            Forecast::Runs(cause) => StepFate::Runs(reason(&cause)),
        },
        expected_ms: forecast.expected.map(|expected| expected.wall_ms),
        expected_bytes: forecast.expected.map(|expected| expected.bytes),
    }
}

fn reason(cause: &MissCause) -> Reason {
    let (kind, changes) = match cause {
        MissCause::FirstBuild => ("first-build", &[][..]),
        MissCause::New => ("new-step", &[][..]),
        MissCause::Asked => ("asked", &[][..]),
        MissCause::Lost => ("lost", &[][..]),
        MissCause::Changed(changes) => ("changed", changes.as_slice()),
    };
    Reason { kind: kind.into(), text: cause.to_string(), changes: changes.iter().map(change).collect() }
}

fn change(named: &NamedChange) -> ChangeReport {
    let (kind, subject) = match &named.change {
        Change::Value { name, .. } => ("value", name.clone()),
        Change::Input { .. } => ("input", named.input.clone().unwrap_or_default()),
        Change::Entry { path, change, .. } => {
            let kind = match change {
                EntryChange::Added => "added",
                EntryChange::Removed => "removed",
                EntryChange::Kind(..) => "type",
                EntryChange::Bytes(_) => "bytes",
                EntryChange::Mode(..) => "mode",
                EntryChange::Owner(..) => "owner",
                EntryChange::Attributes => "attributes",
            };
            (kind, String::from_utf8_lossy(path).into_owned())
        }
    };
    ChangeReport { kind: kind.into(), subject, text: named.to_string() }
}
