//! P02: expansion against an interpreter that is slow and obvious.

#[path = "../../../testkit/src/fuzz.rs"]
#[allow(dead_code, reason = "targets use parts of it")]
mod fuzz;

use super::tests::Map;
use super::*;
use fuzz::Random;
use std::collections::BTreeSet;

/// What a pattern is made of.
#[derive(Clone, Copy)]
enum Item {
    Char(char),
    One,
    Any,
}

/// One character after the other, straight from the description of the language.
struct Interpreter<'a> {
    letters: Vec<char>,
    at: usize,
    variables: &'a Map,
    escape: char,
    undefined: BTreeSet<String>,
}

/// The text, or that there is an error.
type Text = Option<String>;

impl Interpreter<'_> {
    fn peek(&self) -> Option<char> {
        self.letters.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        self.at += 1;
        self.letters.get(self.at - 1).copied()
    }

    /// Up to `stop`. `raw` keeps escapes, for patterns.
    fn word(&mut self, stop: Option<char>, raw: bool) -> Text {
        let mut text = String::new();
        loop {
            match self.peek() {
                None => return stop.is_none().then_some(text),
                Some(c) if Some(c) == stop => {
                    self.at += 1;
                    return Some(text);
                }
                Some('$') => text += &self.dollar()?,
                Some('\'') => {
                    self.at += 1;
                    loop {
                        match self.next()? {
                            '\'' => break,
                            c => text.push(c),
                        }
                    }
                }
                Some('"') => text += &self.double_quoted(raw)?,
                Some(c) if c == self.escape => {
                    self.at += 1;
                    text.extend(raw.then_some(c));
                    text.extend(self.peek());
                    self.at += 1;
                }
                Some(c) => {
                    self.at += 1;
                    text.push(c);
                }
            }
        }
    }

    fn double_quoted(&mut self, raw: bool) -> Text {
        self.at += 1;
        let mut text = String::new();
        loop {
            match self.peek()? {
                '"' => {
                    self.at += 1;
                    return Some(text);
                }
                '$' => text += &self.dollar()?,
                c if c == self.escape => {
                    self.at += 1;
                    match self.peek()? {
                        escaped if matches!(escaped, '"' | '$') || escaped == self.escape => {
                            self.at += 1;
                            text.extend(raw.then_some(c));
                            text.push(escaped);
                        }
                        _ => text.push(c),
                    }
                }
                c => {
                    self.at += 1;
                    text.push(c);
                }
            }
        }
    }

    fn name(&mut self) -> String {
        let mut name = String::new();
        match self.peek() {
            Some(c) if c.is_numeric() => {
                while let Some(c) = self.peek().filter(|c| c.is_numeric()) {
                    name.push(c);
                    self.at += 1;
                }
            }
            Some(c) if "@*#?-$!".contains(c) => {
                name.push(c);
                self.at += 1;
            }
            _ => {
                while let Some(c) = self.peek().filter(|c| c.is_alphanumeric() || *c == '_') {
                    name.push(c);
                    self.at += 1;
                }
            }
        }
        name
    }

    fn required(&mut self, name: &str) -> Option<String> {
        let value = self.variables.get(name).map(str::to_owned);
        if value.is_none() {
            self.undefined.insert(name.to_owned());
        }
        value
    }

    fn dollar(&mut self) -> Text {
        self.at += 1;
        if self.peek() != Some('{') {
            return match self.name() {
                name if name.is_empty() => Some("$".to_owned()),
                name => Some(self.required(&name).unwrap_or_default()),
            };
        }
        self.at += 1;
        if matches!(self.peek()?, '{' | '}' | ':') {
            return None;
        }
        let name = self.name();
        match self.next()? {
            '}' => Some(self.required(&name).unwrap_or_default()),
            ':' => match self.next()? {
                modifier @ ('-' | '+' | '?') => self.conditional(&name, modifier, true),
                _ => None,
            },
            modifier @ ('-' | '+' | '?') => self.conditional(&name, modifier, false),
            modifier @ ('#' | '%') => self.trimmed(&name, modifier),
            '/' => self.replaced(&name),
            _ => None,
        }
    }

    fn conditional(&mut self, name: &str, modifier: char, colon: bool) -> Text {
        let word = self.word(Some('}'), false)?;
        let value = self.variables.get(name).filter(|value| !(colon && value.is_empty()));
        match (modifier, value) {
            ('+', Some(_)) | ('-', None) => Some(word),
            ('+', None) => Some(String::new()),
            (_, Some(value)) => Some(value.to_owned()),
            (_, None) => None,
        }
    }

    fn items(&self, pattern: &str) -> Option<Vec<Item>> {
        let mut items = Vec::new();
        let mut letters = pattern.chars();
        while let Some(c) = letters.next() {
            items.push(match c {
                '*' => Item::Any,
                '?' => Item::One,
                c if c == self.escape => match letters.next()? {
                    c if "*?/}".contains(c) || c == self.escape => Item::Char(c),
                    _ => return None,
                },
                c => Item::Char(c),
            });
        }
        Some(items)
    }

    fn trimmed(&mut self, name: &str, modifier: char) -> Text {
        let word = self.word(Some('}'), true)?;
        let Some(value) = self.required(name) else { return Some(String::new()) };
        let (longest, pattern) = match word.strip_prefix(modifier) {
            Some(pattern) => (true, pattern),
            None => (false, word.as_str()),
        };
        let items = self.items(pattern)?;
        let letters: Vec<char> = value.chars().collect();
        let cut = |length: &usize| match modifier {
            '#' => fits(&items, &letters[..*length]),
            _ => fits(&items, &letters[letters.len() - length..]),
        };
        let lengths: Vec<usize> = (0..=letters.len()).filter(cut).collect();
        let length = if longest { lengths.last() } else { lengths.first() }.copied().unwrap_or(0);
        Some(match modifier {
            '#' => letters[length..].iter().collect(),
            _ => letters[..letters.len() - length].iter().collect(),
        })
    }

    fn replaced(&mut self, name: &str) -> Text {
        let all = self.peek() == Some('/');
        self.at += usize::from(all);
        let pattern = self.word(Some('/'), true)?;
        let replacement = self.word(Some('}'), true)?;
        let Some(value) = self.required(name) else { return Some(String::new()) };
        let items = self.items(&pattern)?;
        let escape = self.escape;
        let replacement = replacement.replace(&format!("{escape}/"), "/").replace(&format!("{escape}}}"), "}");
        let letters: Vec<char> = value.chars().collect();
        let mut text = String::new();
        let mut at = 0;
        while !items.is_empty() {
            let longest = |start: usize| (start..=letters.len()).rev().find(|end| fits(&items, &letters[start..*end]));
            let Some((start, end)) = (at..=letters.len()).find_map(|start| Some((start, longest(start)?))) else {
                break;
            };
            text.extend(&letters[at..start]);
            text += &replacement;
            at = end;
            if !all || end == letters.len() || start == end {
                break;
            }
        }
        text.extend(&letters[at..]);
        Some(text)
    }
}

