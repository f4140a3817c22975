//! Errors as BuildKit's clients know them: a gRPC status whose details name the step and the place.
//!
//! Details are `Any` messages whose value is JSON, not protobuf; their types have the names of BuildKit's packages.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use forge_buildkit_proto::google::protobuf::Any;
use forge_buildkit_proto::google::rpc;
use forge_engine::{EngineError, SourcePlace};
use forge_image::ErrorKind;
use prost::Message;
use serde_json::{Value, json};
use std::panic::Location;
use tonic::{Code, Status};

const STACK: &str = "github.com/moby/buildkit/stack.Stack+json";

/// An instruction of more lines is told by its first ones.
const MOST_LINES: usize = 1000;

/// A failure of the engine as a gRPC status.
#[track_caller]
pub(crate) fn status(error: &EngineError) -> Status {
    let trace = error.vertex().map(|_| stack(Location::caller()));
    let vertex = error.vertex().map(|vertex| detail("Vertex", &json!({ "digest": vertex.as_str() })));
    let source = error.place().map(|place| detail("Source", &source(place)));
    let denied = denied(error.denials());
    let details = trace.into_iter().chain(vertex).chain(source).chain(denied).chain(own(error)).collect();
    with_details(code(error.kind()), error.to_string(), details)
}

/// What BuildKit's details have no place for: forge's own client says it again.
fn own(error: &EngineError) -> Option<Any> {
    let says_more = error.detail().is_some() || error.hint().is_some() || error.exit_code().is_some();
    says_more.then(|| {
        let value = json!({
            "kind": format!("{:?}", error.kind()),
            "detail": error.detail(),
            "hint": error.hint(),
            "exitCode": error.exit_code(),
        });
        Any { type_url: "forge.engine.Failure+json".to_owned(), value: value.to_string().into_bytes() }
    })
}

/// What whoever judges sources says of one that was denied.
fn denied(denials: &[String]) -> Option<Any> {
    let messages: Vec<Value> = denials.iter().map(|message| json!({ "message": message })).collect();
    (!messages.is_empty()).then(|| Any {
        type_url: "github.com/moby/buildkit/policysession.DecisionResponse+json".to_owned(),
        value: json!({ "action": "DENY", "denyMessages": messages }).to_string().into_bytes(),
    })
}

/// Where in the daemon a failure was met, for traces of several processes.
fn stack(place: &Location<'_>) -> Any {
    let frame = json!({ "Name": env!("CARGO_PKG_NAME"), "File": place.file(), "Line": place.line() });
    let version = format!("forge {}", env!("CARGO_PKG_VERSION"));
    let value = json!({ "frames": [frame], "pid": std::process::id(), "version": version });
    Any { type_url: STACK.to_owned(), value: value.to_string().into_bytes() }
}

/// The step that a status says failed.
pub(crate) fn vertex_of(details: &[Any]) -> Option<String> {
    let vertex = details.iter().find(|detail| detail.type_url == type_url("Vertex"))?;
    let value: Value = serde_json::from_slice(&vertex.value).ok()?;
    Some(value.get("digest")?.as_str()?.to_owned())
}

/// A status with details.
pub(crate) fn with_details(code: Code, message: String, details: Vec<Any>) -> Status {
    if details.is_empty() {
        return Status::new(code, message);
    }
    let encoded = rpc::Status { code: code as i32, message: message.clone(), details }.encode_to_vec();
    Status::with_details(code, message, encoded.into())
}

/// The details of a status that has some.
pub(crate) fn details(status: &Status) -> Vec<Any> {
    rpc::Status::decode(status.details()).map(|status| status.details).unwrap_or_default()
}

/// A failure at the place of another one, unless it has a place of its own.
pub(crate) fn placed_as(failed: Status, other: &Status) -> Status {
    let is_place = |detail: &Any| detail.type_url == type_url("Source");
    let mut all = details(&failed);
    if all.iter().any(is_place) {
        return failed;
    }
    all.extend(details(other).into_iter().filter(is_place));
    with_details(failed.code(), failed.message().to_owned(), all)
}

/// A detail of one of the types that clients know.
pub(crate) fn detail(kind: &str, value: &Value) -> Any {
    Any { type_url: type_url(kind), value: value.to_string().into_bytes() }
}

pub(crate) fn type_url(kind: &str) -> String {
    format!("github.com/moby/buildkit/errdefs.{kind}+json")
}

fn source(place: &SourcePlace) -> Value {
    // A range for each line, as BuildKit's parser tells places.
    let range = |line: u32| json!({ "start": { "line": line }, "end": { "line": line } });
    let ranges = (place.first_line..=place.last_line).take(MOST_LINES).map(range);
    json!({
        "info": {
            "filename": place.file,
            "data": STANDARD.encode(&place.data),
            "language": "Dockerfile",
            "definition": {},
        },
        "ranges": Value::from_iter(ranges),
    })
}

fn code(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::Cancelled => Code::Cancelled,
        ErrorKind::Unsupported => Code::Unimplemented,
        // Everything else is a failure of the build, which has no code of its own.
        _ => Code::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_are_json_of_types_that_clients_know() {
        let place = SourcePlace { file: "Dockerfile".into(), data: b"RUN x".to_vec(), first_line: 1, last_line: 1 };
        let made = with_details(Code::Unknown, "failed".into(), vec![detail("Source", &source(&place))]);
        let found = details(&made);
        assert_eq!(found[0].type_url, "github.com/moby/buildkit/errdefs.Source+json");
        let value: Value = serde_json::from_slice(&found[0].value).unwrap();
        assert_eq!(
            (value["info"]["data"].as_str(), value["ranges"][0]["end"]["line"].as_u64()),
            (Some("UlVOIHg="), Some(1))
        );
    }

    /// Seen to fail in BuildKit's test ErrorsSourceMap, where an image that cannot be had was told without its line.
    #[test]
    fn a_failure_takes_the_place_of_another_only_where_it_has_none() {
        let at = |line: u32| {
            let place = SourcePlace { file: "Dockerfile".into(), data: Vec::new(), first_line: line, last_line: line };
            with_details(Code::Unknown, format!("at {line}"), vec![detail("Source", &source(&place))])
        };
        let line = |status: &Status| {
            let value: Value = serde_json::from_slice(&details(status)[0].value).unwrap();
            value["ranges"][0]["start"]["line"].as_u64()
        };
        let vague = placed_as(Status::unknown("no such image"), &at(1));
        assert_eq!((vague.message(), line(&vague)), ("no such image", Some(1)));
        let exact = placed_as(at(7), &at(1));
        assert_eq!((exact.message(), line(&exact), details(&exact).len()), ("at 7", Some(7), 1));
    }
}
