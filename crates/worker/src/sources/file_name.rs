//! What a downloaded file is called (A35): whatever a server says, one safe component of a path.

/// Where the address and the server say nothing.
const UNNAMED: &str = "__unnamed__";

/// Why a name is refused.
pub(super) type Refused = (String, &'static str);

/// The name of a file: what was asked for, else what the server says, else the last part of the address.
pub(super) fn choose(wanted: Option<&str>, disposition: Option<&[u8]>, url: &str) -> Result<String, Refused> {
    if let Some(name) = wanted {
        return match name.contains('/') || matches!(name, "" | "." | "..") {
            true => Err((shown(name), "is not the name of a file")),
            false => checked(name.to_owned()),
        };
    }
    match disposition.and_then(from_disposition).as_deref().and_then(last_part) {
        Some(name) => checked(name.to_owned()),
        None => from_address(url).map_or(Ok(UNNAMED.to_owned()), checked),
    }
}

/// The last part of an address's path, decoded before it is cut: an escaped slash is a slash.
fn from_address(url: &str) -> Option<String> {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let path = rest.split(['?', '#']).next().unwrap_or_default().split_once('/').map_or("", |(_, path)| path);
    let decoded = String::from_utf8(percent_decoded(path.as_bytes())).ok()?;
    last_part(&decoded).map(str::to_owned)
}

/// What is behind the last slash or backslash; nothing where that is no name.
fn last_part(name: &str) -> Option<&str> {
    let part = name.rsplit(['/', '\\']).next().unwrap_or_default();
    Some(part).filter(|part| !matches!(*part, "" | "." | ".."))
}

fn checked(name: String) -> Result<String, Refused> {
    if name.len() > 255 {
        return Err((shown(&name), "is longer than 255 bytes"));
    }
    match name.chars().any(char::is_control) {
        true => Err((shown(&name), "holds control characters")),
        false => Ok(name),
    }
}

/// A name for a message: the beginning.
fn shown(name: &str) -> String {
    name.chars().take(80).collect()
}

/// The `filename*` (RFC 8187) or else the `filename` of a `Content-Disposition` (RFC 6266). What does not follow the
/// grammar says nothing.
fn from_disposition(header: &[u8]) -> Option<String> {
    let header = std::str::from_utf8(header).ok()?;
    let parameters = parameters(header.split_once(';')?.1);
    let of = |wanted: &str| parameters.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.clone());
    let extended = of("filename*").and_then(|value| {
        let (charset, rest) = value.split_once('\'')?;
        let (_, text) = rest.split_once('\'')?;
        let utf8 = charset.eq_ignore_ascii_case("utf-8");
        utf8.then(|| String::from_utf8(percent_decoded(text.as_bytes())).ok()).flatten()
    });
    extended.or_else(|| of("filename"))
}

/// The parameters behind the first semicolon, names in lower case, quotes taken off.
fn parameters(text: &str) -> Vec<(String, String)> {
    let mut parameters = Vec::new();
    let mut rest = text.trim_start();
    while let Some((name, value)) = rest.split_once('=') {
        let (value, after) = match value.trim_start().strip_prefix('"') {
            Some(quoted) => unquoted(quoted),
            None => {
                let end = value.find(';').unwrap_or(value.len());
                (value[..end].trim().to_owned(), &value[end..])
            }
        };
        parameters.push((name.trim().to_ascii_lowercase(), value));
        rest = after.trim_start().strip_prefix(';').unwrap_or_default().trim_start();
    }
    parameters
}

/// A quoted text up to its closing quote, and what is behind it.
fn unquoted(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &text[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

fn percent_decoded(bytes: &[u8]) -> Vec<u8> {
    let digit = |at: usize| bytes.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        match (bytes[at], digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                decoded.push((high * 16 + low) as u8);
                at += 3;
            }
            (byte, ..) => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(disposition: &str, url: &str, expected: &str) {
        let header = (!disposition.is_empty()).then_some(disposition.as_bytes());
        let found = choose(None, header, url).unwrap_or_else(|(_, reason)| format!("error: {reason}"));
        assert_eq!(found, expected, "{disposition:?} {url:?}");
    }

    #[test]
    fn names_come_from_the_server_or_the_address() {
        check("", "https://h/a/b.tar.gz?x=/y#z", "b.tar.gz");
        check("", "https://h/a/b%20c", "b c");
        check("", "https://h", UNNAMED);
        check("", "https://h/", UNNAMED);
        check("", "https://h/a/", UNNAMED);
        check("", "https://h?x=/y", UNNAMED);
        check("attachment; filename=x.txt", "https://h/y", "x.txt");
        check("attachment; size=3; FileName = \"x; \\\"y\\\".txt\"", "https://h/y", "x; \"y\".txt");
        check("attachment; filename=\"a\"; filename*=utf-8'en'%c3%a4%20b", "https://h/y", "ä b");
        check("attachment; filename*=latin1''%e4; filename=a", "https://h/y", "a");
        check("attachment", "https://h/y", "y");
        check("inline; filename", "https://h/y", "y");
    }

    // Seen to fail with `last_part` and `checked` that return what they are given.
    #[test]
    fn a35_no_name_leads_anywhere_else() {
        for (header, expected) in [
            ("attachment; filename=\"../../x\"", "x"),
            ("attachment; filename=\"/etc/passwd\"", "passwd"),
            ("attachment; filename=\"..\\\\..\\\\x\"", "x"),
            ("attachment; filename=\"..\"", "y"),
            ("attachment; filename=\".\"", "y"),
            ("attachment; filename=\"a/..\"", "y"),
            ("attachment; filename=\"\"", "y"),
            ("attachment; filename=\"x/\"", "y"),
            ("attachment; filename*=UTF-8''..%2f..%2fx", "x"),
            ("attachment; filename=\"..%2f..%2fx\"", "..%2f..%2fx"),
            ("attachment; filename*=UTF-8''a%00b", "error: holds control characters"),
            ("attachment; filename*=UTF-8''a%0ab", "error: holds control characters"),
        ] {
            check(header, "https://h/y", expected);
        }
        check(&format!("attachment; filename={}", "x".repeat(1000)), "https://h/y", "error: is longer than 255 bytes");
        check("", &format!("https://h/{}", "x".repeat(1000)), "error: is longer than 255 bytes");
        check("", "https://h/a%2f..%2fb", "b");
        check("", "https://h/..%2f..", UNNAMED);
        check("", "https://h/%00", "error: holds control characters");
        check("", "https://h/%ff", UNNAMED);
    }

    #[test]
    fn a35_a_wanted_name_is_one_component_too() {
        assert_eq!(choose(Some("x"), Some(b"attachment; filename=y"), "https://h/z").unwrap(), "x");
        for name in ["", ".", "..", "a/b", "/", "../x", "a\0", &"x".repeat(256)] {
            assert!(choose(Some(name), None, "https://h/z").is_err(), "{name:?}");
        }
    }
}