/// Tries every way to match.
fn fits(items: &[Item], text: &[char]) -> bool {
    match items.split_first() {
        None => text.is_empty(),
        Some((Item::Any, rest)) => (0..=text.len()).any(|taken| fits(rest, &text[taken..])),
        Some((Item::One, rest)) => !text.is_empty() && fits(rest, &text[1..]),
        Some((Item::Char(c), rest)) => text.first() == Some(c) && fits(rest, &text[1..]),
    }
}

fn variables() -> Map {
    let pairs =
        [("A", "abcab"), ("B", "a b"), ("E", ""), ("S", "a*b?c"), ("P", "a/b/c.é"), ("é", "x"), ("Q", "a'\"\\$A")];
    Map(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into())
}

const PIECES: [&str; 46] = [
    "$A", "$B", "$E", "$U", "$1", "$", "${A}", "${U}", "${A", "${E:-", "${E-", "${U:-", "${U-", "${A:+", "${A+",
    "${U:+", "${E:?", "${A?", "${U?", "${A#", "${A##", "${A%", "${A%%", "${P#", "${P%%", "${S/", "${A/", "${A//",
    "${P//", "${U/", "${", "}", "}", "}", "/", "*", "?", "a", "b", "é", " ", "'", "\"", "\\", "`", "\\*",
];

fn agree(word: &str, escape: char) {
    let variables = variables();
    let mut slow = Interpreter {
        letters: word.chars().collect(),
        at: 0,
        variables: &variables,
        escape,
        undefined: BTreeSet::new(),
    };
    let expected = slow.word(None, false);
    let expander = Expander {
        variables: &variables,
        escape,
        quotes: Quotes::Removed,
        unset: Unset::Empty,
        budget: &Budget::default(),
    };
    match (expander.expand(word), expected) {
        (Ok(expanded), Some(expected)) => {
            assert_eq!(expanded.text, expected, "{word:?} with {escape}");
            assert_eq!(expanded.undefined, slow.undefined, "{word:?} with {escape}");
        }
        (Err(_), None) => {}
        (found, expected) => panic!("{word:?} with {escape}: {found:?} instead of {expected:?}"),
    }
}

fn word(random: &mut Random) -> String {
    random.text(&PIECES, 12)
}

// Fails when `$` cannot be escaped between double quotes.
#[test]
fn fuzz_p02_expansion_agrees_with_a_slow_interpreter() {
    for (_, case) in fuzz::corpus("testdata/fuzz/p02") {
        let case = String::from_utf8(case).unwrap();
        case.lines().for_each(|line| ['\\', '`'].into_iter().for_each(|escape| agree(line, escape)));
    }
    fuzz::run("P02", |random| {
        let escape = if random.below(4) == 0 { '`' } else { '\\' };
        agree(&word(random), escape);
    });
}

// However words are put together, what comes of them keeps to the caps or is refused (A114).
#[test]
fn fuzz_p02_caps_hold() {
    fuzz::run("P02 caps", |random| {
        let big = Map([("A".to_owned(), "ab".repeat(100_000)), ("U2".to_owned(), "x".repeat(900_000))].into());
        let budget = Budget::default();
        let expander =
            Expander { variables: &big, escape: '\\', quotes: Quotes::Removed, unset: Unset::Empty, budget: &budget };
        let word = random.text(&["$A", "$U2", "${A//a/$A", "${A//?/", "${U2%%*x*x*y", "${A:-", "}", "x", "${U2#*"], 90);
        let started = std::time::Instant::now();
        if let Ok(expanded) = expander.expand(&word) {
            assert!(expanded.text.len() <= 1 << 20, "{} bytes of {word:?}", expanded.text.len());
        }
        assert!(started.elapsed() < std::time::Duration::from_secs(20), "{:?} for {word:?}", started.elapsed());
    });
}
