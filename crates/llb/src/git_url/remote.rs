//! The address of a repository, as the git program may be given it.

use super::GitUrlError;
use crate::UrlCredentials;
use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

/// How a repository is reached. Nothing else is ever asked of the git program: no helper (`ext::`), no local file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GitTransport {
    /// `https://`
    Https,
    /// `http://`
    Http,
    /// `git://`
    Git,
    /// `ssh://` and `user@host:path`.
    Ssh,
}

impl GitTransport {
    /// The scheme of addresses, and git's name for the protocol.
    pub fn scheme(self) -> &'static str {
        match self {
            Self::Https => "https",
            Self::Http => "http",
            Self::Git => "git",
            Self::Ssh => "ssh",
        }
    }

    fn from_scheme(scheme: &str) -> Option<Self> {
        [Self::Https, Self::Http, Self::Git, Self::Ssh].into_iter().find(|t| t.scheme().eq_ignore_ascii_case(scheme))
    }
}

/// A repository's address that was checked: its transport is an allowed one, its host follows the grammar of host
/// names, no part of it can be taken for an option or a helper by the git or the ssh program (A106), and it holds
/// no password and, but for SSH, no user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GitRemote {
    transport: GitTransport,
    host: String,
    text: String,
}

impl GitRemote {
    /// Checks an address, and takes its user information out. A fragment or query is refused here.
    ///
    /// # Errors
    /// It is not the address of a repository, or not one that is allowed.
    pub fn parse(text: &str) -> Result<(Self, Option<UrlCredentials>), GitUrlError> {
        let refuse = |reason| Err(GitUrlError::Remote { reason });
        if text.len() > MAX_LENGTH {
            return refuse("it is too long");
        }
        if text.chars().any(|c| c.is_control() || c.is_whitespace() || matches!(c, '#' | '?' | '\\')) {
            return refuse("it holds a character that no address has");
        }
        match text.split_once("://") {
            Some((scheme, rest)) => match GitTransport::from_scheme(scheme) {
                Some(transport) => Self::from_url(transport, rest),
                None => refuse("only https, http, ssh and git are allowed"),
            },
            None => Self::from_scp(text).map(|remote| (remote, None)),
        }
    }

    fn from_url(transport: GitTransport, rest: &str) -> Result<(Self, Option<UrlCredentials>), GitUrlError> {
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (user, place) = authority.rsplit_once('@').map_or((None, authority), |(user, place)| (Some(user), place));
        let (host, port) = split_port(place)?;
        check_host(host)?;
        if path.trim_matches('/').is_empty() {
            return Err(GitUrlError::Remote { reason: "it has no path" });
        }
        let place = port.map_or(host.to_owned(), |port| format!("{host}:{port}"));
        let plain = format!("{}://{place}{path}", transport.scheme());
        let (text, credentials) = match (transport, user) {
            (_, None) => (plain, None),
            (GitTransport::Git, Some(_)) => return Err(GitUrlError::Remote { reason: "git:// knows no users" }),
            (GitTransport::Ssh, Some(user)) => {
                check_user(user)?;
                (format!("ssh://{user}@{place}{path}"), None)
            }
            (GitTransport::Https | GitTransport::Http, Some(user)) => {
                (plain, UrlCredentials::split(&format!("https://{user}@host/")).1)
            }
        };
        Ok((Self { transport, host: host.to_owned(), text }, credentials))
    }

    /// `user@host:path`, where the path counts from the user's home.
    fn from_scp(text: &str) -> Result<Self, GitUrlError> {
        let parts = text.split_once('@').and_then(|(user, rest)| Some((user, rest.split_once(':')?)));
        let Some((user, (host, path))) = parts else {
            return Err(GitUrlError::Remote { reason: "it is neither a URL nor user@host:path" });
        };
        check_user(user)?;
        check_host(host)?;
        if path.is_empty() || path.starts_with(['-', ':']) {
            return Err(GitUrlError::Remote { reason: "its path is empty, or begins with a dash or colon" });
        }
        Ok(Self { transport: GitTransport::Ssh, host: host.to_owned(), text: text.to_owned() })
    }

    /// How it is reached.
    pub fn transport(&self) -> GitTransport {
        self.transport
    }

    /// The host without a port, which the names of secrets may carry (`GIT_AUTH_TOKEN.example.com`).
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The address for the git program.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for GitRemote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What is beyond is refused by servers as well.
const MAX_LENGTH: usize = 4096;

fn split_port(place: &str) -> Result<(&str, Option<u16>), GitUrlError> {
    let colon = match place.rfind(']') {
        Some(bracket) => place[bracket..].find(':').map(|at| bracket + at),
        None => place.find(':'),
    };
    let Some(colon) = colon else { return Ok((place, None)) };
    let digits = &place[colon + 1..];
    if digits.is_empty() {
        return Ok((&place[..colon], None));
    }
    let port = digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| u16::from_str(digits).ok()).flatten();
    match port {
        Some(port) if port != 0 => Ok((&place[..colon], Some(port))),
        _ => Err(GitUrlError::Remote { reason: "its port is not a number from 1 to 65535" }),
    }
}

/// A host name of letters, digits, dashes and underscores between dots, an IPv4 address, or `[IPv6]`.
fn check_host(host: &str) -> Result<(), GitUrlError> {
    let six = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    let name = host.strip_suffix('.').unwrap_or(host);
    let good = match six {
        Some(address) => Ipv6Addr::from_str(address).is_ok(),
        None => host.len() <= 253 && name.split('.').all(label),
    };
    if good { Ok(()) } else { Err(GitUrlError::Remote { reason: "its host is not a host name" }) }
}

fn check_user(user: &str) -> Result<(), GitUrlError> {
    let byte = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    match user.bytes().next() {
        Some(first) if first.is_ascii_alphanumeric() || first == b'_' => {}
        _ => return Err(GitUrlError::Remote { reason: "its user is empty or begins with a sign" }),
    }
    match user.bytes().all(byte) {
        true => Ok(()),
        false => Err(GitUrlError::Remote { reason: "the user of an SSH address is a plain name without a password" }),
    }
}
