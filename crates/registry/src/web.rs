//! Files of ordinary web servers, through the registry client's connections, certificates, proxies and limits.

use crate::answer::Answer;
use crate::proxy::ProxyRules;
use crate::registry::until_cancelled;
use crate::resolver::judged_by_text;
use crate::retry::{Failure, Tries, is_passing};
use crate::transport::{Reach, Request, Transport, authority, checked_target, shown};
use crate::{Registry, RegistryError};
use bytes::Bytes;
use forge_image::ErrorKind;
use forge_session::{Redacted, Session};
use reqwest::header::{
    ACCEPT, ACCEPT_ENCODING, CONTENT_DISPOSITION, CONTENT_ENCODING, ETAG, HeaderName, IF_MODIFIED_SINCE, IF_NONE_MATCH,
    LAST_MODIFIED, LOCATION, USER_AGENT,
};
use reqwest::{Method, StatusCode, Url};
use std::collections::BTreeMap;
use std::time::SystemTime;

const MOST_REDIRECTS: usize = 10;

/// A file that is asked for.
#[derive(Clone, Debug, Default)]
pub struct WebRequest {
    /// Its address, `http` or `https`, without user information.
    pub url: String,
    /// The value of `Authorization`. Goes to the address's own origin and nowhere else.
    pub authorization: Option<Redacted>,
    /// The `ETag` of what is there already.
    pub etag: Option<String>,
    /// The `Last-Modified` of what is there already.
    pub last_modified: Option<String>,
    /// `Accept` and `User-Agent`.
    pub headers: BTreeMap<String, String>,
}

/// What a web server says about a file.
pub enum WebAnswer {
    /// It is what is there already.
    Unchanged,
    /// It follows.
    File(Box<WebFile>),
}

/// How bytes are packed for the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WebPacking {
    /// They are the file's.
    Plain,
    /// With gzip.
    Gzip,
}

/// A file whose bytes are still to be read.
pub struct WebFile {
    answer: Answer,
}

/// Why a file could not be had. Addresses are shown without user, password and query.
#[derive(Debug, thiserror::Error)]
pub enum WebError {
    /// Network use was forbidden by the caller.
    #[error("cannot reach {host}: offline")]
    Offline {
        /// The server.
        host: String,
    },
    /// Not an address of a file on a web server.
    #[error("not an http or https address: {reason}")]
    Address {
        /// What is wrong with it.
        reason: String,
    },
    /// The server has no such file, or does not hand it out. The words are BuildKit's.
    #[error("{url}: invalid response status {status}")]
    Status {
        /// The address.
        url: String,
        /// The HTTP status.
        status: u16,
    },
    /// A public server leads into a private network (A112).
    #[error("{from} directs forge to {target}: an address of a private network")]
    PrivateNetwork {
        /// The server.
        from: String,
        /// Where to.
        target: String,
    },
    /// Too many redirects.
    #[error("{url}: more than {MOST_REDIRECTS} redirects")]
    Redirects {
        /// The address.
        url: String,
    },
    /// The connection or the answer, or nobody wants it any more.
    #[error(transparent)]
    Exchange(#[from] RegistryError),
}

impl WebError {
    /// Who is to blame.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Offline { .. } | Self::Address { .. } => ErrorKind::UserInput,
            Self::Status { .. } | Self::PrivateNetwork { .. } | Self::Redirects { .. } => ErrorKind::Remote,
            Self::Exchange(error) => error.kind(),
        }
    }

    /// What the user can do about it, where there is something.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Offline { .. } => Some("run without --offline".to_owned()),
            _ => None,
        }
    }
}

impl Registry {
    /// Asks for a file, and follows redirects: ten at most, never from https to http nor to other schemes, into a
    /// private network only from a private network (A112), with `authorization` only within the first origin.
    ///
    /// Where an `ETag` is known, the server is asked for the file's headers first, as BuildKit does: what did not change then
    /// costs no body even where conditions are ignored. A server that ignores the conditions and answers with the same `ETag`
    /// says that nothing changed, too. Bytes may come packed, see [`WebFile::packing`].
    ///
    /// # Errors
    /// The server cannot be reached or refuses; the session is cancelled.
    pub async fn file(&self, request: &WebRequest, session: &dyn Session) -> Result<WebAnswer, WebError> {
        let work = async {
            let mut tries = Tries::new(self.transport.options().retry).telling(session);
            loop {
                match self.file_once(request).await {
                    Ok(answer) => return Ok(answer),
                    Err(WebFailure::Passing(failure)) => tries.wait(failure).await.map_err(WebError::from)?,
                    Err(WebFailure::Final(error)) => return Err(error),
                }
            }
        };
        until_cancelled(session, work).await
    }

