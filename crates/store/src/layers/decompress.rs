//! From a layer's blob to its tar, on a thread of its own.

use super::error::LayerError;
use super::limits::UnpackLimits;
use super::members::MemberReader;
use crate::Compression;
use forge_image::{Digest, Hasher};
use std::io::{self, BufReader, Cursor, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// The window that a zstd frame may ask for: 128 MiB, what `zstd --long` makes; frames may declare 2 GiB (A59).
const ZSTD_WINDOW_LOG: u32 = 27;

const BUFFER: usize = 256 << 10;
const BUFFERS_IN_FLIGHT: usize = 8;

/// A blob's tar as a stream. The format is told from the bytes: media types are often wrong.
///
/// Several gzip members or zstd frames are one stream; anything else after the end is an error, as with Go's reader.
pub(super) struct Tar {
    reader: Box<dyn Read + Send>,
    compressed: Arc<AtomicU64>,
    compression: Compression,
}

impl Tar {
    pub(super) fn open(mut blob: impl Read + Send + 'static) -> Result<Self, LayerError> {
        let mut magic = vec![0; 6];
        let length = super::commit::fill(&mut blob, &mut magic).map_err(decompress_error)?;
        magic.truncate(length);
        let compression = format_of(&magic)?;
        let compressed = Arc::new(AtomicU64::new(length as u64));
        let source = Cursor::new(magic).chain(Counted { blob, count: compressed.clone() });
        let source = BufReader::with_capacity(BUFFER, source);
        let reader: Box<dyn Read + Send> = match compression {
            Compression::None => Box::new(source),
            Compression::Gzip { .. } | Compression::Estargz { .. } => Box::new(MemberReader::new(source)),
            Compression::Zstd { .. } | Compression::ZstdChunked { .. } => {
                let mut decoder = zstd::Decoder::with_buffer(source).map_err(decompress_error)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(decompress_error)?;
                Box::new(decoder)
            }
        };
        Ok(Self { reader, compressed, compression })
    }

    /// What the bytes turned out to be; the level is not known.
    pub(super) fn compression(&self) -> Compression {
        self.compression
    }

    /// Decompresses and hands over on this thread until the stream ends or nobody listens; what is hashed is hashed on another.
    fn run(mut self, limits: UnpackLimits, sender: &SyncSender<Piece>) {
        let (to_hash, hashed) = sync_channel::<Arc<Vec<u8>>>(BUFFERS_IN_FLIGHT);
        std::thread::scope(|scope| {
            let hasher = scope.spawn(move || {
                let mut hasher = Hasher::new();
                hashed.iter().for_each(|bytes| hasher.update(&bytes));
                hasher.finish()
            });
            let mut total = 0;
            let last = loop {
                let bytes = match self.next(&mut total, &limits) {
                    Ok(Some(bytes)) => Arc::new(bytes),
                    Ok(None) => break None,
                    Err(error) => break Some(Piece::Failed(error)),
                };
                // The other thread ends only when there is nothing more to be sent to it.
                let _ = to_hash.send(bytes.clone());
                let compressed = self.compressed.load(Ordering::Relaxed);
                if sender.send(Piece::Bytes { bytes, compressed }).is_err() {
                    return;
                }
            };
            drop(to_hash);
            let last = last.unwrap_or_else(|| Piece::End(hasher.join().expect("hashing does not panic")));
            // Nobody listens any more where whoever reads has failed.
            let _ = sender.send(last);
        });
    }

    fn next(&mut self, total: &mut u64, limits: &UnpackLimits) -> Result<Option<Vec<u8>>, LayerError> {
        let mut bytes = vec![0; BUFFER];
        let count = super::commit::fill(&mut self.reader, &mut bytes).map_err(|error| self.failed(*total, error))?;
        bytes.truncate(count);
        *total += count as u64;
        limits.check_bytes(*total, self.compressed.load(Ordering::Relaxed))?;
        Ok((count > 0).then_some(bytes))
    }

    fn failed(&self, total: u64, error: io::Error) -> LayerError {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => LayerError::Truncated { offset: total },
            _ => LayerError::Decompress { source: error },
        }
    }
}

impl Read for Tar {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.reader.read(buffer)
    }
}

fn decompress_error(source: io::Error) -> LayerError {
    LayerError::Decompress { source }
}

fn format_of(magic: &[u8]) -> Result<Compression, LayerError> {
    let unsupported = |format| Err(LayerError::UnsupportedCompression { format });
    match magic {
        [0x1f, 0x8b, ..] => Ok(Compression::Gzip { level: None }),
        // Frames, and those that are to be skipped (RFC 8878, section 3.1.2).
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Compression::Zstd { level: None }),
        [b'B', b'Z', b'h', b'1'..=b'9', ..] => unsupported("bzip2"),
        [0xfd, b'7', b'z', b'X', b'Z', 0] => unsupported("xz"),
        _ => Ok(Compression::None),
    }
}

struct Counted<R> {
    blob: R,
    count: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.blob.read(buffer)?;
        self.count.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

enum Piece {
    Bytes { bytes: Arc<Vec<u8>>, compressed: u64 },
    End(Digest),
    Failed(LayerError),
}

/// The tar on the reading side; decompressing and hashing go on meanwhile, each on a thread of its own.
pub(super) struct Pieces<'a> {
    receiver: Receiver<Piece>,
    current: Arc<Vec<u8>>,
    /// How much of it was handed on.
    taken: usize,
    digest: Option<Digest>,
    progress: &'a mut dyn FnMut(u64),
}

/// Runs `read` on a tar that another thread decompresses. Both end before this returns.
pub(super) fn with_tar<T>(
    tar: Tar,
    limits: UnpackLimits,
    progress: &mut dyn FnMut(u64),
    read: impl FnOnce(Pieces<'_>) -> T,
) -> T {
    let (sender, receiver) = sync_channel(BUFFERS_IN_FLIGHT);
    std::thread::scope(|scope| {
        scope.spawn(move || tar.run(limits, &sender));
        // Dropping the receiver, which `read` owns, ends the thread.
        read(Pieces { receiver, current: Arc::default(), taken: 0, digest: None, progress })
    })
}

impl Pieces<'_> {
    /// The digest of the whole tar, once it was read to its end.
    pub(super) fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let left = &self.current[self.taken..];
            let count = left.len().min(buffer.len());
            if count > 0 || self.digest.is_some() || buffer.is_empty() {
                buffer[..count].copy_from_slice(&left[..count]);
                self.taken += count;
                return Ok(count);
            }
            match self.receiver.recv() {
                Ok(Piece::Bytes { bytes, compressed }) => {
                    (self.progress)(compressed);
                    (self.current, self.taken) = (bytes, 0);
                }
                Ok(Piece::End(digest)) => self.digest = Some(digest),
                Ok(Piece::Failed(error)) => return Err(io::Error::other(error)),
                Err(_) => return Err(io::Error::other("the decompressing thread panicked")),
            }
        }
    }
}
