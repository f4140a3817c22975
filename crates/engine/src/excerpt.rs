//! The lines of a Dockerfile around a step that failed, as BuildKit's clients print them.

use std::fmt::Write as _;

/// How many lines are shown before and behind those that are marked.
const AROUND: usize = 2;

/// Lines shown of a place that is longer; its first ones say most.
const MOST: usize = 40;

/// A source cut into lines once, however many places of it are shown.
pub(crate) struct SourceLines<'a> {
    file: &'a str,
    lines: Vec<&'a str>,
}

impl<'a> SourceLines<'a> {
    pub fn new(file: &'a str, source: &'a str) -> Self {
        Self { file, lines: source.lines().collect() }
    }

    /// Prints lines `first` to `last`, marked, with their neighbours. Lines count from 1.
    pub fn excerpt(&self, first: u32, last: u32) -> String {
        const RULE: &str = "--------------------";
        let (first, last) = (first as usize, (last as usize).min(first as usize + MOST));
        let mut text = format!("{}:{first}\n{RULE}\n", self.file);
        let from = first.saturating_sub(AROUND).max(1);
        for (index, line) in self.lines.iter().enumerate().skip(from - 1).take(last + AROUND + 1 - from) {
            let number = index + 1;
            let mark = if (first..=last).contains(&number) { ">>>" } else { "   " };
            let shown = format!("{number:4} | {mark} {}", forge_llb::without_credentials(line));
            _ = writeln!(text, "{}", shown.trim_end());
        }
        text + RULE
    }
}

/// Prints lines of a source as [`SourceLines::excerpt`] does.
pub fn excerpt(file: &str, source: &str, first: u32, last: u32) -> String {
    SourceLines::new(file, source).excerpt(first, last)
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

    #[test]
    fn long_places_are_cut() {
        let source = "x \\\n".repeat(1_000);
        assert_eq!(excerpt("d", &source, 10, 900).lines().count(), 2 + 2 + 41 + 2 + 1);
        assert_eq!(excerpt("d", "x", 5, 9), "d:5\n--------------------\n--------------------");
    }
}
