use crate::ContextPath;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Patterns of an ignore file or of `--exclude`, all matched at once.
///
/// The language is that of docker's ignore files: components of Go's `filepath.Match` (`*`, `?`, `[a-z]`, `\`),
/// `**` for any number of folders, `!` to take in again. The last pattern that matches a path or one of its
/// parent folders decides, so that a pattern for a folder holds for everything below it.
///
/// Matching takes one pass over the path, whatever the patterns are (A116): they form one automaton, whose states
/// are made as paths lead to them, and forgotten when there are too many.
#[derive(Debug)]
pub struct PatternMatcher {
    steps: Vec<Step>,
    /// The position where each pattern begins, with the position of its end.
    starts: Vec<usize>,
    patterns: Vec<Pattern>,
    automaton: Mutex<Automaton>,
}

/// A pattern as it was given.
#[derive(Debug)]
struct Pattern {
    /// Where it stood in the list.
    index: usize,
    /// Whether it takes in again.
    include: bool,
}

/// Why a pattern is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// A `!` without a pattern.
    #[error("illegal exclusion pattern: \"!\"")]
    LoneExclamationMark {
        /// Where it stands in the list, from 0.
        index: usize,
    },
    /// The pattern does not follow the syntax.
    #[error("syntax error in pattern: {reason}")]
    Syntax {
        /// Where it stands in the list, from 0.
        index: usize,
        /// What is wrong.
        reason: &'static str,
    },
}

/// What the automaton can do at a position, and with which characters.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
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
struct Class {
    negated: bool,
    ranges: Vec<(char, char)>,
}

impl Class {
    fn has(&self, c: char) -> bool {
        c != '/' && self.negated != self.ranges.iter().any(|(first, last)| (*first..=*last).contains(&c))
    }
}

impl PatternMatcher {
    /// Reads patterns. Blank ones are passed over.
    ///
    /// # Errors
    /// A pattern is a lone `!` or does not follow the syntax.
    pub fn new(patterns: &[String]) -> Result<Self, PatternError> {
        let mut matcher = Self {
            steps: Vec::new(),
            starts: Vec::new(),
            patterns: Vec::new(),
            automaton: Mutex::new(Automaton::default()),
        };
        for (index, pattern) in patterns.iter().enumerate() {
            matcher.add(index, pattern.trim())?;
        }
        matcher.automaton = Mutex::new(Automaton::new(&matcher));
        Ok(matcher)
    }

    fn add(&mut self, index: usize, pattern: &str) -> Result<(), PatternError> {
        let (include, text) = match pattern.strip_prefix('!') {
            Some(text) => (true, text.trim()),
            None => (false, pattern),
        };
        if text.is_empty() {
            return if include { Err(PatternError::LoneExclamationMark { index }) } else { Ok(()) };
        }
        let steps = compile(&cleaned(text)).map_err(|reason| PatternError::Syntax { index, reason })?;
        self.starts.push(self.steps.len());
        self.steps.extend(steps);
        self.steps.push(Step::End(self.patterns.len()));
        self.patterns.push(Pattern { index, include });
        Ok(())
    }

    /// Whether there is nothing to match.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Whether some pattern takes in again (`!`).
    pub fn has_inclusions(&self) -> bool {
        self.patterns.iter().any(|pattern| pattern.include)
    }

    /// Whether a path is excluded. The root never is.
    pub fn matches(&self, path: &ContextPath) -> bool {
        self.excluding_pattern(path).is_some()
    }

    /// The pattern that excludes a path, by its place in the list that was given; `None` where it is not
    /// excluded.
    pub fn excluding_pattern(&self, path: &ContextPath) -> Option<usize> {
        if self.is_empty() {
            return None;
        }
        let pattern = &self.patterns[self.walk(path).1?];
        (!pattern.include).then_some(pattern.index)
    }

    /// Whether something below a folder may not be excluded: always where the folder itself is not, else only
    /// where a later `!` pattern may match there. A walk need not enter the folder where this is false.
    pub fn may_match_below(&self, folder: &ContextPath) -> bool {
        if folder.is_root() {
            return true;
        }
        let (state, decided) = self.walk(folder);
        let Some(decided) = decided.filter(|pattern| !self.patterns[*pattern].include) else { return true };
        let mut automaton = self.lock();
        let below = automaton.next(self, state, '/');
        let ends = automaton.positions(below).iter().filter_map(|position| self.pattern_at(*position as usize));
        ends.into_iter().any(|pattern| pattern > decided && self.patterns[pattern].include)
    }

