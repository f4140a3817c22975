use super::Script;
use forge_image::Digest;
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

/// A request that a registry has received.
#[derive(Clone, Debug, Default)]
pub struct Received {
    /// The method.
    pub method: String,
    /// The path, undecoded.
    pub path: String,
    /// The query, undecoded, without the question mark.
    pub query: String,
    /// The headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Received {
    /// The first header of a name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Path and query.
    pub fn target(&self) -> String {
        match self.query.is_empty() {
            true => self.path.clone(),
            false => format!("{}?{}", self.path, self.query),
        }
    }

    /// All decoded values of a name in the query.
    pub fn queried(&self, name: &str) -> Vec<String> {
        pairs(&self.query).into_iter().filter(|(key, _)| key == name).map(|(_, value)| value).collect()
    }
}

/// Decodes a query or a form.
pub(super) fn pairs(text: &str) -> Vec<(String, String)> {
    let pair = |part: &str| {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        (decode(key), decode(value))
    };
    text.split('&').filter(|part| !part.is_empty()).map(pair).collect()
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let escaped = (*first == b'%' && tail.len() >= 2)
            .then(|| std::str::from_utf8(&tail[..2]).ok().and_then(|hex| u8::from_str_radix(hex, 16).ok()))
            .flatten();
        match (first, escaped) {
            (_, Some(byte)) => (bytes.push(byte), rest = &tail[2..]),
            (b'+', None) => (bytes.push(b' '), rest = tail),
            (byte, None) => (bytes.push(*byte), rest = tail),
        };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Whom a registry lets in.
#[derive(Clone, Debug, Default)]
pub(super) enum Access {
    #[default]
    Everyone,
    Basic {
        user: String,
        password: String,
    },
    /// Tokens from `/token`.
    Bearer {
        user: String,
        password: String,
        realm: Option<String>,
        anonymous_pull: bool,
    },
}

/// One repository.
#[derive(Default)]
pub(super) struct Repository {
    pub blobs: BTreeMap<Digest, Vec<u8>>,
    pub manifests: BTreeMap<Digest, (String, Vec<u8>)>,
    pub tags: BTreeMap<String, Digest>,
}

/// Everything that a registry holds.
#[derive(Default)]
pub(super) struct State {
    pub repositories: BTreeMap<String, Repository>,
    pub uploads: HashMap<String, Vec<u8>>,
    pub log: Vec<Received>,
    pub scripts: Vec<Script>,
    pub access: Access,
    /// Valid tokens with their scopes, `repository:name:pull`.
    pub tokens: HashMap<String, (Vec<String>, Instant)>,
    /// How long tokens are valid.
    pub token_life: Option<Duration>,
    pub counter: u64,
    pub origin: String,
}

impl State {
    pub fn number(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }
}
