use crate::answer::Answer;
use crate::auth::Scope;
use crate::content_hash::ContentHash;
use crate::endpoint::Endpoint;
use crate::exchange::Exchange;
use crate::registry::until_cancelled;
use crate::retry::{Failure, Tries};
use crate::sink::Sink;
use crate::transport::{Request, shown};
use crate::{Registry, RegistryError};
use bytes::Bytes;
use forge_image::{Descriptor, Reference};
use forge_session::Session;
use forge_store::{BlobWriter, Lease};
use reqwest::header::{CONTENT_RANGE, RANGE};
use reqwest::{Method, StatusCode, Url};

/// A try that brought this much is not counted against the policy: long downloads over bad lines end, and a server that
/// hangs up after every byte is given up soon.
const WORTHWHILE: u64 = 64 << 10;

impl Registry {
    /// Fetches a blob into the store; digest and size are verified before anything is kept (A67).
    ///
    /// A broken connection is resumed where it broke. When a mirror has not, or not really, what the descriptor says,
    /// the next source is asked from the beginning (A80). The descriptor's `urls` are never followed (A73).
    /// `progress` is told how many bytes there are so far; the number falls back to 0 when a source is given up.
    ///
    /// # Errors
    /// No source has it or lets forge in; the bytes are not those of the descriptor; the store failed.
    pub async fn fetch_blob(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        into: BlobWriter,
        lease: &Lease,
        session: &dyn Session,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), RegistryError> {
        let sources = Endpoint::sources(self.transport.options(), reference)?;
        // The store hashes too; hashing here as well is needed only where its verdict would come too late to ask another
        // source, or where it was not told what to expect.
        let announced = into.expected() == Some((&descriptor.digest, descriptor.size));
        let hash_here = sources.len() > 1 || !announced;
        let mut download = Download { descriptor, sink: Sink::new(into), hash: None, done: 0, hash_here, progress };
        let url = until_cancelled(session, download.ask_all(self, &sources, session)).await?;
        download.sink.finish(descriptor, lease, &url).await
    }
}

/// A blob on its way.
struct Download<'a> {
    descriptor: &'a Descriptor,
    sink: Sink,
    hash: Option<ContentHash>,
    hash_here: bool,
    done: u64,
    progress: &'a (dyn Fn(u64) + Send + Sync),
}

impl Download<'_> {
    /// Asks one source after the other. Returns the address that all bytes came from, for messages.
    async fn ask_all(
        &mut self,
        registry: &Registry,
        sources: &[Endpoint],
        session: &dyn Session,
    ) -> Result<String, RegistryError> {
        let last = sources.len() - 1;
        for (number, endpoint) in sources.iter().enumerate() {
            let scope = Scope::pull(&endpoint.repository);
            self.restart().await?;
            match self.ask_one(registry.exchange(endpoint, &scope, session)).await {
                Err(error) if number < last && error.next_source_may_help() => {}
                result => return result,
            }
        }
        unreachable!("the host itself is always the last source")
    }

    async fn restart(&mut self) -> Result<(), RegistryError> {
        self.hash = self.hash_here.then(|| ContentHash::like(&self.descriptor.digest));
        if self.done > 0 {
            self.done = 0;
            (self.progress)(0);
            self.sink.restart(self.descriptor).await?;
        }
        Ok(())
    }

    async fn ask_one(&mut self, exchange: Exchange<'_>) -> Result<String, RegistryError> {
        let url = exchange.endpoint.url(&format!("blobs/{}", self.descriptor.digest));
        let mut tries = Tries::new(exchange.transport.options().retry);
        loop {
            let before = self.done;
            let Err(failure) = self.attempt(&exchange, &url).await else { break };
            if self.done - before >= WORTHWHILE {
                tries.progressed();
            }
            tries.wait(failure).await?;
        }
        let url = shown(&url);
        match self.hash.take().map(ContentHash::finish) {
            Some(found) if found != self.descriptor.digest => {
                Err(RegistryError::DigestMismatch { url, expected: self.descriptor.digest.clone(), found })
            }
            _ => Ok(url),
        }
    }

    async fn attempt(&mut self, exchange: &Exchange<'_>, url: &Url) -> Result<(), Failure> {
        let mut request = Request::new(Method::GET, url.clone());
        if self.done > 0 {
            request = request.header(RANGE, &format!("bytes={}-", self.done));
        }
        let what = format!("blob {} of {}", self.descriptor.digest, exchange.endpoint.repository);
        let answer = exchange.once(&request, &what).await?;
        let skip = match answer.status() {
            StatusCode::OK => self.done,
            StatusCode::PARTIAL_CONTENT if self.done > 0 => self.check_range(&answer)?,
            status if status.is_success() => {
                return Err(Failure::last(answer.protocol_error(format!("status {status} instead of 200"))));
            }
            _ => return Err(answer.into_failure(&what).await),
        };
        answer.check_encoding()?;
        self.check_length(&answer, skip)?;
        self.receive(answer, skip).await
    }

    /// Whether a partial answer begins where forge is.
    fn check_range(&self, answer: &Answer) -> Result<u64, RegistryError> {
        let range = answer.header(CONTENT_RANGE).unwrap_or_default();
        let start =
            range.strip_prefix("bytes ").and_then(|range| range.split('-').next()).and_then(|at| at.parse().ok());
        match start == Some(self.done) {
            true => Ok(0),
            false => Err(answer.protocol_error(format!("asked for bytes from {}, got {range:?}", self.done))),
        }
    }

    /// Refuses a body that is announced with the wrong length, before a byte of it is read.
    fn check_length(&self, answer: &Answer, skip: u64) -> Result<(), RegistryError> {
        let before = self.done - skip;
        match answer.content_length() {
            Some(length) if length.saturating_add(before) != self.descriptor.size => {
                Err(self.size_mismatch(answer, length.saturating_add(before)))
            }
            _ => Ok(()),
        }
    }

    /// Takes the body, less what is there already, and not a byte more than was declared.
    async fn receive(&mut self, mut answer: Answer, mut skip: u64) -> Result<(), Failure> {
        while let Some(mut chunk) = answer.chunk().await? {
            let known = skip.min(chunk.len() as u64);
            let fresh = chunk.split_off(usize::try_from(known).expect("not more than the chunk's length"));
            skip -= known;
            if fresh.len() as u64 > self.descriptor.size - self.done {
                return Err(Failure::last(self.size_mismatch(&answer, self.descriptor.size.saturating_add(1))));
            }
            self.keep(fresh).await?;
        }
        match self.done == self.descriptor.size && skip == 0 {
            true => Ok(()),
            // The connection did not break: the server says that this is all.
            false => Err(Failure::last(self.size_mismatch(&answer, self.done - skip))),
        }
    }

    async fn keep(&mut self, fresh: Bytes) -> Result<(), RegistryError> {
        if fresh.is_empty() {
            return Ok(());
        }
        if let Some(hash) = &mut self.hash {
            hash.update(&fresh);
        }
        self.done += fresh.len() as u64;
        self.sink.write(fresh, self.descriptor).await?;
        (self.progress)(self.done);
        Ok(())
    }

    fn size_mismatch(&self, answer: &Answer, found: u64) -> RegistryError {
        RegistryError::SizeMismatch {
            url: shown(answer.url()),
            digest: self.descriptor.digest.clone(),
            expected: self.descriptor.size,
            found,
        }
    }
}
