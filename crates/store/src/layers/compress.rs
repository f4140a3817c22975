//! Compressing chunks in parallel into one stream that is the same for any number of threads.

use super::chunk_index::{ChunkIndex, ChunkKey, ChunkPlace};
use super::chunks::ChunkSink;
use super::codec::{Codec, with_room};
use super::error::LayerError;
use crate::StoreError;
use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of chunks that wait for a thread or a writer, of all layers that this process compresses.
static WAITING: AtomicU64 = AtomicU64::new(0);

/// What is made of a chunk takes its place, so this is all that waits. With it go, for each layer, the chunk being filled; for each
/// thread its tables and what it is making, ten megabytes at the most; and the program itself: below 100 MiB in all.
const MOST_WAITING: u64 = 20 << 20;

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
    made: Receiver<io::Result<Made>>,
    _share: Share,
}

/// What a thread made of a chunk.
enum Made {
    /// Too small to be worth finding again.
    Small(Vec<u8>),
    /// Compressed now: the bytes, what they are found by and their checksum.
    New(Vec<u8>, ChunkKey, [u8; 32]),
    /// Found in a blob of the store.
    Found(Vec<u8>, ChunkKey, [u8; 32]),
    /// An equal chunk of the same layer is or will be compressed: the chunk as it was.
    Again(Vec<u8>, ChunkKey),
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
        let (chunks, taken, written) = Default::default();
        Self { codec, index, waiting, limit, position: 0, chunks, taken, written, out }
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
        let made = first.made.recv().unwrap_or_else(|_| Err(io::Error::other("a compression thread panicked")));
        let compressed = match made.map_err(|source| LayerError::Compress { source })? {
            Made::Small(compressed) => compressed,
            Made::New(compressed, key, check) => {
                self.chunks.compressed += 1;
                self.remember(key, check, compressed)
            }
            Made::Found(compressed, key, check) => {
                self.chunks.reused += 1;
                self.remember(key, check, compressed)
            }
            Made::Again(chunk, key) => self.again(&key, chunk)?,
        };
        self.out.write(&compressed)?;
        let length = compressed.len() as u64;
        self.chunks.lengths.push(length);
        self.position += length;
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
    fn again(&mut self, key: &ChunkKey, mut chunk: Vec<u8>) -> Result<Vec<u8>, StoreError> {
        if let Some(&(position, length)) = self.written.get(key) {
            let mut compressed = vec![0; length];
            if self.out.read_back(position, &mut compressed) {
                self.chunks.reused += 1;
                return Ok(compressed);
            }
        }
        self.chunks.compressed += 1;
        self.codec.compress_in_place(&mut chunk).map_err(|source| LayerError::Compress { source })?;
        Ok(chunk)
    }
}

fn make(codec: Codec, index: &ChunkIndex, taken: &Mutex<HashSet<ChunkKey>>, mut chunk: Vec<u8>) -> io::Result<Made> {
    if chunk.len() < WORTH_KEEPING {
        codec.compress_in_place(&mut chunk)?;
        return Ok(Made::Small(chunk));
    }
    let key = codec.key(&chunk);
    if !taken.lock().unwrap_or_else(PoisonError::into_inner).insert(key) {
        return Ok(Made::Again(chunk, key));
    }
    if let Some((compressed, check)) = index.find(&key) {
        return Ok(Made::Found(compressed, key, check));
    }
    codec.compress_in_place(&mut chunk)?;
    let check = *blake3::hash(&chunk).as_bytes();
    Ok(Made::New(chunk, key, check))
}

/// On a thread of the pool itself, waiting could mean waiting for work that only this thread would do.
fn help_the_pool() {
    while rayon::yield_now() == Some(rayon::Yield::Executed) {}
}

impl ChunkSink for ParallelCompressor<'_> {
    fn chunk(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let size = bytes.len() as u64;
        while !self.waiting.is_empty() && (self.waiting.len() >= self.limit || !Share::is_left_for(size)) {
            self.write_first()?;
        }
        let (sender, receiver) = sync_channel(1);
        let (codec, index, taken, chunk) = (self.codec, self.index.clone(), self.taken.clone(), with_room(bytes));
        rayon::spawn(move || {
            // Nobody listens any more when the writer failed: then the result is not wanted.
            let _ = sender.send(make(codec, &index, &taken, chunk));
        });
        self.waiting.push_back(Waiting { made: receiver, _share: Share::take(size) });
        Ok(())
    }
}
