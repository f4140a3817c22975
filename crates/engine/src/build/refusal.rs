//! The words for what makes a build fail, each with its place in the Dockerfile.

use crate::dockerfile::DockerfileText;
use crate::error::work_hint;
use crate::excerpt::excerpt;
use crate::{EngineError, SourcePlace, emulation};
use forge_frontend::{FrontendError, ImageKeySource, ImageRequest, LoweredImage, Problem};
use forge_image::{ErrorKind, chain};
use forge_llb::without_credentials;
use forge_solver::{SolveError, WorkerError};
use forge_worker::WorkError;

/// The error of a build as BuildKit's clients know it: they look for these words.
pub(crate) fn unsolved(error: EngineError) -> EngineError {
    match error.kind() {
        ErrorKind::Cancelled => error,
        _ => error.context("failed to solve"),
    }
}

/// A Dockerfile that was refused, with its lines.
pub(crate) fn refused(error: &FrontendError, text: &DockerfileText) -> EngineError {
    let drawn = error.render(&String::from_utf8_lossy(&text.text));
    let drawn = without_credentials(&drawn).into_owned();
    let mut failed = EngineError::new(error.kind(), error.to_string());
    if let Problem::Trigger { right, .. } = &*error.problem {
        failed = failed.with_hint(format!("allow it with --allow onbuild.{}", right.name()));
    }
    if let Problem::NotBuilt { .. } = &*error.problem {
        failed = failed.with_hint(
            "it is foreign code: allow it with enabled = true in [frontend.\"gateway.v0\"] of the configuration, for `forge build` and `plan`",
        );
    }
    if let Some(span) = error.span {
        failed = failed.with_place(place(text, &text.name, span.first_line, span.last_line));
    }
    // The first line of the drawing is the message itself.
    match drawn.split_once('\n') {
        Some((_, picture)) if !picture.trim().is_empty() => failed.with_detail(picture),
        _ => failed,
    }
}

fn place(text: &DockerfileText, file: &str, first_line: u32, last_line: u32) -> SourcePlace {
    SourcePlace { file: file.to_owned(), data: text.text.clone(), first_line, last_line }
}

/// A stage or a common image that an image's name may have meant.
fn suggest_image(text: &DockerfileText, name: &str) -> Option<String> {
    let dockerfile = forge_frontend::parse(&text.name, &text.text).ok()?;
    forge_frontend::suggest_image(&dockerfile, name.strip_suffix(":latest").unwrap_or(name))
}

/// A step that failed, with its last lines of output and the instruction that it comes from.
pub(crate) fn step_failed(error: SolveError, text: &DockerfileText) -> EngineError {
    let SolveError::Step { vertex, name, span, source, .. } = error else {
        return EngineError::new(error.kind(), error.to_string());
    };
    let mut detail = String::new();
    if let WorkerError::Process { last_lines, .. } = &*source
        && !last_lines.is_empty()
    {
        detail = format!("------\n > {name}:\n{}\n------\n", last_lines.join("\n"));
    }
    if let Some(span) = &span {
        let source = String::from_utf8_lossy(&text.text);
        detail += &excerpt(&span.file, &source, span.first_line, span.last_line);
    }
    let mut failed = EngineError::new(source.kind(), chain(&*source)).with_detail(detail);
    failed = failed.with_vertex(vertex.digest().clone());
    if let Some(span) = span {
        failed = failed.with_place(place(text, &span.file, span.first_line, span.last_line));
    }
    match step_hint(&source) {
        Some(hint) => failed.with_hint(hint),
        None => failed,
    }
}

/// What is to be done where a step's program is one for another platform.
pub(super) fn foreign_program(error: &SolveError, image: &LoweredImage) -> Option<String> {
    let SolveError::Step { vertex, source, .. } = error else { return None };
    let vertex = image.graph.get(vertex)?;
    let forge_llb::Op::Exec(_) = &vertex.op else { return None };
    let platform = vertex.platform.clone().unwrap_or_else(|| image.config.platform());
    emulation::hint(&platform, &chain(&**source))
}

