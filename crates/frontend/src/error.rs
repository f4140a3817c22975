use crate::{Span, TriggerRight};
use forge_image::{ErrorKind, PlatformError, ReferenceError};
use forge_llb::GraphError;

/// Why a Dockerfile is refused: what is wrong, where, and perhaps what was meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrontendError {
    /// What is wrong.
    pub problem: Box<Problem>,
    /// Where; `None` where no line is to blame.
    pub span: Option<Span>,
    /// What was probably meant.
    pub suggestion: Option<String>,
    /// The file as the user named it; empty until it is known.
    pub file: String,
}

/// What is wrong with a Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The file has no byte.
    #[error("the Dockerfile cannot be empty")]
    EmptyFile,
    /// The file has no instruction.
    #[error("file with no instructions")]
    NoInstructions,
    /// The file has no FROM.
    #[error("dockerfile contains no stages to build")]
    NoStages,
    /// A cap on the input was passed (A113, A114).
    #[error("{what} is larger than the limit of {limit}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// The limit, readable.
        limit: &'static str,
    },
    /// Bytes that are not UTF-8.
    #[error("{what} is not valid UTF-8")]
    NotUtf8 {
        /// Which text.
        what: &'static str,
    },
    /// No instruction of that name.
    #[error("unknown instruction: {name}")]
    UnknownInstruction {
        /// The name as written.
        name: String,
    },
    /// The text of an instruction does not follow its grammar.
    #[error("{reason}")]
    Syntax {
        /// What is wrong.
        reason: String,
    },
    /// A parser directive is wrong.
    #[error("{reason}")]
    Directive {
        /// What is wrong.
        reason: String,
    },
    /// A flag of an instruction is wrong.
    #[error("{reason}")]
    Flag {
        /// What is wrong.
        reason: String,
    },
    /// A variable expansion failed.
    #[error("failed to process {word:?}: {reason}")]
    Expansion {
        /// The text that was expanded, cut to 300 characters.
        word: String,
        /// What is wrong.
        reason: String,
    },
    /// A value is not what its instruction wants.
    #[error("{reason}")]
    Value {
        /// What is wrong.
        reason: String,
    },
    /// No stage of the name that `--target` asks for.
    #[error("target stage {name:?} could not be found")]
    UnknownTarget {
        /// The name.
        name: String,
    },
    /// Stages refer to each other in a circle.
    #[error("circular dependency detected on stage: {stage}")]
    CircularStage {
        /// A stage of the circle.
        stage: String,
    },
    /// A stage is used before it is defined.
    #[error("cannot copy from stage {from:?}, it needs to be defined before current stage {stage:?}")]
    LateStage {
        /// The stage that is used.
        from: String,
        /// The stage that uses it.
        stage: String,
    },
    /// A stage is mounted before it is defined.
    #[error("cannot mount from stage {from:?} to {target:?}, stage needs to be defined before current command")]
    LateMount {
        /// The stage that is used.
        from: String,
        /// Where it should be mounted, as written.
        target: String,
    },
    /// There is no stage of that index.
    #[error("invalid stage index {index}")]
    StageIndex {
        /// The index.
        index: String,
    },
    /// A name is no image name.
    #[error("failed to parse stage name {name:?}: {source}")]
    Reference {
        /// The name.
        name: String,
        /// The cause.
        source: ReferenceError,
    },
    /// A platform is none.
    #[error("failed to parse platform {value}: {source}")]
    Platform {
        /// The value as written.
        value: String,
        /// The cause.
        source: PlatformError,
    },
    /// A trigger of a base image asks for more than a build gives unasked (A41).
    #[error("the base image's trigger {trigger:?} uses {what}, which triggers may not")]
    Trigger {
        /// The trigger.
        trigger: String,
        /// What it asks for.
        what: &'static str,
        /// What would have to be allowed.
        right: TriggerRight,
    },
    /// Findings of the build checks are errors (`# check=error=true`).
    #[error("lint violation found for rules: {rules}")]
    LintViolation {
        /// The rules, joined by commas.
        rules: String,
    },
    /// The language has it, this version does not.
    #[error("{what} is not supported by this version of forge")]
    NotBuilt {
        /// The feature, `RUN --mount`.
        what: String,
    },
    /// The graph refused a vertex: a defect of the lowering.
    #[error("the graph of the Dockerfile is inconsistent")]
    Graph(#[from] GraphError),
}

impl FrontendError {
    /// A problem without a place.
    pub fn new(problem: Problem) -> Self {
        Self { problem: Box::new(problem), span: None, suggestion: None, file: String::new() }
    }

    /// Who is to blame.
    pub fn kind(&self) -> ErrorKind {
        match *self.problem {
            Problem::NotBuilt { .. } => ErrorKind::Unsupported,
            Problem::Graph(_) => ErrorKind::Internal,
            _ => ErrorKind::UserInput,
        }
    }

    /// Says where it is, unless that is known already.
    pub(crate) fn or_at(mut self, span: Span) -> Self {
        self.span.get_or_insert(span);
        self
    }
}

impl std::fmt::Display for FrontendError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let (Some(span), true) = (self.span, self.problem.is_syntax()) {
            write!(f, "dockerfile parse error on line {}: ", span.first_line)?;
        }
        self.problem.fmt(f)?;
        match &self.suggestion {
            Some(suggestion) => write!(f, " (did you mean {suggestion}?)"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for FrontendError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &*self.problem {
            Problem::Graph(source) => Some(source),
            _ => None,
        }
    }
}

impl From<Problem> for FrontendError {
    fn from(problem: Problem) -> Self {
        Self::new(problem)
    }
}

impl Problem {
    /// Whether the text alone is to blame, which clients recognise by its first words.
    fn is_syntax(&self) -> bool {
        matches!(
            self,
            Self::UnknownInstruction { .. }
                | Self::Syntax { .. }
                | Self::Flag { .. }
                | Self::Directive { .. }
                | Self::NotUtf8 { .. }
        )
    }

    pub(crate) fn syntax(reason: impl Into<String>) -> Self {
        Self::Syntax { reason: reason.into() }
    }

    pub(crate) fn value(reason: impl Into<String>) -> Self {
        Self::Value { reason: reason.into() }
    }
}
