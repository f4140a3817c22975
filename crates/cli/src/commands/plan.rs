use super::build::{Ends, remote_build};
use super::{Start, block_on_many, front_end};
use crate::args::PlanArgs;
use crate::failure::Failure;
use crate::interrupt::Interrupts;
use crate::progress::{Display, Mode};
use crate::request::build_request;
use crate::units::size;
use crate::{output, sanitise};
use forge_engine::{BuildPlan, BuildRequest, ContextItem, ContextReport, PlannedStep, ReportContext, StepFate};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

/// The exit code of a plan in which a step would run: 0 is nothing to do, 1 a failure.
const WOULD_RUN: u8 = 2;

pub fn plan(start: &Start, args: &PlanArgs) -> Result<u8, Failure> {
    let (input, proxies) = super::build::given(start, &args.build)?;
    if args.build.llb.is_some() || args.build.call.is_some() || args.build.check {
        return Err(Failure::new("a plan is made of a Dockerfile: --llb, --call and --check cannot be used with it"));
    }
    let request = build_request(&args.build, &start.environment, input, proxies, SystemTime::now())?;
    let report = if args.context_report { ReportContext::Yes } else { ReportContext::No };
    let plan = block_on_many(async {
        let interrupts = Interrupts::watch()?;
        let display = Display::start(Mode::None, start.style());
        let planned = Box::pin(made(start, args, request, report, (display.events(), interrupts.token()))).await;
        display.finish();
        planned.map_err(|failure| match interrupts.exit_code() {
            Some(code) => failure.with_code(code),
            None => failure,
        })
    })?;
    let shown = match args.format.as_str() {
        "json" => format!("{:#}\n", document(&plan)),
        _ => text(&plan),
    };
    output::print(&shown)?;
    Ok(if plan.runs_anything() { WOULD_RUN } else { 0 })
}

/// By the engine, by a daemon, or by a front end that is an image where the Dockerfile asks for one.
async fn made(
    start: &Start,
    args: &PlanArgs,
    request: BuildRequest,
    report: ReportContext,
    (events, token): Ends,
) -> Result<BuildPlan, Failure> {
    let elsewhere = async |request| match (report, &start.host) {
        (ReportContext::Yes, _) => {
            Err(Failure::new("--context-report is not supported for a build by a daemon or a front end image"))
        }
        (ReportContext::No, Some(host)) => {
            let build = remote_build(start, &args.build, request, None, (&events, &token)).await?;
            let client = host.connect_until(&token).await?;
            Ok(Box::pin(client.plan(build, events.clone(), token.clone())).await?)
        }
        (ReportContext::No, None) => {
            Box::pin(front_end::plan(start, &args.build, request, (events.clone(), token.clone()))).await
        }
    };
    let without_report = |platforms| BuildPlan { platforms, context: None };
    let may_be_other = start.front_ends.enabled && start.host.is_none();
    if start.host.is_some() || may_be_other && request.other_front_end()?.is_some() {
        return elsewhere(request).await.map(without_report);
    }
    let engine = start.engine()?;
    let here = async |request| engine.plan(request, report, events.clone(), token.clone()).await;
    match may_be_other {
        true => {
            let other = async |request| elsewhere(request).await.map(without_report);
            front_end::here_or_other(start, request, here, other).await
        }
        false => Ok(here(request).await?),
    }
}

fn text(plan: &BuildPlan) -> String {
    let mut text = String::new();
    for platform in &plan.platforms {
        if plan.platforms.len() > 1 {
            _ = writeln!(text, "{}:", platform.platform);
        }
        let steps = platform.steps.iter().filter(|step| !step.is_source || step.fate != StepFate::Cached);
        steps.for_each(|step| text += &line(step));
        text += &summary(&platform.steps);
    }
    text += &plan.context.as_ref().map(context_text).unwrap_or_default();
    text
}

