//! Which findings of the build checks are kept, and the checks that need nothing but the program.

use crate::command::{Action, Command};
use crate::program::{Program, Stage};
use crate::{Dockerfile, FrontendError, LowerOptions, Problem, Rule, Span, Token, Warning};
use std::cell::RefCell;
use std::collections::BTreeSet;

/// Nobody reads more, and a file made to have millions of them should not cost their memory (A113).
const MOST_FINDINGS: usize = 1_000;

/// What `# check=` asks for: `skip=A,B;error=true;experimental=all`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Config {
    skip: BTreeSet<String>,
    experimental: BTreeSet<String>,
    error: bool,
}

impl Config {
    fn parse(text: &str) -> Result<Self, FrontendError> {
        let mut config = Self::default();
        for option in text.split(';').map(str::trim).filter(|option| !option.is_empty()) {
            let wrong = || Problem::Directive { reason: format!("invalid check option {option:?}") };
            let (key, value) = option.split_once('=').ok_or_else(wrong)?;
            let rules = || value.split(',').map(|rule| rule.trim().to_owned()).collect();
            match key.trim() {
                "skip" => config.skip = rules(),
                "experimental" => config.experimental = rules(),
                "error" => config.error = parse_bool(value.trim()).ok_or_else(wrong)?,
                _ => return Err(wrong().into()),
            }
        }
        Ok(config)
    }

    /// `# check=…` directly above an instruction counts for it.
    fn of_comments(comments: &[Token]) -> Self {
        let options = comments.iter().find_map(|comment| {
            let (key, value) = comment.text.split_once('=')?;
            key.trim().eq_ignore_ascii_case("check").then_some(without_remark(value.trim()))
        });
        options.and_then(|text| Self::parse(text).ok()).unwrap_or_default()
    }

    fn allows(&self, rule: Rule, other: &Config) -> bool {
        let named = |rules: &BTreeSet<String>| rules.contains("all") || rules.contains(&rule.to_string());
        match rule.is_experimental() {
            true => named(&self.experimental) || named(&other.experimental),
            false => !named(&self.skip) && !named(&other.skip),
        }
    }
}

/// `skip=all // why` without the remark.
fn without_remark(options: &str) -> &str {
    options.split(' ').next().unwrap_or_default()
}

/// The texts that Go's `strconv.ParseBool` takes.
fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Takes findings.
#[derive(Default)]
pub(crate) struct Lint {
    config: Config,
    warnings: RefCell<Vec<Warning>>,
}

impl Lint {
    /// With the options of the `# check=` directive, or of the build argument, which wins. What follows a blank in
    /// the directive is a remark.
    pub fn of(dockerfile: &Dockerfile, options: &LowerOptions) -> Result<Self, FrontendError> {
        let directive = dockerfile.directive("check");
        let config = match (options.build_args.get("BUILDKIT_DOCKERFILE_CHECK"), directive) {
            (Some(given), _) => Config::parse(given)?,
            (None, Some(value)) => {
                Config::parse(without_remark(&value.text)).map_err(|error| error.or_at(value.span))?
            }
            (None, None) => Config::default(),
        };
        Ok(Self { config, warnings: RefCell::default() })
    }

    /// Takes a finding about an instruction, unless the file or the comments above it say not to.
    pub fn report(&self, rule: Rule, span: Span, words: &[&str], comments: &[Token]) {
        self.keep(rule.at(span, words), comments);
    }

    /// Whether a finding of a rule about an instruction would be taken.
    pub fn wants(&self, rule: Rule, comments: &[Token]) -> bool {
        self.warnings.borrow().len() < MOST_FINDINGS && self.config.allows(rule, &Config::of_comments(comments))
    }

    /// Takes a finding that was made before.
    pub fn keep(&self, warning: Warning, comments: &[Token]) {
        if self.wants(warning.rule, comments) {
            self.warnings.borrow_mut().push(warning);
        }
    }

    /// What was found, in the order of the file, each once.
    ///
    /// # Errors
    /// The file says that findings are errors, and there are some.
    pub fn finish(self) -> Result<Vec<Warning>, FrontendError> {
        let warnings = self.found();
        match self.violation(&warnings) {
            Some(error) => Err(error),
            None => Ok(warnings),
        }
    }

    /// What was found so far, in the order of the file, each once.
    pub fn found(&self) -> Vec<Warning> {
        let mut warnings = self.warnings.borrow().clone();
        let line = |warning: &Warning| (warning.span.first_line, warning.span.start);
        warnings.sort_by(|a, b| (line(a), a.rule, &a.message).cmp(&(line(b), b.rule, &b.message)));
        warnings.dedup();
        warnings
    }

    /// The error that findings are, where the file says so.
    pub fn violation(&self, warnings: &[Warning]) -> Option<FrontendError> {
        let first = warnings.first().filter(|_| self.config.error)?;
        let rules: BTreeSet<String> = warnings.iter().map(|warning| warning.rule.to_string()).collect();
        let rules = rules.into_iter().collect::<Vec<_>>().join(", ");
        Some(FrontendError::from(Problem::LintViolation { rules }).or_at(first.span))
    }
}

