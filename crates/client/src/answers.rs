//! Answers about a Dockerfile, from the documents that front ends answer with.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use forge_engine::{
    Answer, Call, CallOutcome, CheckError, CheckReport, Finding, Outline, OutlineArg, OutlineCache, OutlineRequirement,
    Span, Target,
};
use serde_json::Value;
use std::collections::HashMap;

/// What a front end answered.
#[derive(Clone, Debug)]
pub struct Answered {
    metadata: HashMap<String, Vec<u8>>,
}

impl Answered {
    pub(crate) fn new(metadata: HashMap<String, Vec<u8>>) -> Self {
        Self { metadata }
    }

    /// The document.
    pub fn document(&self) -> Option<Value> {
        serde_json::from_slice(self.metadata.get("result.json")?).ok()
    }

    /// The front end's own text; forge's has none.
    pub fn text(&self) -> String {
        self.metadata.get("result.txt").map(|text| String::from_utf8_lossy(text).into_owned()).unwrap_or_default()
    }

    /// The exit code that the answer stands for.
    pub fn status(&self) -> u8 {
        let text = self.metadata.get("result.statuscode").map(|text| String::from_utf8_lossy(text).into_owned());
        text.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    }

    /// The answer as the engine gives it; `None` for a document that is none of forge's or docker's.
    pub fn outcome(&self, call: Call) -> Option<CallOutcome> {
        let document = self.document()?;
        let first = &document["sources"][0];
        let (file, source) = match first {
            Value::Object(_) => (first["filename"].as_str()?, &first["data"]),
            plain => ("Dockerfile", plain),
        };
        let source = STANDARD.decode(source.as_str()?).ok()?;
        let answer = match call {
            Call::Check => Answer::Check(check(&document)),
            Call::Outline => Answer::Outline(outline(&document)),
            Call::Targets => Answer::Targets(list(&document["targets"]).map(target).collect()),
        };
        Some(CallOutcome { file: file.to_owned(), source, answer })
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn check(document: &Value) -> CheckReport {
    let finding = |found: &Value| Finding {
        rule: text(&found["ruleName"]),
        description: text(&found["description"]).into(),
        url: found["url"].as_str().map(str::to_owned),
        message: text(&found["detail"]),
        span: span(&found["location"]).unwrap_or_default(),
    };
    let error = document.get("buildError").filter(|error| error.is_object());
    let error = error.map(|error| CheckError { message: text(&error["message"]), span: span(&error["location"]) });
    CheckReport { findings: list(&document["warnings"]).map(finding).collect(), error }
}

fn outline(document: &Value) -> Outline {
    let arg = |arg: &Value| OutlineArg {
        name: text(&arg["name"]),
        description: text(&arg["description"]),
        value: arg["value"].as_str().map(str::to_owned),
        span: span(&arg["location"]).unwrap_or_default(),
    };
    let requirement = |one: &Value| OutlineRequirement {
        name: text(&one["name"]),
        required: one["required"].as_bool().unwrap_or_default(),
        span: span(&one["location"]).unwrap_or_default(),
    };
    let cache =
        |cache: &Value| OutlineCache { id: text(&cache["ID"]), span: span(&cache["location"]).unwrap_or_default() };
    Outline {
        name: text(&document["name"]),
        description: text(&document["description"]),
        args: list(&document["args"]).map(arg).collect(),
        secrets: list(&document["secrets"]).map(requirement).collect(),
        ssh: list(&document["ssh"]).map(requirement).collect(),
        cache: list(&document["cache"]).map(cache).collect(),
    }
}

fn target(target: &Value) -> Target {
    Target {
        name: text(&target["name"]),
        default: target["default"].as_bool().unwrap_or_default(),
        description: text(&target["description"]),
        base: text(&target["base"]),
        platform: text(&target["platform"]),
        span: span(&target["location"]).unwrap_or_default(),
    }
}

/// The lines from the first range to the last one.
fn span(location: &Value) -> Option<Span> {
    let ranges = location["ranges"].as_array()?;
    let line = |place: &Value| u32::try_from(place["line"].as_u64()?).ok();
    let (first_line, last_line) = (line(&ranges.first()?["start"])?, line(&ranges.last()?["end"])?);
    Some(Span { start: 0, end: 0, first_line, last_line })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn answered(document: &Value) -> Answered {
        let json = serde_json::to_vec(document).unwrap();
        let metadata = [("result.json", json), ("result.statuscode", b"1".to_vec())];
        Answered::new(metadata.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    #[test]
    fn findings_are_read() {
        let place =
            json!({"ranges": [{"start": {"line": 2}, "end": {"line": 2}}, {"start": {"line": 3}, "end": {"line": 3}}]});
        let told = answered(&json!({
            "warnings": [{"ruleName": "R", "description": "d", "detail": "what", "location": place}],
            "sources": [{"filename": "D", "data": "RlJPTSBz", "language": "Dockerfile"}],
            "buildError": {"message": "no", "location": {}},
        }));
        let outcome = told.outcome(Call::Check).unwrap();
        assert_eq!((outcome.file.as_str(), outcome.source.as_slice(), told.status()), ("D", &b"FROM s"[..], 1));
        let Answer::Check(report) = outcome.answer else { panic!("{outcome:?}") };
        let found = &report.findings[0];
        assert_eq!((found.rule.as_str(), found.span.first_line, found.span.last_line), ("R", 2, 3));
        assert_eq!(report.error.unwrap(), CheckError { message: "no".to_owned(), span: None });
    }

    #[test]
    fn what_is_no_answer_is_none() {
        for document in [json!([]), json!({"sources": [7]}), json!({"sources": ["%"]}), json!({"warnings": 1})] {
            assert!(answered(&document).outcome(Call::Check).is_none(), "{document}");
        }
        let odd = answered(&json!({"sources": [""], "targets": [{"name": 7}, "x"], "warnings": [[]]}));
        assert!(matches!(odd.outcome(Call::Targets).unwrap().answer, Answer::Targets(targets) if targets.len() == 2));
        assert!(
            matches!(odd.outcome(Call::Check).unwrap().answer, Answer::Check(report) if report.findings.len() == 1)
        );
    }
}
