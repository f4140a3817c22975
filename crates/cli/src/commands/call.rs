//! Answers about a Dockerfile, in the texts and documents of buildx and BuildKit.

use super::ask::{Answered, ask};
use super::{Start, block_on_many};
use crate::args::BuildArgs;
use crate::failure::Failure;
use crate::progress::Mode;
use crate::request::{CallFormat, CallRequest, Method};
use crate::{output, sanitise};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use forge_engine::{Answer, BuildRequest, CallOutcome, CheckReport, Outline, OutlineRequirement, Span, Target};
use serde_json::{Map, Value, json};
use std::fmt::Write as _;

/// Asks, prints the answer, and gives the exit code.
pub fn call(
    start: &Start,
    args: &BuildArgs,
    request: BuildRequest,
    asked: CallRequest,
    mode: Mode,
) -> Result<u8, Failure> {
    let Method::Dockerfile(method) = asked.method else {
        output::print(&methods(asked.format))?;
        return Ok(0);
    };
    let outcome = match block_on_many(ask(start, args, request, method, mode))? {
        Answered::Known(outcome) => outcome,
        Answered::Foreign(answered) => return foreign(&answered, asked),
    };
    let printed = match asked.format {
        CallFormat::Json => format!("{:#}\n", document(&outcome)),
        CallFormat::Text => text(&outcome),
    };
    output::print(&printed)?;
    match &outcome.answer {
        Answer::Check(report) => status(&outcome, report, asked),
        Answer::Outline(_) | Answer::Targets(_) => Ok(0),
    }
}

/// What is printed of an answer in a shape of its own.
fn foreign(answered: &forge_client::Answered, asked: CallRequest) -> Result<u8, Failure> {
    let printed = match asked.format {
        CallFormat::Json => answered.document().map(|document| format!("{document:#}\n")).unwrap_or_default(),
        CallFormat::Text => format!("{}\n", sanitise::block(answered.text().trim_end())),
    };
    output::print(&printed)?;
    Ok(if asked.ignore_status { 0 } else { answered.status() })
}

/// Something that can be asked, in BuildKit's words.
struct Described {
    name: &'static str,
    description: &'static str,
    /// Name and description.
    option: Option<(&'static str, &'static str)>,
    has_status: bool,
}

const METHODS: [Described; 4] = [
    Described {
        name: "outline",
        description: "List all parameters current build takes",
        option: Some(("target", "Target build stage")),
        has_status: false,
    },
    Described {
        name: "targets",
        description: "List all targets current build supports",
        option: None,
        has_status: false,
    },
    Described {
        name: "subrequests.describe",
        description: "List available subrequest types",
        option: None,
        has_status: false,
    },
    Described { name: "lint", description: "Lint a Dockerfile", option: None, has_status: true },
];

fn methods(format: CallFormat) -> String {
    const VERSION: &str = "1.0.0";
    if format == CallFormat::Text {
        let methods = METHODS.iter().map(|method| vec![method.name, VERSION, method.description]);
        let rows: Vec<Vec<&str>> = std::iter::once(vec!["NAME", "VERSION", "DESCRIPTION"]).chain(methods).collect();
        return columns(&rows, 1);
    }
    let named = |(name, description): (&str, &str)| json!({"name": name, "description": description});
    let described = METHODS.iter().map(|Described { name, description, option, has_status }| {
        let results = ["result.json", "result.txt"].into_iter().chain(has_status.then_some("result.statuscode"));
        json!({
            "name": format!("frontend.{name}"),
            "version": VERSION,
            "type": "rpc",
            "description": description,
            "opts": option.map(|option| vec![named(option)]),
            "inputs": null,
            "metadata": results.map(|result| named((result, ""))).collect::<Vec<_>>(),
            "refs": null,
        })
    });
    format!("{:#}\n", Value::from_iter(described))
}

