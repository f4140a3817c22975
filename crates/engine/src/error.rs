use forge_cache::CacheError;
use forge_exporter::ExportError;
use forge_image::{Digest, ErrorKind, chain};
use forge_registry::{FetchError, RegistryError};
use forge_store::StoreError;
use forge_worker::WorkError;

/// Why something that was asked of the engine failed.
///
/// The message is one line; [`EngineError::detail`] holds what is printed below it (a source excerpt, the last
/// lines of a step), [`EngineError::hint`] what to do next.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct EngineError {
    message: String,
    kind: ErrorKind,
    detail: Option<Box<str>>,
    hint: Option<Box<str>>,
    exit_code: Option<i32>,
    vertex: Option<Box<Digest>>,
    place: Option<Box<SourcePlace>>,
    denials: Box<[String]>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The lines of a file that a failure comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourcePlace {
    /// The file as the user named it.
    pub file: String,
    /// Its bytes.
    pub data: Vec<u8>,
    /// The first line, from 1.
    pub first_line: u32,
    /// The last line.
    pub last_line: u32,
}

impl EngineError {
    /// An error with a message of its own.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        let message = message.into();
        let (detail, hint, exit_code, vertex, place, denials, source) = Default::default();
        Self { message, kind, detail, hint, exit_code, vertex, place, denials, source }
    }

    /// An error of a lower layer, its causes joined into one line.
    pub fn caused(kind: ErrorKind, error: impl std::error::Error + Send + Sync + 'static) -> Self {
        let message = chain(&error);
        Self { source: Some(Box::new(error)), ..Self::new(kind, message) }
    }

    /// Adds lines that are printed below the message.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        let detail: String = detail.into();
        self.detail = Some(detail.into());
        self
    }

    /// Adds what to do next.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        let hint: String = hint.into();
        self.hint = Some(hint.into());
        self
    }

    /// Sets the exit code that `run` answers with (docker: 125, 126, 127).
    #[must_use]
    pub fn with_exit_code(mut self, code: i32) -> Self {
        self.exit_code = Some(code);
        self
    }

    /// Says which step failed.
    #[must_use]
    pub(crate) fn with_vertex(self, vertex: Digest) -> Self {
        Self { vertex: Some(Box::new(vertex)), ..self }
    }

    /// Says where it comes from.
    #[must_use]
    pub(crate) fn with_place(self, place: SourcePlace) -> Self {
        Self { place: Some(Box::new(place)), ..self }
    }

    /// Says in the words of whoever judges sources why one was denied.
    #[must_use]
    pub fn with_denials(self, denials: Vec<String>) -> Self {
        Self { denials: denials.into(), ..self }
    }

    /// Why a source was denied, in the words of whoever judged it.
    pub fn denials(&self) -> &[String] {
        &self.denials
    }

    /// The step that failed.
    pub fn vertex(&self) -> Option<&Digest> {
        self.vertex.as_deref()
    }

    /// Where it comes from.
    pub fn place(&self) -> Option<&SourcePlace> {
        self.place.as_deref()
    }

    /// Adds to the message what was probably meant, in the words of BuildKit.
    #[must_use]
    pub(crate) fn with_suggestion(mut self, suggestion: Option<String>) -> Self {
        if let Some(suggestion) = suggestion.filter(|_| self.kind != ErrorKind::Cancelled) {
            self.message += &format!(" (did you mean {suggestion}?)");
        }
        self
    }

    /// Puts what was being done before the message.
    #[must_use]
    pub fn context(mut self, doing: &str) -> Self {
        self.message = format!("{doing}: {}", self.message);
        self
    }

    /// Who is to blame.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What is printed below the message.
    pub fn detail(&self) -> Option<&str> {
        self.detail.as_deref()
    }

    /// What to do next.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// The exit code, where docker's commands prescribe one.
    pub fn exit_code(&self) -> Option<i32> {
        self.exit_code
    }
}

impl EngineError {
    /// The user, or whoever else asked, wants no result any more.
    pub(crate) fn cancelled() -> Self {
        Self::new(ErrorKind::Cancelled, "cancelled")
    }

