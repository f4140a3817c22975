//! Serde adapters for operating system strings, which need not be UTF-8.
//!
//! Each byte becomes the character of the same number: ASCII stays readable and short in the messages between
//! the two sides, and every byte string survives the round trip.

use serde::{Deserialize, Deserializer, Serializer, de::Error};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

fn encode(text: &OsStr) -> String {
    text.as_bytes().iter().map(|&byte| char::from(byte)).collect()
}

fn decode(text: &str) -> Option<OsString> {
    let bytes: Option<Vec<u8>> = text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect();
    bytes.map(OsString::from_vec)
}

pub(crate) mod one {
    use super::*;

    pub(crate) fn serialize<T: AsRef<OsStr>, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&encode(value.as_ref()))
    }

    pub(crate) fn deserialize<'de, T: From<OsString>, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
        let text = String::deserialize(from)?;
        decode(&text).map(T::from).ok_or_else(|| D::Error::custom("not a byte string"))
    }
}

pub(crate) mod optional {
    use super::*;

    pub(crate) fn serialize<T: AsRef<OsStr>, S: Serializer>(value: &Option<T>, to: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => to.serialize_some(&encode(value.as_ref())),
            None => to.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, T: From<OsString>, D: Deserializer<'de>>(from: D) -> Result<Option<T>, D::Error> {
        let text = Option::<String>::deserialize(from)?;
        text.map(|text| decode(&text).map(T::from).ok_or_else(|| D::Error::custom("not a byte string"))).transpose()
    }
}

pub(crate) mod many {
    use super::*;

    pub(crate) fn serialize<T: AsRef<OsStr>, S: Serializer>(values: &[T], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(values.iter().map(|value| encode(value.as_ref())))
    }

    pub(crate) fn deserialize<'de, T: From<OsString>, D: Deserializer<'de>>(from: D) -> Result<Vec<T>, D::Error> {
        Vec::<String>::deserialize(from)?
            .iter()
            .map(|text| decode(text).map(T::from).ok_or_else(|| D::Error::custom("not a byte string")))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_survives() {
        let all = OsString::from_vec((1..=255).collect());
        assert_eq!(decode(&encode(&all)), Some(all));
    }
}