fn line(step: &PlannedStep) -> String {
    let name = sanitise::line(&step.name);
    match &step.fate {
        StepFate::Cached => format!("cached   {name}\n"),
        StepFate::Runs(reason) => {
            format!("runs     {name}{}\n         {}\n", expected(step), sanitise::line(&reason.text))
        }
        StepFate::Unknown => {
            let after = step.after.as_ref().map(|after| format!("         it depends on {}\n", sanitise::line(after)));
            format!("unknown  {name}{}\n{}", expected(step), after.unwrap_or_default())
        }
    }
}

fn expected(step: &PlannedStep) -> String {
    match (step.expected_ms, step.expected_bytes) {
        (Some(time), Some(bytes)) => format!(" ({}, {})", duration(Duration::from_millis(time)), size(bytes)),
        _ => String::new(),
    }
}

fn duration(time: Duration) -> String {
    match time.as_millis() {
        millis @ 0..1000 => format!("{millis}ms"),
        millis => format!("{}.{}s", millis / 1000, millis % 1000 / 100),
    }
}

fn summary(steps: &[PlannedStep]) -> String {
    let of = |wanted: &dyn Fn(&StepFate) -> bool| {
        steps.iter().filter(|step| !step.is_source && wanted(&step.fate)).collect::<Vec<_>>()
    };
    let cached = of(&|fate| *fate == StepFate::Cached);
    let (runs, unknown) = (of(&|fate| matches!(fate, StepFate::Runs(_))), of(&|fate| *fate == StepFate::Unknown));
    let mut text = format!("{} cached, {} to run, {} unknown", cached.len(), runs.len(), unknown.len());
    let time = |steps: &[&PlannedStep]| Duration::from_millis(steps.iter().filter_map(|step| step.expected_ms).sum());
    let (least, rest) = (time(&runs), time(&unknown));
    if !(least + rest).is_zero() {
        _ = write!(text, "; about {} to {} of work", duration(least), duration(least + rest));
    }
    text + "\n"
}

fn context_text(report: &ContextReport) -> String {
    let mut text = format!("context: {} files, {}\n", report.files, size(report.bytes));
    let mut list = |title: &str, items: &[ContextItem]| {
        if !items.is_empty() {
            _ = writeln!(text, "{title}");
        }
        for item in items {
            _ = writeln!(text, "  {:>9}  {}", size(item.bytes), sanitise::line(&item.path));
        }
    };
    list("the largest:", &report.largest);
    list(&format!("read by no step, {} in all:", size(report.unused_bytes)), &report.unused);
    text
}

fn document(plan: &BuildPlan) -> Value {
    let platforms = plan.platforms.iter().map(|platform| {
        let steps: Vec<Value> = platform.steps.iter().map(step).collect();
        json!({ "platform": platform.platform.to_string(), "steps": steps })
    });
    let item = |item: &ContextItem| json!({ "path": item.path, "bytes": item.bytes });
    let context = plan.context.as_ref().map(|report| {
        json!({
            "files": report.files,
            "bytes": report.bytes,
            "largest": report.largest.iter().map(item).collect::<Vec<_>>(),
            "unusedBytes": report.unused_bytes,
            "unused": report.unused.iter().map(item).collect::<Vec<_>>(),
        })
    });
    output::without_nulls(json!({
        "wouldRun": plan.runs_anything(),
        "platforms": platforms.collect::<Vec<_>>(),
        "context": context,
    }))
}

fn step(step: &PlannedStep) -> Value {
    let (state, reason) = match &step.fate {
        StepFate::Cached => ("cached", None),
        StepFate::Runs(reason) => ("runs", Some(reason)),
        StepFate::Unknown => ("unknown", None),
    };
    let changes = reason.filter(|reason| !reason.changes.is_empty()).map(|reason| {
        let changes = reason.changes.iter();
        changes.map(|it| json!({ "kind": it.kind, "subject": it.subject, "text": it.text })).collect::<Vec<_>>()
    });
    output::without_nulls(json!({
        "name": step.name,
        "line": step.line,
        "isSource": step.is_source,
        "state": state,
        "reason": reason.map(|reason| &reason.kind),
        "text": reason.map(|reason| reason.text.as_str()),
        "changes": changes,
        "after": step.after,
        "expectedMilliseconds": step.expected_ms,
        "expectedBytes": step.expected_bytes,
    }))
}
