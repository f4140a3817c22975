use crate::{FrontendError, ImageRequest, Span, Warning};

/// What can be handed to a build of one stage.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outline {
    /// The stage's name; empty where it has none.
    pub name: String,
    /// The comment above the stage that begins with its name.
    pub description: String,
    /// The arguments, in the order of the file, as all other lists.
    pub args: Vec<OutlineArg>,
    /// The secrets.
    pub secrets: Vec<OutlineRequirement>,
    /// The SSH agents.
    pub ssh: Vec<OutlineRequirement>,
    /// The cache mounts.
    pub cache: Vec<OutlineCache>,
}

/// A build argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutlineArg {
    /// Its name.
    pub name: String,
    /// The comment above it that begins with its name.
    pub description: String,
    /// Its value in this build, where it has one.
    pub value: Option<String>,
    /// Where it is declared.
    pub span: Span,
}

/// A secret or an SSH agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutlineRequirement {
    /// Its id.
    pub name: String,
    /// Whether the build fails without it.
    pub required: bool,
    /// Where it is used first.
    pub span: Span,
}

/// A cache mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutlineCache {
    /// Its id.
    pub id: String,
    /// Where it is used first.
    pub span: Span,
}

/// What a turn of [`outline`](crate::outline()) came to.
#[derive(Clone, Debug)]
pub enum Outlined {
    /// These images must be resolved before the next turn.
    Need(Vec<ImageRequest>),
    /// Done.
    Done(Outline),
}

/// What a turn of [`check`](crate::check()) came to.
#[derive(Clone, Debug)]
pub enum Checked {
    /// These images must be resolved before the next turn.
    Need {
        /// The images.
        requests: Vec<ImageRequest>,
        /// What was found so far; all there is to tell where an image cannot be had.
        found: Vec<Warning>,
    },
    /// Done.
    Done(CheckResults),
}

/// What the build checks found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckResults {
    /// The findings, in the order of the file.
    pub warnings: Vec<Warning>,
    /// Why the Dockerfile cannot be built at all.
    pub error: Option<FrontendError>,
}
