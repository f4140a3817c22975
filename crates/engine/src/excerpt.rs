//! The lines of a Dockerfile around a step that failed, as BuildKit's clients print them.

use std::fmt::Write as _;

/// How many lines are shown before and behind those that are marked.
const AROUND: usize = 2;

/// Prints lines `first` to `last` of a source, marked, with their neighbours. Lines count from 1.
pub(crate) fn excerpt(file: &str, source: &str, first: u32, last: u32) -> String {
    const RULE: &str = "--------------------";
    let (first, last) = (first as usize, last as usize);
    let mut text = format!("{file}:{first}\n{RULE}\n");
    let from = first.saturating_sub(AROUND).max(1);
    for (index, line) in source.lines().enumerate().skip(from - 1).take(last + AROUND + 1 - from) {
        let number = index + 1;
        let mark = if (first..=last).contains(&number) { ">>>" } else { "   " };
        let shown = format!("{number:4} | {mark} {line}");
        _ = writeln!(text, "{}", shown.trim_end());
    }
    text + RULE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_failed_lines_are_marked() {
        let source = "FROM a\nRUN b\nRUN c \\\n  d\nRUN e\nRUN f\nRUN g\n";
        let expect = "\
Dockerfile:3
--------------------
   1 |     FROM a
   2 |     RUN b
   3 | >>> RUN c \\
   4 | >>>   d
   5 |     RUN e
   6 |     RUN f
--------------------";
        assert_eq!(excerpt("Dockerfile", source, 3, 4), expect);
    }
}
