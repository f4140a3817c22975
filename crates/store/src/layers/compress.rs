//! Compressing chunks in parallel into one stream that is the same for any number of threads.

use super::chunk_index::{ChunkIndex, ChunkKey, ChunkPlace};
use super::chunks::ChunkSink;
use super::error::LayerError;
use super::members;
use crate::{Compression, StoreError};
use forge_image::MediaType;
use libdeflater::{CompressionLvl, Compressor};
use std::cell::RefCell;
use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

/// libdeflate's level 4 makes 1.6 % more bytes than zlib's level 6 of what is in images, in a quarter of its time; level 5 makes
/// half a percent less, and takes a seventh longer.
const GZIP_LEVEL: u32 = 4;
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
            Compression::Gzip { level } | Compression::Estargz { level } => match level.unwrap_or(GZIP_LEVEL) {
                level @ 0..=9 => Ok(Some(Self::Gzip(level))),
                level => Err(LayerError::CompressionLevel { format: "gzip", level: level.into() }),
            },
            Compression::Zstd { level } | Compression::ZstdChunked { level } => match level.unwrap_or(ZSTD_LEVEL) {
                level @ -7..=22 => Ok(Some(Self::Zstd(level))),
                level => Err(LayerError::CompressionLevel { format: "zstd", level: level.into() }),
            },
        }
    }

    /// Makes one gzip member or one zstd frame. Its bytes depend on the input alone: no time, no name.
    pub(super) fn compress(self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        match self {
            Self::Gzip(level) if level > 1 && is_incompressible(bytes) => gzip(0, bytes),
            Self::Gzip(level) => gzip(level, bytes),
            Self::Zstd(level) => ZSTD.with_borrow_mut(|kept| {
                let (_, compressor) = match kept.take().filter(|(of, _)| *of == level) {
                    Some(fitting) => kept.insert(fitting),
                    None => kept.insert((level, zstd::bulk::Compressor::new(level)?)),
                };
                let mut out = compressor.compress(bytes)?;
                out.shrink_to_fit();
                Ok(out)
            }),
        }
    }

    /// What a chunk's input and this codec make is always the same, and so is its name.
    fn key(self, bytes: &[u8]) -> ChunkKey {
        let mut hasher = blake3::Hasher::new_derive_key("forge compressed chunk 2");
        let (format, level) = match self {
            Self::Gzip(level) => (0, i64::from(level)),
            Self::Zstd(level) => (1, i64::from(level)),
        };
        hasher.update(&[format]).update(&level.to_le_bytes()).update(bytes);
        ChunkKey(*hasher.finalize().as_bytes())
    }
}

