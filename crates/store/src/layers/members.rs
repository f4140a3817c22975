//! gzip members that say how long they are, so that a whole one can be inflated at once, which is twice as fast as a stream.
//!
//! ```text
//! 1f 8b 08 04  00 00 00 00  XFL ff  08 00  'F' 'G' 04 00  LENGTH  deflate…  CRC-32  ISIZE
//! ```
//! The subfield `FG` of the header's extra field (RFC 1952, 2.3.1.1) holds the length of the whole member, little-endian. Readers
//! that do not know it skip it.

use flate2::bufread::MultiGzDecoder;
use libdeflater::Decompressor;
use std::io::{self, BufRead, Chain, Cursor, Read};

/// What such a header takes.
pub(super) const HEADER: usize = 20;
/// The bytes of a header that libdeflate writes.
pub(super) const PLAIN_HEADER: usize = 10;
const TRAILER: usize = 8;
/// No member of ours holds more, and none that claims more is believed: it is inflated bit by bit (A59).
const MOST: usize = 8 << 20;
const MOST_COMPRESSED: usize = MOST + (1 << 16);

/// Turns a member with a plain header at [`HEADER`] - [`PLAIN_HEADER`] into one that says its length, where it is one that
/// readers believe. The member begins where the answer does.
pub(super) fn announce(bytes: &mut [u8], uncompressed: usize) -> &[u8] {
    const MOVED: usize = HEADER - PLAIN_HEADER;
    let flags = bytes[MOVED + 8];
    match u32::try_from(bytes.len()).ok().filter(|_| uncompressed <= MOST && bytes.len() <= MOST_COMPRESSED) {
        Some(length) => {
            bytes[..16].copy_from_slice(&[0x1f, 0x8b, 8, 4, 0, 0, 0, 0, flags, 0xff, 8, 0, b'F', b'G', 4, 0]);
            bytes[16..HEADER].copy_from_slice(&length.to_le_bytes());
            bytes
        }
        None => &bytes[MOVED..],
    }
}

/// The length that a member announces.
fn announced(header: &[u8]) -> Option<usize> {
    let length = u32::from_le_bytes(header.get(16..HEADER)?.try_into().ok()?) as usize;
    let is_ours = header[..4] == [0x1f, 0x8b, 8, 4] && header[10..16] == [8, 0, b'F', b'G', 4, 0];
    (is_ours && (HEADER + TRAILER..=MOST_COMPRESSED).contains(&length)).then_some(length)
}

/// Inflates a gzip stream: member by member as long as these say how long they are, and from the first that does not on
/// as everybody does.
pub(super) struct MemberReader<R: BufRead> {
    rest: Rest<R>,
    inflated: Vec<u8>,
    /// How much of it was handed on.
    taken: usize,
}

enum Rest<R: BufRead> {
    Members { source: R, member: Vec<u8>, decompressor: Decompressor },
    Stream(Box<MultiGzDecoder<Chain<Cursor<Vec<u8>>, R>>>),
    End,
}

impl<R: BufRead> MemberReader<R> {
    pub(super) fn new(source: R) -> Self {
        let rest = Rest::Members { source, member: Vec::new(), decompressor: Decompressor::new() };
        Self { rest, inflated: Vec::new(), taken: 0 }
    }

    /// Goes on to the next member. `false` at the end.
    fn advance(&mut self) -> io::Result<bool> {
        let Rest::Members { source, member, decompressor } = &mut self.rest else { return Ok(false) };
        member.clear();
        source.by_ref().take(HEADER as u64).read_to_end(member)?;
        let Some(length) = announced(member) else {
            let start = std::mem::take(member);
            self.rest = match (std::mem::replace(&mut self.rest, Rest::End), start.is_empty()) {
                (Rest::Members { source, .. }, false) => {
                    Rest::Stream(Box::new(MultiGzDecoder::new(Cursor::new(start).chain(source))))
                }
                _ => Rest::End,
            };
            return Ok(matches!(self.rest, Rest::Stream(_)));
        };
        source.by_ref().take((length - HEADER) as u64).read_to_end(member)?;
        if member.len() < length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        inflate(decompressor, member, &mut self.inflated)?;
        self.taken = 0;
        Ok(true)
    }
}

/// A member ends where it says, not earlier: else others would read on there.
fn inflate(decompressor: &mut Decompressor, member: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "a gzip member is not what its header says");
    let (body, trailer) = member[HEADER..].split_at(member.len() - HEADER - TRAILER);
    let number = |at: usize| u32::from_le_bytes(trailer[at..at + 4].try_into().expect("it is four bytes long"));
    let size = number(4) as usize;
    if size > MOST {
        return Err(damaged());
    }
    out.resize(size, 0);
    let count = decompressor.deflate_decompress(body, out).map_err(|_| damaged())?;
    match count == size && libdeflater::crc32(out) == number(0) {
        true => Ok(()),
        false => Err(damaged()),
    }
}

impl<R: BufRead> Read for MemberReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Rest::Stream(stream) = &mut self.rest {
                return stream.read(buffer);
            }
            let left = &self.inflated[self.taken..];
            let count = left.len().min(buffer.len());
            if count > 0 || buffer.is_empty() {
                buffer[..count].copy_from_slice(&left[..count]);
                self.taken += count;
                return Ok(count);
            }
            if !self.advance()? {
                return Ok(0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::codec::Codec;
    use std::io::Write;

    fn own(bytes: &[u8]) -> Vec<u8> {
        Codec::of(&crate::Compression::Gzip { level: None }).unwrap().unwrap().compress(bytes).unwrap()
    }

    fn plain(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn read(blob: &[u8]) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        MemberReader::new(blob).read_to_end(&mut bytes).map(|_| bytes)
    }

    #[test]
    fn members_of_all_kinds_are_one_stream_for_everybody() {
        let (a, b, big) = (b"first ".repeat(1000), vec![7; 300_000], vec![1; MOST + 1]);
        for parts in [
            vec![own(&a), own(&b)],
            vec![own(&a), plain(&b), own(&a)],
            vec![plain(&a), own(&b)],
            vec![own(&a), own(&big), own(&b)],
            vec![own(b"")],
        ] {
            let blob = parts.concat();
            let mut expect = Vec::new();
            // Go, zlib and the rest read as this does.
            MultiGzDecoder::new(&blob[..]).read_to_end(&mut expect).unwrap();
            assert_eq!(read(&blob).unwrap(), expect);
        }
        assert!(announced(&own(&a)).is_some() && announced(&own(&big)).is_none() && announced(&plain(&a)).is_none());
    }

    // Meant to fail with the trailer at the announced end not compared.
    #[test]
    fn a_member_that_lies_is_refused() {
        let good = own(&b"text ".repeat(5000));
        let with_length = |mut blob: Vec<u8>, length: usize| {
            blob[16..HEADER].copy_from_slice(&(length as u32).to_le_bytes());
            blob
        };
        let longer = with_length([&good[..], b"and more"].concat(), good.len() + 8);
        let shorter = with_length(good.clone(), good.len() - 1);
        let mut other = good.clone();
        let last = other.len() - 9;
        other[last] ^= 1;
        let mut huge = good.clone();
        let end = huge.len() - 1;
        huge[end] = 0x7f;
        for blob in [longer, shorter, other, huge, [&good[..], b"garbage after the end"].concat()] {
            assert!(read(&blob).is_err());
        }
        for cut in [1, 12, 19, 30, good.len() - 1] {
            assert_eq!(read(&good[..cut]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof, "{cut}");
        }
        assert!(read(&with_length(good, 5)).is_ok(), "nonsense is no length, and the member is inflated as any other");
    }
}
