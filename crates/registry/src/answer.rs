use crate::message::ServerMessage;
use crate::retry::{Again, Failure, is_passing, retry_after};
use crate::transport::{authority, connection_error, shown};
use crate::{RegistryError, Timeouts};
use bytes::Bytes;
use reqwest::header::{CONTENT_ENCODING, CONTENT_LENGTH, HeaderName, RETRY_AFTER};
use reqwest::{Method, Response, StatusCode, Url};
use std::time::{Duration, SystemTime};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

/// A server's answer, whose body is still to be read. Holds one of the host's slots until it is dropped.
pub(crate) struct Answer {
    response: Response,
    method: Method,
    timeouts: Timeouts,
    same_origin: bool,
    authenticated: bool,
    pace: Pace,
    _permit: OwnedSemaphorePermit,
}

/// Error bodies and tokens are a few kilobytes (A71).
pub(crate) const LARGEST_ERROR: u64 = 1 << 20;

/// Progress means this many bytes within the stall time: a byte a second is none (A79).
const PROGRESS: u64 = 4096;

/// How a body comes in: what came since progress was last made, and how long forge waited for it. The time in which
/// forge itself was busy does not count.
#[derive(Default)]
struct Pace {
    waited: Duration,
    bytes: u64,
}

impl Answer {
    pub(crate) fn new(response: Response, method: Method, timeouts: Timeouts, permit: OwnedSemaphorePermit) -> Self {
        Self {
            response,
            method,
            timeouts,
            same_origin: true,
            authenticated: false,
            pace: Pace::default(),
            _permit: permit,
        }
    }

    pub(crate) fn with_origin(self, same_origin: bool) -> Self {
        Self { same_origin, ..self }
    }

    /// Whether the answer comes from where the request was sent to, not from where a redirect led: only then may it ask
    /// for credentials.
    pub(crate) fn is_from_origin(&self) -> bool {
        self.same_origin
    }

    /// Notes whether the request showed who asks; an anonymous token does not.
    pub(crate) fn with_proof(self, authenticated: bool) -> Self {
        Self { authenticated, ..self }
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// The address that answered, after redirects.
    pub(crate) fn url(&self) -> &Url {
        self.response.url()
    }

    pub(crate) fn header(&self, name: HeaderName) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }

    pub(crate) fn header_bytes(&self, name: HeaderName) -> Option<&[u8]> {
        Some(self.response.headers().get(name)?.as_bytes())
    }

    pub(crate) fn headers(&self, name: HeaderName) -> Vec<String> {
        let values = self.response.headers().get_all(name).iter();
        values.filter_map(|value| value.to_str().ok()).map(str::to_owned).collect()
    }

    /// The announced length of the body.
    pub(crate) fn content_length(&self) -> Option<u64> {
        self.header(CONTENT_LENGTH)?.trim().parse().ok()
    }

    /// Refuses bodies that are packed for the way (A79): digest and size would be those of other bytes.
    pub(crate) fn check_encoding(&self) -> Result<(), RegistryError> {
        match self.header(CONTENT_ENCODING).map(str::trim) {
            None | Some("" | "identity") => Ok(()),
            Some(encoding) => {
                let encoding = crate::message::sanitise(encoding);
                Err(self.protocol_error(format!("Content-Encoding {encoding:?} was not asked for")))
            }
        }
    }

    /// The next piece of the body; `None` at its end.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, RegistryError> {
        let patience = self.timeouts.stall.saturating_sub(self.pace.waited);
        let began = Instant::now();
        match tokio::time::timeout(patience, self.response.chunk()).await {
            Err(_) => Err(self.stalled(self.timeouts.stall)),
            Ok(Err(error)) => Err(connection_error(&self.method, self.response.url(), error)),
            Ok(Ok(chunk)) => {
                self.pace.note(chunk.as_ref().map_or(0, |chunk| chunk.len() as u64), began.elapsed());
                Ok(chunk)
            }
        }
    }

    /// The whole body, if it is not larger than `limit`. Allocates what comes, not what is announced.
    pub(crate) async fn bytes(mut self, limit: u64, what: &'static str) -> Result<Vec<u8>, RegistryError> {
        let deadline = self.timeouts.document;
        match tokio::time::timeout(deadline, self.read_to(limit, what)).await {
            Ok(result) => result,
            Err(_) => Err(self.stalled(deadline)),
        }
    }

    async fn read_to(&mut self, limit: u64, what: &'static str) -> Result<Vec<u8>, RegistryError> {
        let mut bytes = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            if (bytes.len() + chunk.len()) as u64 > limit {
                return Err(RegistryError::TooLarge { url: shown(self.url()), what, limit });
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    /// Reads an error answer. `what` says what was asked for.
    pub(crate) async fn into_failure(self, what: &str) -> Failure {
        let (status, url, method) = (self.status().as_u16(), self.url().clone(), self.method.clone());
        let wait = self.header(RETRY_AFTER).and_then(|value| retry_after(value, SystemTime::now()));
        let (registry, authenticated, home) = (authority(&url), self.authenticated, self.same_origin);
        // The status says enough where the body cannot be read.
        let body = self.bytes(LARGEST_ERROR, "error").await.unwrap_or_default();
        let (what, message) = (what.to_owned(), ServerMessage::from_body(&body));
        let error = match status {
            // What a redirect leads to has no accounts that a user could log in to.
            401 | 403 if home => RegistryError::Unauthorized { registry, what, authenticated, message },
            404 => RegistryError::NotFound { what, registry, message },
            _ => RegistryError::Status { method: method.to_string(), url: shown(&url), status, message },
        };
        let again = match (is_passing(status), wait) {
            (false, _) => Again::Never,
            (true, None) => Again::Later,
            (true, Some(time)) => Again::After(time),
        };
        Failure { error, again }
    }

    pub(crate) fn protocol_error(&self, reason: impl Into<String>) -> RegistryError {
        RegistryError::Protocol { url: shown(self.url()), reason: reason.into() }
    }

    fn stalled(&self, time: Duration) -> RegistryError {
        RegistryError::Stalled { method: self.method.to_string(), url: shown(self.url()), seconds: time.as_secs() }
    }
}

impl Pace {
    fn note(&mut self, bytes: u64, waited: Duration) {
        self.bytes += bytes;
        self.waited += waited;
        if self.bytes >= PROGRESS {
            *self = Self::default();
        }
    }
}
