//! Counts what a definition holds before memory is spent on it: two bytes on the wire can be a struct of 250 in
//! memory.

use crate::DecodeError;

/// No definition is larger: what BuildKit's gRPC takes at once (16 MiB), and as much again.
pub const MOST_BYTES: usize = 32 << 20;

/// No definition has more messages, texts and byte strings. 5,000 stages of everyday steps have some 200,000.
const MOST_FIELDS: usize = 1_000_000;

/// No definition nests deeper; those of BuildKit's clients go to 8.
const DEEPEST: usize = 32;

/// Which fields of a message are messages that hold several things, and what these look like.
struct Shape(&'static [(u64, &'static Shape)]);

static LEAF: Shape = Shape(&[]);
static DEFINITION: Shape = Shape(&[(1, &OP), (2, &METADATA_ENTRY), (3, &SOURCE)]);
static OP: Shape = Shape(&[(1, &LEAF), (2, &EXEC), (3, &SOURCE_OP), (4, &FILE), (5, &BUILD), (6, &LEAF), (11, &LEAF)]);
static EXEC: Shape = Shape(&[(1, &META), (2, &LEAF)]);
static META: Shape = Shape(&[(6, &LEAF), (9, &LEAF)]);
static SOURCE_OP: Shape = Shape(&[(2, &LEAF)]);
static FILE: Shape = Shape(&[(2, &ACTION)]);
static ACTION: Shape = Shape(&[(4, &LEAF)]);
static BUILD: Shape = Shape(&[(2, &LEAF), (3, &DEFINITION), (4, &LEAF)]);
static METADATA_ENTRY: Shape = Shape(&[(2, &METADATA)]);
static METADATA: Shape = Shape(&[(2, &LEAF), (5, &LEAF)]);
static SOURCE: Shape = Shape(&[(1, &LOCATIONS_ENTRY), (2, &SOURCE_INFO)]);
static LOCATIONS_ENTRY: Shape = Shape(&[(2, &LOCATIONS)]);
static LOCATIONS: Shape = Shape(&[(1, &LOCATION)]);
static LOCATION: Shape = Shape(&[(2, &LEAF)]);
static SOURCE_INFO: Shape = Shape(&[(3, &DEFINITION)]);

/// Refuses a definition that is larger than any builder should take.
pub fn check(bytes: &[u8]) -> Result<(), DecodeError> {
    if bytes.len() > MOST_BYTES {
        return Err(DecodeError::TooLarge { what: "bytes", limit: MOST_BYTES });
    }
    let mut left = MOST_FIELDS;
    count(bytes, &DEFINITION, DEEPEST, &mut left)
}

fn count(bytes: &[u8], shape: &Shape, deeper: usize, left: &mut usize) -> Result<(), DecodeError> {
    let mut fields = Fields(bytes);
    while let Some(field) = fields.next()? {
        let Some(content) = field.content else { continue };
        *left = left.checked_sub(1).ok_or(DecodeError::TooLarge { what: "fields", limit: MOST_FIELDS })?;
        if let Some((_, inner)) = shape.0.iter().find(|(number, _)| *number == field.number) {
            let deeper = deeper.checked_sub(1).ok_or(DecodeError::TooLarge { what: "levels", limit: DEEPEST })?;
            count(content, inner, deeper, left)?;
        }
    }
    Ok(())
}

/// One field of a message on the wire.
pub struct Field<'a> {
    /// Its number.
    pub number: u64,
    /// Its bytes where it has a length: a text, bytes or a message.
    pub content: Option<&'a [u8]>,
}

/// Walks the fields of a message without knowing what they mean.
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    pub fn next(&mut self) -> Result<Option<Field<'a>>, DecodeError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let content = match key & 7 {
            0 => {
                self.varint()?;
                None
            }
            1 => self.take(8).map(|_| None)?,
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| unreadable())?;
                Some(self.take(length)?)
            }
            5 => self.take(4).map(|_| None)?,
            // Groups are of protobuf 2.
            _ => return Err(unreadable()),
        };
        Ok(Some(Field { number: key >> 3, content }))
    }

    fn varint(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(unreadable())
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or_else(unreadable)?;
        self.0 = rest;
        Ok(taken)
    }
}

fn unreadable() -> DecodeError {
    DecodeError::NotProtobuf { what: "the definition".to_owned(), source: None }
}
