//! ADD of local archives: what is a tar, compressed or not, is unpacked.

use super::FileError;
use super::editor::Editor;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek};
use std::path::Path;

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

/// Unpacks in this process: an image's own programs never run for it (A18).
fn decompress(file: File) -> std::io::Result<Box<dyn Read + Send>> {
    let mut reader = BufReader::with_capacity(64 << 10, file);
    Ok(match packing(reader.fill_buf()?) {
        Packing::Plain => Box::new(reader),
        Packing::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(reader)),
        Packing::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(reader)),
        Packing::Xz => Box::new(liblzma::bufread::XzDecoder::new_multi_decoder(reader)),
        Packing::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(reader)?),
    })
}

/// Whether a file is a tar archive, by the checksum of its first header, as docker decides.
pub(crate) fn is_archive(mut file: File) -> Result<bool, FileError> {
    let mut block = [0; TAR_BLOCK];
    let is_tar = decompress(file.try_clone().map_err(read_error)?)
        .and_then(|mut reader| reader.read_exact(&mut block))
        .is_ok_and(|()| is_header(&block));
    file.rewind().map_err(read_error)?;
    Ok(is_tar)
}

fn read_error(source: std::io::Error) -> FileError {
    FileError::Archive { path: "an archive".to_owned(), source: Box::new(source) }
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

/// Unpacks an archive into a folder of the layer.
pub(crate) fn unpack(
    _editor: &mut Editor<'_>,
    _file: File,
    _destination: &Path,
    _owner: Option<(u32, u32)>,
) -> Result<(), FileError> {
    Err(FileError::NotBuilt { what: "ADD of an archive" })
}