thread_local! {
    // Their tables are a megabyte or two: made anew for each chunk, the kernel would clear them each time.
    static GZIP: RefCell<Option<(u32, Compressor)>> = const { RefCell::new(None) };
    static ZSTD: RefCell<Option<(i32, zstd::bulk::Compressor<'static>)>> = const { RefCell::new(None) };
}

fn gzip(level: u32, bytes: &[u8]) -> io::Result<Vec<u8>> {
    GZIP.with_borrow_mut(|kept| {
        let (_, compressor) = match kept.take().filter(|(of, _)| *of == level) {
            Some(fitting) => kept.insert(fitting),
            None => {
                let checked = CompressionLvl::new(level as i32).expect("levels were checked when the codec was made");
                kept.insert((level, Compressor::new(checked)))
            }
        };
        let room = members::HEADER - members::PLAIN_HEADER;
        let mut out = vec![0; room + compressor.gzip_compress_bound(bytes.len())];
        let length = compressor.gzip_compress(bytes, &mut out[room..]).map_err(io::Error::other)?;
        out.truncate(room + length);
        members::announce(&mut out, bytes.len());
        // It waits for its turn, and room for the worst case is as much as the chunk itself.
        out.shrink_to_fit();
        Ok(out)
    })
}

/// A chunk of which sixteen places do not shrink by half a percent together is archives, pictures or noise: deflate would
/// search all of it in vain.
fn is_incompressible(bytes: &[u8]) -> bool {
    const SAMPLES: usize = 16;
    const SAMPLE: usize = 4 << 10;
    if bytes.len() < 2 * SAMPLES * SAMPLE {
        return false;
    }
    let stride = (bytes.len() - SAMPLE) / (SAMPLES - 1);
    let samples: Vec<u8> = (0..SAMPLES).flat_map(|n| &bytes[n * stride..n * stride + SAMPLE]).copied().collect();
    gzip(1, &samples).is_ok_and(|shrunk| shrunk.len() * 200 > samples.len() * 199)
}

/// The media type of a layer with that compression.
pub(super) fn media_type(compression: &Compression) -> MediaType {
    match compression {
        Compression::None => MediaType::OciLayer,
        Compression::Gzip { .. } | Compression::Estargz { .. } => MediaType::OciLayerGzip,
        Compression::Zstd { .. } | Compression::ZstdChunked { .. } => MediaType::OciLayerZstd,
    }
}

/// Bytes of chunks that wait for a thread or a writer, of all layers that this process compresses.
static WAITING: AtomicU64 = AtomicU64::new(0);

/// With it go what was made of those chunks, as much at the most; for each layer the chunk being filled; for each thread what is
/// being made of a chunk; and what the allocator keeps: below 100 MiB in all.
const MOST_WAITING: u64 = 20 << 20;

/// Buffers that are kept to be filled again.
const MOST_SPARE: usize = 4;
const LARGEST_SPARE: usize = 2 << 20;

/// Chunks smaller than this are compressed sooner than looked up.
const WORTH_KEEPING: usize = 64 << 10;

/// A share of what may wait.
struct Share(u64);

impl Share {
    fn take(bytes: u64) -> Self {
        WAITING.fetch_add(bytes, Ordering::Relaxed);
        Self(bytes)
    }

    fn is_left_for(bytes: u64) -> bool {
        WAITING.load(Ordering::Relaxed) + bytes <= MOST_WAITING
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        WAITING.fetch_sub(self.0, Ordering::Relaxed);
    }
}

/// A chunk on its way.
struct Waiting {
    outcome: Receiver<io::Result<Outcome>>,
    _share: Share,
}

/// What a thread made of a chunk.
struct Outcome {
    made: Made,
    /// The chunk's own buffer, to be filled again.
    buffer: Vec<u8>,
}

enum Made {
    /// Too small to be worth finding again.
    Small(Vec<u8>),
    /// Compressed now: the bytes, what they are found by and their checksum.
    New(Vec<u8>, ChunkKey, [u8; 32]),
    /// Found in a blob of the store.
    Found(Vec<u8>, ChunkKey, [u8; 32]),
    /// An equal chunk of the same layer is or will be compressed.
    Again(ChunkKey),
}

/// Where compressed chunks go.
pub(super) trait ChunkOut {
    /// Takes the next bytes.
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError>;

    /// Gives bytes back that it took; `false` where it cannot.
    fn read_back(&self, position: u64, bytes: &mut [u8]) -> bool;
}

/// What became of a layer's chunks.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    /// Where those lie in the result that are worth finding again.
    pub(super) places: Vec<ChunkPlace>,
    /// How many of these were compressed.
    pub(super) compressed: usize,
    /// How many the store or the layer itself had.
    pub(super) reused: usize,
    /// The compressed length of each, in order.
    pub(super) lengths: Vec<u64>,
}

/// Compresses chunks on the threads of rayon's pool and writes the results in order.
///
/// Each chunk is a member or frame of its own, so their bytes depend on nothing else, and one that was compressed before is
/// taken from the blob that it is in, or from what was already written of this one. Only as many chunks wait as keep the threads busy, and all layers of the process
/// share what may wait; each may always have one, so that none waits for another.
pub(super) struct ParallelCompressor<'a> {
    codec: Codec,
    index: Arc<ChunkIndex>,
    waiting: VecDeque<Waiting>,
    limit: usize,
    spare: Vec<Vec<u8>>,
    position: u64,
    chunks: Chunks,
    /// The chunks that a thread has taken on.
    taken: Arc<Mutex<HashSet<ChunkKey>>>,
    /// Where chunks lie that were written: position and length.
    written: HashMap<ChunkKey, (u64, usize)>,
    out: &'a mut dyn ChunkOut,
}

impl<'a> ParallelCompressor<'a> {
    pub(super) fn new(codec: Codec, index: Arc<ChunkIndex>, out: &'a mut dyn ChunkOut) -> Self {
        // Many are small: as many as keep the threads busy while one large one is written.
        let limit = 16 * rayon::current_num_threads();
        let waiting = VecDeque::with_capacity(limit);
        let (spare, chunks, taken, written) = Default::default();
        Self { codec, index, waiting, limit, spare, position: 0, chunks, taken, written, out }
    }

    /// Writes what still waits.
    pub(super) fn finish(mut self) -> Result<Chunks, StoreError> {
        while !self.waiting.is_empty() {
            self.write_first()?;
        }
        Ok(self.chunks)
    }