fn step_hint(error: &WorkerError) -> Option<String> {
    let cause = match error {
        WorkerError::Other { source: Some(cause), .. } => cause.downcast_ref::<WorkError>(),
        _ => None,
    };
    error.hint().map(str::to_owned).or_else(|| cause.and_then(work_hint))
}

/// Says of an image that cannot be had where the Dockerfile names it, in the words that BuildKit's clients look for.
pub(super) fn unresolved(wanted: &ImageRequest, text: &DockerfileText, error: EngineError) -> EngineError {
    let (name, whole) = match &wanted.key.source {
        ImageKeySource::Image(reference) => (reference.familiar(), reference.to_string()),
        ImageKeySource::OciLayout { name, .. } => (name.clone(), name.clone()),
    };
    let lines = (wanted.span.first_line, wanted.span.last_line);
    let place = excerpt(&text.name, &String::from_utf8_lossy(&text.text), lines.0, lines.1);
    let told = match error.kind() {
        ErrorKind::Cancelled => error,
        _ => error.context(&format!("{name}: failed to resolve source metadata for {whole}")),
    };
    let told = told.with_place(self::place(text, &text.name, lines.0, lines.1));
    told.with_detail(place).with_suggestion(suggest_image(text, &name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use forge_frontend::{LowerOptions, ResolvedImages};
    use forge_image::{Digest, Platform};

    fn text(text: &str) -> DockerfileText {
        DockerfileText { name: "Dockerfile".to_owned(), text: text.into() }
    }

    #[test]
    fn a_refused_dockerfile_says_its_message_once() {
        let text = text("FROM scratch\nRUM x\n");
        let dockerfile = forge_frontend::parse(&text.name, &text.text).unwrap();
        let options = LowerOptions::new(Platform::host());
        let error = forge_frontend::lower(&dockerfile, &options, &ResolvedImages::new()).unwrap_err();
        let shown = refused(&error, &text);
        assert!(shown.to_string().contains("unknown instruction: RUM"), "{shown}");
        assert_eq!(shown.detail().unwrap(), " --> Dockerfile:2:1\n  |\n2 | RUM x\n  | ^^^ did you mean RUN?\n");
    }

    fn failed_step(source: WorkerError) -> EngineError {
        let vertex = forge_llb::VertexDigest::new(Digest::sha256(b"x"));
        let error =
            SolveError::Step { vertex, name: "[1/1] RUN x".into(), span: None, failed: None, source: Box::new(source) };
        step_failed(error, &text("FROM scratch\nRUN x\n"))
    }

    #[test]
    fn a_failed_step_tells_its_cause_and_what_to_do() {
        let offline = || forge_registry::RegistryError::Offline { registry: "r.test".into() };
        let shown = failed_step(WorkError::Fetch(offline().into()).into());
        assert_eq!(shown.to_string(), "cannot reach registry r.test: offline");
        assert!(shown.hint().is_some_and(|hint| hint.contains("--offline")), "{shown:?}");
        let cause = std::io::Error::other("disk on fire");
        let kind = ErrorKind::Environment;
        let message = "the build cache failed".to_owned();
        let shown = failed_step(WorkerError::Other { kind, message, source: Some(cause.into()), hint: None });
        assert_eq!(shown.to_string(), "the build cache failed: disk on fire");
    }

    #[test]
    fn the_last_words_of_a_step_are_shown() {
        let last_lines = vec!["one".to_owned(), "two".to_owned()];
        let shown = failed_step(WorkerError::Process { exit: 3, message: "exit code: 3".into(), last_lines });
        assert_eq!(shown.to_string(), "exit code: 3");
        assert_eq!(shown.detail().unwrap(), "------\n > [1/1] RUN x:\none\ntwo\n------\n");
    }
}
