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
    fn an_address_without_user_information_is_left_alone() {
        for url in ["https://host/a@b", "https://host?a@b", "host@a", ""] {
            assert_eq!(UrlCredentials::split(url), (url.to_owned(), None));
        }
    }
}
