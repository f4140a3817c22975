//! The file that says where the bytes of a packed layer's files are.

use super::error::LayerError;
use super::pack::{PackedBytes, broken};
use crate::LayerId;

/// What the file says.
///
/// # File format, version 1
///
/// ```text
/// "forge-packed" 0x01
/// varint                    number of data files
/// 32 bytes …                the name of each, hexadecimal
/// varint                    number of places
/// place …                   of each entry of the index that has bytes of its own, in the order of the index
///   varint                  the data file, by its number
///   varint                  where in it the bytes begin
/// 32 bytes                  BLAKE3 of everything before
/// ```
///
/// Integers are unsigned LEB128. Readers refuse other versions, and the layer is then made again.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Map {
    pub(super) files: Vec<String>,
    pub(super) places: Vec<PackedBytes>,
}

const MAGIC: &[u8; 13] = b"forge-packed\x01";
const CHECKSUM: usize = 32;
const NAME: usize = 32;

pub(super) fn encode(map: &Map) -> Vec<u8> {
    let mut out = Vec::with_capacity(MAGIC.len() + map.files.len() * NAME + map.places.len() * 6 + CHECKSUM + 16);
    out.extend_from_slice(MAGIC);
    put_number(map.files.len() as u64, &mut out);
    map.files.iter().for_each(|name| out.extend_from_slice(name.as_bytes()));
    put_number(map.places.len() as u64, &mut out);
    for place in &map.places {
        put_number(u64::from(place.file), &mut out);
        put_number(place.offset, &mut out);
    }
    let checksum = blake3::hash(&out);
    out.extend_from_slice(checksum.as_bytes());
    out
}

pub(super) fn decode(bytes: &[u8]) -> Result<Map, LayerError> {
    let end = bytes.len().checked_sub(CHECKSUM).ok_or(broken("it is too short"))?;
    let (content, checksum) = bytes.split_at(end);
    let rest = content.strip_prefix(MAGIC).ok_or(broken("its version is not known"))?;
    if blake3::hash(content).as_bytes() != checksum {
        return Err(broken("its checksum is wrong"));
    }
    let mut reader = Reader { rest };
    let files = (0..reader.count(NAME)?).map(|_| reader.name()).collect::<Result<_, _>>()?;
    let places = (0..reader.count(2)?).map(|_| reader.place()).collect::<Result<_, _>>()?;
    if reader.rest.is_empty() { Ok(Map { files, places }) } else { Err(broken("bytes follow the last place")) }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    /// A number of things that take so many bytes each at the least: more than there can be are not believed.
    fn count(&mut self, least: usize) -> Result<u64, LayerError> {
        let count = self.number()?;
        match count <= (self.rest.len() / least) as u64 {
            true => Ok(count),
            false => Err(broken("it has less than it says")),
        }
    }

    /// Names are random ids, so that they are safe as path components.
    fn name(&mut self) -> Result<String, LayerError> {
        let (name, rest) = self.rest.split_at_checked(NAME).ok_or(broken("it is cut off"))?;
        self.rest = rest;
        let id = str::from_utf8(name).ok().and_then(|name| name.parse::<LayerId>().ok());
        Ok(id.ok_or(broken("a data file's name is no id"))?.to_string())
    }

    fn place(&mut self) -> Result<PackedBytes, LayerError> {
        let file = u32::try_from(self.number()?).map_err(|_| broken("a number is too large"))?;
        Ok(PackedBytes { file, offset: self.number()? })
    }

    fn number(&mut self) -> Result<u64, LayerError> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.rest.split_first().ok_or(broken("it is cut off"))?;
            self.rest = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(broken("a number is too large"))
    }
}

fn put_number(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map() -> Map {
        let places = [(0, 0), (1, 300), (0, u64::MAX)].map(|(file, offset)| PackedBytes { file, offset });
        Map { files: vec!["0123456789abcdef".repeat(2), "f".repeat(32)], places: places.to_vec() }
    }

    #[test]
    fn what_is_written_is_read() {
        for map in [Map::default(), map()] {
            assert_eq!(decode(&encode(&map)).unwrap(), map);
        }
    }

    #[test]
    fn damage_is_an_error() {
        let good = encode(&map());
        for length in 0..good.len() {
            assert!(decode(&good[..length]).is_err(), "{length}");
        }
        for position in 0..good.len() {
            let mut bad = good.clone();
            bad[position] ^= 1;
            assert!(decode(&bad).is_err(), "{position}");
        }
    }

    #[test]
    fn a_name_that_leads_elsewhere_is_refused() {
        let files = vec!["../../../../../../etc/passwd-xxx-".chars().take(32).collect()];
        assert!(decode(&encode(&Map { files, places: Vec::new() })).is_err());
    }
}