    /// Whether something below a folder may be matched, for patterns that say what is taken in. A walk for what they
    /// match need not enter the folder where this is false.
    pub fn may_lead_to_match(&self, folder: &ContextPath) -> bool {
        if folder.is_root() {
            return true;
        }
        let (state, decided) = self.walk(folder);
        if decided.is_some_and(|pattern| !self.patterns[pattern].include) {
            return true;
        }
        let mut automaton = self.lock();
        let below = automaton.next(self, state, '/');
        let ends = automaton.positions(below).iter().filter_map(|position| self.pattern_at(*position as usize));
        ends.into_iter().any(|pattern| !self.patterns[pattern].include)
    }

    /// The pattern that a position belongs to.
    fn pattern_at(&self, position: usize) -> Option<usize> {
        self.starts.partition_point(|start| *start <= position).checked_sub(1)
    }

    /// The state behind a path, and the last pattern that matches it or a parent.
    fn walk(&self, path: &ContextPath) -> (StateId, Option<usize>) {
        let mut automaton = self.lock();
        automaton.forget_if_large(self);
        let mut state = Automaton::START;
        let mut decided = None;
        if path.is_root() {
            return (state, None);
        }
        for c in letters(path.as_bytes()) {
            if c == '/' {
                decided = decided.max(automaton.matched(state));
            }
            state = automaton.next(self, state, c);
        }
        (state, decided.max(automaton.matched(state)))
    }

    /// The automaton only remembers what was computed: a panic elsewhere leaves it usable.
    fn lock(&self) -> MutexGuard<'_, Automaton> {
        self.automaton.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The characters of a path. Each byte that is not UTF-8 becomes one of a private plane, so that names which
/// differ stay different.
fn letters(path: &[u8]) -> impl Iterator<Item = char> {
    let private = |byte: &u8| char::from_u32(0x10_f000 + u32::from(*byte)).expect("the private plane has no gap");
    path.utf8_chunks().flat_map(move |chunk| chunk.valid().chars().chain(chunk.invalid().iter().map(private)))
}

type StateId = u32;

/// States that paths have led to so far. A state is the set of positions that the patterns may be at.
#[derive(Debug, Default)]
struct Automaton {
    states: Vec<State>,
    ids: HashMap<Vec<u32>, StateId>,
    /// Transitions with characters beyond ASCII.
    rare: HashMap<(StateId, char), StateId>,
    /// Positions in all states together.
    size: usize,
}

#[derive(Debug)]
struct State {
    positions: Vec<u32>,
    /// The last pattern that ends here.
    matched: Option<usize>,
    /// Transitions with ASCII characters.
    common: [StateId; 128],
}

/// A transition that was not asked for yet.
const UNKNOWN: StateId = StateId::MAX;

impl Automaton {
    const START: StateId = 0;

    /// Some 16 MiB: then it begins anew.
    const MAX_SIZE: usize = 4 << 20;

    fn new(matcher: &PatternMatcher) -> Self {
        let mut automaton = Self::default();
        let mut positions = Vec::new();
        matcher.starts.iter().for_each(|start| enter(matcher, *start as u32, &mut positions));
        automaton.intern(matcher, positions);
        automaton
    }

    fn forget_if_large(&mut self, matcher: &PatternMatcher) {
        if self.size > Self::MAX_SIZE {
            *self = Self::new(matcher);
        }
    }

    fn positions(&self, state: StateId) -> &[u32] {
        &self.states[state as usize].positions
    }

    fn matched(&self, state: StateId) -> Option<usize> {
        self.states[state as usize].matched
    }

    /// The state behind a character.
    fn next(&mut self, matcher: &PatternMatcher, state: StateId, c: char) -> StateId {
        let known = match self.states[state as usize].common.get(c as usize) {
            Some(next) => *next,
            None => self.rare.get(&(state, c)).copied().unwrap_or(UNKNOWN),
        };
        if known != UNKNOWN {
            return known;
        }
        let mut positions = Vec::new();
        for position in &self.states[state as usize].positions {
            follow(matcher, *position, c, &mut positions);
        }
        let next = self.intern(matcher, positions);
        match self.states[state as usize].common.get_mut(c as usize) {
            Some(entry) => *entry = next,
            None => {
                self.rare.insert((state, c), next);
                self.size += 4;
            }
        }
        next
    }

