use std::fmt::Write as _;

/// Quotes a text as Go's `strconv.Quote` does, which is what clients see in history entries and parser dumps.
pub(crate) fn go_quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\u{7}' => quoted.push_str("\\a"),
            '\u{8}' => quoted.push_str("\\b"),
            '\u{c}' => quoted.push_str("\\f"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\u{b}' => quoted.push_str("\\v"),
            c if c < ' ' || c == '\u{7f}' => _ = write!(quoted, "\\x{:02x}", c as u32),
            c if is_printable(c) => quoted.push(c),
            c if (c as u32) < 0x10000 => _ = write!(quoted, "\\u{:04x}", c as u32),
            c => _ = write!(quoted, "\\U{:08x}", c as u32),
        }
    }
    quoted.push('"');
    quoted
}

/// Control characters and exotic blanks are escaped. Go has more such characters; none turn up in practice.
fn is_printable(c: char) -> bool {
    c == ' ' || !(c.is_control() || c.is_whitespace() || matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{feff}'))
}

/// Quotes a list as Go's `%q` does: `["a" "b"]`.
pub(crate) fn go_quoted_list(words: &[String]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| go_quoted(word)).collect();
    format!("[{}]", quoted.join(" "))
}

/// Prints a list as Go's `%v` does: `[a b]`.
pub(crate) fn go_list(words: &[String]) -> String {
    format!("[{}]", words.join(" "))
}
