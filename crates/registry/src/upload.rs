use crate::RegistryError;
use crate::answer::Answer;
use crate::exchange::Exchange;
use crate::retry::{Failure, Tries};
use crate::transport::{Body, Request, checked_target};
use crate::upload_body::UploadBody;
use forge_image::Descriptor;
use reqwest::header::{CONTENT_RANGE, CONTENT_TYPE, HeaderName, LOCATION, RANGE};
use reqwest::{Method, StatusCode, Url};
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// A blob that is sent to a registry.
///
/// A small one in one request (POST, PUT). A larger one as docker sends it (POST, PATCH, PUT): when the connection
/// breaks, the registry says how much has arrived, and the upload goes on there. A PATCH carries all that is left, until the
/// registry or something before it finds that too large (413): then chunks.
pub(crate) struct Upload<'a> {
    pub exchange: Exchange<'a>,
    pub descriptor: &'a Descriptor,
    pub file: Arc<File>,
    pub progress: &'a (dyn Fn(u64) + Send + Sync),
}

/// Up to here a round trip costs more than sending everything again.
const SMALL: u64 = 1 << 20;

/// A chunk: few enough round trips, little enough to send twice; below the 100 MB that common proxies take.
const CHUNK: u64 = 32 << 20;

/// The largest chunk that a registry may demand.
const LARGEST_CHUNK: u64 = 1 << 30;

const MIN_CHUNK: HeaderName = HeaderName::from_static("oci-chunk-min-length");

/// How often `progress` is told.
const TICK: Duration = Duration::from_millis(100);

/// How the bytes go out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// With the request that ends the upload.
    Whole,
    /// All that is left in one request, then the end.
    Rest,
    /// Chunk by chunk, then the end.
    Chunks,
}

/// An upload that a registry has begun.
struct Begun {
    /// Where the next request goes.
    location: Url,
    /// How much has arrived.
    done: u64,
    chunk: u64,
}

impl Begun {
    fn new(location: Url, least: u64) -> Self {
        Self { location, done: 0, chunk: CHUNK.max(least).min(LARGEST_CHUNK) }
    }
}

