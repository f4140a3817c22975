//! What the user is told when something fails, and the exit code.

use crate::sanitise;
use forge_engine::EngineError;
use forge_image::ErrorKind;
use std::io;

/// docker's exit code for anything that went wrong before a container's process ran, and for wrong flags.
pub const BEFORE_START: u8 = 125;
/// What a shell reports of a program that SIGPIPE ended.
pub const BROKEN_PIPE: u8 = 141;

/// Why a command ends with an error.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub code: u8,
    text: Option<Text>,
}

#[derive(Debug)]
struct Text {
    message: String,
    detail: Option<String>,
    hint: Option<String>,
}

impl Failure {
    /// A failure with a message of its own and exit code 1.
    pub fn new(message: impl Into<String>) -> Self {
        Self { code: 1, text: Some(Text { message: message.into(), detail: None, hint: None }) }
    }

    /// A failure that has been reported already.
    pub fn reported(code: u8) -> Self {
        Self { code, text: None }
    }

    /// The same failure with another exit code.
    #[must_use]
    pub fn with_code(self, code: u8) -> Self {
        Self { code, ..self }
    }

    /// What is written to standard error: source excerpt and step output first, so that the reason stands
    /// last where the eye is, then what to do next.
    pub fn text(&self, prefix: &str) -> String {
        let Some(text) = &self.text else { return String::new() };
        let detail = text
            .detail
            .as_deref()
            .map(|detail| format!("{}\n", sanitise::block(detail.trim_end())))
            .unwrap_or_default();
        let hint = text.hint.as_deref().map(|hint| format!("hint: {}\n", sanitise::line(hint))).unwrap_or_default();
        format!("{detail}{prefix}: {}\n{hint}", sanitise::block(text.message.trim_end()))
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        let code = error.exit_code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
        let defect = "this is a defect in forge; please report it with the command that shows it";
        let hint = match (error.hint(), error.kind()) {
            (Some(hint), _) => Some(hint.to_owned()),
            (None, ErrorKind::Internal) => Some(defect.to_owned()),
            (None, _) => None,
        };
        let text = Text { message: error.to_string(), detail: error.detail().map(str::to_owned), hint };
        Self { code, text: Some(text) }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::new(format!("{error:#}"))
    }
}

impl From<io::Error> for Failure {
    /// An error of standard output or of a file that the caller did not name.
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::reported(BROKEN_PIPE),
            _ => Self::new(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_stands_below_the_detail_and_above_the_hint() {
        let error = EngineError::new(ErrorKind::UserInput, "no \x1b[1mgood")
            .with_detail("Dockerfile:2\n> RUN x\n")
            .with_hint("do better");
        assert_eq!(
            Failure::from(error).text("ERROR"),
            "Dockerfile:2\n> RUN x\nERROR: no \\x1b[1mgood\nhint: do better\n"
        );
    }

    #[test]
    fn exit_codes_are_the_engines_or_one() {
        let error = || EngineError::new(ErrorKind::Internal, "x");
        assert_eq!(Failure::from(error()).code, 1);
        assert_eq!(Failure::from(error().with_exit_code(127)).code, 127);
        assert!(Failure::from(error()).text("forge").contains("hint: this is a defect in forge"));
        assert_eq!(Failure::from(io::Error::from(io::ErrorKind::BrokenPipe)).text("forge"), "");
    }
}
