//! What a daemon says of a failure, as the engine's own errors.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use forge_buildkit_proto::google::protobuf::Any;
use forge_buildkit_proto::google::rpc;
use forge_engine::EngineError;
use forge_image::ErrorKind;
use prost::Message;
use serde_json::Value;
use tonic::{Code, Status};

/// What forge's own daemon says beside BuildKit's details.
const OWN: &str = "forge.engine.Failure+json";
const SOURCE: &str = "github.com/moby/buildkit/errdefs.Source+json";

/// The failure of a build.
pub(crate) fn of_build(status: &Status) -> EngineError {
    let details = rpc::Status::decode(status.details()).map(|status| status.details).unwrap_or_default();
    let own = details.iter().find(|detail| detail.type_url == OWN).and_then(value);
    let own = |name: &str| own.as_ref().and_then(|own| own.get(name)).cloned().unwrap_or_default();
    let kind = own("kind").as_str().and_then(kind_of).unwrap_or_else(|| kind_of_code(status.code()));
    if kind == ErrorKind::Cancelled {
        return EngineError::new(kind, "cancelled");
    }
    let mut error = EngineError::new(kind, status.message());
    if !status.message().starts_with("failed to solve") {
        error = error.context("failed to solve");
    }
    let detail = own("detail").as_str().map(str::to_owned).or_else(|| details.iter().find_map(place));
    if let Some(detail) = detail {
        error = error.with_detail(detail);
    }
    if let Some(hint) = own("hint").as_str() {
        error = error.with_hint(hint);
    }
    match own("exitCode").as_i64().and_then(|code| i32::try_from(code).ok()) {
        Some(code) => error.with_exit_code(code),
        None => error,
    }
}

/// The failure of anything else.
pub(crate) fn plain(status: &Status) -> EngineError {
    EngineError::new(kind_of_code(status.code()), status.message())
}

fn value(detail: &Any) -> Option<Value> {
    serde_json::from_slice(&detail.value).ok()
}

/// The lines that a failure comes from, of a daemon that says no more.
fn place(detail: &Any) -> Option<String> {
    let told = value(detail).filter(|_| detail.type_url == SOURCE)?;
    let info = told.get("info")?;
    let data = STANDARD.decode(info.get("data")?.as_str()?).ok()?;
    let line = |range: &Value, end: &str| u32::try_from(range.get(end)?.get("line")?.as_u64()?).ok();
    let ranges = told.get("ranges")?.as_array()?;
    let (first, last) = (line(ranges.first()?, "start")?, line(ranges.last()?, "end")?);
    let file = info.get("filename")?.as_str()?;
    Some(forge_engine::excerpt(file, &String::from_utf8_lossy(&data), first, last))
}

fn kind_of(name: &str) -> Option<ErrorKind> {
    Some(match name {
        "UserInput" => ErrorKind::UserInput,
        "Environment" => ErrorKind::Environment,
        "Remote" => ErrorKind::Remote,
        "Unsupported" => ErrorKind::Unsupported,
        "Process" => ErrorKind::Process,
        "Cancelled" => ErrorKind::Cancelled,
        "Internal" => ErrorKind::Internal,
        _ => return None,
    })
}

fn kind_of_code(code: Code) -> ErrorKind {
    match code {
        Code::Cancelled => ErrorKind::Cancelled,
        Code::Unimplemented => ErrorKind::Unsupported,
        Code::InvalidArgument => ErrorKind::UserInput,
        _ => ErrorKind::Remote,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(message: &str, details: Vec<Any>) -> Status {
        let encoded = rpc::Status { code: 2, message: message.to_owned(), details }.encode_to_vec();
        Status::with_details(Code::Unknown, message, encoded.into())
    }

    #[test]
    fn what_the_daemon_says_is_said_again() {
        let text = r#"{"kind":"Process","detail":"Dockerfile:2\n> x","hint":"do better","exitCode":3}"#;
        let own = Any { type_url: OWN.to_owned(), value: text.into() };
        let error = of_build(&status("process \"x\" failed", vec![own]));
        assert_eq!(error.to_string(), "failed to solve: process \"x\" failed");
        assert_eq!((error.kind(), error.exit_code()), (ErrorKind::Process, Some(3)));
        assert_eq!((error.detail(), error.hint()), (Some("Dockerfile:2\n> x"), Some("do better")));
    }

    #[test]
    fn another_daemon_says_where() {
        let text =
            r#"{"info":{"filename":"Dockerfile","data":"UlVOIHg="},"ranges":[{"start":{"line":1},"end":{"line":1}}]}"#;
        let source = Any { type_url: SOURCE.to_owned(), value: text.into() };
        let error = of_build(&status("no", vec![source]));
        assert!(error.detail().unwrap().contains(">>> RUN x"), "{error:?}");
        assert_eq!(of_build(&Status::cancelled("context canceled")).kind(), ErrorKind::Cancelled);
    }
}
