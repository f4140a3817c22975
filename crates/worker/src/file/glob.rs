//! Patterns of COPY sources: Go's `filepath.Match`, on bytes.
//!
//! `*` matches any run of bytes but `/`, `?` one byte but `/`, `[a-z]` and `[^a-z]` one byte of a class, `\c`
//! the byte itself. A path matches a pattern component by component, so no wildcard crosses a `/`.

/// Why a pattern is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("syntax error in pattern {pattern:?}")]
pub(crate) struct BadPattern {
    pub pattern: String,
}

/// Whether a component of a pattern needs matching; one without needs only a look-up.
pub(crate) fn has_wildcard(component: &[u8]) -> bool {
    component.iter().any(|byte| matches!(byte, b'*' | b'?' | b'[' | b'\\'))
}

/// Matches one component.
///
/// The last `*` is the only one that is ever tried again, so the time is at most the product of both lengths (A116).
pub(crate) fn matches(pattern: &[u8], name: &[u8]) -> Result<bool, BadPattern> {
    let bad = || BadPattern { pattern: String::from_utf8_lossy(pattern).into_owned() };
    let (mut p, mut n) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    loop {
        if p < pattern.len() && pattern[p] == b'*' {
            p += 1;
            retry = Some((p, n));
            continue;
        }
        let step = match p < pattern.len() {
            true => match_one(&pattern[p..], name.get(n).copied()).ok_or_else(bad)?,
            false => Step { length: 0, matched: false },
        };
        if step.matched {
            (p, n) = (p + step.length, n + 1);
        } else if p == pattern.len() && n == name.len() {
            return Ok(true);
        } else if let Some((star, from)) = retry.filter(|(_, from)| *from < name.len()) {
            retry = Some((star, from + 1));
            (p, n) = (star, from + 1);
        } else {
            return check_rest(&pattern[p..]).map(|()| false).ok_or_else(bad);
        }
    }
}

/// What one unit of a pattern (a byte, `?`, a class) made of one byte.
struct Step {
    length: usize,
    matched: bool,
}

/// `None` for a malformed unit.
fn match_one(pattern: &[u8], byte: Option<u8>) -> Option<Step> {
    match pattern[0] {
        b'?' => Some(Step { length: 1, matched: byte.is_some_and(|byte| byte != b'/') }),
        b'[' => match_class(pattern, byte),
        b'\\' => Some(Step { length: 2, matched: byte == Some(*pattern.get(1)?) }),
        literal => Some(Step { length: 1, matched: byte == Some(literal) }),
    }
}

fn match_class(pattern: &[u8], byte: Option<u8>) -> Option<Step> {
    let mut at = 1;
    let negated = pattern.get(at) == Some(&b'^');
    at += usize::from(negated);
    let (mut found, mut members) = (false, 0);
    while pattern.get(at) != Some(&b']') || members == 0 {
        let low = class_byte(pattern, &mut at)?;
        let mut high = low;
        if pattern.get(at) == Some(&b'-') {
            at += 1;
            high = class_byte(pattern, &mut at)?;
        }
        found |= byte.is_some_and(|byte| (low..=high).contains(&byte));
        members += 1;
    }
    let matched = byte.is_some_and(|byte| byte != b'/') && found != negated;
    Some(Step { length: at + 1, matched })
}

/// One end of a range; a bare `-` or `]` is malformed, as in Go.
fn class_byte(pattern: &[u8], at: &mut usize) -> Option<u8> {
    let mut byte = *pattern.get(*at)?;
    match byte {
        b'-' | b']' => return None,
        b'\\' => {
            *at += 1;
            byte = *pattern.get(*at)?;
        }
        _ => {}
    }
    *at += 1;
    pattern.get(*at).map(|_| byte)
}

/// A malformed rest is an error even where the match failed before it.
fn check_rest(mut pattern: &[u8]) -> Option<()> {
    while !pattern.is_empty() {
        let length = if pattern[0] == b'*' { 1 } else { match_one(pattern, None)?.length };
        pattern = &pattern[length..];
    }
    Some(())
}

#[cfg(test)]
mod fuzz_tests;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_go() {
        let yes = [
            ("abc", "abc"),
            ("*", "abc"),
            ("*", ""),
            ("a*c", "abbc"),
            ("*.go", "main.go"),
            ("a?c", "abc"),
            ("[a-c]x", "bx"),
            ("[^a-c]x", "dx"),
            ("a\\*b", "a*b"),
            ("[\\-x]", "-"),
            ("*a*b*", "xaxxbx"),
            ("[\\]a]", "]"),
        ];
        let no = [("abc", "ab"), ("a?c", "ac"), ("*.go", "main.rs"), ("[a-c]", "d"), ("a\\*b", "axb"), ("a", "")];
        for (pattern, name) in yes {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), Ok(true), "{pattern} {name}");
        }
        for (pattern, name) in no {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), Ok(false), "{pattern} {name}");
        }
        for bad in ["[", "[a", "[]a]", "[-]", "[x-]", "a\\", "a[", "[a-"] {
            assert!(matches(bad.as_bytes(), b"a").is_err(), "{bad}");
        }
    }

    #[test]
    fn a116_many_stars_take_no_exponential_time() {
        let pattern = "a*".repeat(5_000) + "b";
        assert_eq!(matches(pattern.as_bytes(), "a".repeat(10_000).as_bytes()), Ok(false));
    }
}
