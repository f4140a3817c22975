//! Makes foreign text harmless for a terminal and for whoever reads a log (A103, A104).
//!
//! Step output, names, labels and error texts come from strangers. Nothing of them may move the cursor, talk to
//! the terminal, hide text behind reordering, or look like a line of forge's own.

use std::borrow::Cow;

/// One line of foreign text: controls are shown as `\x1b`, reordering marks as `\u{202e}`; tabs stay.
pub fn line(text: &str) -> Cow<'_, str> {
    clean(text, Colours::Show)
}

/// One line of step output from raw bytes. What is not UTF-8 becomes U+FFFD, colours are dropped. Of a line that
/// was drawn over itself with carriage returns, only the last state is shown, as a terminal would.
pub fn log_line(bytes: &[u8]) -> String {
    let last = bytes.rsplit(|byte| *byte == b'\r').find(|part| !part.is_empty()).unwrap_or_default();
    clean(&String::from_utf8_lossy(last), Colours::Drop).into_owned()
}

/// Foreign text of several lines; line ends stay.
pub fn block(text: &str) -> Cow<'_, str> {
    if !text.contains(|c: char| is_hostile(c) && c != '\n') {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.split('\n').map(line).collect::<Vec<_>>().join("\n"))
}

/// What becomes of colours (SGR sequences): harmless, but not text.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Colours {
    Show,
    Drop,
}

fn clean(text: &str, colours: Colours) -> Cow<'_, str> {
    if !text.contains(is_hostile) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let colour = colour_sequence(rest).filter(|_| colours == Colours::Drop);
        if colour.is_none() {
            push_visible(&mut out, c);
        }
        rest = &rest[colour.unwrap_or(c.len_utf8())..];
    }
    Cow::Owned(out)
}

fn push_visible(out: &mut String, c: char) {
    match c {
        c if !is_hostile(c) => out.push(c),
        c if (c as u32) < 0x100 => out.push_str(&format!("\\x{:02x}", c as u32)),
        c => out.push_str(&format!("\\u{{{:x}}}", c as u32)),
    }
}

/// C0 but tab, DEL, C1, line and paragraph separators, bidirectional controls, and marks that show as nothing.
fn is_hostile(c: char) -> bool {
    matches!(c,
        '\0'..='\x08' | '\n'..='\x1f' | '\x7f'..='\u{9f}' | '\u{61c}' | '\u{200e}' | '\u{200f}'
        | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// The length of an SGR sequence (`ESC [ digits and ; m`) at the start of a text.
fn colour_sequence(text: &str) -> Option<usize> {
    let body = text.strip_prefix("\x1b[")?;
    let digits = body.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b';').count();
    (digits <= 32 && body.as_bytes().get(digits) == Some(&b'm')).then_some(2 + digits + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    // Fails when `clean` returns its text unchanged.
    #[test]
    fn a103_terminal_controls_are_shown_not_sent() {
        assert_eq!(line("up \x1b[1A\x1b[2K fake"), "up \\x1b[1A\\x1b[2K fake");
        assert_eq!(line("\x1b]52;c;aGk=\x07"), "\\x1b]52;c;aGk=\\x07");
        assert_eq!(line("\u{9b}31m"), "\\x9b31m");
        assert_eq!(line("a\u{202e}b\u{2066}c"), "a\\u{202e}b\\u{2066}c");
        assert_eq!(line("tab\tand é"), "tab\tand é");
        assert_eq!(log_line(b"\x1b[1;31mred\x1b[2J\x1b[0m"), "red\\x1b[2J");
        assert_eq!(log_line(b"\xff\x80ok"), "\u{fffd}\u{fffd}ok");
    }

    #[test]
    fn a104_a_line_stays_one_line() {
        assert_eq!(line("a\n#9 DONE 0.1s\r\n"), "a\\x0a#9 DONE 0.1s\\x0d\\x0a");
        assert_eq!(line("x\u{2028}y\u{85}z"), "x\\u{2028}y\\x85z");
        assert_eq!(block("one\ntwo\x1b[2J"), "one\ntwo\\x1b[2J");
    }

    #[test]
    fn carriage_returns_leave_the_last_state() {
        assert_eq!(log_line(b"10%\r20%\r30%"), "30%");
        assert_eq!(log_line(b"30%\r"), "30%");
        assert_eq!(log_line(b"line\r"), "line");
        assert_eq!(log_line(b"\r\r"), "");
    }
}