/// Findings make the exit code 1 unless they are to be ignored; a Dockerfile that cannot be built always does.
fn status(outcome: &CallOutcome, report: &CheckReport, asked: CallRequest) -> Result<u8, Failure> {
    if let Some(error) = &report.error {
        let place: String = outcome.excerpts(error.span).iter().map(|excerpt| format!("\n{excerpt}")).collect();
        return Err(Failure::new(format!("{}{place}", error.message)));
    }
    Ok(u8::from(!report.findings.is_empty() && !asked.ignore_status))
}

fn text(outcome: &CallOutcome) -> String {
    match &outcome.answer {
        Answer::Check(report) => check_text(outcome, report),
        Answer::Outline(outline) => outline_text(outline),
        Answer::Targets(targets) => targets_text(targets),
    }
}

fn check_text(outcome: &CallOutcome, report: &CheckReport) -> String {
    let mut text = match report.findings.len() {
        0 if report.error.is_some() => return String::new(),
        0 => return "Check complete, no warnings found.\n".to_owned(),
        1 => "Check complete, 1 warning has been found!\n".to_owned(),
        count => format!("Check complete, {count} warnings have been found!\n"),
    };
    let excerpts = outcome.excerpts(report.findings.iter().map(|finding| finding.span));
    for (finding, excerpt) in report.findings.iter().zip(excerpts) {
        let url = finding.url.as_ref().map(|url| format!(" - {}", sanitise::line(url))).unwrap_or_default();
        let rule = sanitise::line(&finding.rule);
        _ = write!(text, "\nWARNING: {rule}{url}\n{}\n", sanitise::line(&finding.message));
        _ = writeln!(text, "{}", sanitise::block(&excerpt));
    }
    if report.error.is_some() {
        text.push('\n');
    }
    text
}

fn outline_text(outline: &Outline) -> String {
    let mut text = String::new();
    if !outline.name.is_empty() || !outline.description.is_empty() {
        let name = if outline.name.is_empty() { "(default)" } else { &outline.name };
        let mut rows = vec![vec!["TARGET:", name]];
        if !outline.description.is_empty() {
            rows.push(vec!["DESCRIPTION:", &outline.description]);
        }
        text += &columns(&rows, 1);
        text.push('\n');
    }
    if !outline.args.is_empty() {
        let mut rows = vec![vec!["BUILD ARG", "VALUE", "DESCRIPTION"]];
        let arg = |arg| -> Vec<&str> {
            let arg: &forge_engine::OutlineArg = arg;
            vec![&arg.name, arg.value.as_deref().unwrap_or_default(), &arg.description]
        };
        rows.extend(outline.args.iter().map(arg));
        text += &columns(&rows, 3);
        text.push('\n');
    }
    text + &requirements("SECRET", &outline.secrets) + &requirements("SSH", &outline.ssh)
}

fn requirements(title: &str, list: &[OutlineRequirement]) -> String {
    if list.is_empty() {
        return String::new();
    }
    let mut rows = vec![vec![title, "REQUIRED"]];
    rows.extend(list.iter().map(|one| vec![one.name.as_str(), if one.required { "true" } else { "" }]));
    columns(&rows, 3) + "\n"
}

fn targets_text(targets: &[Target]) -> String {
    let name = |target: &Target| match (target.name.as_str(), target.default) {
        ("", true) => "(default)".to_owned(),
        (name, true) => format!("{name} (default)"),
        (name, false) => name.to_owned(),
    };
    let names: Vec<String> = targets.iter().map(name).collect();
    let mut rows = vec![vec!["TARGET", "DESCRIPTION"]];
    rows.extend(names.iter().zip(targets).map(|(name, target)| vec![name.as_str(), target.description.as_str()]));
    columns(&rows, 1)
}

/// Columns as wide as their widest cell and a gap, the last one ragged: Go's tabwriter as BuildKit sets it.
fn columns(rows: &[Vec<&str>], gap: usize) -> String {
    let rows: Vec<Vec<_>> = rows.iter().map(|row| row.iter().map(|cell| sanitise::line(cell)).collect()).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0) + gap;
    let mut text = String::new();
    for row in &rows {
        let (last, cells) = row.split_last().expect("a row has cells");
        for (column, cell) in cells.iter().enumerate() {
            _ = write!(text, "{cell:<width$}", width = width(column));
        }
        _ = writeln!(text, "{last}");
    }
    text
}

