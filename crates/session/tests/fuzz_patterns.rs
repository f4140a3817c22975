//! P03: the automaton of ignore patterns against one that tries everything.

#[path = "../../testkit/src/fuzz.rs"]
#[allow(dead_code, reason = "targets use parts of it")]
mod fuzz;

use forge_session::{ContextPath, PatternMatcher};
use fuzz::Random;

/// An element of a pattern as docker turns it into a regular expression.
#[derive(Clone, Debug)]
enum Item {
    Char(char),
    /// `[^/]`
    One,
    /// `[^/]*`
    Star,
    /// `(.*/)?`
    Deep,
    /// `.*`
    Rest,
    Class(bool, Vec<(char, char)>),
}

/// `None` where the pattern is malformed.
fn read(pattern: &str) -> Option<Vec<Item>> {
    let letters: Vec<char> = pattern.chars().collect();
    let mut items = Vec::new();
    let mut at = 0;
    while at < letters.len() {
        let c = letters[at];
        at += 1;
        match c {
            '*' if letters.get(at) == Some(&'*') => {
                at += 1;
                at += usize::from(letters.get(at) == Some(&'/'));
                items.push(if at == letters.len() { Item::Rest } else { Item::Deep });
            }
            '*' => items.push(Item::Star),
            '?' => items.push(Item::One),
            '\\' => {
                items.push(Item::Char(*letters.get(at)?));
                at += 1;
            }
            '[' => {
                let negated = letters.get(at) == Some(&'^');
                at += usize::from(negated);
                items.push(Item::Class(negated, ranges(&letters, &mut at)?));
            }
            c => items.push(Item::Char(c)),
        }
    }
    Some(items)
}

fn ranges(letters: &[char], at: &mut usize) -> Option<Vec<(char, char)>> {
    let mut ranges = Vec::new();
    while ranges.is_empty() || letters.get(*at) != Some(&']') {
        let low = range_end(letters, at)?;
        let is_range = letters.get(*at) == Some(&'-');
        *at += usize::from(is_range);
        ranges.push((low, if is_range { range_end(letters, at)? } else { low }));
    }
    *at += 1;
    Some(ranges)
}

fn range_end(letters: &[char], at: &mut usize) -> Option<char> {
    let escaped = letters.get(*at) == Some(&'\\');
    *at += usize::from(escaped);
    let c = *letters.get(*at)?;
    *at += 1;
    (escaped || !matches!(c, '-' | ']')).then_some(c)
}

/// Tries every way to match.
fn fits(items: &[Item], path: &[char]) -> bool {
    let Some((item, rest)) = items.split_first() else { return path.is_empty() };
    let one = |allowed: bool| allowed && fits(rest, &path[1..]);
    match item {
        Item::Char(wanted) => path.first().is_some_and(|c| one(c == wanted)),
        Item::One => path.first().is_some_and(|c| one(*c != '/')),
        Item::Class(negated, ranges) => path
            .first()
            .is_some_and(|c| one(*c != '/' && ranges.iter().any(|(low, high)| (low..=high).contains(&c)) != *negated)),
        Item::Star => {
            let run = path.iter().take_while(|c| **c != '/').count();
            (0..=run).any(|taken| fits(rest, &path[taken..]))
        }
        Item::Rest => (0..=path.len()).any(|taken| fits(rest, &path[taken..])),
        Item::Deep => {
            fits(rest, path) || (0..path.len()).any(|slash| path[slash] == '/' && fits(rest, &path[slash + 1..]))
        }
    }
}

fn matches_one(pattern: &str, path: &str) -> Option<bool> {
    if let Some(end) = pattern.strip_prefix("**")
        && !end.contains(['*', '?', '[', ']', '\\'])
    {
        return Some(path.ends_with(end) || end.strip_prefix('/').is_some_and(|end| path == end));
    }
    let path: Vec<char> = path.chars().collect();
    Some(fits(&read(pattern)?, &path))
}

/// As docker: the last pattern that matches the path or a folder above it decides.
fn excluded(patterns: &[String], path: &str) -> Option<bool> {
    let mut excluded = false;
    let ends = path.match_indices('/').map(|(slash, _)| slash).chain([path.len()]);
    let prefixes: Vec<&str> = ends.map(|end| &path[..end]).collect();
    for pattern in patterns {
        let (include, pattern) = match pattern.strip_prefix('!') {
            Some(pattern) => (true, pattern),
            None => (false, pattern.as_str()),
        };
        for prefix in &prefixes {
            if matches_one(pattern, prefix)? {
                excluded = !include;
                break;
            }
        }
    }
    Some(excluded)
}

const PIECES: [&str; 18] =
    ["a", "b", "ab", "é", "x", "/", "/", "*", "*", "**", "**/", "?", "[ab]", "[^a]", "[a-x]", "\\*", "[", "]"];

/// A pattern without what cleaning would take out.
fn pattern(random: &mut Random) -> String {
    let text = random.text(&PIECES, 7);
    let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty()).collect();
    match (parts.is_empty(), random.below(4)) {
        (true, _) => "a".to_owned(),
        (false, 0) => format!("!{}", parts.join("/")),
        (false, _) => parts.join("/"),
    }
}

fn path(random: &mut Random) -> String {
    let parts: Vec<String> = (0..=random.below(4)).map(|_| random.text(&["a", "b", "x", "é", "*", "ab"], 3)).collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).filter(|part| !part.is_empty()).collect();
    if parts.is_empty() { "a".to_owned() } else { parts.join("/") }
}

fn agree(patterns: &[String], paths: &[String]) {
    let well_formed = patterns.iter().all(|pattern| read(pattern.trim_start_matches('!')).is_some());
    let matcher = match PatternMatcher::new(patterns) {
        Ok(matcher) => matcher,
        Err(error) => return assert!(!well_formed, "{patterns:?}: {error}"),
    };
    assert!(well_formed, "{patterns:?} is accepted");
    for path in paths {
        let expected = excluded(patterns, path).unwrap();
        let path = ContextPath::clean(path);
        assert_eq!(matcher.matches(&path), expected, "{patterns:?} on {path:?}");
        // What is not excluded is found by a walk that enters only where something may be found.
        let mut above = ContextPath::default();
        for part in path.components() {
            assert!(expected || matcher.may_match_below(&above), "{patterns:?}: {path:?} below {above:?}");
            above = above.join(part);
        }
    }
}

// Fails when three stars are read as two.
#[test]
fn fuzz_p03_ignore_patterns_agree_with_trying_everything() {
    for (_, case) in fuzz::corpus("testdata/fuzz/p03") {
        let text = String::from_utf8(case).unwrap();
        let (patterns, paths) = text.split_once("\n--\n").unwrap();
        let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
        agree(&lines(patterns), &lines(paths));
    }
    fuzz::run("P03", |random| {
        let patterns: Vec<String> = (0..=random.below(4)).map(|_| pattern(random)).collect();
        let paths: Vec<String> = (0..4).map(|_| path(random)).collect();
        agree(&patterns, &paths);
    });
}
