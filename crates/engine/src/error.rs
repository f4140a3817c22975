use forge_image::ErrorKind;

/// Why something that was asked of the engine failed.
///
/// The message is one line; [`EngineError::detail`] holds what is printed below it (a source excerpt, the last
/// lines of a step), [`EngineError::hint`] what to do next.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct EngineError {
    message: String,
    kind: ErrorKind,
    detail: Option<String>,
    hint: Option<String>,
    exit_code: Option<i32>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl EngineError {
    /// An error with a message of its own.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { message: message.into(), kind, detail: None, hint: None, exit_code: None, source: None }
    }

    /// An error of a lower layer, its causes joined into one line.
    pub fn caused(kind: ErrorKind, error: impl std::error::Error + Send + Sync + 'static) -> Self {
        let message = chain(&error);
        Self { source: Some(Box::new(error)), ..Self::new(kind, message) }
    }

    /// Adds lines that are printed below the message.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Adds what to do next.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Sets the exit code that `run` answers with (docker: 125, 126, 127).
    #[must_use]
    pub fn with_exit_code(mut self, code: i32) -> Self {
        self.exit_code = Some(code);
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

/// The messages of an error and all its causes, joined by colons.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

impl EngineError {
    /// A failure of this machine's files.
    pub(crate) fn io(error: std::io::Error) -> Self {
        Self::caused(ErrorKind::Environment, error)
    }
}

macro_rules! from_errors {
    ($($error:ty => |$value:ident| $kind:expr;)*) => {
        $(impl From<$error> for EngineError {
            fn from($value: $error) -> Self {
                let kind = $kind;
                Self::caused(kind, $value)
            }
        })*
    };
}

from_errors! {
    forge_store::StoreError => |error| error.kind();
    forge_registry::RegistryError => |error| error.kind();
    forge_registry::FetchError => |error| error.kind();
    forge_cache::CacheError => |error| error.kind();
    forge_worker::WorkError => |error| error.kind();
    forge_executor::ExecutorError => |error| forge_worker::executor_kind(&error);
    forge_image::ReferenceError => |_error| ErrorKind::UserInput;
    forge_session::CredentialError => |error| error.kind();
    forge_session::ContextError => |_error| ErrorKind::UserInput;
    tokio::task::JoinError => |_error| ErrorKind::Internal;
}

impl From<forge_exporter::ExportError> for EngineError {
    fn from(error: forge_exporter::ExportError) -> Self {
        let hint = error.hint();
        let converted = Self::caused(error.kind(), error);
        match hint {
            Some(hint) => converted.with_hint(hint),
            None => converted,
        }
    }
}
