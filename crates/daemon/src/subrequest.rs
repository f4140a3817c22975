//! Questions about a Dockerfile that clients ask instead of building it.

use crate::reply;
use crate::solution::Solution;
use crate::solve::JobContext;
use forge_engine::{Answer, BuildRequest, Call, CallOutcome, CheckReport, Outline, SessionDockerfile, Span, Target};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use tonic::{Code, Status};

/// The version of all answers.
const VERSION: &str = "1.0.0";

/// Answers a question as metadata of an empty result. `read` is told the Dockerfile's name and text first.
pub(crate) async fn answer(
    context: &JobContext,
    question: &str,
    request: BuildRequest,
    dockerfile: &SessionDockerfile,
    read: impl FnOnce(&str, &[u8]),
) -> Result<Solution, Status> {
    let call = match question {
        "frontend.subrequests.describe" => return Ok(told(&described(), String::new(), None)),
        "frontend.outline" => Call::Outline,
        "frontend.targets" => Call::Targets,
        "frontend.lint" => Call::Check,
        other => {
            let told = reply::detail("Subrequest", &json!({ "name": other }));
            return Err(reply::with_details(Code::Unimplemented, format!("unsupported request {other}"), vec![told]));
        }
    };
    let outcome = context.job.call(request, dockerfile, call, read).await.map_err(|error| reply::status(&error))?;
    Ok(match &outcome.answer {
        Answer::Check(report) => {
            let failing = !report.findings.is_empty() || report.error.is_some();
            told(&lint(&outcome, report), String::new(), Some(i32::from(failing)))
        }
        Answer::Outline(outline) => told(&outlined(&outcome, outline), String::new(), None),
        Answer::Targets(targets) => told(&targeted(&outcome, targets), String::new(), None),
    })
}

fn told(answer: &Value, text: String, status: Option<i32>) -> Solution {
    let json = serde_json::to_vec_pretty(answer).unwrap_or_default();
    let mut metadata = HashMap::from([
        ("result.json".to_owned(), json),
        ("result.txt".to_owned(), text.into_bytes()),
        ("version".to_owned(), VERSION.as_bytes().to_vec()),
    ]);
    if let Some(status) = status {
        metadata.insert("result.statuscode".to_owned(), status.to_string().into_bytes());
    }
    Solution { metadata, ..Solution::default() }
}

fn described() -> Value {
    let method = |name: &str, description: &str, options: Value, results: &[&str]| {
        let results: Vec<Value> = results.iter().map(|name| json!({ "name": name, "description": "" })).collect();
        json!({
            "name": name, "version": VERSION, "type": "rpc", "description": description,
            "opts": options, "inputs": null, "metadata": results, "refs": null,
        })
    };
    let plain = ["result.json", "result.txt"];
    let target = json!([{ "name": "target", "description": "Target build stage" }]);
    json!([
        method("frontend.outline", "List all parameters current build takes", target, &plain),
        method("frontend.targets", "List all targets current build supports", Value::Null, &plain),
        method("frontend.subrequests.describe", "List available subrequest types", Value::Null, &plain),
        method("frontend.lint", "Lint a Dockerfile", Value::Null, &["result.json", "result.txt", "result.statuscode"]),
    ])
}

fn sources(outcome: &CallOutcome) -> Value {
    use base64::Engine as _;
    Value::String(base64::engine::general_purpose::STANDARD.encode(&outcome.source))
}

fn ranges(span: Span) -> Value {
    let range = |line: u32| json!({ "start": { "line": line }, "end": { "line": line } });
    Value::from_iter((span.first_line..=span.last_line).take(1000).map(range))
}

/// One range for each line, as BuildKit's parser tells places.
fn location(span: Span) -> Value {
    json!({ "ranges": ranges(span) })
}

/// An object without what is empty.
fn fields<const N: usize>(pairs: [(&str, Value); N]) -> Value {
    let is_empty = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    };
    let pairs = pairs.into_iter().filter(|(_, value)| !is_empty(value));
    Value::Object(pairs.map(|(name, value)| (name.to_owned(), value)).collect())
}

fn lint(outcome: &CallOutcome, report: &CheckReport) -> Value {
    let warnings: Vec<Value> = report
        .findings
        .iter()
        .map(|finding| {
            fields([
                ("ruleName", json!(finding.rule)),
                ("description", json!(finding.description)),
                ("url", json!(finding.url)),
                ("detail", json!(finding.message)),
                ("location", json!({ "ranges": ranges(finding.span) })),
            ])
        })
        .collect();
    let error = report.error.as_ref().map(|error| {
        let place = error.span.map(|span| json!({ "ranges": ranges(span) }));
        fields([("message", json!(error.message)), ("location", json!(place))])
    });
    let source = json!({ "filename": outcome.file, "language": "Dockerfile", "data": sources(outcome) });
    let mut answer = Map::new();
    // As Go writes a list without elements.
    let warnings = if warnings.is_empty() { Value::Null } else { Value::Array(warnings) };
    answer.insert("warnings".to_owned(), warnings);
    answer.insert("sources".to_owned(), json!([source]));
    if let Some(error) = error {
        answer.insert("buildError".to_owned(), error);
    }
    Value::Object(answer)
}

fn outlined(outcome: &CallOutcome, outline: &Outline) -> Value {
    let requirement = |required: &forge_engine::OutlineRequirement| {
        fields([
            ("name", json!(required.name)),
            ("required", json!(required.required)),
            ("location", location(required.span)),
        ])
    };
    let args: Vec<Value> = outline
        .args
        .iter()
        .map(|arg| {
            fields([
                ("name", json!(arg.name)),
                ("description", json!(arg.description)),
                ("value", json!(arg.value)),
                ("location", location(arg.span)),
            ])
        })
        .collect();
    fields([
        ("name", json!(outline.name)),
        ("description", json!(outline.description)),
        ("args", Value::Array(args)),
        ("secrets", Value::from_iter(outline.secrets.iter().map(requirement))),
        ("ssh", Value::from_iter(outline.ssh.iter().map(requirement))),
        (
            "cache",
            Value::from_iter(
                outline.cache.iter().map(|cache| fields([("ID", json!(cache.id)), ("location", location(cache.span))])),
            ),
        ),
        ("sources", json!([sources(outcome)])),
    ])
}

fn targeted(outcome: &CallOutcome, targets: &[Target]) -> Value {
    let targets = targets.iter().map(|target| {
        fields([
            ("name", json!(target.name)),
            ("default", json!(target.default)),
            ("description", json!(target.description)),
            ("base", json!(target.base)),
            ("platform", json!(target.platform)),
            ("location", location(target.span)),
        ])
    });
    json!({ "targets": Value::from_iter(targets), "sources": [sources(outcome)] })
}