    /// A failure of this machine's files.
    pub(crate) fn io(error: std::io::Error) -> Self {
        Self::caused(ErrorKind::Environment, error)
    }
}

macro_rules! from_errors {
    ($($error:ty => |$value:ident| $kind:expr, $hint:expr;)*) => {
        $(impl From<$error> for EngineError {
            fn from($value: $error) -> Self {
                let (kind, hint): (ErrorKind, Option<String>) = ($kind, $hint);
                Self { hint: hint.map(String::into_boxed_str), ..Self::caused(kind, $value) }
            }
        })*
    };
}

from_errors! {
    StoreError => |error| error.kind(), error.hint().map(str::to_owned);
    RegistryError => |error| error.kind(), registry_hint(&error);
    FetchError => |error| error.kind(), fetch_hint(&error);
    CacheError => |error| error.kind(), error.hint();
    WorkError => |error| error.kind(), work_hint(&error);
    ExportError => |error| error.kind(), export_hint(&error);
    forge_executor::ExecutorError => |error| forge_worker::executor_kind(&error), None;
    forge_image::ReferenceError => |_error| ErrorKind::UserInput, None;
    forge_session::CredentialError => |error| error.kind(), None;
    forge_session::ContextError => |_error| ErrorKind::UserInput, None;
    tokio::task::JoinError => |_error| ErrorKind::Internal, None;
}

fn registry_hint(error: &RegistryError) -> Option<String> {
    match error {
        RegistryError::Connection { .. } | RegistryError::Stalled { .. } => {
            Some("check the registry's name, the network, and the proxy if there is one".to_owned())
        }
        error => error.hint(),
    }
}

fn fetch_hint(error: &FetchError) -> Option<String> {
    match error {
        FetchError::Registry(source) => registry_hint(source),
        error => error.hint(),
    }
}

fn export_hint(error: &ExportError) -> Option<String> {
    match error {
        ExportError::NameTaken { .. } => {
            Some("remove the name with `forge rmi`, or let the archive have it with --replace".to_owned())
        }
        ExportError::Registry { source, .. } => registry_hint(source),
        ExportError::Load { source, .. } => fetch_hint(source),
        error => error.hint(),
    }
}

/// What can be done about a step that failed.
pub(crate) fn work_hint(error: &WorkError) -> Option<String> {
    match error {
        WorkError::Fetch(source) => fetch_hint(source),
        WorkError::Store(source) => source.hint().map(str::to_owned),
        WorkError::Input(source) => source.hint(),
        _ => error.hint(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[derive(Debug, thiserror::Error)]
    #[error("{message}")]
    struct Layer {
        message: &'static str,
        source: Option<Box<Layer>>,
    }

    fn layer(message: &'static str, source: Option<Layer>) -> Layer {
        Layer { message, source: source.map(Box::new) }
    }

    #[test]
    fn nothing_is_said_twice() {
        let error = layer(
            "GET x failed",
            Some(layer("DNS error: no records for r.test", Some(layer("no records for r.test", None)))),
        );
        let error = EngineError::caused(ErrorKind::Remote, error);
        assert_eq!(error.to_string(), "GET x failed: DNS error: no records for r.test");
        assert_eq!(chain(&error), error.to_string());
    }

    #[test]
    fn hints_come_along() {
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        let connection = RegistryError::Connection { method: "GET".into(), url: "x".into(), source: refused.into() };
        let error = EngineError::from(FetchError::from(connection));
        assert!(error.hint().is_some_and(|hint| hint.contains("proxy")), "{error:?}");
        let offline = || FetchError::from(RegistryError::Offline { registry: "r.test".into() });
        assert!(EngineError::from(offline()).hint().is_some_and(|hint| hint.contains("--offline")));
        assert!(EngineError::from(WorkError::Fetch(offline())).hint().is_some_and(|hint| hint.contains("--offline")));
        let id = || forge_image::ImageId::new(forge_image::Digest::sha256(b"x"));
        let name = Box::new("app".parse().unwrap());
        let taken = EngineError::from(ExportError::NameTaken { name, existing: id(), loaded: id() });
        assert!(taken.hint().is_some_and(|hint| hint.contains("--replace")), "{taken:?}");
    }
}
