use crate::doc_comment::doc_comment;
use crate::program::Program;
use crate::{Dockerfile, FrontendError, Span};

/// A stage that can be built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its name in lower case; empty where it has none.
    pub name: String,
    /// Whether it is what a build without `--target` builds.
    pub default: bool,
    /// The comment above it that begins with its name.
    pub description: String,
    /// What it is built on, as written.
    pub base: String,
    /// `--platform` as written; empty where there is none.
    pub platform: String,
    /// Its FROM.
    pub span: Span,
}

/// Lists the stages of a Dockerfile. No variable is expanded and nothing is asked of any image.
///
/// # Errors
/// An instruction is wrong, or there is no stage.
pub fn targets(dockerfile: &Dockerfile) -> Result<Vec<Target>, FrontendError> {
    let program =
        Program::read(dockerfile).map_err(|error| FrontendError { file: dockerfile.name().to_owned(), ..error })?;
    let last = program.stages.len() - 1;
    let target = |(index, stage): (usize, &crate::program::Stage)| {
        let name = stage.name.clone().unwrap_or_default();
        Target {
            default: index == last,
            description: doc_comment(&stage.comments, &name),
            base: stage.base.text.clone(),
            platform: stage.platform.as_ref().map(|platform| platform.text.clone()).unwrap_or_default(),
            span: stage.span,
            name,
        }
    };
    Ok(program.stages.iter().enumerate().map(target).collect())
}
