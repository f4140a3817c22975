//! Keys of elliptic curves as OpenSSL writes them (SEC 1 C.4, RFC 5915).

use super::{Curve, KeyError, PrivateKey, unsupported};

const SEQUENCE: u8 = 0x30;
const OCTETS: u8 = 0x04;
const INTEGER: u8 = 0x02;
const BITS: u8 = 0x03;
const OBJECT: u8 = 0x06;
/// The curve and the public key have context tags.
const CURVE: u8 = 0xa0;
const POINT: u8 = 0xa1;

/// 1.2.840.10045.3.1.7 and 1.3.132.0.34.
const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const P384: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x22];

/// Reads `ECPrivateKey`.
pub(super) fn sec1(bytes: &[u8]) -> Result<PrivateKey, KeyError> {
    let (private, curve, point) = fields(bytes).ok_or(KeyError::Damaged)?;
    let curve = match curve {
        P256 => Curve::P256,
        P384 => Curve::P384,
        _ => return Err(unsupported("keys on curves other than P-256 and P-384")),
    };
    PrivateKey::ecdsa_of(curve, private, point)
}

/// The private key, the curve's identifier and the public key.
fn fields(mut bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let mut key = take(&mut bytes, SEQUENCE)?;
    take(&mut key, INTEGER)?;
    let private = take(&mut key, OCTETS)?;
    let curve = take(&mut take(&mut key, CURVE)?, OBJECT)?;
    let point = take(&mut take(&mut key, POINT)?, BITS)?;
    // The first byte of a string of bits says how many of the last are none.
    Some((private, curve, point.strip_prefix(&[0])?))
}

/// The contents of the value at the front, if it has this tag. Lengths of more than two bytes are too long for a key.
fn take<'a>(from: &mut &'a [u8], tag: u8) -> Option<&'a [u8]> {
    let (length, rest) = match from {
        [found, ..] if *found != tag => return None,
        [_, 0x82, high, low, rest @ ..] => (usize::from(*high) << 8 | usize::from(*low), rest),
        [_, 0x81, length, rest @ ..] => (usize::from(*length), rest),
        [_, length @ 0..=0x7f, rest @ ..] => (usize::from(*length), rest),
        _ => return None,
    };
    let (contents, rest) = rest.split_at_checked(length)?;
    *from = rest;
    Some(contents)
}
