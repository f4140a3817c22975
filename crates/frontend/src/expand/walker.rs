use super::budget::MAX_VALUE;
use super::pattern::{Greed, Pattern};
use super::{Expanded, Expander, Quotes, Stop, Unset};
use crate::Problem;

/// Defaults within defaults; people write two or three (A114).
const MAX_DEPTH: usize = 64;

/// Whether a character separates words. Line feeds do not: a value of several lines is one word.
pub(super) fn is_separator(c: char) -> bool {
    matches!(c, '\t' | '\r' | ' ')
}

/// Collects words while text is written.
#[derive(Default)]
struct Words {
    done: Vec<String>,
    current: Option<String>,
}

impl Words {
    /// Text whose blanks separate words.
    fn push(&mut self, text: &str) {
        for c in text.chars() {
            match is_separator(c) {
                true => self.done.extend(self.current.take()),
                false => self.current.get_or_insert_default().push(c),
            }
        }
    }

    /// Quoted text: its blanks do not separate, and even when empty it is a word.
    fn push_quoted(&mut self, text: &str) {
        self.current.get_or_insert_default().push_str(text);
    }

    fn finish(mut self) -> Vec<String> {
        self.done.extend(self.current);
        self.done
    }
}

/// One pass over a word.
pub(super) struct Walker<'a> {
    expander: &'a Expander<'a>,
    rest: &'a str,
    depth: usize,
    words: Words,
    result: Expanded,
}

type Text = Result<String, Stop>;

fn wrong<T>(reason: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Reason(reason.into()))
}

impl<'a> Walker<'a> {
    pub fn new(expander: &'a Expander<'a>, word: &'a str) -> Self {
        Self { expander, rest: word, depth: 0, words: Words::default(), result: Expanded::default() }
    }

