//! Compressing chunks in parallel into one stream that is the same for any number of threads.

use super::chunks::ChunkSink;
use super::error::LayerError;
use crate::{Compression, StoreError};
use forge_image::MediaType;
use libdeflater::{CompressionLvl, Compressor};
use std::collections::VecDeque;
use std::io;
use std::sync::mpsc::{Receiver, sync_channel};

/// libdeflate's level 6 is at zlib's ratio of level 6 to 7, at four times its speed.
const GZIP_LEVEL: u32 = 6;
/// What `zstd` itself does without being told.
const ZSTD_LEVEL: i32 = 3;

/// A compression with its level decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Codec {
    Gzip(u32),
    Zstd(i32),
}

impl Codec {
    /// Decides the level; `None` for a bare tar.
    ///
    /// # Errors
    /// A level that the format does not have: gzip has 0 to 9, zstd -7 to 22.
    pub(super) fn of(compression: &Compression) -> Result<Option<Self>, LayerError> {
        match *compression {
            Compression::None => Ok(None),
            Compression::Gzip { level } => match level.unwrap_or(GZIP_LEVEL) {
                level @ 0..=9 => Ok(Some(Self::Gzip(level))),
                level => Err(LayerError::CompressionLevel { format: "gzip", level: level.into() }),
            },
            Compression::Zstd { level } => match level.unwrap_or(ZSTD_LEVEL) {
                level @ -7..=22 => Ok(Some(Self::Zstd(level))),
                level => Err(LayerError::CompressionLevel { format: "zstd", level: level.into() }),
            },
        }
    }

    /// Makes one gzip member or one zstd frame. Its bytes depend on the input alone: no time, no name.
    fn compress(self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        match self {
            Self::Gzip(level) => {
                let level = CompressionLvl::new(level as i32).expect("levels were checked when the codec was made");
                let mut compressor = Compressor::new(level);
                let mut out = vec![0; compressor.gzip_compress_bound(bytes.len())];
                let length = compressor.gzip_compress(bytes, &mut out).map_err(io::Error::other)?;
                out.truncate(length);
                Ok(out)
            }
            Self::Zstd(level) => zstd::bulk::compress(bytes, level),
        }
    }
}

/// The media type of a layer with that compression.
pub(super) fn media_type(compression: &Compression) -> MediaType {
    match compression {
        Compression::None => MediaType::OciLayer,
        Compression::Gzip { .. } => MediaType::OciLayerGzip,
        Compression::Zstd { .. } => MediaType::OciLayerZstd,
    }
}

/// Compresses chunks on the threads of rayon's pool and writes the results in order.
///
/// Each chunk is a member or frame of its own, so their bytes depend on nothing else; only as many chunks are in memory
/// as keep the threads busy.
pub(super) struct ParallelCompressor<'a> {
    codec: Codec,
    in_flight: VecDeque<Receiver<io::Result<Vec<u8>>>>,
    limit: usize,
    write: &'a mut dyn FnMut(&[u8]) -> Result<(), StoreError>,
}

impl<'a> ParallelCompressor<'a> {
    pub(super) fn new(codec: Codec, write: &'a mut dyn FnMut(&[u8]) -> Result<(), StoreError>) -> Self {
        let limit = 2 * rayon::current_num_threads();
        Self { codec, in_flight: VecDeque::with_capacity(limit), limit, write }
    }

    /// Writes what is still in flight.
    pub(super) fn finish(mut self) -> Result<(), StoreError> {
        while !self.in_flight.is_empty() {
            self.write_first()?;
        }
        Ok(())
    }

    fn write_first(&mut self) -> Result<(), StoreError> {
        let Some(first) = self.in_flight.pop_front() else { return Ok(()) };
        help_the_pool();
        let compressed = first.recv().unwrap_or_else(|_| Err(io::Error::other("a compression thread panicked")));
        let compressed = compressed.map_err(|source| LayerError::Compress { source })?;
        (self.write)(&compressed)
    }
}

/// On a thread of the pool itself, waiting could mean waiting for work that only this thread would do.
fn help_the_pool() {
    while rayon::yield_now() == Some(rayon::Yield::Executed) {}
}

impl ChunkSink for ParallelCompressor<'_> {
    fn chunk(&mut self, bytes: Vec<u8>) -> Result<(), StoreError> {
        if self.in_flight.len() == self.limit {
            self.write_first()?;
        }
        let (sender, receiver) = sync_channel(1);
        let codec = self.codec;
        rayon::spawn(move || {
            // Nobody listens any more when the writer failed: then the result is not wanted.
            let _ = sender.send(codec.compress(&bytes));
        });
        self.in_flight.push_back(receiver);
        Ok(())
    }
}
