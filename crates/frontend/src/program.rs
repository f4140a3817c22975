//! Instructions sorted into stages.

use crate::command::{Action, ArgDefinition, Command};
use crate::flags::{FlagKind, Flags};
use crate::keyword::Keyword;
use crate::{Arguments, Dockerfile, FrontendError, Instruction, Problem, Span, Token};

/// A Dockerfile whose instructions have been checked.
pub(crate) struct Program {
    /// The variables of the ARGs before the first FROM.
    pub globals: Vec<ArgDefinition>,
    /// The ARGs before the first FROM themselves.
    pub preamble: Vec<Command>,
    pub stages: Vec<Stage>,
}

/// A FROM and what follows it.
pub(crate) struct Stage {
    /// `FROM` as written.
    pub keyword: Token,
    /// `AS` as written.
    pub connective: Option<Token>,
    /// What it is built on.
    pub base: Token,
    /// Its name in lower case.
    pub name: Option<String>,
    /// Its name as written.
    pub written_name: Option<Token>,
    pub platform: Option<Token>,
    pub commands: Vec<Command>,
    pub comments: Vec<Token>,
    pub span: Span,
}

impl Program {
    /// Sorts and checks the instructions of a file.
    ///
    /// # Errors
    /// An instruction is wrong, or stands before the first FROM and is no ARG.
    pub fn read(dockerfile: &Dockerfile) -> Result<Self, FrontendError> {
        let mut program = Self { globals: Vec::new(), preamble: Vec::new(), stages: Vec::new() };
        for instruction in dockerfile.instructions() {
            program.add(instruction)?;
        }
        match program.stages.is_empty() {
            true => Err(Problem::NoStages.into()),
            false => Ok(program),
        }
    }

    fn add(&mut self, instruction: &Instruction) -> Result<(), FrontendError> {
        if instruction.kind() == Some(Keyword::From) {
            let stage = Stage::read(instruction).map_err(|error| error.or_at(instruction.span))?;
            self.stages.push(stage);
            return Ok(());
        }
        let command = Command::read(instruction)?;
        match (self.stages.last_mut(), &command.action) {
            (Some(stage), _) => stage.commands.push(command),
            (None, Action::Arg(definitions)) => {
                self.globals.extend(definitions.iter().cloned());
                self.preamble.push(command);
            }
            (None, _) => {
                let problem = Problem::value("no build stage in current context");
                return Err(FrontendError::from(problem).or_at(instruction.span));
            }
        }
        Ok(())
    }
}

impl Stage {
    fn read(instruction: &Instruction) -> Result<Self, FrontendError> {
        let words = match &instruction.arguments {
            Arguments::Words(words) => words.as_slice(),
            _ => &[],
        };
        let (base, connective, name) = match words {
            [base] => (base, None, None),
            [base, connective, name] if connective.text.eq_ignore_ascii_case("as") => {
                (base, Some(connective.clone()), Some(name.clone()))
            }
            _ => return Err(Problem::syntax("FROM requires either one or three arguments").into()),
        };
        if let Some(name) = name.as_ref().filter(|name| !is_stage_name(&name.text)) {
            let reason = format!(
                "invalid name for build stage: {:?}, name can't start with a number or contain symbols",
                name.text
            );
            return Err(FrontendError::from(Problem::syntax(reason)).or_at(name.span));
        }
        let flags = Flags::of(instruction, &[("platform", FlagKind::Text)])?;
        Ok(Self {
            keyword: instruction.keyword.clone(),
            connective,
            base: base.clone(),
            name: name.as_ref().map(|name| name.text.to_lowercase()),
            written_name: name,
            platform: flags.text("platform").filter(|platform| !platform.text.is_empty()).cloned(),
            commands: Vec::new(),
            comments: instruction.comments.clone(),
            span: instruction.span,
        })
    }
}

/// A letter, then letters, digits, `-`, `_` and `.`.
fn is_stage_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}