    /// Where requests for an address end up after redirects, by the rules of [`Registry::file`]. What is there, and
    /// whether it is, plays no part.
    ///
    /// # Errors
    /// As [`Registry::file`].
    pub async fn final_address(&self, request: &WebRequest, session: &dyn Session) -> Result<String, WebError> {
        let work = async {
            let answer = self.follow(request, Method::GET).await.map_err(WebFailure::into_error)?;
            Ok(answer.url().to_string())
        };
        until_cancelled(session, work).await
    }

    /// Whether a host lies in a private network, or its name leads there. A host that is asked through a proxy is judged by
    /// its text alone.
    pub async fn is_private_host(&self, host: &str) -> bool {
        let Ok(url) = Url::parse(&format!("https://{host}/")) else { return false };
        match self.transport.proxy().proxy_for(&url) {
            Some(_) => judged_by_text(&url) == Some(true),
            None => self.transport.public_names().is_private(&url).await,
        }
    }

    /// Whether a host lies in a private network, or its name leads there and nowhere else. A host that is asked through a
    /// proxy is judged by its text alone.
    pub async fn is_wholly_private_host(&self, host: &str) -> bool {
        let Ok(url) = Url::parse(&format!("https://{host}/")) else { return false };
        match self.transport.proxy().proxy_for(&url) {
            Some(_) => judged_by_text(&url) == Some(true),
            None => self.transport.public_names().is_wholly_private(&url).await,
        }
    }

    /// The proxy for an address, with its password: for programs that make connections of their own.
    pub fn proxy_for(&self, url: &str) -> Option<Redacted> {
        let proxy = self.transport.proxy().proxy_for(&Url::parse(url).ok()?)?;
        Some(Redacted::new(proxy.to_string()))
    }

    /// The files of trusted certificates that were configured.
    pub fn roots(&self) -> &[std::path::PathBuf] {
        &self.transport.options().roots
    }

    /// Whether network use was forbidden.
    pub fn is_offline(&self) -> bool {
        self.transport.options().offline
    }

    async fn file_once(&self, request: &WebRequest) -> Result<WebAnswer, WebFailure> {
        if request.etag.is_some() {
            let headers = WebFile { answer: self.follow(request, Method::HEAD).await? };
            if headers.says_unchanged(request) {
                return Ok(WebAnswer::Unchanged);
            }
        }
        let file = WebFile { answer: self.follow(request, Method::GET).await? };
        if file.says_unchanged(request) {
            return Ok(WebAnswer::Unchanged);
        }
        match file.answer.status() {
            StatusCode::OK => Ok(WebAnswer::File(Box::new(file))),
            status if is_passing(status.as_u16()) => Err(WebFailure::Passing(file.answer.into_failure("file").await)),
            status => Err(WebError::Status { url: shown(file.answer.url()), status: status.as_u16() }.into()),
        }
    }

    async fn follow(&self, request: &WebRequest, method: Method) -> Result<Answer, WebFailure> {
        let first = first_request(request, method)?;
        if self.is_offline() {
            return Err(WebError::Offline { host: authority(&first.url) }.into());
        }
        let guard = Guard { transport: &self.transport, first: first.url.clone() };
        let (mut hop, mut reach) = (first.clone(), Reach::Everything);
        for _ in 0..=MOST_REDIRECTS {
            let answer = self.transport.exchange(&hop, reach).await.map_err(passing)?;
            let Some(location) = answer.status().is_redirection().then(|| answer.header(LOCATION)).flatten() else {
                return Ok(answer);
            };
            let target = checked_target(&hop.url, location).map_err(WebError::from)?;
            reach = guard.judge(&target).await?;
            let stays = target.origin() == first.url.origin() && hop.authorization.is_some();
            if target.origin() != first.url.origin() {
                // What one server said of its file is no business of another; its own `ETag` still tells, see above.
                hop.headers.remove(IF_NONE_MATCH);
                hop.headers.remove(IF_MODIFIED_SINCE);
            }
            hop = Request { url: target, authorization: hop.authorization.filter(|_| stays), ..hop };
        }
        Err(WebError::Redirects { url: shown(&first.url) }.into())
    }
}

/// Judges where redirects lead.
struct Guard<'a> {
    transport: &'a Transport,
    first: Url,
}

