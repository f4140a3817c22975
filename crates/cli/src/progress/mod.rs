//! Renderings of the one stream of events beside every build.
//!
//! The renderers are pure: they keep a [`trace::Trace`], take events and a time, and give text. [`Display`] is
//! the thread that feeds them and writes.

mod display;
mod json;
mod lines;
mod plain;
#[cfg(test)]
mod script;
mod trace;
mod tty;

pub use display::Display;
pub use tty::Style;

use crate::sanitise;
use anyhow::bail;
use forge_session::{StatusUpdate, WarningNotice};
use std::fmt::Write as _;
use std::time::SystemTime;

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Numbered lines.
    Plain,
    /// A display that is drawn anew.
    Tty,
    /// One JSON object a line.
    RawJson,
    /// Nothing; the image ID on standard output.
    Quiet,
    /// Nothing at all.
    None,
}

impl Mode {
    /// Reads `--progress`.
    ///
    /// # Errors
    /// Refuses unknown words.
    pub fn read(word: Option<&str>, terminal: bool) -> anyhow::Result<Self> {
        Ok(match word.unwrap_or("auto") {
            "auto" | "" if terminal => Self::Tty,
            "auto" | "" | "plain" => Self::Plain,
            "tty" => Self::Tty,
            "rawjson" => Self::RawJson,
            "quiet" => Self::Quiet,
            "none" => Self::None,
            other => bail!("invalid progress mode {other:?}: expected auto, plain, tty, rawjson, quiet or none"),
        })
    }
}

/// What a transfer or a sub-task is doing, in one line.
fn status_text(status: &StatusUpdate, now: SystemTime) -> String {
    let mut text = match status.name.is_empty() || status.id.starts_with(&status.name) {
        true => sanitise::line(&status.id).into_owned(),
        false => format!("{} {}", sanitise::line(&status.name), sanitise::line(&status.id)),
    };
    match (status.current, status.total) {
        (0, 0) => {}
        (current, 0) => text += &format!(" {}", amount(current)),
        (current, total) => text += &format!(" {} / {}", amount(current), amount(total)),
    }
    let end = status.completed.unwrap_or(now);
    let seconds = status.started.and_then(|started| end.duration_since(started).ok()).unwrap_or_default().as_secs_f64();
    if seconds > 0.01 {
        text += &format!(" {seconds:.1}s");
    }
    if status.completed.is_some() {
        text += " done";
    }
    text
}

/// A number of bytes with two decimals, as BuildKit's transfers show it.
fn amount(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes}B") } else { format!("{value:.2}{}", UNITS[unit]) }
}

/// The remarks of the build checks, as docker prints them below a build.
pub fn warnings_text(warnings: &[WarningNotice], expand: bool) -> String {
    if warnings.is_empty() {
        return String::new();
    }
    let (count, plural) = (warnings.len(), if warnings.len() == 1 { "" } else { "s" });
    let advice = if expand { "" } else { " (use --debug to expand)" };
    let mut text = format!("\n {count} warning{plural} found{advice}:\n");
    for notice in warnings {
        let _ = writeln!(text, " - {}", sanitise::line(&notice.short));
        if expand {
            notice.detail.iter().for_each(|detail| text += &format!("{}\n", sanitise::line(detail)));
            notice.url.iter().for_each(|url| text += &format!("More info: {}\n", sanitise::line(url)));
            notice.excerpt.iter().for_each(|excerpt| text += &format!("{}\n", sanitise::block(excerpt)));
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes() {
        assert_eq!(Mode::read(None, true).unwrap(), Mode::Tty);
        assert_eq!(Mode::read(Some("auto"), false).unwrap(), Mode::Plain);
        assert_eq!(Mode::read(Some("rawjson"), true).unwrap(), Mode::RawJson);
        assert!(Mode::read(Some("fancy"), true).is_err());
    }

    #[test]
    fn warnings_are_listed_with_their_lines() {
        let notice = WarningNotice {
            vertex: None,
            level: 1,
            short: "StageNameCasing: Stage name 'Build' should be lowercase (line 3)".to_owned(),
            detail: vec!["Stage names should be lowercase".to_owned()],
            url: Some("https://r.test/stage-name-casing/".to_owned()),
            span: Some(forge_session::SourceSpan { file: "Dockerfile".to_owned(), first_line: 3, last_line: 3 }),
            excerpt: Some("Dockerfile:3\n   3 | >>> FROM scratch AS Build".to_owned()),
        };
        let expected = "\n 1 warning found (use --debug to expand):\n - StageNameCasing: Stage name 'Build' should be lowercase (line 3)\n";
        assert_eq!(warnings_text(std::slice::from_ref(&notice), false), expected);
        let full = " - StageNameCasing: Stage name 'Build' should be lowercase (line 3)\nStage names should be lowercase\nMore info: https://r.test/stage-name-casing/\nDockerfile:3\n   3 | >>> FROM scratch AS Build\n\n";
        assert!(warnings_text(&[notice], true).ends_with(full));
        assert_eq!(warnings_text(&[], true), "");
    }
}
