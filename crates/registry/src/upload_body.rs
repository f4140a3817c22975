use crate::Timeouts;
use bytes::Bytes;
use futures_util::stream;
use reqwest::header::CONTENT_LENGTH;
use reqwest::{RequestBuilder, Response};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A part of a file that is sent as the body of a request; can be sent again, since it is read by position.
#[derive(Clone)]
pub(crate) struct UploadBody {
    file: Arc<File>,
    offset: u64,
    length: u64,
    /// How many bytes HTTP has taken so far in the current try.
    taken: Arc<AtomicU64>,
}

/// Large enough that the switches between threads do not count, small enough that progress is smooth.
const PIECE: u64 = 256 << 10;

impl UploadBody {
    pub(crate) fn new(file: Arc<File>, offset: u64, length: u64) -> Self {
        Self { file, offset, length, taken: Arc::default() }
    }

    /// The counter of bytes taken.
    pub(crate) fn taken(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.taken)
    }

    pub(crate) fn attach(&self, builder: RequestBuilder) -> RequestBuilder {
        self.taken.store(0, Ordering::Relaxed);
        let body = self.clone();
        let pieces = stream::try_unfold(0u64, move |at| {
            let body = body.clone();
            async move { body.piece(at).await }
        });
        // With a length hyper sends the stream as it is; without one it would be chunked, which some registries refuse.
        builder.header(CONTENT_LENGTH, self.length).body(reqwest::Body::wrap_stream(pieces))
    }

    async fn piece(&self, at: u64) -> io::Result<Option<(Bytes, u64)>> {
        let size = PIECE.min(self.length - at);
        if size == 0 {
            return Ok(None);
        }
        let (file, position) = (Arc::clone(&self.file), self.offset + at);
        let read = move || {
            let mut piece = vec![0; usize::try_from(size).expect("a piece is small")];
            file.read_exact_at(&mut piece, position).map(|()| piece)
        };
        let piece = tokio::task::spawn_blocking(read).await.map_err(io::Error::other)??;
        self.taken.store(at + size, Ordering::Relaxed);
        Ok(Some((Bytes::from(piece), at + size)))
    }

    pub(crate) fn watch(&self) -> Watch {
        Watch { taken: self.taken(), length: self.length }
    }
}

/// Watches an upload for standstill.
pub(crate) struct Watch {
    taken: Arc<AtomicU64>,
    length: u64,
}

impl Watch {
    /// Waits for the answer. `None` when no byte was taken for the stall time, or when no answer came for the commit time
    /// after the last one.
    pub(crate) async fn until_answered(
        self,
        answer: impl Future<Output = reqwest::Result<Response>>,
        timeouts: Timeouts,
    ) -> Option<reqwest::Result<Response>> {
        let mut answer = std::pin::pin!(answer);
        loop {
            let before = self.taken.load(Ordering::Relaxed);
            let patience = if before == self.length { timeouts.commit } else { timeouts.stall };
            match tokio::time::timeout(patience, &mut answer).await {
                Ok(response) => return Some(response),
                Err(_) if self.taken.load(Ordering::Relaxed) == before => return None,
                Err(_) => {}
            }
        }
    }
}
