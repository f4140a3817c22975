mod automaton;
mod syntax;

use crate::ContextPath;
use automaton::{Automaton, StateId, letters};
use std::sync::{Mutex, MutexGuard, PoisonError};
use syntax::{Step, cleaned, compile};

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
