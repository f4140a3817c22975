//! A blob in pieces over several connections.

use crate::RegistryError;
use crate::answer::Answer;
use crate::exchange::Exchange;
use crate::fetch::WORTHWHILE;
use crate::retry::{Failure, Tries};
use crate::transport::{Request, shown};
use bytes::Bytes;
use forge_image::Descriptor;
use futures_util::stream::{self, Stream, StreamExt as _};
use reqwest::header::{CONTENT_RANGE, RANGE};
use reqwest::{Method, StatusCode, Url};
use std::ops::Range;

/// What one request brings: memory for [`AT_ONCE`] of them is needed, since they are put in order there.
const PIECE: u64 = 8 << 20;

/// How many pieces are on their way.
const AT_ONCE: usize = 4;

/// What is fetched, and where.
#[derive(Clone, Copy)]
pub(crate) struct Ranges<'a> {
    pub exchange: &'a Exchange<'a>,
    pub url: &'a Url,
    pub descriptor: &'a Descriptor,
}

/// What came of a piece.
pub(crate) enum Fetched {
    /// Its bytes.
    Range(Vec<Bytes>),
    /// The server serves the whole or nothing.
    NotServed,
}

impl<'a> Ranges<'a> {
    /// The pieces in order. The first goes ahead: a server that serves no ranges is asked once.
    pub(crate) fn stream(self) -> impl Stream<Item = Result<Fetched, RegistryError>> + 'a {
        let size = self.descriptor.size;
        let piece = move |start: u64| self.piece(start..size.min(start + PIECE));
        let starts = (PIECE..size).step_by(usize::try_from(PIECE).expect("a piece fits into memory"));
        stream::once(piece(0)).chain(stream::iter(starts).map(piece).buffered(AT_ONCE))
    }

    /// One part of the blob, unverified; `None` where the server serves the whole or nothing.
    pub(crate) async fn part(self, range: Range<u64>) -> Result<Option<Vec<u8>>, RegistryError> {
        Ok(match self.piece(range).await? {
            Fetched::Range(chunks) => Some(chunks.concat()),
            Fetched::NotServed => None,
        })
    }

    async fn piece(self, range: Range<u64>) -> Result<Fetched, RegistryError> {
        let mut tries = Tries::new(self.exchange.transport.options().retry).telling(self.exchange.session);
        let (mut chunks, mut at) = (Vec::new(), range.start);
        loop {
            let before = at;
            match self.attempt(&mut at, range.end, &mut chunks).await {
                Ok(true) => return Ok(Fetched::Range(chunks)),
                Ok(false) => return Ok(Fetched::NotServed),
                Err(failure) => {
                    if at - before >= WORTHWHILE {
                        tries.progressed();
                    }
                    tries.wait(failure).await?;
                }
            }
        }
    }

    /// Brings what is still missing of a piece; `false` where the server does not serve ranges.
    async fn attempt(&self, at: &mut u64, end: u64, chunks: &mut Vec<Bytes>) -> Result<bool, Failure> {
        let range = format!("bytes={at}-{}", end - 1);
        let request = Request::new(Method::GET, self.url.clone()).header(RANGE, &range);
        let what = format!("blob {} of {}", self.descriptor.digest, self.exchange.endpoint.repository);
        let mut answer = self.exchange.once(&request, &what).await?;
        match answer.status() {
            StatusCode::PARTIAL_CONTENT => {}
            StatusCode::OK | StatusCode::RANGE_NOT_SATISFIABLE => return Ok(false),
            _ => return Err(answer.into_failure(&what).await),
        }
        answer.check_encoding()?;
        check_start(&answer, *at)?;
        self.check_total(&answer)?;
        while let Some(chunk) = answer.chunk().await? {
            *at += chunk.len() as u64;
            if *at > end {
                return Err(Failure::last(answer.protocol_error(format!("more bytes than {range}"))));
            }
            chunks.push(chunk);
        }
        match *at == end {
            true => Ok(true),
            false => Err(Failure::passing(answer.protocol_error(format!("fewer bytes than {range}")))),
        }
    }

    /// A server that has something longer or shorter under this digest is found out by the first piece.
    fn check_total(&self, answer: &Answer) -> Result<(), RegistryError> {
        let total = answer.header(CONTENT_RANGE).and_then(|range| range.rsplit('/').next()?.parse().ok());
        match total {
            Some(found) if found != self.descriptor.size => Err(RegistryError::SizeMismatch {
                url: shown(answer.url()),
                digest: self.descriptor.digest.clone(),
                expected: self.descriptor.size,
                found,
            }),
            _ => Ok(()),
        }
    }
}

/// Whether a partial answer begins where it was asked to.
pub(crate) fn check_start(answer: &Answer, at: u64) -> Result<(), RegistryError> {
    let range = answer.header(CONTENT_RANGE).unwrap_or_default();
    let start = range.strip_prefix("bytes ").and_then(|range| range.split('-').next()).and_then(|at| at.parse().ok());
    match start == Some(at) {
        true => Ok(()),
        false => Err(answer.protocol_error(format!("asked for bytes from {at}, got {range:?}"))),
    }
}