/// The checks of names and spelling, over all stages, needed or not.
pub(crate) fn check_program(program: &Program, lint: &Lint) {
    check_casing(program, lint);
    program.preamble.iter().for_each(|command| check_command(command, lint));
    let mut names = BTreeSet::new();
    for stage in &program.stages {
        check_stage_name(stage, &mut names, lint);
        if let Some(name) = &stage.name {
            check_description("FROM", &[name], &stage.comments, stage.span, lint);
        }
        stage.commands.iter().for_each(|command| check_command(command, lint));
    }
}

fn check_command(command: &Command, lint: &Lint) {
    match &command.action {
        Action::Arg(definitions) => {
            let names: Vec<&str> = definitions.iter().map(|definition| definition.key.text.as_str()).collect();
            check_description("ARG", &names, &command.comments, command.span, lint);
        }
        Action::Maintainer(_) => lint.report(Rule::MaintainerDeprecated, command.span, &[], &command.comments),
        _ => {}
    }
}

fn check_stage_name<'a>(stage: &'a Stage, names: &mut BTreeSet<&'a str>, lint: &Lint) {
    let report = |rule: Rule, words: &[&str]| lint.report(rule, stage.span, words, &stage.comments);
    let (Some(name), Some(written), Some(connective)) = (&stage.name, &stage.written_name, &stage.connective) else {
        return;
    };
    if *name != written.text {
        report(Rule::StageNameCasing, &[&written.text]);
    }
    if let (Some(from), Some(connective_case)) = (Case::of(&stage.keyword.text), Some(Case::of(&connective.text)))
        && Some(from) != connective_case
    {
        report(Rule::FromAsCasing, &[&stage.keyword.text, &connective.text]);
    }
    if matches!(name.as_str(), "context" | "scratch") {
        report(Rule::ReservedStageName, &[name]);
    }
    if !names.insert(name) {
        report(Rule::DuplicateStageName, &[name]);
    }
}

/// The last comment above ARG or a named FROM should begin with what it describes.
fn check_description(keyword: &str, names: &[&str], comments: &[Token], span: Span, lint: &Lint) {
    let Some(first) = comments.last().and_then(|comment| comment.text.split(' ').next()) else { return };
    if names.is_empty() || names.contains(&first) {
        return;
    }
    let example = if names.len() > 1 { "<arg_key>" } else { names[0] };
    lint.report(Rule::InvalidDefinitionDescription, span, &[keyword, example], comments);
}

/// How a word is spelt.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Case {
    Lower,
    Upper,
}

impl Case {
    /// `None` where both are mixed.
    fn of(word: &str) -> Option<Case> {
        if word == word.to_lowercase() {
            Some(Case::Lower)
        } else if word == word.to_uppercase() {
            Some(Case::Upper)
        } else {
            None
        }
    }
}

fn check_casing(program: &Program, lint: &Lint) {
    let stages = program.stages.iter();
    let keywords = stages.flat_map(|stage| {
        let own = std::iter::once((&stage.keyword, stage.span, &stage.comments));
        own.chain(stage.commands.iter().map(|command| (&command.keyword, command.span, &command.comments)))
    });
    let keywords: Vec<_> = keywords.collect();
    let count = |case| keywords.iter().filter(|(keyword, ..)| Case::of(&keyword.text) == Some(case)).count();
    let (majority, name) = match count(Case::Lower) > count(Case::Upper) {
        true => (Case::Lower, "lowercase"),
        false => (Case::Upper, "uppercase"),
    };
    for (keyword, span, comments) in keywords {
        if Case::of(&keyword.text) != Some(majority) {
            lint.report(Rule::ConsistentInstructionCasing, span, &[&keyword.text, name], comments);
        }
    }
}

/// Whether a variable's name speaks of a secret: a part between `_` that does, and none that says otherwise.
pub(crate) fn names_a_secret(name: &str) -> bool {
    const SECRET: [&str; 10] =
        ["apikey", "auth", "credential", "credentials", "key", "password", "pword", "passwd", "secret", "token"];
    const HARMLESS: [&str; 3] = ["public", "file", "version"];
    let name = name.to_lowercase();
    let has = |words: &[&str]| name.split('_').any(|part| words.contains(&part));
    has(&SECRET) && !has(&HARMLESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_by_name() {
        for name in ["DB_PASSWORD", "api_key", "TOKEN", "GITHUB_TOKEN_2"] {
            assert!(names_a_secret(name), "{name}");
        }
        for name in ["PUBLIC_KEY", "KEYBOARD", "TOKEN_FILE", "NAME", "APITOKENS"] {
            assert!(!names_a_secret(name), "{name}");
        }
    }

    #[test]
    fn check_options() {
        let config = Config::parse("skip=A, B;error=true").unwrap();
        assert!(config.error && config.skip.contains("B"));
        assert!(
            Config::parse("skip").is_err() && Config::parse("x=1").is_err() && Config::parse("error=maybe").is_err()
        );
        assert_eq!(Config::parse("").unwrap(), Config::default());
    }
}
