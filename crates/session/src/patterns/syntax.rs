//! The language of patterns, read into what the automaton can do.

/// What the automaton can do at a position, and with which characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Goes on with this character.
    Char(char),
    /// Goes on with any character but `/` (`?`).
    One,
    /// Goes on with a character of the set, and never with `/`.
    Class(Class),
    /// Stays with any character but `/`; goes on for nothing (`*`).
    Star,
    /// Goes on for nothing, and to the step behind the next (`**/`).
    DeepEntry,
    /// Stays with any character; goes on with `/`.
    DeepLoop,
    /// Stays with any character; goes on for nothing (`**` at the end).
    Rest,
    /// Stays with any character; goes on for nothing, even inside of a name (`**name` and nothing else).
    Anything,
    /// The pattern, by its position in `patterns`, has matched.
    End(usize),
}

/// `[a-z]` and `[^a-z]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Class {
    negated: bool,
    ranges: Vec<(char, char)>,
}

impl Class {
    pub(super) fn has(&self, c: char) -> bool {
        c != '/' && self.negated != self.ranges.iter().any(|(first, last)| (*first..=*last).contains(&c))
    }
}

/// As Go's `filepath.Clean` does, then without the leading `/`.
pub(super) fn cleaned(pattern: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in pattern.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

pub(super) fn compile(pattern: &str) -> Result<Vec<Step>, &'static str> {
    if let Some(name) = pattern.strip_prefix("**")
        && !name.starts_with('/')
        && !name.contains(['*', '?', '[', '\\'])
    {
        return Ok(std::iter::once(Step::Anything).chain(name.chars().map(Step::Char)).collect());
    }
    let mut steps = Vec::new();
    let mut chars = pattern.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '*' if chars.next_if_eq(&'*').is_some() => {
                chars.next_if_eq(&'/');
                push_deep(&mut steps, chars.peek().is_none());
            }
            '*' if steps.last() != Some(&Step::Star) => steps.push(Step::Star),
            '*' => {}
            '?' => steps.push(Step::One),
            '\\' => steps.push(Step::Char(chars.next().ok_or("nothing follows the last '\\'")?)),
            '[' => steps.push(Step::Class(class(&mut chars)?)),
            c => steps.push(Step::Char(c)),
        }
    }
    Ok(steps)
}

/// `**` directly behind `**` adds nothing.
fn push_deep(steps: &mut Vec<Step>, at_end: bool) {
    if matches!(steps.last(), Some(Step::DeepLoop)) {
        steps.truncate(steps.len() - 2);
    }
    match at_end {
        true => steps.push(Step::Rest),
        false => steps.extend([Step::DeepEntry, Step::DeepLoop]),
    }
}

/// Reads a class behind its `[`.
fn class(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<Class, &'static str> {
    let negated = chars.next_if_eq(&'^').is_some();
    let mut ranges = Vec::new();
    loop {
        if !ranges.is_empty() && chars.next_if_eq(&']').is_some() {
            return Ok(Class { negated, ranges });
        }
        let first = class_char(chars)?;
        let last = match chars.next_if_eq(&'-') {
            Some(_) => class_char(chars)?,
            None => first,
        };
        ranges.push((first, last));
    }
}

fn class_char(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<char, &'static str> {
    match chars.next().ok_or("a '[' is not closed")? {
        '\\' => chars.next().ok_or("nothing follows the last '\\'"),
        '-' | ']' => Err("'-' or ']' in a class must follow a '\\'"),
        c => Ok(c),
    }
}
