use crate::Span;
use std::fmt;

/// A rule of the build checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "the names are docker's and say what they flag")]
pub enum Rule {
    StageNameCasing,
    FromAsCasing,
    NoEmptyContinuation,
    ConsistentInstructionCasing,
    DuplicateStageName,
    ReservedStageName,
    JSONArgsRecommended,
    MaintainerDeprecated,
    UndefinedArgInFrom,
    WorkdirRelativePath,
    UndefinedVar,
    MultipleInstructionsDisallowed,
    LegacyKeyValueFormat,
    InvalidBaseImagePlatform,
    RedundantTargetPlatform,
    SecretsUsedInArgOrEnv,
    InvalidDefaultArgInFrom,
    FromPlatformFlagConstDisallowed,
    CopyIgnoredFile,
    InvalidDefinitionDescription,
    ExposeProtoCasing,
    ExposeInvalidFormat,
}

/// Something that a build check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// The rule.
    pub rule: Rule,
    /// What is wrong, in one line.
    pub message: String,
    /// Where.
    pub span: Span,
    /// Where to read on; `None` where there is no page.
    pub url: Option<String>,
}

impl Rule {
    /// All rules, in docker's order.
    pub const ALL: [Rule; 22] = [
        Self::StageNameCasing,
        Self::FromAsCasing,
        Self::NoEmptyContinuation,
        Self::ConsistentInstructionCasing,
        Self::DuplicateStageName,
        Self::ReservedStageName,
        Self::JSONArgsRecommended,
        Self::MaintainerDeprecated,
        Self::UndefinedArgInFrom,
        Self::WorkdirRelativePath,
        Self::UndefinedVar,
        Self::MultipleInstructionsDisallowed,
        Self::LegacyKeyValueFormat,
        Self::InvalidBaseImagePlatform,
        Self::RedundantTargetPlatform,
        Self::SecretsUsedInArgOrEnv,
        Self::InvalidDefaultArgInFrom,
        Self::FromPlatformFlagConstDisallowed,
        Self::CopyIgnoredFile,
        Self::InvalidDefinitionDescription,
        Self::ExposeProtoCasing,
        Self::ExposeInvalidFormat,
    ];
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl fmt::Display for Warning {
    /// `Rule: message (line N)`, as docker prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} (line {})", self.rule, self.message, self.span.first_line)
    }
}

impl Rule {
    /// A finding at a place. `words` fill the rule's message in order.
    pub(crate) fn at(self, span: Span, words: &[&str]) -> Warning {
        Warning { rule: self, message: self.message(words), span, url: self.url() }
    }

    /// Whether the rule counts only where it is asked for.
    pub fn is_experimental(self) -> bool {
        self == Self::InvalidDefinitionDescription
    }

    /// The page that explains the rule; docker has none for one of them.
    pub fn url(self) -> Option<String> {
        let page = "https://docs.docker.com/go/dockerfile/rule/";
        (self != Self::InvalidBaseImagePlatform).then(|| format!("{page}{}/", kebab(&self.to_string())))
    }

