//! Single requests to services that speak HTTP, through the registry client's connections, certificates and proxies.

use crate::answer::Answer;
use crate::registry::until_cancelled;
use crate::retry::{Tries, is_passing};
use crate::transport::{Body, Reach, Request, authority};
use crate::upload_body::UploadBody;
use crate::{Registry, WebError};
use bytes::Bytes;
use forge_session::{Redacted, Session};
use reqwest::header::{HeaderName, HeaderValue};
use reqwest::{Method, Url};
use std::fs::File;
use std::sync::Arc;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WebMethod {
    /// The bytes of something.
    Get,
    /// Whether something is there.
    Head,
    /// A procedure.
    Post,
    /// That something be there.
    Put,
    /// That something be gone.
    Delete,
}

/// What a request carries.
#[derive(Clone, Debug)]
pub enum WebBody {
    /// Nothing.
    Empty,
    /// Bytes.
    Bytes(Vec<u8>),
    /// The first bytes of a file, as many as are said.
    File(Arc<File>, u64),
    /// Bytes within a file: from an offset, so many.
    Part(Arc<File>, u64, u64),
}

/// A request to a service.
#[derive(Clone, Debug)]
pub struct WebCall {
    /// What is asked for.
    pub method: WebMethod,
    /// Of what. May hold a signature, whence it is shown without its query.
    pub url: Redacted,
    /// Names, in lower case, and values.
    pub headers: Vec<(&'static str, String)>,
    /// The value of `Authorization`.
    pub authorization: Option<Redacted>,
    /// What the request carries.
    pub body: WebBody,
}

/// What a service answers.
pub struct WebReply {
    answer: Answer,
}

impl Registry {
    /// Sends a request, again where the failure may pass, and follows no redirect: an answer of any status is the result.
    ///
    /// # Errors
    /// The service cannot be reached, also after the tries of the client's policy; the session is cancelled.
    pub async fn call(&self, call: &WebCall, session: &dyn Session) -> Result<WebReply, WebError> {
        let request = request(call)?;
        if self.is_offline() {
            return Err(WebError::Offline { host: authority(&request.url) });
        }
        let work = async {
            let mut tries = Tries::new(self.transport.options().retry);
            loop {
                let failure = match Box::pin(self.transport.exchange(&request, Reach::Everything)).await {
                    Ok(answer) if is_passing(answer.status().as_u16()) => answer.into_failure("service").await,
                    Ok(answer) => return Ok(WebReply { answer }),
                    Err(error) => error.into(),
                };
                tries.wait(failure).await.map_err(WebError::from)?;
            }
        };
        until_cancelled(session, work).await
    }
}

fn request(call: &WebCall) -> Result<Request, WebError> {
    let address = |reason: String| WebError::Address { reason };
    let url = Url::parse(call.url.reveal()).map_err(|error| address(error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(address("another scheme".to_owned()));
    }
    let method = match call.method {
        WebMethod::Get => Method::GET,
        WebMethod::Head => Method::HEAD,
        WebMethod::Post => Method::POST,
        WebMethod::Put => Method::PUT,
        WebMethod::Delete => Method::DELETE,
    };
    let mut request = Request::new(method, url);
    for (name, value) in &call.headers {
        let value = HeaderValue::from_str(value);
        let value = value.map_err(|_| address(format!("{name} cannot be a header")))?;
        request.headers.insert(HeaderName::from_static(name), value);
    }
    request.authorization.clone_from(&call.authorization);
    request.body = match &call.body {
        WebBody::Empty => Body::Empty,
        WebBody::Bytes(bytes) => Body::Bytes(Bytes::from(bytes.clone())),
        WebBody::File(file, length) => Body::Upload(UploadBody::new(file.clone(), 0, *length)),
        WebBody::Part(file, offset, length) => Body::Upload(UploadBody::new(file.clone(), *offset, *length)),
    };
    Ok(request)
}

impl WebReply {
    /// The HTTP status.
    pub fn status(&self) -> u16 {
        self.answer.status().as_u16()
    }

    /// A header, by its name in lower case.
    pub fn header(&self, name: &'static str) -> Option<&str> {
        self.answer.header(HeaderName::from_static(name))
    }

    /// The body, if it is not longer than that.
    ///
    /// # Errors
    /// It is; the connection broke.
    pub async fn bytes(self, limit: u64) -> Result<Vec<u8>, WebError> {
        Ok(self.answer.bytes(limit, "answer").await?)
    }

    /// The next piece of the body; `None` at its end.
    ///
    /// # Errors
    /// The connection broke, or nothing came for too long.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, WebError> {
        Ok(self.answer.chunk().await?)
    }
}