impl Upload<'_> {
    /// Sends the blob; into an upload that was begun already, if there is one.
    pub(crate) async fn run(&self, begun: Option<Url>) -> Result<(), RegistryError> {
        let mut tries = Tries::new(self.exchange.transport.options().retry).telling(self.exchange.session);
        let mut manner = if self.descriptor.size <= SMALL { Manner::Whole } else { Manner::Rest };
        let mut begun = begun.map(|location| Begun::new(location, 0));
        loop {
            let before = begun.as_ref().map_or(0, |begun| begun.done);
            let Err(failure) = self.attempt(&mut begun, manner).await else { return Ok(()) };
            if matches!(failure.error, RegistryError::Status { status: 413, .. }) && manner != Manner::Chunks {
                (manner, begun) = (Manner::Chunks, None);
                continue;
            }
            let failure = self.settle(failure, &mut begun, manner).await;
            if begun.as_ref().is_some_and(|begun| begun.done > before) {
                tries.progressed();
            }
            tries.wait(failure).await?;
        }
    }

    async fn attempt(&self, begun: &mut Option<Begun>, manner: Manner) -> Result<(), Failure> {
        if begun.is_none() {
            *begun = Some(self.begin().await?);
        }
        let state = begun.as_mut().expect("set just now");
        if manner == Manner::Whole {
            let body = UploadBody::new(Arc::clone(&self.file), 0, self.descriptor.size);
            let request = self.commit(state.location.clone()).body(Body::Upload(body.clone()));
            return self.committed(self.send(request, &body, 0).await?).await;
        }
        while state.done < self.descriptor.size {
            let most = if manner == Manner::Chunks { state.chunk } else { u64::MAX };
            self.patch(state, most.min(self.descriptor.size - state.done)).await?;
        }
        let answer = self.exchange.once(&self.commit(state.location.clone()), &self.what()).await?;
        self.committed(answer).await
    }

    /// What is left of an upload that failed: a place to go on from, or nothing, and then it is begun again.
    async fn settle(&self, failure: Failure, begun: &mut Option<Begun>, manner: Manner) -> Failure {
        let Some(state) = begun.take().filter(|_| manner != Manner::Whole) else { return failure };
        let forgotten = matches!(failure.error, RegistryError::NotFound { .. });
        let out_of_step = matches!(failure.error, RegistryError::Status { status: 416, .. });
        if forgotten {
            // The registry has forgotten the upload; a new one may do better.
            return Failure::passing(failure.error);
        }
        if !failure.is_passing() && !out_of_step {
            return failure;
        }
        *begun = self.find_place(state).await;
        if out_of_step { Failure::passing(failure.error) } else { failure }
    }

    async fn begin(&self) -> Result<Begun, Failure> {
        let request = Request::new(Method::POST, self.exchange.endpoint.url("blobs/uploads/"));
        let answer = self.exchange.once(&request, &self.what()).await?;
        if answer.status() != StatusCode::ACCEPTED {
            // A registry that does not know the repository would be asked forever: this is no lost upload.
            return Err(answer.into_failure(&self.what()).await);
        }
        let least = answer.header(MIN_CHUNK).and_then(|length| length.trim().parse().ok()).unwrap_or(0);
        let location =
            location(&answer)?.ok_or_else(|| answer.protocol_error("an upload was begun without a Location"))?;
        Ok(Begun::new(location, least))
    }

    /// The request that ends an upload. The location's own query is kept as it is (A76).
    fn commit(&self, mut location: Url) -> Request {
        location.query_pairs_mut().append_pair("digest", self.descriptor.digest.as_str());
        Request::new(Method::PUT, location).header(CONTENT_TYPE, "application/octet-stream")
    }

    async fn committed(&self, answer: Answer) -> Result<(), Failure> {
        match answer.status() {
            StatusCode::CREATED | StatusCode::NO_CONTENT | StatusCode::OK | StatusCode::ACCEPTED => Ok(()),
            _ => Err(answer.into_failure(&self.what()).await),
        }
    }

    async fn patch(&self, begun: &mut Begun, length: u64) -> Result<(), Failure> {
        let offset = begun.done;
        let body = UploadBody::new(Arc::clone(&self.file), offset, length);
        let mut request = Request::new(Method::PATCH, begun.location.clone())
            .header(CONTENT_TYPE, "application/octet-stream")
            .body(Body::Upload(body.clone()));
        // Everything at once is docker's way, without a range; registries that know no other are many.
        if (offset, length) != (0, self.descriptor.size) {
            request = request.header(CONTENT_RANGE, &format!("{offset}-{}", offset + length - 1));
        }
        let answer = self.send(request, &body, offset).await?;
        match answer.status() {
            StatusCode::ACCEPTED | StatusCode::NO_CONTENT | StatusCode::CREATED => {}
            _ => return Err(answer.into_failure(&self.what()).await),
        }
        begun.location = location(&answer)?.unwrap_or_else(|| begun.location.clone());
        // What the registry says it has is what it has, as long as that is part of what was sent.
        let end = arrived(&answer).filter(|end| (offset + 1..offset + length).contains(end));
        begun.done = end.unwrap_or(offset + length);
        Ok(())
    }

    /// Asks how much of a broken upload has arrived (distribution specification, "Get upload status"). A registry that
    /// cannot say is given the failed part again; `None` where it has forgotten the upload.
    async fn find_place(&self, mut begun: Begun) -> Option<Begun> {
        let request = Request::new(Method::GET, begun.location.clone());
        let Ok(answer) = self.exchange.repeat(|| self.status(&request)).await else { return Some(begun) };
        match answer.status() {
            StatusCode::NOT_FOUND => None,
            StatusCode::NO_CONTENT => {
                begun.done = arrived(&answer).unwrap_or(0).min(self.descriptor.size);
                if let Ok(Some(location)) = location(&answer) {
                    begun.location = location;
                }
                Some(begun)
            }
            _ => Some(begun),
        }
    }

    async fn status(&self, request: &Request) -> Result<Answer, Failure> {
        let answer = self.exchange.once(request, &self.what()).await?;
        match answer.status() {
            status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                Err(answer.into_failure(&self.what()).await)
            }
            _ => Ok(answer),
        }
    }

    /// Sends a part of the file and reports how far it is meanwhile.
    async fn send(&self, request: Request, body: &UploadBody, offset: u64) -> Result<Answer, Failure> {
        let (taken, what) = (body.taken(), self.what());
        let mut answer = std::pin::pin!(self.exchange.once(&request, &what));
        loop {
            let result = tokio::time::timeout(TICK, &mut answer).await;
            (self.progress)(offset + taken.load(Ordering::Relaxed));
            if let Ok(result) = result {
                return result;
            }
        }
    }

    fn what(&self) -> String {
        format!("pushing {} to {}", self.descriptor.digest, self.exchange.endpoint.repository)
    }
}

/// How many bytes an upload has by its `Range`. "0-0" is what some registries say of an empty one.
fn arrived(answer: &Answer) -> Option<u64> {
    let end: u64 = answer.header(RANGE)?.split('-').nth(1)?.trim().parse().ok()?;
    Some(if end == 0 { 0 } else { end.saturating_add(1) })
}

/// The address that an answer names for the next step. On another origin it gets no credentials (A76): requests carry
/// them to the registry itself only.
fn location(answer: &Answer) -> Result<Option<Url>, RegistryError> {
    answer.header(LOCATION).map(|location| checked_target(answer.url(), location)).transpose()
}