    /// Expands all of the word.
    pub fn expand(mut self) -> Result<Expanded, Stop> {
        let text = self.until(None, false)?;
        Ok(Expanded { text, words: self.words.finish(), ..self.result })
    }

    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let mut chars = self.rest.chars();
        let next = chars.next();
        self.rest = chars.as_str();
        next
    }

    /// Expands up to a character, which is taken, or to the end. Only the outermost call collects words.
    fn until(&mut self, stop: Option<char>, keep_escapes: bool) -> Text {
        let mut text = String::new();
        let outermost = stop.is_none();
        while let Some(c) = self.peek() {
            if Some(c) == stop {
                self.next();
                return Ok(text);
            }
            let quoting = self.expander.quotes != Quotes::Literal;
            let (piece, quoted) = match c {
                '$' => (self.dollar()?, false),
                '\'' if quoting => (self.single_quoted()?, true),
                '"' if quoting => (self.double_quoted(keep_escapes)?, true),
                c if c == self.expander.escape => (self.escaped(keep_escapes), true),
                _ => (self.plain(stop), false),
            };
            match (outermost, quoted) {
                (true, true) => self.words.push_quoted(&piece),
                (true, false) => self.words.push(&piece),
                _ => {}
            }
            text.push_str(&piece);
            if text.len() > MAX_VALUE {
                return Err(Problem::TooLarge { what: "an expanded value", limit: "1 MiB" }.into());
            }
        }
        match stop {
            None => Ok(text),
            Some(_) => wrong("syntax error: missing '}'"),
        }
    }

    /// The text up to the next character with a meaning.
    fn plain(&mut self, stop: Option<char>) -> String {
        let escape = self.expander.escape;
        let special = |c: char| matches!(c, '$' | '\'' | '"') || c == escape || Some(c) == stop;
        let first = self.peek().map_or(0, char::len_utf8);
        let length = self.rest[first..].find(special).map_or(self.rest.len(), |found| first + found);
        let (piece, rest) = self.rest.split_at(length);
        self.rest = rest;
        piece.to_owned()
    }

    /// An escape character and what it makes literal. At the very end it is dropped.
    fn escaped(&mut self, keep_escape: bool) -> String {
        let escape = self.next().filter(|_| keep_escape);
        escape.into_iter().chain(self.next()).collect()
    }

    fn single_quoted(&mut self) -> Text {
        self.next();
        let Some(end) = self.rest.find('\'') else {
            return wrong("unexpected end of statement while looking for matching single-quote");
        };
        let inner = &self.rest[..end];
        self.rest = &self.rest[end + 1..];
        Ok(match self.expander.quotes {
            Quotes::Kept => format!("'{inner}'"),
            _ => inner.to_owned(),
        })
    }

    fn double_quoted(&mut self, keep_escapes: bool) -> Text {
        let kept = self.expander.quotes == Quotes::Kept;
        let mut text = String::from(if kept { "\"" } else { "" });
        self.next();
        loop {
            match self.peek() {
                None => return wrong("unexpected end of statement while looking for matching double-quote"),
                Some('"') => {
                    self.next();
                    text.extend(kept.then_some('"'));
                    return Ok(text);
                }
                Some('$') => text += &self.dollar()?,
                Some(c) if c == self.expander.escape => text += &self.escaped_in_quotes(keep_escapes),
                Some(c) => {
                    self.next();
                    text.push(c);
                }
            }
        }
    }

    /// Between double quotes, only the quote, `$` and the escape character itself can be escaped.
    fn escaped_in_quotes(&mut self, keep_escape: bool) -> String {
        let escape = self.next().unwrap_or('\\');
        match self.peek() {
            Some(c) if matches!(c, '"' | '$') || c == escape => {
                self.next();
                if keep_escape { String::from_iter([escape, c]) } else { c.to_string() }
            }
            Some(_) => escape.to_string(),
            None => String::new(),
        }
    }

    /// `$`, `$name` or `${…}`.
    fn dollar(&mut self) -> Text {
        self.next();
        match self.peek() {
            Some('{') => {
                self.next();
                self.braced()
            }
            _ => match self.name() {
                "" => Ok("$".to_owned()),
                name => Ok(match self.lookup(name, true) {
                    Some(value) => value.to_owned(),
                    None if self.expander.unset == Unset::Kept => format!("${name}"),
                    None => String::new(),
                }),
            },
        }
    }

    /// A name: digits, one special character, or letters, digits and `_`. Empty where there is none.
    fn name(&mut self) -> &'a str {
        let word = |c: char| c.is_alphanumeric() || c == '_';
        let end = match self.peek() {
            Some(c) if c.is_numeric() => self.rest.find(|c: char| !c.is_numeric()),
            Some('@' | '*' | '#' | '?' | '-' | '$' | '!') => Some(1),
            _ => self.rest.find(|c| !word(c)),
        };
        let (name, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        name
    }

    /// The value of a variable. `required` says that nothing provides for its absence.
    fn lookup(&mut self, name: &str, required: bool) -> Option<&'a str> {
        let value = self.expander.variables.get(name);
        match value {
            Some(_) => _ = self.result.used.insert(name.to_owned()),
            None if required => _ = self.result.undefined.insert(name.to_owned()),
            None => {}
        }
        value
    }

    /// What follows `${`.
    fn braced(&mut self) -> Text {
        match self.peek() {
            None => return wrong("syntax error: missing '}'"),
            Some('{' | '}' | ':') => return wrong("syntax error: bad substitution"),
            _ => {}
        }
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(Problem::TooLarge { what: "the nesting of an expansion", limit: "64 levels" }.into());
        }
        let name = self.name();
        let text = match self.next() {
            None => wrong("syntax error: missing '}'"),
            Some('}') => Ok(match self.lookup(name, true) {
                Some(value) => value.to_owned(),
                None if self.expander.unset == Unset::Kept => format!("${{{name}}}"),
                None => String::new(),
            }),
            Some(':') => match self.next() {
                Some(modifier @ ('-' | '+' | '?')) => self.conditional(name, modifier, true),
                other => unsupported(&format!(":{}", other.map(String::from).unwrap_or_default())),
            },
            Some(modifier @ ('-' | '+' | '?')) => self.conditional(name, modifier, false),
            Some(modifier @ ('#' | '%')) => self.trimmed(name, modifier),
            Some('/') => self.replaced(name),
            Some(other) => unsupported(&other.to_string()),
        };
        self.depth -= 1;
        text
    }

    /// `${v:-w}`, `${v:+w}`, `${v:?w}` and the same without the colon, which take an empty value for set.
    fn conditional(&mut self, name: &str, modifier: char, empty_is_unset: bool) -> Text {
        let word = self.until(Some('}'), false)?;
        let value = self.lookup(name, false);
        if value.is_none() && self.expander.unset == Unset::Kept {
            let colon = if empty_is_unset { ":" } else { "" };
            return Ok(format!("${{{name}{colon}{modifier}{word}}}"));
        }
        let usable = value.filter(|value| !(empty_is_unset && value.is_empty()));
        match (modifier, usable) {
            ('+', Some(_)) => Ok(word),
            ('+', None) => Ok(String::new()),
            (_, Some(value)) => Ok(value.to_owned()),
            ('-', None) => Ok(word),
            (_, None) => {
                let missing = if value.is_some() { "is not allowed to be empty" } else { "is not allowed to be unset" };
                wrong(format!("{name}: {}", if word.is_empty() { missing } else { &word }))
            }
        }
    }

    /// `${v#p}`, `${v##p}`, `${v%p}`, `${v%%p}`.
    fn trimmed(&mut self, name: &str, modifier: char) -> Text {
        let word = self.until(Some('}'), true)?;
        let Some(value) = self.lookup(name, true) else {
            return Ok(match self.expander.unset {
                Unset::Kept => format!("${{{name}{modifier}{word}}}"),
                Unset::Empty => String::new(),
            });
        };
        let (greed, pattern) = match word.strip_prefix(modifier) {
            Some(pattern) => (Greed::Longest, pattern),
            None => (Greed::Shortest, word.as_str()),
        };
        let pattern = Pattern::new(pattern, self.expander.escape).map_err(Stop::Reason)?;
        let mut letters: Vec<char> = value.chars().collect();
        let suffix = modifier == '%';
        let pattern = if suffix { pattern.reversed() } else { pattern };
        if suffix {
            letters.reverse();
        }
        let end = pattern.match_at(&letters, 0, greed, self.expander.budget)?.unwrap_or(0);
        let kept = letters[end..].iter();
        Ok(if suffix { kept.rev().collect() } else { kept.collect() })
    }

    /// `${v/p/r}` and `${v//p/r}`.
    fn replaced(&mut self, name: &str) -> Text {
        let all = self.peek() == Some('/');
        if all {
            self.next();
        }
        let pattern = match self.until(Some('/'), true) {
            Err(Stop::Reason(_)) => return wrong("syntax error: missing '/' in ${}"),
            pattern => pattern?,
        };
        let replacement = self.until(Some('}'), true)?;
        let Some(value) = self.lookup(name, true) else {
            let slashes = if all { "//" } else { "/" };
            return Ok(match self.expander.unset {
                Unset::Kept => format!("${{{name}{slashes}{pattern}/{replacement}}}"),
                Unset::Empty => String::new(),
            });
        };
        let pattern = Pattern::new(&pattern, self.expander.escape).map_err(Stop::Reason)?;
        let replacement = unescaped_replacement(&replacement, self.expander.escape);
        self.replace(value, &pattern, &replacement, all)
    }

    fn replace(&mut self, value: &str, pattern: &Pattern, replacement: &str, all: bool) -> Text {
        let letters: Vec<char> = value.chars().collect();
        let mut text = String::new();
        let mut at = 0;
        while !pattern.is_empty() && at <= letters.len() {
            let Some((start, end)) = pattern.find(&letters, at, self.expander.budget)? else { break };
            text.extend(&letters[at..start]);
            text += replacement;
            if text.len() > MAX_VALUE {
                return Err(Problem::TooLarge { what: "an expanded value", limit: "1 MiB" }.into());
            }
            at = end;
            if !all || end == letters.len() || start == end {
                break;
            }
        }
        text.extend(letters.get(at..).unwrap_or_default());
        Ok(text)
    }
}

/// In a replacement, `\/` and `\}` stand for what would end it.
fn unescaped_replacement(text: &str, escape: char) -> String {
    text.replace(&format!("{escape}/"), "/").replace(&format!("{escape}}}"), "}")
}

fn unsupported(modifier: &str) -> Text {
    wrong(format!("unsupported modifier ({modifier}) in substitution"))
}
