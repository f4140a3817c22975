//! `openssh-key-v1`: what ssh-keygen writes (PROTOCOL.key of OpenSSH).
//!
//! ```text
//! "openssh-key-v1\0"  cipher  kdf  kdf options  u32 keys  public key  private section
//! private section: u32 check  u32 check  kind  numbers of the key  comment  padding
//! ```

use super::{Curve, KeyError, PrivateKey, Reader, damaged, unsupported, without_zeros};
use ring::rsa::{KeyPairComponents, PublicKeyComponents};
use ring::signature::{Ed25519KeyPair, RsaKeyPair};

const MAGIC: &[u8] = b"openssh-key-v1\0";

pub(super) fn read(bytes: &[u8]) -> Result<PrivateKey, KeyError> {
    let mut outer = Reader(bytes.strip_prefix(MAGIC).ok_or(KeyError::Damaged)?);
    let cipher = outer.string().ok_or(KeyError::Damaged)?;
    if cipher != b"none" {
        return Err(KeyError::Passphrase);
    }
    let private = private_section(&mut outer).ok_or(KeyError::Damaged)?;
    let mut inner = Reader(private);
    let mut next = || inner.string().ok_or(KeyError::Damaged);
    let kind = next()?;
    let key = match kind {
        b"ssh-ed25519" => {
            let (public, secret) = (next()?, next()?);
            // The seed, and the public key once more.
            let seed = secret.get(..32).ok_or(KeyError::Damaged)?;
            PrivateKey::ed25519(Ed25519KeyPair::from_seed_and_public_key(seed, public).map_err(damaged)?)
        }
        b"ssh-rsa" => {
            let numbers = [next()?, next()?, next()?, next()?, next()?, next()?];
            rsa(numbers.map(without_zeros))?
        }
        kind if kind.starts_with(b"ecdsa-sha2-") => {
            let (curve, point, secret) = (next()?, next()?, next()?);
            PrivateKey::ecdsa_of(Curve::named(curve)?, secret, point)?
        }
        other => return Err(unsupported(&format!("keys of the kind {}", String::from_utf8_lossy(other)))),
    };
    Ok(PrivateKey { comment: next()?.to_vec(), ..key })
}

/// The private section behind its two equal numbers.
fn private_section<'a>(outer: &mut Reader<'a>) -> Option<&'a [u8]> {
    let (_kdf, _options) = (outer.string()?, outer.string()?);
    let keys = outer.word()?;
    let _public = outer.string()?;
    let mut inner = Reader(outer.string()?);
    (keys == 1 && inner.word()? == inner.word()?).then_some(inner.0)
}

fn rsa([n, e, d, q_inverse, p, q]: [&[u8]; 6]) -> Result<PrivateKey, KeyError> {
    // A product of larger numbers would not be checked in time.
    if [n, d, p, q].iter().any(|number| number.len() > 1024) {
        return Err(unsupported("keys of this size"));
    }
    let (d_p, d_q) = (remainder(d, p), remainder(d, q));
    let components =
        KeyPairComponents { public_key: PublicKeyComponents { n, e }, d, p, q, dP: &*d_p, dQ: &*d_q, qInv: q_inverse };
    Ok(PrivateKey::rsa(RsaKeyPair::from_components(&components).map_err(damaged)?))
}

/// `number` modulo `prime - 1`, both big-endian; the file leaves these exponents out. Bit by bit, as at school.
fn remainder(number: &[u8], prime: &[u8]) -> Vec<u8> {
    let mut modulus = prime.to_vec();
    // A prime is odd; what is not is refused later.
    if let Some(last) = modulus.last_mut() {
        *last &= !1;
    }
    // One byte more than the modulus has, for the doubling.
    modulus.insert(0, 0);
    let mut rest = vec![0_u8; modulus.len()];
    for bit in number.iter().flat_map(|byte| (0..8).rev().map(move |place| byte >> place & 1)) {
        let mut carry = bit;
        for digit in rest.iter_mut().rev() {
            (*digit, carry) = (*digit << 1 | carry, *digit >> 7);
        }
        if rest >= modulus {
            let mut borrow = false;
            for (digit, less) in rest.iter_mut().zip(&modulus).rev() {
                let (once, first) = digit.overflowing_sub(*less);
                let (twice, second) = once.overflowing_sub(u8::from(borrow));
                (*digit, borrow) = (twice, first || second);
            }
        }
    }
    without_zeros(&rest).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remainders() {
        assert_eq!(remainder(&[100], &[13]), [4]);
        assert_eq!(remainder(&[0x12, 0x34, 0x56], &[0xff, 0x01]), (0x12_3456_u32 % 0xff00).to_be_bytes()[2..]);
        assert_eq!(remainder(&[12], &[13]), [0_u8; 0]);
    }
}