/// The document that BuildKit calls `result.json`.
fn document(outcome: &CallOutcome) -> Value {
    let source = BASE64_STANDARD.encode(&outcome.source);
    match &outcome.answer {
        Answer::Check(report) => check_document(outcome, report, &source),
        Answer::Outline(outline) => outline_document(outline, &source),
        Answer::Targets(targets) => json!({
            "targets": targets.iter().map(target_document).collect::<Vec<_>>(),
            "sources": [source],
        }),
    }
}

fn check_document(outcome: &CallOutcome, report: &CheckReport, source: &str) -> Value {
    let finding = |finding: &forge_engine::Finding| {
        without_empty(json!({
            "ruleName": finding.rule,
            "description": finding.description,
            "url": finding.url,
            "detail": finding.message,
            "location": location(finding.span),
        }))
    };
    let findings: Vec<Value> = report.findings.iter().map(finding).collect();
    let mut document = json!({
        // As Go writes a list without elements.
        "warnings": if findings.is_empty() { Value::Null } else { findings.into() },
        "sources": [{"filename": outcome.file, "data": source, "language": "Dockerfile"}],
    });
    if let Some(error) = &report.error {
        let place = error.span.map_or_else(|| json!({}), location);
        document["buildError"] = json!({"message": error.message, "location": place});
    }
    document
}

fn outline_document(outline: &Outline, source: &str) -> Value {
    let requirement = |one: &OutlineRequirement| {
        let required = one.required.then_some(true);
        without_empty(json!({"name": one.name, "required": required, "location": location(one.span)}))
    };
    let args = outline.args.iter().map(|arg| {
        without_empty(json!({
            "name": arg.name,
            "description": arg.description,
            "value": arg.value,
            "location": location(arg.span),
        }))
    });
    let cache = outline.cache.iter().map(|cache| json!({"ID": cache.id, "location": location(cache.span)}));
    without_empty(json!({
        "name": outline.name,
        "description": outline.description,
        "args": args.collect::<Vec<_>>(),
        "secrets": outline.secrets.iter().map(requirement).collect::<Vec<_>>(),
        "ssh": outline.ssh.iter().map(requirement).collect::<Vec<_>>(),
        "cache": cache.collect::<Vec<_>>(),
        "sources": [source],
    }))
}

fn target_document(target: &Target) -> Value {
    without_empty(json!({
        "name": target.name,
        "default": target.default.then_some(true),
        "description": target.description,
        "base": target.base,
        "platform": target.platform,
        "location": location(target.span),
    }))
}

/// One range for each line, as BuildKit's parser tells places; one for all where that would make a long list.
fn location(span: Span) -> Value {
    const MOST: u32 = 100;
    let range = |first: u32, last: u32| json!({"start": {"line": first}, "end": {"line": last}});
    match span.last_line.saturating_sub(span.first_line) {
        0..MOST => {
            json!({"ranges": (span.first_line..=span.last_line).map(|line| range(line, line)).collect::<Vec<_>>()})
        }
        _ => json!({"ranges": [range(span.first_line, span.last_line)]}),
    }
}

