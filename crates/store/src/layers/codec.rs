//! What a chunk is compressed with: codec, level, and what a thread keeps for it.

use super::chunk_index::ChunkKey;
use super::error::LayerError;
use super::members;
use crate::Compression;
use forge_image::MediaType;
use libdeflater::{CompressionLvl, Compressor};
use std::io;
use std::sync::{Mutex, PoisonError};

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
        with_tools(|tools| tools.compress(self, bytes).map(<[u8]>::to_vec))
    }

    /// Puts that in place of what it is made of, so that a chunk never takes the room of both while it waits for its turn.
    pub(super) fn compress_in_place(self, bytes: &mut Vec<u8>) -> io::Result<()> {
        with_tools(|tools| {
            let made = tools.compress(self, bytes)?;
            bytes.clear();
            bytes.extend_from_slice(made);
            Ok(())
        })
    }

    /// What a chunk's input and this codec make is always the same, and so is its name.
    pub(super) fn key(self, bytes: &[u8]) -> ChunkKey {
        let mut hasher = blake3::Hasher::new_derive_key("forge compressed chunk 2");
        let (format, level) = match self {
            Self::Gzip(level) => (0, i64::from(level)),
            Self::Zstd(level) => (1, i64::from(level)),
        };
        hasher.update(&[format]).update(&level.to_le_bytes()).update(bytes);
        ChunkKey(*hasher.finalize().as_bytes())
    }
}

/// A buffer for a chunk, with room for what noise grows by: five bytes in each 10,000 and a header.
pub(super) fn with_room(bytes: &[u8]) -> Vec<u8> {
    let mut buffer = Vec::with_capacity(bytes.len() + bytes.len() / 1000 + 64);
    buffer.extend_from_slice(bytes);
    buffer
}

/// The media type of a layer with that compression.
pub(super) fn media_type(compression: &Compression) -> MediaType {
    match compression {
        Compression::None => MediaType::OciLayer,
        Compression::Gzip { .. } | Compression::Estargz { .. } => MediaType::OciLayerGzip,
        Compression::Zstd { .. } | Compression::ZstdChunked { .. } => MediaType::OciLayerZstd,
    }
}

/// Those that nobody uses. The last one that was handed back is the first that is taken, so that there are no more of them than
/// chunks are compressed at once, however many threads there are.
static IDLE: Mutex<Vec<Tools>> = Mutex::new(Vec::new());

fn with_tools<T>(act: impl FnOnce(&mut Tools) -> T) -> T {
    let idle = || IDLE.lock().unwrap_or_else(PoisonError::into_inner);
    let taken = idle().pop();
    let mut tools = taken.unwrap_or_default();
    let result = act(&mut tools);
    idle().push(tools);
    result
}

/// What is kept from chunk to chunk: tables and room are some megabytes, which the kernel would clear each time.
#[derive(Default)]
struct Tools {
    /// By their levels: beside a layer's own there is the one that samples are tried with.
    gzip: [Option<Compressor>; 10],
    zstd: Option<(i32, zstd::bulk::Compressor<'static>)>,
    out: Vec<u8>,
}

impl Tools {
    fn compress(&mut self, codec: Codec, bytes: &[u8]) -> io::Result<&[u8]> {
        match codec {
            Codec::Gzip(level) if level > 1 && self.is_incompressible(bytes) => self.gzip(0, bytes),
            Codec::Gzip(level) => self.gzip(level, bytes),
            Codec::Zstd(level) => self.zstd(level, bytes),
        }
    }

    fn gzip(&mut self, level: u32, bytes: &[u8]) -> io::Result<&[u8]> {
        let compressor = self.gzip[level as usize].get_or_insert_with(|| {
            let checked = CompressionLvl::new(level as i32);
            Compressor::new(checked.expect("levels were checked when the codec was made"))
        });
        let room = members::HEADER - members::PLAIN_HEADER;
        let out = at_least(&mut self.out, room + compressor.gzip_compress_bound(bytes.len()));
        let length = compressor.gzip_compress(bytes, &mut out[room..]).map_err(io::Error::other)?;
        Ok(members::announce(&mut out[..room + length], bytes.len()))
    }

    fn zstd(&mut self, level: i32, bytes: &[u8]) -> io::Result<&[u8]> {
        let (_, compressor) = match self.zstd.take().filter(|(of, _)| *of == level) {
            Some(fitting) => self.zstd.insert(fitting),
            None => self.zstd.insert((level, zstd::bulk::Compressor::new(level)?)),
        };
        let out = at_least(&mut self.out, zstd::zstd_safe::compress_bound(bytes.len()));
        let length = compressor.compress_to_buffer(bytes, out)?;
        Ok(&out[..length])
    }

    /// A chunk of which sixteen places do not shrink by half a percent together is archives, pictures or noise: deflate would
    /// search all of it in vain.
    fn is_incompressible(&mut self, bytes: &[u8]) -> bool {
        const SAMPLES: usize = 16;
        const SAMPLE: usize = 4 << 10;
        if bytes.len() < 2 * SAMPLES * SAMPLE {
            return false;
        }
        let stride = (bytes.len() - SAMPLE) / (SAMPLES - 1);
        let samples = (0..SAMPLES).map(|n| &bytes[n * stride..n * stride + SAMPLE]).collect::<Vec<_>>().concat();
        self.gzip(1, &samples).is_ok_and(|shrunk| shrunk.len() * 200 > samples.len() * 199)
    }
}

/// A buffer's first bytes, whatever they are. One that is too short is not grown but made anew: what is never written to is then
/// never made by the kernel either.
fn at_least(buffer: &mut Vec<u8>, length: usize) -> &mut [u8] {
    if buffer.len() < length {
        *buffer = Vec::new();
        *buffer = vec![0; length];
    }
    &mut buffer[..length]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        bytes
    }

    fn is_noise(bytes: &[u8]) -> bool {
        Tools::default().is_incompressible(bytes)
    }

    #[test]
    fn noise_is_stored_and_text_is_not() {
        let text = "the quick brown fox jumps over the lazy dog ".repeat(20_000).into_bytes();
        assert!(is_noise(&noise(1 << 20)) && !is_noise(&text) && !is_noise(&noise(1000)));
        let mixed = [noise(1 << 19), text].concat();
        assert!(!is_noise(&mixed), "what shrinks in a part is compressed");
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
            let mut chunk = with_room(&one);
            let room = chunk.capacity();
            codec.compress_in_place(&mut chunk).unwrap();
            assert_eq!((chunk, room >= fresh.len()), (fresh, true), "{codec:?}");
        }
        assert_ne!(Codec::Gzip(4).key(&one), Codec::Gzip(5).key(&one));
        assert_ne!(Codec::Gzip(3).key(&one), Codec::Zstd(3).key(&one));
    }
}
