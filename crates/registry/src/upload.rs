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
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A blob that is sent to a registry.
///
/// At first in one piece (POST, PUT). When the registry or something before it finds that too large (413), or the connection
/// breaks after a chunk's worth, in chunks (POST, PATCH…, PUT): then an upload goes on where it broke.
pub(crate) struct Upload<'a> {
    pub exchange: Exchange<'a>,
    pub descriptor: &'a Descriptor,
    pub file: Arc<File>,
    pub progress: &'a (dyn Fn(u64) + Send + Sync),
}

/// A chunk: few enough round trips, little enough to send twice; below the 100 MB that common proxies take.
const CHUNK: u64 = 32 << 20;

/// The largest chunk that a registry may demand.
const LARGEST_CHUNK: u64 = 1 << 30;

const MIN_CHUNK: HeaderName = HeaderName::from_static("oci-chunk-min-length");

/// How often `progress` is told.
const TICK: Duration = Duration::from_millis(100);

/// An upload that a registry has begun.
struct Begun {
    /// Where the next request goes.
    location: Url,
    chunk: u64,
}

impl Upload<'_> {
    /// Sends the blob; into an upload that was begun already, if there is one.
    pub(crate) async fn run(&self, begun: Option<Url>) -> Result<(), RegistryError> {
        let mut tries = Tries::new(self.exchange.transport.options().retry);
        let mut location = begun;
        loop {
            let taken = Arc::new(AtomicU64::new(0));
            let Err(failure) = self.monolithic(location.take(), &taken).await else { return Ok(()) };
            let too_large = matches!(failure.error, RegistryError::Status { status: 413, .. });
            if too_large || (taken.load(Ordering::Relaxed) > CHUNK && failure.is_passing()) {
                return self.chunked().await;
            }
            tries.wait(failure).await?;
        }
    }

    async fn monolithic(&self, location: Option<Url>, taken: &AtomicU64) -> Result<(), Failure> {
        let location = match location {
            Some(location) => location,
            None => self.begin().await?.location,
        };
        let body = UploadBody::new(Arc::clone(&self.file), 0, self.descriptor.size);
        let result = self.send(self.commit(location).body(Body::Upload(body.clone())), &body, 0).await;
        taken.store(body.taken().load(Ordering::Relaxed), Ordering::Relaxed);
        self.committed(result?).await
    }

    async fn begin(&self) -> Result<Begun, Failure> {
        let request = Request::new(Method::POST, self.exchange.endpoint.url("blobs/uploads/"));
        let answer = self.exchange.once(&request, &self.what()).await?;
        if answer.status() != StatusCode::ACCEPTED {
            return Err(answer.into_failure(&self.what()).await);
        }
        let least = answer.header(MIN_CHUNK).and_then(|length| length.trim().parse().ok()).unwrap_or(0);
        let location =
            location(&answer)?.ok_or_else(|| answer.protocol_error("an upload was begun without a Location"))?;
        Ok(Begun { location, chunk: CHUNK.max(least).min(LARGEST_CHUNK) })
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

    async fn chunked(&self) -> Result<(), RegistryError> {
        let mut tries = Tries::new(self.exchange.transport.options().retry);
        let mut state: Option<(Begun, u64)> = None;
        loop {
            let before = state.as_ref().map_or(0, |(_, done)| *done);
            let Err(failure) = self.continue_chunked(&mut state).await else { return Ok(()) };
            let lost = !failure.is_passing() && matches!(failure.error, RegistryError::NotFound { .. });
            if state.as_ref().is_some_and(|(_, done)| *done > before) {
                tries.progressed();
            }
            if lost && before > 0 {
                // The registry has forgotten the upload; a new one may do better.
                state = None;
                tries.wait(Failure::passing(failure.error)).await?;
                continue;
            }
            tries.wait(failure).await?;
            if let Some((begun, done)) = &mut state {
                self.find_place(begun, done).await?;
            }
        }
    }

    async fn continue_chunked(&self, state: &mut Option<(Begun, u64)>) -> Result<(), Failure> {
        if state.is_none() {
            *state = Some((self.begin().await?, 0));
        }
        let (begun, done) = state.as_mut().expect("set just now");
        while *done < self.descriptor.size {
            let length = begun.chunk.min(self.descriptor.size - *done);
            let answer = self.patch(begun, *done, length).await?;
            begun.location = location(&answer)?.unwrap_or_else(|| begun.location.clone());
            *done += length;
        }
        let answer = self.exchange.once(&self.commit(begun.location.clone()), &self.what()).await?;
        self.committed(answer).await
    }

    async fn patch(&self, begun: &Begun, offset: u64, length: u64) -> Result<Answer, Failure> {
        let body = UploadBody::new(Arc::clone(&self.file), offset, length);
        let request = Request::new(Method::PATCH, begun.location.clone())
            .header(CONTENT_TYPE, "application/octet-stream")
            .header(CONTENT_RANGE, &format!("{offset}-{}", offset + length - 1))
            .body(Body::Upload(body.clone()));
        let answer = self.send(request, &body, offset).await?;
        match answer.status() {
            StatusCode::ACCEPTED | StatusCode::NO_CONTENT | StatusCode::CREATED => Ok(answer),
            _ => Err(answer.into_failure(&self.what()).await),
        }
    }

    /// Asks how much of a broken upload has arrived (distribution specification, "Get upload status"). A registry that
    /// cannot say is given the failed chunk again.
    async fn find_place(&self, begun: &mut Begun, done: &mut u64) -> Result<(), RegistryError> {
        let request = Request::new(Method::GET, begun.location.clone());
        let Ok(answer) = self.exchange.once(&request, &self.what()).await else { return Ok(()) };
        if answer.status() == StatusCode::NO_CONTENT {
            let end =
                answer.header(RANGE).and_then(|range| range.split('-').nth(1)).and_then(|end| end.trim().parse().ok());
            // "0-0" is what some registries say of an empty upload.
            let arrived = end.filter(|end| *end > 0).map_or(0, |end: u64| end.saturating_add(1));
            *done = arrived.min(self.descriptor.size);
            begun.location = location(&answer)?.unwrap_or_else(|| begun.location.clone());
        }
        Ok(())
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

/// The address that an answer names for the next step. On another origin it gets no credentials (A76): requests carry
/// them to the registry itself only.
fn location(answer: &Answer) -> Result<Option<Url>, RegistryError> {
    answer.header(LOCATION).map(|location| checked_target(answer.url(), location)).transpose()
}
