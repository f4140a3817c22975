//! P03: patterns of COPY sources against a matcher that tries everything.

use super::matches;
use forge_testkit::fuzz::{self, Random};

/// `None` where the pattern is malformed, wherever that is.
fn well_formed(pattern: &[u8]) -> Option<()> {
    let mut at = 0;
    while at < pattern.len() {
        at += unit(&pattern[at..], None)?.0;
    }
    Some(())
}

/// The length of the first element of a pattern, and whether it takes a byte. `*` takes what [`fits`] tries.
fn unit(pattern: &[u8], byte: Option<u8>) -> Option<(usize, bool)> {
    let is = |wanted: u8| byte == Some(wanted);
    match pattern[0] {
        b'*' => Some((1, false)),
        b'?' => Some((1, byte.is_some_and(|byte| byte != b'/'))),
        b'\\' => Some((2, is(*pattern.get(1)?))),
        b'[' => {
            let mut rest = &pattern[1..];
            let negated = rest.first() == Some(&b'^');
            rest = &rest[usize::from(negated)..];
            let (mut found, mut first) = (false, true);
            while first || rest.first()? != &b']' {
                let low = member(&mut rest)?;
                let mut high = low;
                if rest.first() == Some(&b'-') {
                    rest = &rest[1..];
                    high = member(&mut rest)?;
                }
                found |= byte.is_some_and(|byte| low <= byte && byte <= high);
                first = false;
            }
            let taken = byte.is_some_and(|byte| byte != b'/') && found != negated;
            Some((pattern.len() - rest.len() + 1, taken))
        }
        wanted => Some((1, is(wanted))),
    }
}

/// One end of a range. Something must follow it.
fn member(rest: &mut &[u8]) -> Option<u8> {
    let escaped = rest.first()? == &b'\\';
    *rest = &rest[usize::from(escaped)..];
    let (byte, behind) = rest.split_first()?;
    *rest = behind;
    (!behind.is_empty() && (escaped || !matches!(byte, b'-' | b']'))).then_some(*byte)
}

fn fits(pattern: &[u8], name: &[u8]) -> bool {
    match pattern.first() {
        None => name.is_empty(),
        Some(b'*') => {
            let run = name.iter().take_while(|byte| **byte != b'/').count();
            (0..=run).any(|taken| fits(&pattern[1..], &name[taken..]))
        }
        Some(_) => {
            let (length, taken) = unit(pattern, name.first().copied()).expect("the pattern is well formed");
            taken && fits(&pattern[length..], &name[1..])
        }
    }
}

const PIECES: [&str; 16] =
    ["a", "b", "ab", "é", "*", "*", "?", "[ab]", "[^a]", "[a-x]", "\\*", "\\", "[", "]", "-", "[\\]-a]"];

fn agree(pattern: &[u8], name: &[u8]) {
    let expected = well_formed(pattern).map(|()| fits(pattern, name));
    assert_eq!(matches(pattern, name).ok(), expected, "{:?} on {name:?}", String::from_utf8_lossy(pattern));
}

#[test]
fn fuzz_p03_copy_patterns_agree_with_trying_everything() {
    fuzz::run("P03 of COPY", |random: &mut Random| {
        let pattern = random.text(&PIECES, 8);
        let name = random.text(&["a", "b", "x", "é", "*", "]", "-"], 7);
        agree(pattern.as_bytes(), name.as_bytes());
    });
}
