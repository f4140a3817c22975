//! ADD of local archives: what is a tar, compressed or not, is unpacked.

use super::FileError;
use crate::source_tree::Stop;
use forge_store::{Extracted, Store};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};

/// The compressions that ADD sees through, told by their first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Packing {
    Plain,
    Gzip,
    Bzip2,
    Xz,
    Zstd,
}

const TAR_BLOCK: usize = 512;

fn packing(start: &[u8]) -> Packing {
    match start {
        [0x1f, 0x8b, ..] => Packing::Gzip,
        [b'B', b'Z', b'h', ..] => Packing::Bzip2,
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Packing::Xz,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Packing::Zstd,
        _ => Packing::Plain,
    }
}

/// What a stream holds once its compression (gzip, bzip2, xz, zstd, told by its first bytes) is taken off; the stream
/// itself where there is none. Decompresses in this process: an image's own programs never run for it (A18).
///
/// # Errors
/// The stream cannot be read, or its compression's header is damaged.
pub fn decompress(stream: impl Read + Send + 'static) -> std::io::Result<Box<dyn Read + Send>> {
    let mut reader = BufReader::with_capacity(64 << 10, stream);
    Ok(match packing(reader.fill_buf()?) {
        Packing::Plain => Box::new(reader),
        Packing::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(reader)),
        Packing::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(reader)),
        Packing::Xz => Box::new(liblzma::bufread::XzDecoder::new_multi_decoder(reader)),
        Packing::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(reader)?),
    })
}

/// Whether a stream that starts with these bytes, 512 or all there are, is taken for an archive: it is compressed, or
/// begins with the header of a tar.
pub fn looks_like_archive(start: &[u8]) -> bool {
    packing(start) != Packing::Plain || start.first_chunk().is_some_and(is_header)
}

/// Whether a file is a tar archive, by the checksum of its first header, as docker decides. What cannot be
/// decompressed is none.
pub(crate) fn is_archive(file: File) -> bool {
    let mut block = [0; TAR_BLOCK];
    decompress(file).and_then(|mut reader| reader.read_exact(&mut block)).is_ok_and(|()| is_header(&block))
}

fn is_header(block: &[u8; TAR_BLOCK]) -> bool {
    let header = tar::Header::from_byte_slice(block);
    let sum: u32 = block
        .iter()
        .enumerate()
        .map(|(at, byte)| if (148..156).contains(&at) { u32::from(b' ') } else { u32::from(*byte) })
        .sum();
    block[0] != 0 && header.cksum().is_ok_and(|stored| stored == sum)
}

/// Unpacks an archive into a private folder of the store.
pub(crate) fn extract(file: File, store: &Store, name: &str, stop: &Stop) -> Result<Extracted, FileError> {
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| match stop.check() {
        Ok(()) => FileError::Archive { path: name.to_owned(), source },
        Err(cancelled) => cancelled.into(),
    };
    let packed = file.metadata().map_err(|error| failed(error.into()))?.len();
    let tar = decompress(file).map_err(|error| failed(error.into()))?;
    store.layers().extract(&mut Stoppable { tar, stop }, &|| packed).map_err(|error| failed(error.into()))
}

/// Ends in the middle when the build is to stop: an archive may be far larger than its file.
struct Stoppable<'a> {
    tar: Box<dyn Read + Send>,
    stop: &'a Stop,
}

impl Read for Stoppable<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.stop.check().map_err(std::io::Error::other)?;
        self.tar.read(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek, Write};

    fn tar() -> Vec<u8> {
        let mut header = tar::Header::new_gnu();
        header.set_path("a").expect("a short path");
        header.set_size(1);
        header.set_mode(0o644);
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend([b'x'; 1]);
        bytes.resize(4 * TAR_BLOCK, 0);
        bytes
    }

    fn recognised(bytes: &[u8]) -> bool {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        is_archive(file)
    }

    #[test]
    fn archives_are_told_by_their_content() {
        assert!(recognised(&tar()));
        assert!(recognised(&zstd::encode_all(&tar()[..], 1).unwrap()));
        let mut xz = liblzma::read::XzEncoder::new(std::io::Cursor::new(tar()), 1);
        let mut packed = Vec::new();
        xz.read_to_end(&mut packed).unwrap();
        assert!(recognised(&packed));
        let mut bz = bzip2::read::BzEncoder::new(std::io::Cursor::new(tar()), bzip2::Compression::fast());
        packed.clear();
        bz.read_to_end(&mut packed).unwrap();
        assert!(recognised(&packed));
    }

    #[test]
    fn other_files_are_none() {
        let mut damaged = tar();
        damaged[0] = b'b';
        let zip = zstd::encode_all(&b"no tar inside"[..], 1).unwrap();
        for bytes in [&b""[..], b"hello", &[0; 1024], &damaged, &zip, &[0x1f, 0x8b, 0, 0]] {
            assert!(!recognised(bytes));
        }
    }
}
