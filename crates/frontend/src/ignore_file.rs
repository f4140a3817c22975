use crate::{FrontendError, Problem, Span};

/// Longer ignore files are mistakes or attacks (A113).
const MAX_FILE: usize = 16 << 20;

/// Reads an ignore file: one pattern a line, blanks trimmed, `#` in the first column for comments, `!` before
/// what is to be taken in again. Patterns come out cleaned and without a leading `/`.
///
/// # Errors
/// A line is a lone `!`, or the file is too large. Errors never repeat what the file holds (A32).
pub fn ignore_patterns(text: &[u8]) -> Result<Vec<String>, FrontendError> {
    Ok(ignore_rules(text)?.into_iter().map(|rule| rule.pattern).collect())
}

/// A line of an ignore file that says something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IgnoreRule {
    /// The pattern, cleaned, with the `!` that it may have.
    pub pattern: String,
    /// The line as written, without blanks at its ends.
    pub written: String,
    /// Its number, from 1.
    pub line: u32,
}

/// Reads an ignore file as [`ignore_patterns`] does, and says where each pattern stands.
///
/// # Errors
/// As [`ignore_patterns`].
pub fn ignore_rules(text: &[u8]) -> Result<Vec<IgnoreRule>, FrontendError> {
    if text.len() > MAX_FILE {
        return Err(Problem::TooLarge { what: "the ignore file", limit: "16 MiB" }.into());
    }
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let text = String::from_utf8_lossy(text);
    let mut rules = Vec::new();
    let mut start = 0;
    for (index, line) in text.split('\n').enumerate() {
        let number = index as u32 + 1;
        let span = Span { start, end: start + line.len() as u32, first_line: number, last_line: number };
        start += line.len() as u32 + 1;
        if line.starts_with('#') {
            continue;
        }
        match pattern(line.trim()) {
            Ok(Some(pattern)) => rules.push(IgnoreRule { pattern, written: line.trim().to_owned(), line: number }),
            Ok(None) => {}
            Err(problem) => return Err(FrontendError::from(problem).or_at(span)),
        }
    }
    Ok(rules)
}

/// `None` for a blank line.
fn pattern(line: &str) -> Result<Option<String>, Problem> {
    let (again, path) = match line.strip_prefix('!') {
        Some(path) => ("!", path.trim()),
        None => ("", line),
    };
    match (again, path) {
        ("", "") => Ok(None),
        (_, "") => Err(Problem::value("illegal exclusion pattern: \"!\"")),
        (_, path) => Ok(Some(format!("{again}{}", cleaned(path)))),
    }
}

/// As Go's `filepath.Clean` does, then without the leading `/`; the whole tree stays `.` or `/`.
fn cleaned(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => drop(parts.pop()),
            ".." if rooted => {}
            part => parts.push(part),
        }
    }
    match (parts.is_empty(), rooted) {
        (true, true) => "/".to_owned(),
        (true, false) => ".".to_owned(),
        _ => parts.join("/"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expect: &[&str]) {
        assert_eq!(ignore_patterns(text.as_bytes()).unwrap(), expect, "{text:?}");
    }

    #[test]
    fn lines_become_patterns() {
        check("", &[]);
        check("a\nb\r\n\n  c  \n", &["a", "b", "c"]);
        check("# comment\n #not one\n", &["#not one"]);
        check("\u{feff}a", &["a"]);
        check("/a/b/", &["a/b"]);
        check("! a\n!/b", &["!a", "!b"]);
        check("a/../b\n./c\n../d\n/../e\n", &["b", "c", "../d", "e"]);
        check("/\n.\n", &["/", "."]);
        check("**/*.go\n[a-z]\\*", &["**/*.go", "[a-z]\\*"]);
    }

    #[test]
    fn a_lone_exclamation_mark_is_refused_with_its_line() {
        let error = ignore_patterns(b"a\n ! \n").unwrap_err();
        assert_eq!((error.line(), error.to_string().as_str()), (Some(2), "illegal exclusion pattern: \"!\""));
    }

    #[test]
    fn rules_know_their_lines() {
        let rules = ignore_rules(b"# first\n\n /dist/ \n!dist/keep\n").unwrap();
        let rules: Vec<_> =
            rules.iter().map(|rule| (rule.line, rule.written.as_str(), rule.pattern.as_str())).collect();
        assert_eq!(rules, [(3, "/dist/", "dist"), (4, "!dist/keep", "!dist/keep")]);
    }

    // The file may be a link to something that the user cannot read. Fails if the error shows the line.
    #[test]
    fn a32_errors_do_not_show_the_file() {
        let error = ignore_patterns(b"root:canary:0:0\n!\nsecret-canary").unwrap_err();
        assert!(!error.to_string().contains("canary"));
    }
}
