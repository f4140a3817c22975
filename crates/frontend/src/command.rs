//! Instructions whose words have been checked: the right number, known flags, known values. Variables are not
//! expanded yet.

use crate::duration::{parse_duration, refused_duration};
use crate::flags::{FlagKind, Flags};
use crate::keyword::Keyword;
use crate::mount::MountFlag;
use crate::parse::heredoc_opening;
use crate::run_flags::{device, is_insecure, network};
use crate::suggest::nearest;
use crate::{Arguments, FrontendError, Instruction, Pair, Problem, Span, Token};
use forge_image::Healthcheck;
use forge_llb::{CdiDevice, NetworkMode};

/// An instruction of a stage.
#[derive(Clone, Debug)]
pub(crate) struct Command {
    pub action: Action,
    /// The keyword as written.
    pub keyword: Token,
    /// The instruction's text on one line.
    pub text: String,
    pub span: Span,
    pub comments: Vec<Token>,
    pub origin: Origin,
}

/// Where an instruction comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The stage itself.
    Stage,
    /// An ONBUILD of another stage of the file.
    StageTrigger,
    /// An ONBUILD of a base image, which the user may never have read (A41).
    ImageTrigger,
}

/// What an instruction does.
#[derive(Clone, Debug)]
pub(crate) enum Action {
    Arg(Vec<ArgDefinition>),
    Env(Vec<Pair>),
    Label(Vec<Pair>),
    Expose(Vec<Token>),
    Volume(Vec<Token>),
    User(Token),
    Workdir(Token),
    Stopsignal(Token),
    Maintainer(Token),
    Shell(Vec<String>),
    Cmd(CommandLine),
    Entrypoint(CommandLine),
    Healthcheck(Healthcheck),
    Onbuild(String),
    Run(RunCommand),
    Copy(Box<CopyCommand>),
}

/// One variable of an ARG.
#[derive(Clone, Debug)]
pub(crate) struct ArgDefinition {
    pub key: Token,
    pub default: Option<Token>,
}

/// What RUN, CMD and ENTRYPOINT run.
#[derive(Clone, Debug)]
pub(crate) enum CommandLine {
    /// A text for the shell.
    Shell(String),
    /// A program and its arguments.
    Exec(Vec<String>),
}

/// RUN.
#[derive(Clone, Debug)]
pub(crate) struct RunCommand {
    pub line: CommandLine,
    /// The heredocs as they stand, and without leading tabs where asked for.
    pub heredocs: Vec<crate::Heredoc>,
    pub mounts: Vec<MountFlag>,
    pub network: Option<Asked<NetworkMode>>,
    /// `--security=insecure`.
    pub insecure: Option<Span>,
    pub devices: Vec<Asked<CdiDevice>>,
}

/// What a flag asks for, and where it stands.
#[derive(Clone, Debug)]
pub(crate) struct Asked<T> {
    pub value: T,
    pub span: Span,
}

/// COPY and ADD.
#[derive(Clone, Debug)]
pub(crate) struct CopyCommand {
    pub add: bool,
    pub sources: Vec<Token>,
    pub heredocs: Vec<crate::Heredoc>,
    pub destination: Token,
    pub from: Option<Token>,
    pub chown: Option<Token>,
    pub chmod: Option<Token>,
    pub exclude: Vec<Token>,
    /// `--link`: the files are a layer of their own, whatever is below it.
    pub link: bool,
    /// `--parents`: the folders that a source names are kept.
    pub parents: bool,
    /// `--keep-git-dir`, where it is written.
    pub keep_git_dir: Option<Asked<bool>>,
    /// `--unpack`, where it is written.
    pub unpack: Option<bool>,
    pub checksum: Option<Token>,
}

impl Command {
    /// Checks an instruction.
    ///
    /// # Errors
    /// The instruction is unknown, or its flags or words are not what it takes.
    pub fn read(instruction: &Instruction) -> Result<Self, FrontendError> {
        let action = Reader { instruction }.action().map_err(|error| error.or_at(instruction.span))?;
        Ok(Self {
            action,
            keyword: instruction.keyword.clone(),
            text: instruction.text.clone(),
            span: instruction.span,
            comments: instruction.comments.clone(),
            origin: Origin::Stage,
        })
    }
}

