//! Variable expansion: `$v`, `${v}` and the modifiers, in the syntax of a shell with a few differences that
//! Dockerfiles have always had.

mod budget;
mod pattern;
mod walker;

pub(crate) use budget::Budget;

use crate::{FrontendError, Problem};
use std::collections::BTreeSet;
use walker::Walker;

/// What becomes of quotes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Quotes {
    /// They quote, and are removed.
    Removed,
    /// They quote, and stay.
    Kept,
    /// They are letters like any other (heredoc bodies).
    Literal,
}

/// What becomes of variables that are not set.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unset {
    /// They are empty.
    Empty,
    /// They stay as they are written (step names).
    Kept,
}

/// Looks up variables.
pub(crate) trait Variables {
    /// The value of a variable, if it is set.
    fn get(&self, name: &str) -> Option<&str>;
}

/// Expands words.
pub(crate) struct Expander<'a> {
    pub variables: &'a dyn Variables,
    pub escape: char,
    pub quotes: Quotes,
    pub unset: Unset,
    pub budget: &'a Budget,
}

/// What came of an expansion.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Expanded {
    /// The text.
    pub text: String,
    /// The text split at blanks that are not quoted.
    pub words: Vec<String>,
    /// The variables that were used and set.
    pub used: BTreeSet<String>,
    /// The variables that were used and are not set, where no modifier provides for that.
    pub undefined: BTreeSet<String>,
}

impl Expander<'_> {
    /// Expands a word.
    ///
    /// # Errors
    /// The word does not follow the syntax, `?` finds its variable missing, or a cap is passed.
    pub fn expand(&self, word: &str) -> Result<Expanded, FrontendError> {
        let expanded = match plain(word, self.escape) {
            true => Expanded { text: word.to_owned(), words: split_plain(word), ..Expanded::default() },
            false => Walker::new(self, word).expand().map_err(|stop| stop.into_problem(word))?,
        };
        self.budget.value(expanded.text.len())?;
        Ok(expanded)
    }
}

/// Whether nothing in a word has a meaning, as is the case for most.
fn plain(word: &str, escape: char) -> bool {
    !word.contains(['$', '\'', '"', escape])
}

fn split_plain(word: &str) -> Vec<String> {
    word.split(walker::is_separator).filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

/// Why a walk ended early.
pub(crate) enum Stop {
    /// The text is wrong.
    Reason(String),
    /// A cap was passed.
    Limit(Problem),
}

impl Stop {
    fn into_problem(self, word: &str) -> Problem {
        match self {
            Self::Reason(reason) => Problem::Expansion { word: word.chars().take(300).collect(), reason },
            Self::Limit(problem) => problem,
        }
    }
}

impl From<Problem> for Stop {
    fn from(problem: Problem) -> Self {
        Self::Limit(problem)
    }
}

#[cfg(test)]
mod fuzz_tests;
#[cfg(test)]
mod tests;
