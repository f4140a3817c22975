use crate::{Span, Token, Warning};

/// A Dockerfile as it is written: instructions in order, every word with its place. Nothing is expanded yet and
/// no instruction has been asked whether its words make sense.
#[derive(Clone, Debug)]
pub struct Dockerfile {
    pub(crate) name: String,
    pub(crate) source: Vec<u8>,
    pub(crate) directives: Vec<Directive>,
    pub(crate) escape: char,
    pub(crate) instructions: Vec<Instruction>,
    pub(crate) warnings: Vec<Warning>,
}

impl Dockerfile {
    /// The file as the user named it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The bytes that spans point into.
    pub fn source(&self) -> &[u8] {
        &self.source
    }

    /// The parser directives in order.
    pub fn directives(&self) -> &[Directive] {
        &self.directives
    }

    /// The value of a directive.
    pub fn directive(&self, key: &str) -> Option<&Token> {
        self.directives.iter().find(|directive| directive.key.text == key).map(|directive| &directive.value)
    }

    /// The escape character: `\` unless a directive says otherwise.
    pub fn escape(&self) -> char {
        self.escape
    }

    /// The instructions in order.
    pub fn instructions(&self) -> &[Instruction] {
        &self.instructions
    }

    /// What the checks found in the text alone.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }
}

/// A parser directive, `# key=value` at the top of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directive {
    /// The key in lower case: `syntax`, `escape` or `check`.
    pub key: Token,
    /// The value.
    pub value: Token,
}

/// One instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// The keyword as written.
    pub keyword: Token,
    /// The flags, `--name=value`, without quotes.
    pub flags: Vec<Token>,
    /// What follows the flags.
    pub arguments: Arguments,
    /// The heredocs in order.
    pub heredocs: Vec<Heredoc>,
    /// The comments directly above, without `#`.
    pub comments: Vec<Token>,
    /// The instruction's text: continuations joined, comments left out, heredoc bodies not included.
    pub text: String,
    /// Everything from the keyword to the last line, heredocs included.
    pub span: Span,
}

/// The arguments of an instruction, in the shape that its keyword gives them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arguments {
    /// Nothing.
    None,
    /// Text up to the end of the instruction: the shell form of RUN, CMD and ENTRYPOINT, USER, WORKDIR.
    Text(Token),
    /// Words between blanks.
    Words(Vec<Token>),
    /// A JSON array of strings: the exec form.
    Json(Vec<Token>),
    /// `key=value` pairs of ENV and LABEL.
    Pairs(Vec<Pair>),
    /// HEALTHCHECK: the kind of check (`CMD`, `NONE`) and its command.
    Check {
        /// The kind as written.
        kind: Token,
        /// The command.
        command: Box<Arguments>,
    },
    /// ONBUILD: the instruction that it stores.
    Trigger(Box<Instruction>),
}

/// A key and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The key.
    pub key: Token,
    /// The value, still quoted.
    pub value: Token,
    /// Whether it was written `key value` instead of `key=value`.
    pub legacy: bool,
}

/// A text inside the Dockerfile that stands for a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heredoc {
    /// The word that ends it, and the name of the file.
    pub name: String,
    /// The file descriptor written before `<<`; zero where there is none.
    pub descriptor: u32,
    /// Whether variables in it are expanded: its word was not quoted.
    pub expand: bool,
    /// Whether leading tabs are dropped (`<<-`).
    pub strip_tabs: bool,
    /// The word as written, `<<-"EOF"`.
    pub opening: Token,
    /// The lines up to the one that ends it, tabs not yet dropped.
    pub body: Token,
}

impl Instruction {
    /// The same instruction as if all of it stood at one place: that of the FROM whose image brought it in.
    pub(crate) fn moved_to(mut self, span: Span) -> Self {
        self.span = span;
        self.keyword.span = span;
        self.flags.iter_mut().for_each(|flag| flag.span = span);
        self.arguments.move_to(span);
        for heredoc in &mut self.heredocs {
            heredoc.opening.span = span;
            heredoc.body.span = span;
        }
        self
    }
}

impl Arguments {
    fn move_to(&mut self, span: Span) {
        match self {
            Self::None => {}
            Self::Text(token) => token.span = span,
            Self::Words(tokens) | Self::Json(tokens) => tokens.iter_mut().for_each(|token| token.span = span),
            Self::Pairs(pairs) => pairs.iter_mut().for_each(|pair| {
                pair.key.span = span;
                pair.value.span = span;
            }),
            Self::Check { kind, command } => {
                kind.span = span;
                command.move_to(span);
            }
            Self::Trigger(trigger) => trigger.span = span,
        }
    }
}
