use serde_json::Value;
use std::fmt;

/// What a server said about a failure: the error codes of the distribution specification with their messages, or
/// the beginning of a plain text. Free of control and direction characters, cut to a few hundred characters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerMessage {
    codes: Vec<String>,
    text: String,
}

/// The longest text kept of a server's message.
const LONGEST: usize = 400;

impl ServerMessage {
    /// Reads the body of an error answer: `{"errors":[{"code":…,"message":…,"detail":…}]}` (distribution
    /// specification, "Error Codes"), the token endpoint's `{"details":…}` and `{"error":…,"error_description":…}`
    /// (RFC 6749, 5.2), or text. HTML pages of proxies say nothing and are dropped.
    pub(crate) fn from_body(body: &[u8]) -> Self {
        match serde_json::from_slice::<Value>(body) {
            Ok(document) => Self::from_json(&document),
            Err(_) if body.trim_ascii_start().starts_with(b"<") => Self::default(),
            Err(_) => Self { codes: Vec::new(), text: sanitise(&String::from_utf8_lossy(body)) },
        }
    }

    fn from_json(document: &Value) -> Self {
        let errors = document["errors"].as_array().map(Vec::as_slice).unwrap_or_default();
        let code = |error: &Value| error["code"].as_str().map(sanitise);
        let parts: Vec<String> = errors.iter().map(one_error).filter(|part| !part.is_empty()).collect();
        let text = match parts.is_empty() {
            false => parts.join("; "),
            true => ["error_description", "details", "message", "error"]
                .iter()
                .find_map(|key| document[*key].as_str())
                .unwrap_or_default()
                .to_owned(),
        };
        Self { codes: errors.iter().filter_map(code).collect(), text: sanitise(&text) }
    }

    /// The error codes, `BLOB_UNKNOWN`, in the server's order.
    pub fn codes(&self) -> &[String] {
        &self.codes
    }

    /// Codes and messages in one line; may be empty.
    pub fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn suffix(&self) -> String {
        match self.text.is_empty() {
            true => String::new(),
            false => format!(": {}", self.text),
        }
    }
}

impl fmt::Display for ServerMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn one_error(error: &Value) -> String {
    let word = |key: &str| error[key].as_str().unwrap_or_default().trim().to_owned();
    match (word("code"), word("message")) {
        (code, message) if code.is_empty() => message,
        (code, message) if message.is_empty() => code,
        (code, message) => format!("{code}: {message}"),
    }
}

/// Makes a foreign text fit for a terminal and for one line of a log (A103, A104).
pub(crate) fn sanitise(text: &str) -> String {
    let mut out = String::new();
    for character in text.trim().chars() {
        if out.len() >= LONGEST {
            out.push('…');
            break;
        }
        match character {
            '\n' | '\r' | '\t' => out.push(' '),
            // Control characters, and those that turn the direction of text around.
            c if c.is_control()
                || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}') =>
            {
                out.push_str(&format!("\\x{:02x}", c as u32));
            }
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(body: &str, expect: &str) {
        assert_eq!(ServerMessage::from_body(body.as_bytes()).text(), expect);
    }

    #[test]
    fn codes_and_messages_are_read() {
        check(r#"{"errors":[{"code":"DENIED","message":"no"},{"code":"X"}]}"#, "DENIED: no; X");
        check(r#"{"details":"incorrect username or password"}"#, "incorrect username or password");
        check(r#"{"error":"invalid_grant","error_description":"expired"}"#, "expired");
        check("<html><body>502</body></html>", "");
        check("", "");
        check("plain words\n", "plain words");
        check("[1]", "");
        let message = ServerMessage::from_body(br#"{"errors":[{"code":"DENIED","message":"no"}]}"#);
        assert_eq!(message.codes(), ["DENIED"]);
    }

    #[test]
    fn a103_control_characters_do_not_pass() {
        check("\u{1b}[2Jfake\u{202e}x\u{9b}31m", "\\x1b[2Jfake\\x202ex\\x9b31m");
        assert!(ServerMessage::from_body("a".repeat(100_000).as_bytes()).text().len() < 500);
    }
}
