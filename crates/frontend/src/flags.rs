use crate::suggest::nearest;
use crate::{FrontendError, Instruction, Problem, Token};

/// What a flag takes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum FlagKind {
    /// Nothing, `true` or `false`.
    Bool,
    /// A value, once.
    Text,
    /// A value, any number of times.
    List,
}

/// The flags of an instruction, checked against those that it has.
pub(crate) struct Flags {
    values: Vec<(&'static str, Token)>,
}

impl Flags {
    /// Checks the flags that were written.
    pub fn of(instruction: &Instruction, known: &[(&'static str, FlagKind)]) -> Result<Self, FrontendError> {
        let mut flags = Self { values: Vec::new() };
        for flag in &instruction.flags {
            flags.add(flag, known).map_err(|error| error.or_at(flag.span))?;
        }
        Ok(flags)
    }

    /// No flag may be written.
    pub fn none(instruction: &Instruction) -> Result<(), FrontendError> {
        Self::of(instruction, &[]).map(drop)
    }

    fn add(&mut self, flag: &Token, known: &[(&'static str, FlagKind)]) -> Result<(), FrontendError> {
        let (name, value) = match flag.text.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (flag.text.as_str(), None),
        };
        let Some((key, kind)) = known.iter().find(|(key, _)| Some(*key) == name.strip_prefix("--")) else {
            let suggestion = nearest(name.trim_start_matches('-'), known.iter().map(|(key, _)| *key));
            let error = FrontendError::from(wrong(format!("unknown flag: {name}")));
            return Err(FrontendError { suggestion, ..error });
        };
        if *kind != FlagKind::List && self.text(key).is_some() {
            return Err(wrong(format!("duplicate flag specified: {name}")).into());
        }
        let value = match (kind, value) {
            (FlagKind::Bool, Some("")) | (FlagKind::Text | FlagKind::List, None) => {
                return Err(wrong(format!("missing a value on flag: {name}")).into());
            }
            (FlagKind::Bool, value) => match value.unwrap_or("true").to_lowercase().as_str() {
                value @ ("true" | "false") => value.to_owned(),
                _ => {
                    let value = value.unwrap_or_default();
                    return Err(wrong(format!("expecting boolean value for flag {name}, not: {value}")).into());
                }
            },
            (_, Some(value)) => value.to_owned(),
        };
        self.values.push((key, Token { text: value, span: flag.span }));
        Ok(())
    }

    /// The value of a flag.
    pub fn text(&self, name: &str) -> Option<&Token> {
        self.values.iter().find(|(key, _)| *key == name).map(|(_, value)| value)
    }

    /// The values of a flag that may be repeated.
    pub fn list(&self, name: &str) -> Vec<Token> {
        self.values.iter().filter(|(key, _)| *key == name).map(|(_, value)| value.clone()).collect()
    }

    /// Whether a boolean flag is on.
    pub fn is_set(&self, name: &str) -> bool {
        self.text(name).is_some_and(|value| value.text == "true")
    }
}

fn wrong(reason: String) -> Problem {
    Problem::Flag { reason }
}
