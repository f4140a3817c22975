use crate::answer::Answer;
use crate::auth::Scope;
use crate::content_hash::ContentHash;
use crate::endpoint::Endpoint;
use crate::exchange::Exchange;
use crate::ranges::{self, Fetched, Ranges};
use crate::registry::until_cancelled;
use crate::retry::{Failure, Tries};
use crate::sink::Sink;
use crate::transport::{Request, shown};
use crate::{Registry, RegistryError};
use bytes::Bytes;
use forge_image::{Descriptor, Digest, Reference};
use forge_session::Session;
use forge_store::{BlobWriter, Lease};
use futures_util::StreamExt as _;
use reqwest::header::RANGE;
use reqwest::{Method, StatusCode, Url};
use std::ops::Range;

/// A try that brought this much is not counted against the policy: long downloads over bad lines end, and a server that
/// hangs up after every byte is given up soon.
pub(crate) const WORTHWHILE: u64 = 64 << 10;

/// Blobs from this size on come over several connections at a time: one alone is slow where the way is long.
const BIG: u64 = 64 << 20;

impl Registry {
    /// How large a blob is that is known by its digest only: mirrors as listed, then the host; `None` where nobody has it.
    ///
    /// # Errors
    /// The host cannot be reached, or does not let forge in.
    pub async fn blob_size(
        &self,
        reference: &Reference,
        digest: &Digest,
        session: &dyn Session,
    ) -> Result<Option<u64>, RegistryError> {
        let sources = Endpoint::sources(self.transport.options(), reference)?;
        let (last, mut found) = (sources.len() - 1, None);
        for (number, endpoint) in sources.iter().enumerate() {
            let scope = Scope::pull(&endpoint.repository);
            let exchange = self.exchange(endpoint, &scope, session);
            match until_cancelled(session, size_of(&exchange, digest)).await {
                Ok(None) => {}
                Err(error) if number < last && error.next_source_may_help() => {}
                answered => {
                    found = answered?;
                    break;
                }
            }
        }
        Ok(found)
    }

    /// Fetches a blob into the store; digest and size are verified before anything is kept (A67).
    ///
    /// A broken connection is resumed where it broke. When a mirror has not, or not really, what the descriptor says,
    /// the next source is asked from the beginning (A80); the last one once more, should its bytes be the wrong ones (F34).
    /// The descriptor's `urls` are never followed (A73). `progress` is told how many bytes there are so far; the number
    /// falls back to 0 when a source is given up.
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
        let announced = into.expected() == Some((&descriptor.digest, descriptor.size));
        let hash = (!announced).then(|| ContentHash::like(&descriptor.digest));
        let mut download = Download { descriptor, sink: Sink::new(into), hash, done: 0, progress };
        let url = until_cancelled(session, download.ask_all(self, &sources, session)).await?;
        download.sink.finish(descriptor, lease, &url).await
    }

    /// Fetches a part of a blob, which nothing can verify by itself; `None` where no source serves parts.
    ///
    /// # Errors
    /// No source has it or lets forge in.
    pub async fn fetch_part(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        range: Range<u64>,
        session: &dyn Session,
    ) -> Result<Option<Vec<u8>>, RegistryError> {
        let sources = Endpoint::sources(self.transport.options(), reference)?;
        let ask = async {
            let last = sources.len() - 1;
            for (number, endpoint) in sources.iter().enumerate() {
                let scope = Scope::pull(&endpoint.repository);
                let exchange = self.exchange(endpoint, &scope, session);
                let url = endpoint.url(&format!("blobs/{}", descriptor.digest));
                let ranges = Ranges { exchange: &exchange, url: &url, descriptor };
                match ranges.part(range.clone()).await {
                    Ok(None) if number < last => {}
                    Err(error) if number < last && error.next_source_may_help() => {}
                    result => return result,
                }
            }
            Ok(None)
        };
        until_cancelled(session, ask).await
    }
}

async fn size_of(exchange: &Exchange<'_>, digest: &Digest) -> Result<Option<u64>, RegistryError> {
    let request = Request::new(Method::HEAD, exchange.endpoint.url(&format!("blobs/{digest}")));
    let what = format!("looking for a blob in {}", exchange.endpoint.repository);
    let ask = || async {
        let answer = exchange.once(&request, &what).await?;
        match answer.status() {
            StatusCode::OK => Ok(answer.content_length()),
            StatusCode::NOT_FOUND => Ok(None),
            _ => Err(answer.into_failure(&what).await),
        }
    };
    exchange.repeat(ask).await
}

/// A blob on its way.
struct Download<'a> {
    descriptor: &'a Descriptor,
    sink: Sink,
    /// Only where the store was not told what to expect: else it hashes.
    hash: Option<ContentHash>,
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
        let tries = sources.iter().enumerate().chain([(last + 1, &sources[last])]);
        for (number, endpoint) in tries {
            let scope = Scope::pull(&endpoint.repository);
            self.restart().await?;
            match self.ask_one(registry.exchange(endpoint, &scope, session)).await {
                Err(error) if number < last && error.next_source_may_help() => {}
                // Something on the way may have garbled it, and once more is no storm.
                Err(RegistryError::DigestMismatch { .. }) if number == last => {}
                result => return result,
            }
        }
        unreachable!("the try after the last one ends the loop")
    }

    async fn restart(&mut self) -> Result<(), RegistryError> {
        if self.done > 0 {
            self.done = 0;
            (self.progress)(0);
            self.hash = self.hash.take().map(|_| ContentHash::like(&self.descriptor.digest));
            self.sink.restart(self.descriptor).await?;
        }
        Ok(())
    }

    async fn ask_one(&mut self, exchange: Exchange<'_>) -> Result<String, RegistryError> {
        let url = exchange.endpoint.url(&format!("blobs/{}", self.descriptor.digest));
        if self.descriptor.size >= BIG {
            self.ask_for_ranges(&exchange, &url).await?;
        }
        // Nothing is left to ask for where ranges brought it all.
        if self.done < self.descriptor.size || self.descriptor.size == 0 {
            self.ask_in_order(&exchange, &url).await?;
        }
        self.check(&url).await
    }

    async fn ask_in_order(&mut self, exchange: &Exchange<'_>, url: &Url) -> Result<(), RegistryError> {
        let mut tries = Tries::new(exchange.transport.options().retry).telling(exchange.session);
        loop {
            let before = self.done;
            let Err(failure) = self.attempt(exchange, url).await else { return Ok(()) };
            if self.done - before >= WORTHWHILE {
                tries.progressed();
            }
            tries.wait(failure).await?;
        }
    }

    /// Brings the blob in ranges, several at a time; stops in between where the server does not serve them.
    async fn ask_for_ranges(&mut self, exchange: &Exchange<'_>, url: &Url) -> Result<(), RegistryError> {
        let ranges = Ranges { exchange, url, descriptor: self.descriptor };
        let mut pieces = std::pin::pin!(ranges.stream());
        while let Some(range) = pieces.next().await {
            let Fetched::Range(chunks) = range? else { return Ok(()) };
            for chunk in chunks {
                self.keep(chunk).await?;
            }
        }
        Ok(())
    }

    /// Whether the bytes are the ones asked for, while another source can still be asked.
    async fn check(&mut self, url: &Url) -> Result<String, RegistryError> {
        let url = shown(url);
        self.sink.check(self.descriptor, &url).await?;
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
        ranges::check_start(answer, self.done).map(|()| 0)
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