impl Guard<'_> {
    /// How far the next request may reach. A proxy finds names by itself; then only addresses are judged here.
    async fn judge(&self, target: &Url) -> Result<Reach, WebError> {
        let rules: &ProxyRules = self.transport.proxy();
        let names = self.transport.public_names();
        let from_private = match rules.proxy_for(&self.first) {
            Some(_) => judged_by_text(&self.first) == Some(true),
            None => names.is_wholly_private(&self.first).await,
        };
        if from_private {
            return Ok(Reach::Everything);
        }
        if judged_by_text(target) == Some(true) {
            return Err(WebError::PrivateNetwork { from: authority(&self.first), target: shown(target) });
        }
        match rules.proxy_for(target) {
            Some(_) => Ok(Reach::Everything),
            None => Ok(Reach::Public),
        }
    }
}

impl WebFile {
    /// The address that answered, after redirects.
    pub fn url(&self) -> &str {
        self.answer.url().as_str()
    }

    /// The address for messages: without query.
    pub fn shown_url(&self) -> String {
        shown(self.answer.url())
    }

    /// The `ETag`, where it is one that says that the bytes are the same: a weak one does not.
    pub fn etag(&self) -> Option<&str> {
        let tag = self.answer.header(ETAG)?;
        // Some servers leave out the quotes.
        let is_plain = !tag.is_empty() && tag.bytes().all(|byte| byte.is_ascii_graphic());
        Some(tag).filter(|tag| is_plain && !tag.starts_with("W/") && tag.len() <= 1024)
    }

    /// The `Last-Modified` as it was sent.
    pub fn last_modified(&self) -> Option<&str> {
        self.answer.header(LAST_MODIFIED).filter(|date| date.len() <= 64)
    }

    /// The bytes of `Content-Disposition`.
    pub fn content_disposition(&self) -> Option<&[u8]> {
        self.answer.header_bytes(CONTENT_DISPOSITION)
    }

    /// The announced length, of the bytes as they come.
    pub fn length(&self) -> Option<u64> {
        self.answer.content_length()
    }

    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// The connection broke, or nothing came for too long; the session is cancelled.
    pub async fn chunk(&mut self, session: &dyn Session) -> Result<Option<Bytes>, WebError> {
        until_cancelled(session, async { Ok(self.answer.chunk().await?) }).await
    }

    /// How the bytes are packed for the way. What was not asked for stays as it is.
    pub fn packing(&self) -> WebPacking {
        match self.answer.header(CONTENT_ENCODING).map(str::trim) {
            Some(encoding) if encoding.eq_ignore_ascii_case("gzip") => WebPacking::Gzip,
            _ => WebPacking::Plain,
        }
    }

    fn says_unchanged(&self, request: &WebRequest) -> bool {
        let status = self.answer.status();
        let is_known = request.etag.is_some() && self.etag() == request.etag.as_deref();
        status == StatusCode::NOT_MODIFIED || (status.is_success() && is_known)
    }
}

/// Reads an HTTP date, as `Last-Modified` has it.
pub fn http_date(text: &str) -> Option<SystemTime> {
    crate::http_date::parse(text)
}

fn first_request(request: &WebRequest, method: Method) -> Result<Request, WebError> {
    let url = Url::parse(&request.url).map_err(|error| WebError::Address { reason: error.to_string() })?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(WebError::Address { reason: "another scheme".to_owned() });
    }
    let mut first = Request::new(method, url).header(ACCEPT_ENCODING, "gzip");
    first.authorization = request.authorization.clone();
    let conditions: [(HeaderName, &Option<String>); 2] =
        [(IF_NONE_MATCH, &request.etag), (IF_MODIFIED_SINCE, &request.last_modified)];
    for (name, value) in conditions {
        if let Some(value) = value {
            first = first.header(name, value);
        }
    }
    for (name, value) in [(ACCEPT, "accept"), (USER_AGENT, "user-agent")] {
        if let Some(value) = request.headers.get(value) {
            first = first.header(name, value);
        }
    }
    Ok(first)
}

/// How a try ended that did not succeed.
enum WebFailure {
    Passing(Failure),
    Final(WebError),
}

impl WebFailure {
    fn into_error(self) -> WebError {
        match self {
            Self::Passing(failure) => failure.error.into(),
            Self::Final(error) => error,
        }
    }
}

impl From<WebError> for WebFailure {
    fn from(error: WebError) -> Self {
        Self::Final(error)
    }
}

fn passing(error: RegistryError) -> WebFailure {
    let failure = Failure::from(error);
    match failure.is_passing() {
        true => WebFailure::Passing(failure),
        false => WebFailure::Final(failure.error.into()),
    }
}
