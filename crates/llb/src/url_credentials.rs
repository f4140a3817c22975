use std::borrow::Cow;
use std::fmt;

/// The user information of an address (`user:password@`), kept apart from it so that the address can be shown and
/// recorded (A102). Its `Debug` shows nothing, there is no `Display`, and it is no part of a vertex's identity.
#[derive(Clone, PartialEq, Eq)]
pub struct UrlCredentials(String);

impl UrlCredentials {
    /// Takes the user information out of an address with a scheme. An address without any is returned as it is.
    pub fn split(url: &str) -> (String, Option<Self>) {
        let Some((scheme, rest)) = url.split_once("://") else { return (url.to_owned(), None) };
        let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        match authority.rsplit_once('@') {
            None => (url.to_owned(), None),
            Some((user, host)) => {
                let credentials = (!user.is_empty()).then(|| Self(user.to_owned()));
                (format!("{scheme}://{host}{path}"), credentials)
            }
        }
    }

    /// The user's name, percent-decoded.
    pub fn user(&self) -> Vec<u8> {
        percent_decoded(self.0.split_once(':').map_or(self.0.as_str(), |(user, _)| user))
    }

    /// The password, percent-decoded; empty where there is none.
    pub fn reveal_password(&self) -> Vec<u8> {
        percent_decoded(self.0.split_once(':').map_or("", |(_, password)| password))
    }
}

impl fmt::Debug for UrlCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("****")
    }
}

/// What stands where a credential stood.
const HIDDEN: &str = "xxxxx";

/// Parts of the names of query parameters whose values let their readers in.
const TELLING: [&str; 9] = ["token", "secret", "passw", "pwd", "signature", "credential", "auth", "apikey", "api_key"];

/// A text for people, with the user information of all addresses in it replaced, and the values of query parameters
/// that are named like secrets (A102).
pub fn without_credentials(text: &str) -> Cow<'_, str> {
    // The search for single bytes is much the faster one, and most texts end here.
    if !(text.contains('@') || text.contains('?')) || !text.contains("://") {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, address) = rest.split_at(at + 3);
        let end = address.find(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`')).unwrap_or(address.len());
        shown += before;
        push_address(&mut shown, scheme(before), &address[..end]);
        rest = &address[end..];
    }
    Cow::Owned(shown + rest)
}

/// The scheme of an address that begins with the last `://` of a text.
fn scheme(before: &str) -> &str {
    let text = before.strip_suffix("://").unwrap_or(before);
    text.rsplit(|c: char| !(c.is_ascii_alphanumeric() || "+.-".contains(c))).next().unwrap_or_default()
}

/// Whether what stands before `@` is no secret: it is part of an image's name, or the user of a key.
fn is_public(scheme: &str, user: &str) -> bool {
    match scheme.to_ascii_lowercase().as_str() {
        "oci-layout" | "docker-image" => true,
        "ssh" => !user.contains(':'),
        _ => false,
    }
}

/// Writes what is behind `://` up to the end of the word.
fn push_address(shown: &mut String, scheme: &str, address: &str) {
    let (authority, path) = address.split_at(address.find(['/', '?', '#']).unwrap_or(address.len()));
    match authority.rsplit_once('@').filter(|(user, _)| !is_public(scheme, user)) {
        Some((_, host)) => *shown += &format!("{HIDDEN}@{host}"),
        None => *shown += authority,
    }
    let Some((path, query)) = path.split_once('?') else { return *shown += &without_credentials(path) };
    let (query, fragment) = query.split_at(query.find('#').unwrap_or(query.len()));
    let pairs = query.split('&').map(|pair| match pair.split_once('=') {
        Some((name, value)) if !value.is_empty() && is_telling(name) => format!("{name}={HIDDEN}"),
        _ => pair.to_owned(),
    });
    *shown += &format!("{}?{}{fragment}", without_credentials(path), pairs.collect::<Vec<_>>().join("&"));
}

fn is_telling(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    matches!(name.as_str(), "sig" | "key") || TELLING.iter().any(|part| name.contains(part))
}

/// Replaces `%41` by `A`. A percent sign without two hexadecimal digits behind it stays.
pub(crate) fn percent_decoded(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let digit = |at: usize| bytes.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        match (byte, digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                decoded.push((high * 16 + low) as u8);
                at += 3;
            }
            _ => {
                decoded.push(*byte);
                at += 1;
            }
        }
    }
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a102_user_information_leaves_the_address() {
        let (url, credentials) = UrlCredentials::split("https://us%40er:p%3Aa@ss@host:1/p@th?a@b");
        assert_eq!(url, "https://host:1/p@th?a@b");
        let credentials = credentials.unwrap();
        assert_eq!(credentials.user(), b"us@er");
        assert_eq!(credentials.reveal_password(), b"p:a@ss");
        assert_eq!(format!("{credentials:?}"), "****");
    }

    #[test]
    fn a102_texts_are_shown_without_the_credentials_of_their_addresses() {
        let check = |text: &str, expected: &str| assert_eq!(without_credentials(text), expected);
        check("ADD https://u:p@h/x /y", "ADD https://xxxxx@h/x /y");
        check("ADD \"https://u:p@h\" 'git://t@h/r'", "ADD \"https://xxxxx@h\" 'git://xxxxx@h/r'");
        check("https://h/x?a=b&X-Amz-Signature=s&token=t#f", "https://h/x?a=b&X-Amz-Signature=xxxxx&token=xxxxx#f");
        check("https://h/a@b?c=d@e and git@h:p", "https://h/a@b?c=d@e and git@h:p");
        check("https://h/x?key=&sig=1", "https://h/x?key=&sig=xxxxx");
        check("a://://u@h://", "a://://u@h://");
        check("RUN echo a:b@c", "RUN echo a:b@c");
        check("ssh://git@h/r ssh://u:p@h/r", "ssh://git@h/r ssh://xxxxx@h/r");
        check("oci-layout://cache@sha256:1", "oci-layout://cache@sha256:1");
        check("https://proxy/https://u:p@h/x", "https://proxy/https://xxxxx@h/x");
    }

    #[test]
    fn an_address_without_user_information_is_left_alone() {
        for url in ["https://host/a@b", "https://host?a@b", "host@a", ""] {
            assert_eq!(UrlCredentials::split(url), (url.to_owned(), None));
        }
    }
}