/// An instruction that there is none of.
fn unknown_instruction(instruction: &Instruction) -> FrontendError {
    let name = instruction.keyword.text.clone();
    let suggestion = nearest(&name, Keyword::ALL.iter().map(|(known, _)| *known));
    let error = FrontendError::from(Problem::UnknownInstruction { name: name.to_uppercase() });
    FrontendError { suggestion, ..error }.or_at(instruction.keyword.span)
}

struct Reader<'a> {
    instruction: &'a Instruction,
}

fn wrong<T>(reason: impl Into<String>) -> Result<T, FrontendError> {
    Err(Problem::syntax(reason).into())
}

impl Reader<'_> {
    fn action(&self) -> Result<Action, FrontendError> {
        let Some(keyword) = self.instruction.kind() else { return Err(unknown_instruction(self.instruction)) };
        match keyword {
            Keyword::Add | Keyword::Copy => return self.copy(keyword == Keyword::Add),
            Keyword::Run => return self.run(),
            Keyword::Healthcheck => return self.healthcheck(),
            _ => Flags::none(self.instruction)?,
        }
        match keyword {
            Keyword::Arg => self.arg(),
            Keyword::Env => Ok(Action::Env(self.pairs("ENV")?)),
            Keyword::Label => Ok(Action::Label(self.pairs("LABEL")?)),
            Keyword::Expose => self.expose(),
            Keyword::Volume => self.volume(),
            Keyword::User => Ok(Action::User(self.one("USER")?)),
            Keyword::Workdir => Ok(Action::Workdir(self.one("WORKDIR")?)),
            Keyword::Stopsignal => Ok(Action::Stopsignal(self.one("STOPSIGNAL")?)),
            Keyword::Maintainer => Ok(Action::Maintainer(self.one("MAINTAINER")?)),
            Keyword::Shell => self.shell(),
            Keyword::Cmd => Ok(Action::Cmd(command_line(&self.instruction.arguments))),
            Keyword::Entrypoint => Ok(Action::Entrypoint(command_line(&self.instruction.arguments))),
            Keyword::Onbuild => self.onbuild(),
            _ => wrong(format!("unexpected {}", keyword.name())),
        }
    }

    fn words(&self, keyword: &str) -> Result<Vec<Token>, FrontendError> {
        match &self.instruction.arguments {
            Arguments::Words(words) | Arguments::Json(words) if !words.is_empty() => Ok(words.clone()),
            _ => wrong(format!("{keyword} requires at least one argument")),
        }
    }

    fn one(&self, keyword: &str) -> Result<Token, FrontendError> {
        match &self.instruction.arguments {
            Arguments::Text(token) => Ok(token.clone()),
            _ => wrong(format!("{keyword} requires exactly one argument")),
        }
    }

    fn pairs(&self, keyword: &str) -> Result<Vec<Pair>, FrontendError> {
        match &self.instruction.arguments {
            Arguments::Pairs(pairs) if pairs.iter().any(|pair| pair.key.text.is_empty()) => {
                wrong(format!("{keyword} names can not be blank"))
            }
            Arguments::Pairs(pairs) if !pairs.is_empty() => Ok(pairs.clone()),
            _ => wrong(format!("{keyword} requires at least one argument")),
        }
    }

    fn arg(&self) -> Result<Action, FrontendError> {
        let definitions = self.words("ARG")?.into_iter().map(|word| {
            let (key, default) = match word.text.split_once('=') {
                Some((key, value)) => (key, Some(Token { text: value.to_owned(), span: word.span })),
                None => (word.text.as_str(), None),
            };
            match key {
                "" => wrong("ARG names can not be blank"),
                key => Ok(ArgDefinition { key: Token { text: key.to_owned(), span: word.span }, default }),
            }
        });
        Ok(Action::Arg(definitions.collect::<Result<_, _>>()?))
    }

    /// The ports come out sorted by their text, as history entries show them.
    fn expose(&self) -> Result<Action, FrontendError> {
        let mut words = self.words("EXPOSE")?;
        words.sort_by(|a, b| a.text.cmp(&b.text));
        Ok(Action::Expose(words))
    }

    fn volume(&self) -> Result<Action, FrontendError> {
        let mut words = self.words("VOLUME")?;
        words.iter_mut().for_each(|word| word.text = word.text.trim().to_owned());
        match words.iter().any(|word| word.text.is_empty()) {
            true => wrong("VOLUME specified can not be an empty string"),
            false => Ok(Action::Volume(words)),
        }
    }

    fn shell(&self) -> Result<Action, FrontendError> {
        match &self.instruction.arguments {
            Arguments::Json(words) if words.is_empty() => wrong("SHELL requires at least one argument"),
            Arguments::Json(words) => Ok(Action::Shell(texts(words))),
            _ => wrong("SHELL requires the arguments to be in JSON form"),
        }
    }

    fn onbuild(&self) -> Result<Action, FrontendError> {
        let Arguments::Trigger(trigger) = &self.instruction.arguments else {
            return wrong("ONBUILD requires at least one argument");
        };
        if let Some(keyword @ (Keyword::Maintainer | Keyword::From)) = trigger.kind() {
            return wrong(format!("{} isn't allowed as an ONBUILD trigger", keyword.name()));
        }
        let mut text = trigger.text.clone();
        for heredoc in &trigger.heredocs {
            text += &format!("\n{}{}", heredoc.body.text, heredoc.name);
        }
        Ok(Action::Onbuild(text))
    }

    fn run(&self) -> Result<Action, FrontendError> {
        let known = [
            ("mount", FlagKind::List),
            ("network", FlagKind::Text),
            ("security", FlagKind::Text),
            ("device", FlagKind::List),
        ];
        let flags = Flags::of(self.instruction, &known)?;
        let network = flags.text("network").map(network).transpose()?;
        let insecure = flags.text("security").map(is_insecure).transpose()?.flatten();
        let mounts = flags.list("mount").iter().map(MountFlag::read).collect::<Result<_, _>>()?;
        let devices = flags.list("device").iter().map(device).collect::<Result<_, _>>()?;
        let line = command_line(&self.instruction.arguments);
        match &line {
            CommandLine::Exec(args) if args.is_empty() => wrong("RUN requires at least one argument"),
            CommandLine::Shell(text) if text.is_empty() => wrong("RUN requires at least one argument"),
            _ => {
                let heredocs = self.instruction.heredocs.clone();
                Ok(Action::Run(RunCommand { line, heredocs, mounts, network, insecure, devices }))
            }
        }
    }

    fn copy(&self, add: bool) -> Result<Action, FrontendError> {
        let keyword = if add { "ADD" } else { "COPY" };
        let flags = Flags::of(self.instruction, if add { ADD_FLAGS } else { COPY_FLAGS })?;
        let mut words = match &self.instruction.arguments {
            Arguments::Words(words) | Arguments::Json(words) => words.clone(),
            _ => Vec::new(),
        };
        let destination = words.pop().filter(|_| !words.is_empty());
        let Some(destination) = destination else {
            return wrong(format!(
                "{keyword} requires at least two arguments, but only one was provided. Destination could not be determined"
            ));
        };
        if heredoc_opening(&destination.text) {
            return wrong(format!("{keyword} cannot accept a heredoc as a destination"));
        }
        if !matches!(self.instruction.arguments, Arguments::Json(_)) {
            words.retain(|word| !heredoc_opening(&word.text));
        }
        Ok(Action::Copy(Box::new(CopyCommand {
            add,
            sources: words,
            heredocs: self.instruction.heredocs.clone(),
            destination,
            from: flags.text("from").filter(|from| !from.text.is_empty()).cloned(),
            chown: flags.text("chown").filter(|owner| !owner.text.is_empty()).cloned(),
            chmod: flags.text("chmod").filter(|mode| !mode.text.is_empty()).cloned(),
            exclude: flags.list("exclude"),
            link: flags.is_set("link"),
            parents: flags.is_set("parents"),
            keep_git_dir: flags.text("keep-git-dir").map(|flag| Asked { value: flag.text == "true", span: flag.span }),
            unpack: flags.text("unpack").map(|flag| flag.text == "true"),
            checksum: flags.text("checksum").filter(|checksum| !checksum.text.is_empty()).cloned(),
        })))
    }

    fn healthcheck(&self) -> Result<Action, FrontendError> {
        let known = ["interval", "timeout", "start-period", "start-interval", "retries"];
        let flags = Flags::of(self.instruction, &known.map(|name| (name, FlagKind::Text)))?;
        let Arguments::Check { kind, command } = &self.instruction.arguments else {
            return wrong("HEALTHCHECK requires at least one argument");
        };
        let test = match (kind.text.to_uppercase().as_str(), command.as_ref()) {
            ("NONE", Arguments::None) => {
                return Ok(Action::Healthcheck(Healthcheck {
                    test: vec!["NONE".to_owned()],
                    ..Healthcheck::default()
                }));
            }
            ("NONE", _) => return wrong("HEALTHCHECK NONE takes no arguments"),
            ("CMD", Arguments::Json(words)) if !words.is_empty() => with_first("CMD", texts(words)),
            ("CMD", Arguments::Text(text)) => with_first("CMD-SHELL", vec![text.text.clone()]),
            ("CMD", _) => return wrong("Missing command after HEALTHCHECK CMD"),
            (_, _) => return wrong(format!("Unknown type {:?} in HEALTHCHECK (try CMD)", kind.text.to_uppercase())),
        };
        Ok(Action::Healthcheck(Healthcheck {
            test,
            interval: duration(&flags, "interval")?,
            timeout: duration(&flags, "timeout")?,
            start_period: duration(&flags, "start-period")?,
            start_interval: duration(&flags, "start-interval")?,
            retries: retries(&flags)?,
        }))
    }
}