    /// What the rule asks for, whatever it was found on. The texts are docker's.
    pub fn description(self) -> &'static str {
        match self {
            Self::StageNameCasing => "Stage names should be lowercase",
            Self::FromAsCasing => "The 'as' keyword should match the case of the 'from' keyword",
            Self::NoEmptyContinuation => "Empty continuation lines will become errors in a future release",
            Self::ConsistentInstructionCasing => {
                "All commands within the Dockerfile should use the same casing (either upper or lower)"
            }
            Self::DuplicateStageName => "Stage names should be unique",
            Self::ReservedStageName => "Reserved words should not be used as stage names",
            Self::JSONArgsRecommended => {
                "JSON arguments recommended for ENTRYPOINT/CMD to prevent unintended behavior related to OS signals"
            }
            Self::MaintainerDeprecated => {
                "The MAINTAINER instruction is deprecated, use a label instead to define an image author"
            }
            Self::UndefinedArgInFrom => "FROM command must use declared ARGs",
            Self::WorkdirRelativePath => {
                "Relative workdir without an absolute workdir declared within the build \
                 can have unexpected results if the base image changes"
            }
            Self::UndefinedVar => "Variables should be defined before their use",
            Self::MultipleInstructionsDisallowed => {
                "Multiple instructions of the same type should not be used in the same stage"
            }
            Self::LegacyKeyValueFormat => "Legacy key/value format with whitespace separator should not be used",
            Self::InvalidBaseImagePlatform => "Base image platform does not match expected target platform",
            Self::RedundantTargetPlatform => {
                "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior"
            }
            Self::SecretsUsedInArgOrEnv => "Sensitive data should not be used in the ARG or ENV commands",
            Self::InvalidDefaultArgInFrom => {
                "Default value for global ARG results in an empty or invalid base image name"
            }
            Self::FromPlatformFlagConstDisallowed => "FROM --platform flag should not use a constant value",
            Self::CopyIgnoredFile => "Attempting to Copy file that is excluded by .dockerignore",
            Self::InvalidDefinitionDescription => {
                "Comment for build stage or argument should follow the format: `# <arg/stage name> <description>`. \
                 If this is not intended to be a description comment, add an empty line or comment between the \
                 instruction and the comment."
            }
            Self::ExposeProtoCasing => "Protocol in EXPOSE instruction should be lowercase",
            Self::ExposeInvalidFormat => {
                "IP address and host-port mapping should not be used in EXPOSE instruction. \
                 This will become an error in a future release"
            }
        }
    }

    /// The messages are docker's: tools look for them.
    fn message(self, words: &[&str]) -> String {
        let word = |index: usize| words.get(index).copied().unwrap_or_default();
        let (a, b, c) = (word(0), word(1), word(2));
        match self {
            Self::StageNameCasing => format!("Stage name '{a}' should be lowercase"),
            Self::FromAsCasing => format!("'{b}' and '{a}' keywords' casing do not match"),
            Self::NoEmptyContinuation => "Empty continuation line".to_owned(),
            Self::ConsistentInstructionCasing => {
                format!("Command '{a}' should match the case of the command majority ({b})")
            }
            Self::DuplicateStageName => format!("Duplicate stage name {a:?}, stage names should be unique"),
            Self::ReservedStageName => {
                format!("Stage name should not use the same name as reserved stage {a:?}")
            }
            Self::JSONArgsRecommended => {
                format!("JSON arguments recommended for {a} to prevent unintended behavior related to OS signals")
            }
            Self::MaintainerDeprecated => "Maintainer instruction is deprecated in favor of using label".to_owned(),
            Self::UndefinedArgInFrom => format!("FROM argument '{a}' is not declared{}", meant("", b)),
            Self::WorkdirRelativePath => {
                format!("Relative workdir {a:?} can have unexpected results if the base image changes")
            }
            Self::UndefinedVar => format!("Usage of undefined variable '${a}'{}", meant("$", b)),
            Self::MultipleInstructionsDisallowed => format!(
                "Multiple {a} instructions should not be used in the same stage because only the last one will be used"
            ),
            Self::LegacyKeyValueFormat => {
                format!("\"{a} key=value\" should be used instead of legacy \"{a} key value\" format")
            }
            Self::InvalidBaseImagePlatform => {
                format!("Base image {a} was pulled with platform {c:?}, expected {b:?} for current build")
            }
            Self::RedundantTargetPlatform => {
                format!("Setting platform to predefined {a} in FROM is redundant as this is the default behavior")
            }
            Self::SecretsUsedInArgOrEnv => {
                format!("Do not use ARG or ENV instructions for sensitive data ({a} {b:?})")
            }
            Self::InvalidDefaultArgInFrom => {
                format!("Default value for ARG {a} results in empty or invalid base image name")
            }
            Self::FromPlatformFlagConstDisallowed => {
                format!("FROM --platform flag should not use constant value {a:?}")
            }
            Self::CopyIgnoredFile => {
                format!("Attempting to {a} file {b:?} that is excluded by .dockerignore")
            }
            Self::InvalidDefinitionDescription => {
                format!("Comment for {a} should follow the format: `# {b} <description>`")
            }
            Self::ExposeProtoCasing => {
                format!("Defined protocol '{a}' in EXPOSE instruction should be lowercase")
            }
            Self::ExposeInvalidFormat => {
                format!("EXPOSE instruction should not define an IP address or host-port mapping, found '{a}'")
            }
        }
    }
}

fn meant(prefix: &str, suggestion: &str) -> String {
    match suggestion {
        "" => String::new(),
        suggestion => format!(" (did you mean {prefix}{suggestion}?)"),
    }
}

/// `FromAsCasing` is `from-as-casing`, `JSONArgsRecommended` is `json-args-recommended`.
fn kebab(name: &str) -> String {
    let letters: Vec<char> = name.chars().collect();
    let mut kebab = String::new();
    for (at, letter) in letters.iter().enumerate() {
        let starts_word = letter.is_ascii_uppercase()
            && at > 0
            && (letters[at - 1].is_ascii_lowercase() || letters.get(at + 1).is_some_and(char::is_ascii_lowercase));
        if starts_word {
            kebab.push('-');
        }
        kebab.push(letter.to_ascii_lowercase());
    }
    kebab
}