    fn write_first(&mut self) -> Result<(), StoreError> {
        let Some(first) = self.waiting.pop_front() else { return Ok(()) };
        help_the_pool();
        let outcome = first.outcome.recv().unwrap_or_else(|_| Err(io::Error::other("a compression thread panicked")));
        let Outcome { made, mut buffer } = outcome.map_err(|source| LayerError::Compress { source })?;
        let compressed = match made {
            Made::Small(compressed) => compressed,
            Made::New(compressed, key, check) => {
                self.chunks.compressed += 1;
                self.remember(key, check, compressed)
            }
            Made::Found(compressed, key, check) => {
                self.chunks.reused += 1;
                self.remember(key, check, compressed)
            }
            Made::Again(key) => self.again(&key, &buffer)?,
        };
        self.out.write(&compressed)?;
        let length = compressed.len() as u64;
        self.chunks.lengths.push(length);
        self.position += length;
        buffer.clear();
        // One that grew for a long chunk is not kept while short ones fill the queue.
        if self.spare.len() < MOST_SPARE && buffer.capacity() <= LARGEST_SPARE {
            self.spare.push(buffer);
        }
        Ok(())
    }

    /// Notes where a chunk will lie.
    fn remember(&mut self, key: ChunkKey, check: [u8; 32], compressed: Vec<u8>) -> Vec<u8> {
        let (position, length) = (self.position, compressed.len());
        self.written.insert(key, (position, length));
        self.chunks.places.push(ChunkPlace { key, position, length: length as u64, check });
        compressed
    }

    /// The bytes of a chunk that the layer has had before. A thread may have taken on the later one of two first: then it is
    /// compressed once more, to the same bytes.
    fn again(&mut self, key: &ChunkKey, bytes: &[u8]) -> Result<Vec<u8>, StoreError> {
        if let Some((position, length)) = self.written.get(key) {
            let mut compressed = vec![0; *length];
            if self.out.read_back(*position, &mut compressed) {
                self.chunks.reused += 1;
                return Ok(compressed);
            }
        }
        self.chunks.compressed += 1;
        Ok(self.codec.compress(bytes).map_err(|source| LayerError::Compress { source })?)
    }
}

fn outcome(codec: Codec, index: &ChunkIndex, taken: &Mutex<HashSet<ChunkKey>>, buffer: Vec<u8>) -> io::Result<Outcome> {
    if buffer.len() < WORTH_KEEPING {
        return Ok(Outcome { made: Made::Small(codec.compress(&buffer)?), buffer });
    }
    let key = codec.key(&buffer);
    if !taken.lock().unwrap_or_else(PoisonError::into_inner).insert(key) {
        return Ok(Outcome { made: Made::Again(key), buffer });
    }
    if let Some((compressed, check)) = index.find(&key) {
        return Ok(Outcome { made: Made::Found(compressed, key, check), buffer });
    }
    let compressed = codec.compress(&buffer)?;
    let check = *blake3::hash(&compressed).as_bytes();
    Ok(Outcome { made: Made::New(compressed, key, check), buffer })
}

/// On a thread of the pool itself, waiting could mean waiting for work that only this thread would do.
fn help_the_pool() {
    while rayon::yield_now() == Some(rayon::Yield::Executed) {}
}

impl ChunkSink for ParallelCompressor<'_> {
    fn chunk(&mut self, bytes: Vec<u8>) -> Result<Vec<u8>, StoreError> {
        let size = bytes.len() as u64;
        while !self.waiting.is_empty() && (self.waiting.len() >= self.limit || !Share::is_left_for(size)) {
            self.write_first()?;
        }
        let (sender, receiver) = sync_channel(1);
        let (codec, index, taken) = (self.codec, self.index.clone(), self.taken.clone());
        rayon::spawn(move || {
            // Nobody listens any more when the writer failed: then the result is not wanted.
            let _ = sender.send(outcome(codec, &index, &taken, bytes));
        });
        self.waiting.push_back(Waiting { outcome: receiver, _share: Share::take(size) });
        Ok(self.spare.pop().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        bytes
    }

    #[test]
    fn noise_is_stored_and_text_is_not() {
        let text = "the quick brown fox jumps over the lazy dog ".repeat(20_000).into_bytes();
        assert!(is_incompressible(&noise(1 << 20)) && !is_incompressible(&text) && !is_incompressible(&noise(1000)));
        let mixed = [noise(1 << 19), text].concat();
        assert!(!is_incompressible(&mixed), "what shrinks in a part is compressed");
        let stored = Codec::Gzip(6).compress(&noise(1 << 20)).unwrap();
        assert!(stored.len() < (1 << 20) + 200, "{}", stored.len());
    }

    #[test]
    fn a_kept_compressor_makes_the_same_bytes() {
        let (one, two) = (noise(300_000), "text ".repeat(100_000).into_bytes());
        for codec in [Codec::Gzip(4), Codec::Gzip(9), Codec::Zstd(3), Codec::Zstd(19)] {
            let fresh = codec.compress(&one).unwrap();
            codec.compress(&two).unwrap();
            assert_eq!(codec.compress(&one).unwrap(), fresh, "{codec:?}");
        }
        assert_ne!(Codec::Gzip(4).key(&one), Codec::Gzip(5).key(&one));
        assert_ne!(Codec::Gzip(3).key(&one), Codec::Zstd(3).key(&one));
    }
}