const ADD_FLAGS: &[(&str, FlagKind)] = &[
    ("chown", FlagKind::Text),
    ("chmod", FlagKind::Text),
    ("link", FlagKind::Bool),
    ("keep-git-dir", FlagKind::Bool),
    ("checksum", FlagKind::Text),
    ("unpack", FlagKind::Bool),
    ("exclude", FlagKind::List),
];

const COPY_FLAGS: &[(&str, FlagKind)] = &[
    ("chown", FlagKind::Text),
    ("from", FlagKind::Text),
    ("chmod", FlagKind::Text),
    ("link", FlagKind::Bool),
    ("exclude", FlagKind::List),
    ("parents", FlagKind::Bool),
];

fn texts(words: &[Token]) -> Vec<String> {
    words.iter().map(|word| word.text.clone()).collect()
}

fn with_first(first: &str, mut rest: Vec<String>) -> Vec<String> {
    rest.insert(0, first.to_owned());
    rest
}

fn command_line(arguments: &Arguments) -> CommandLine {
    match arguments {
        Arguments::Json(words) => CommandLine::Exec(texts(words)),
        Arguments::Text(token) => CommandLine::Shell(token.text.clone()),
        _ => CommandLine::Shell(String::new()),
    }
}

/// docker takes no interval below a millisecond, but zero, which stands for the default.
fn duration(flags: &Flags, name: &str) -> Result<i64, FrontendError> {
    let Some(value) = flags.text(name).filter(|value| !value.text.is_empty()) else { return Ok(0) };
    let error = |reason: String| FrontendError::from(Problem::syntax(reason)).or_at(value.span);
    match parse_duration(&value.text) {
        None => Err(error(refused_duration(&value.text))),
        Some(0) => Ok(0),
        Some(nanoseconds) if nanoseconds < 1_000_000 => {
            Err(error(format!("Interval {name:?} cannot be less than 1ms")))
        }
        Some(nanoseconds) => Ok(nanoseconds),
    }
}

fn retries(flags: &Flags) -> Result<i64, FrontendError> {
    let Some(value) = flags.text("retries").filter(|value| !value.text.is_empty()) else { return Ok(0) };
    let error = |reason: String| FrontendError::from(Problem::syntax(reason)).or_at(value.span);
    match value.text.parse::<i32>() {
        Err(_) => Err(error(format!("--retries must be a number, not {:?}", value.text))),
        Ok(count) if count < 0 => Err(error(format!("--retries cannot be negative ({count})"))),
        Ok(count) => Ok(i64::from(count)),
    }
}