/// An object without the fields that hold nothing, as Go's `omitempty` leaves them out.
fn without_empty(value: Value) -> Value {
    let filled = |value: &Value| match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => true,
    };
    match value {
        Value::Object(fields) => {
            Value::Object(fields.into_iter().filter(|(_, value)| filled(value)).collect::<Map<_, _>>())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use forge_engine::{CheckError, Finding, OutlineArg, OutlineCache};

    const SOURCE: &str = "FROM scratch AS Base\nCMD x \\\n  y\n";

    fn span(first_line: u32, last_line: u32) -> Span {
        Span { start: 0, end: 1, first_line, last_line }
    }

    fn outcome(answer: Answer) -> CallOutcome {
        CallOutcome { file: "Dockerfile".to_owned(), source: SOURCE.into(), answer }
    }

    fn report() -> CheckReport {
        let finding = |rule: &str, url: Option<&str>, message: &str, span| Finding {
            rule: rule.to_owned(),
            description: "what is asked for".into(),
            url: url.map(str::to_owned),
            message: message.to_owned(),
            span,
        };
        let findings = vec![
            finding(
                "StageNameCasing",
                Some("https://r.test/x/"),
                "Stage name 'Base\x1b' should be lowercase",
                span(1, 1),
            ),
            finding("JSONArgsRecommended", None, "JSON arguments recommended for CMD", span(2, 3)),
        ];
        CheckReport { findings, error: None }
    }

    #[test]
    fn methods_are_described() {
        let text = methods(CallFormat::Text);
        assert!(
            text.starts_with("NAME                 VERSION DESCRIPTION\noutline              1.0.0   List all"),
            "{text}"
        );
        let document: Value = serde_json::from_str(&methods(CallFormat::Json)).unwrap();
        assert_eq!(document[3]["name"], "frontend.lint");
        assert_eq!(document[3]["metadata"][2]["name"], "result.statuscode");
        assert_eq!(document[0]["opts"][0]["name"], "target");
    }

    #[test]
    fn findings_read_as_buildx_writes_them() {
        insta::assert_snapshot!(text(&outcome(Answer::Check(report()))), @r##"
        Check complete, 2 warnings have been found!

        WARNING: StageNameCasing - https://r.test/x/
        Stage name 'Base\x1b' should be lowercase
        Dockerfile:1
        --------------------
           1 | >>> FROM scratch AS Base
           2 |     CMD x \
           3 |       y
        --------------------

        WARNING: JSONArgsRecommended
        JSON arguments recommended for CMD
        Dockerfile:2
        --------------------
           1 |     FROM scratch AS Base
           2 | >>> CMD x \
           3 | >>>   y
        --------------------
        "##);
        assert_eq!(text(&outcome(Answer::Check(CheckReport::default()))), "Check complete, no warnings found.\n");
        let mut one = report();
        one.findings.truncate(1);
        assert!(
            text(&outcome(Answer::Check(one))).starts_with("Check complete, 1 warning has been found!\n\nWARNING: ")
        );
    }

    #[test]
    fn findings_as_a_document() {
        let mut report = report();
        report.findings.remove(0);
        report.error = Some(CheckError { message: "no".to_owned(), span: Some(span(2, 3)) });
        insta::assert_snapshot!(format!("{:#}", document(&outcome(Answer::Check(report)))), @r##"
        {
          "warnings": [
            {
              "ruleName": "JSONArgsRecommended",
              "description": "what is asked for",
              "detail": "JSON arguments recommended for CMD",
              "location": {
                "ranges": [
                  {
                    "start": {
                      "line": 2
                    },
                    "end": {
                      "line": 2
                    }
                  },
                  {
                    "start": {
                      "line": 3
                    },
                    "end": {
                      "line": 3
                    }
                  }
                ]
              }
            }
          ],
          "sources": [
            {
              "filename": "Dockerfile",
              "data": "RlJPTSBzY3JhdGNoIEFTIEJhc2UKQ01EIHggXAogIHkK",
              "language": "Dockerfile"
            }
          ],
          "buildError": {
            "message": "no",
            "location": {
              "ranges": [
                {
                  "start": {
                    "line": 2
                  },
                  "end": {
                    "line": 2
                  }
                },
                {
                  "start": {
                    "line": 3
                  },
                  "end": {
                    "line": 3
                  }
                }
              ]
            }
          }
        }
        "##);
        let clean = document(&outcome(Answer::Check(CheckReport::default())));
        assert!(clean["warnings"].is_null() && clean.get("buildError").is_none());
    }

    #[test]
    fn the_status_tells_of_findings_and_errors() {
        let asked = |ignore_status| CallRequest {
            method: Method::Dockerfile(forge_engine::Call::Check),
            format: CallFormat::Text,
            ignore_status,
        };
        let status =
            |report: &CheckReport, ignore| status(&outcome(Answer::Check(report.clone())), report, asked(ignore));
        assert_eq!(status(&CheckReport::default(), false).unwrap(), 0);
        assert_eq!(status(&report(), false).unwrap(), 1);
        assert_eq!(status(&report(), true).unwrap(), 0);
        let error = CheckError { message: "bad".to_owned(), span: Some(span(1, 1)) };
        let failure = status(&CheckReport { error: Some(error), ..report() }, true).unwrap_err();
        assert_eq!(failure.code, 1);
        assert!(failure.text("ERROR").starts_with("ERROR: bad\nDockerfile:1\n-----"), "{}", failure.text("ERROR"));
    }

    fn outline() -> Outline {
        Outline {
            name: "app".to_owned(),
            description: "what it is".to_owned(),
            args: vec![
                OutlineArg { name: "A".into(), description: "first".into(), value: Some("1".into()), span: span(1, 1) },
                OutlineArg { name: "LONGER".into(), description: "no value".into(), value: None, span: span(2, 2) },
            ],
            secrets: vec![OutlineRequirement { name: "aws".into(), required: true, span: span(3, 3) }],
            ssh: vec![OutlineRequirement { name: "default".into(), required: false, span: span(3, 3) }],
            cache: vec![OutlineCache { id: "/root/.cache".into(), span: span(3, 3) }],
        }
    }

    #[test]
    fn outlines_are_tables_and_documents() {
        insta::assert_snapshot!(text(&outcome(Answer::Outline(outline()))), @r##"
        TARGET:      app
        DESCRIPTION: what it is

        BUILD ARG   VALUE   DESCRIPTION
        A           1       first
        LONGER              no value

        SECRET   REQUIRED
        aws      true

        SSH       REQUIRED
        default
        "##);
        insta::assert_snapshot!(document(&outcome(Answer::Outline(outline()))).to_string(), @r##"{"name":"app","description":"what it is","args":[{"name":"A","description":"first","value":"1","location":{"ranges":[{"start":{"line":1},"end":{"line":1}}]}},{"name":"LONGER","description":"no value","location":{"ranges":[{"start":{"line":2},"end":{"line":2}}]}}],"secrets":[{"name":"aws","required":true,"location":{"ranges":[{"start":{"line":3},"end":{"line":3}}]}}],"ssh":[{"name":"default","location":{"ranges":[{"start":{"line":3},"end":{"line":3}}]}}],"cache":[{"ID":"/root/.cache","location":{"ranges":[{"start":{"line":3},"end":{"line":3}}]}}],"sources":["RlJPTSBzY3JhdGNoIEFTIEJhc2UKQ01EIHggXAogIHkK"]}"##);
        assert_eq!(text(&outcome(Answer::Outline(Outline::default()))), "");
    }

    #[test]
    fn targets_are_a_table_and_a_document() {
        let target = |name: &str, default, description: &str| Target {
            name: name.to_owned(),
            default,
            description: description.to_owned(),
            base: "scratch".to_owned(),
            platform: String::new(),
            span: span(1, 1),
        };
        let targets = vec![target("base", false, "starts all"), target("", false, ""), target("app", true, "")];
        let text = text(&outcome(Answer::Targets(targets.clone())));
        assert_eq!(text, "TARGET        DESCRIPTION\nbase          starts all\n              \napp (default) \n");
        insta::assert_snapshot!(document(&outcome(Answer::Targets(targets[..1].to_vec()))).to_string(), @r##"{"targets":[{"name":"base","description":"starts all","base":"scratch","location":{"ranges":[{"start":{"line":1},"end":{"line":1}}]}}],"sources":["RlJPTSBzY3JhdGNoIEFTIEJhc2UKQ01EIHggXAogIHkK"]}"##);
        assert_eq!(targets_text(&[target("", true, "")]), "TARGET    DESCRIPTION\n(default) \n");
    }
}