    fn intern(&mut self, matcher: &PatternMatcher, mut positions: Vec<u32>) -> StateId {
        positions.sort_unstable();
        positions.dedup();
        if let Some(id) = self.ids.get(&positions) {
            return *id;
        }
        let ends = positions.iter().filter_map(|position| match matcher.steps[*position as usize] {
            Step::End(pattern) => Some(pattern),
            _ => None,
        });
        let state = State { matched: ends.max(), positions: positions.clone(), common: [UNKNOWN; 128] };
        let id = self.states.len() as StateId;
        self.size += 2 * positions.len() + 128;
        self.states.push(state);
        self.ids.insert(positions, id);
        id
    }
}

/// The positions behind a character.
fn follow(matcher: &PatternMatcher, position: u32, c: char, positions: &mut Vec<u32>) {
    let (stays, goes) = match &matcher.steps[position as usize] {
        Step::Char(wanted) => (false, *wanted == c),
        Step::One => (false, c != '/'),
        Step::Class(class) => (false, class.has(c)),
        Step::Star => (c != '/', false),
        Step::DeepLoop => (true, c == '/'),
        Step::Rest | Step::Anything => (true, false),
        Step::DeepEntry | Step::End(_) => (false, false),
    };
    if stays {
        enter(matcher, position, positions);
    }
    if goes {
        enter(matcher, position + 1, positions);
    }
}

/// Adds a position and those that it reaches for nothing.
fn enter(matcher: &PatternMatcher, position: u32, positions: &mut Vec<u32>) {
    let mut position = position;
    loop {
        positions.push(position);
        match matcher.steps[position as usize] {
            Step::Star | Step::Rest | Step::Anything => position += 1,
            Step::DeepEntry => {
                positions.push(position + 1);
                position += 2;
            }
            _ => return,
        }
    }
}

/// As Go's `filepath.Clean` does, then without the leading `/`.
fn cleaned(pattern: &str) -> String {
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

fn compile(pattern: &str) -> Result<Vec<Step>, &'static str> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn matcher(patterns: &[&str]) -> PatternMatcher {
        PatternMatcher::new(&patterns.iter().map(|pattern| (*pattern).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    #[track_caller]
    fn check(patterns: &[&str], excluded: &[&str], kept: &[&str]) {
        let matcher = matcher(patterns);
        excluded.iter().for_each(|path| assert!(matcher.matches(&ContextPath::clean(path)), "{patterns:?} {path}"));
        kept.iter().for_each(|path| assert!(!matcher.matches(&ContextPath::clean(path)), "{patterns:?} not {path}"));
    }

    #[test]
    fn components() {
        check(&["a"], &["a", "a/b", "a/b/c"], &["b", "b/a", "ab", ""]);
        check(&["/a/", "./b/../c"], &["a", "c/x"], &["b"]);
        check(&["*"], &["a", "a/b", ".x"], &[""]);
        check(&["*.go"], &["x.go", "x.go/y"], &["a/x.go", "xgo"]);
        check(&["*/x"], &["a/x", "a/x/y"], &["x", "a/b/x"]);
        check(&["a?c"], &["abc", "aéc"], &["ac", "a/c"]);
        check(&["[a-c]x", "[^a-c]y"], &["ax", "zy", "éy"], &["dx", "ay", "/y"]);
        check(&[r"\*", r"[\]]", "a+b.(c)"], &["*", "]", "a+b.(c)"], &["x", "aab.(c)"]);
        check(&["a*b*c"], &["abc", "axxbyyc", "abbcc"], &["ab", "acb", "a/bc"]);
    }

    #[test]
    fn any_number_of_folders() {
        check(&["**"], &["a", "a/b"], &[]);
        check(&["**/x"], &["x", "a/x", "a/b/x", "a/x/y"], &["ax", "a/bx"]);
        check(&["a/**"], &["a/b", "a/b/c"], &["a", "ab"]);
        check(&["a/**/b"], &["a/b", "a/x/b", "a/x/y/b/z"], &["a", "ab", "a/xb"]);
        check(&["**/*.go"], &["x.go", "a/b/x.go"], &["x.c"]);
        check(&["**/**/**/x"], &["x", "a/b/c/d/x"], &["y"]);
        check(&["**.txt"], &["a.txt", "b/c.txt"], &["a.txtx"]);
        check(&["a**b"], &["ab", "ax/b"], &["axb", "b"]);
        check(&["***x"], &["x", "ax", "b/ax"], &["xa"]);
    }

    #[test]
    fn the_last_match_wins() {
        check(&["*", "!keep"], &["a", "keeper"], &["keep", "keep/x"]);
        check(&["!keep", "*"], &["keep"], &[]);
        check(&["a", "!a/b", "a/b/c"], &["a", "a/x", "a/b/c/d"], &["a/b", "a/b/d"]);
        check(&["*.md", "!README*.md", "README-secret.md"], &["x.md", "README-secret.md"], &["README.md"]);
    }

    #[test]
    fn folders_are_entered_only_where_something_may_be_taken_in_again() {
        let below = |patterns: &[&str], folder: &str| matcher(patterns).may_match_below(&ContextPath::clean(folder));
        assert!(below(&["x"], "a") && below(&["*"], ""));
        assert!(!below(&["a"], "a") && !below(&["a"], "a/b"));
        assert!(below(&["a", "!a/b/c"], "a") && below(&["a", "!a/b/c"], "a/b"));
        assert!(!below(&["a", "!a/b/c"], "a/x") && !below(&["a", "!b"], "a"));
        assert!(below(&["a", "!**/keep"], "a/x"));
        assert!(!below(&["!a/b", "a"], "a"));
    }

    #[test]
    fn folders_are_entered_only_where_something_may_be_matched() {
        let leads = |patterns: &[&str], folder: &str| matcher(patterns).may_lead_to_match(&ContextPath::clean(folder));
        assert!(leads(&["x"], "") && leads(&["a/b/c"], "a") && leads(&["a/b/c"], "a/b"));
        assert!(!leads(&["a/b/c"], "b") && !leads(&["a/b/c"], "a/x") && !leads(&["a/*.c"], "a/b"));
        assert!(leads(&["a"], "a") && leads(&["a"], "a/b/c"), "what matches a folder matches what is in it");
        assert!(leads(&["**/x"], "a/b") && leads(&["a/**/x"], "a/b/c") && !leads(&["a/**/x"], "b"));
        assert!(!leads(&["a/b", "!b/c"], "b"));
    }

    #[test]
    fn the_excluding_pattern_is_named() {
        let matcher = matcher(&["", "*.md", "!x.md", "docs"]);
        let by = |path: &str| matcher.excluding_pattern(&ContextPath::clean(path));
        assert_eq!((by("a.md"), by("x.md"), by("docs/x.md"), by("y")), (Some(1), None, Some(3), None));
    }

    #[test]
    fn bad_patterns_are_refused() {
        for bad in ["!", " ! ", "[", "[a", "[]", "[^]", "[a-]", "[-a]", r"a\", r"[\"] {
            assert!(PatternMatcher::new(&[bad.to_owned()]).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_that_are_not_utf8() {
        let matcher = matcher(&["a?b"]);
        assert!(matcher.matches(&ContextPath::clean([b'a', 0xff, b'b'])));
        assert!(!matcher.matches(&ContextPath::clean([b'a', 0xff, 0xfe, b'b'])));
    }

    // With a regular expression per pattern and path, as docker does it, this takes minutes.
    #[test]
    fn a116_many_files_and_patterns_take_seconds() {
        let started = Instant::now();
        let mut patterns: Vec<String> = (0..1_000).map(|n| format!("**/dir{}/**/*x{n}*y?.log", n % 37)).collect();
        patterns.push("**/**/**/**/x".to_owned());
        patterns.push(format!("{}b", "*a".repeat(200)));
        patterns.push(format!("{}c", "**/a*/".repeat(100)));
        let matcher = PatternMatcher::new(&patterns).unwrap();
        let mut excluded = 0;
        for file in 0..100_000 {
            let path = ContextPath::clean(format!("dir{}/sub{}/aaaax{}zy1.log", file % 50, file % 300, file % 1_100));
            excluded += usize::from(matcher.matches(&path));
        }
        let long = ContextPath::clean("a".repeat(4_000));
        assert!(!matcher.matches(&long));
        assert!(excluded > 0 && excluded < 100_000, "{excluded}");
        assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    }

    #[test]
    fn a116_many_patterns() {
        let started = Instant::now();
        let patterns: Vec<String> = (0..100_000).map(|n| format!("a{n}/**/b{n}/*.c")).collect();
        let matcher = PatternMatcher::new(&patterns).unwrap();
        assert!(matcher.matches(&ContextPath::clean("a777/x/y/b777/z.c")));
        assert!(!matcher.matches(&ContextPath::clean("a777/x/y/b778/z.c")));
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    }
}
