//! The bytes of a pack: read, compared with what the step's key was made of, and written, on several threads.

use super::FileError;
use super::packed_plan::{Planned, PlannedKind};
use crate::source_tree::{SourceEntry, SourceError, SourceTree};
use blake3::Hasher;
use forge_store::{PackWriter, PackedBytes};
use rayon::prelude::*;
use std::cell::RefCell;
use std::fs::File;
use std::io::{ErrorKind, Read};

/// Where the bytes of an entry are or will be.
#[derive(Clone, Copy)]
pub(super) enum Origin {
    /// There are none.
    None,
    /// Another layer's pack holds them.
    Shared(PackedBytes),
    /// They are read, and written to a place of their own.
    Read(PackedBytes),
}

impl Origin {
    pub(super) fn place(&self) -> Option<PackedBytes> {
        match self {
            Self::None => None,
            Self::Shared(place) | Self::Read(place) => Some(*place),
        }
    }
}

/// So many bytes are read before they are written as one.
const TOGETHER: u64 = 1 << 20;

thread_local! {
    static SPACE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Reads and writes what is to be. Bytes that are others than when the step's key was made are an error: the result
/// would be found again under the key of what is there no more (A40). What the files hash to that did not say it, in order.
pub(super) fn fill(
    tree: &SourceTree,
    writer: &PackWriter,
    planned: &[Planned<'_>],
    origins: &[Origin],
) -> Result<Vec<[u8; 32]>, FileError> {
    let fill = |range: &std::ops::Range<usize>| -> Result<Vec<[u8; 32]>, FileError> {
        let (planned, origins) = (&planned[range.clone()], &origins[range.clone()]);
        match (planned, origins) {
            ([Planned { kind: PlannedKind::File { from }, .. }], [Origin::Read(place)]) if from.size() > TOGETHER => {
                Ok(unsaid(from, large(tree, writer, from, *place)?).into_iter().collect())
            }
            _ => SPACE.with_borrow_mut(|space| batch(tree, writer, planned, origins, space)),
        }
    };
    let unhashed: Vec<Vec<[u8; 32]>> = batches(planned, origins).par_iter().map(fill).collect::<Result<_, _>>()?;
    Ok(unhashed.into_iter().flatten().collect())
}

/// A file's hash, where the file does not say it.
fn unsaid(from: &SourceEntry, hash: [u8; 32]) -> Option<[u8; 32]> {
    from.bytes.is_none().then_some(hash)
}

/// Ranges of entries whose bytes are written as one: what is read lies together, and there is not too much of it.
fn batches(planned: &[Planned<'_>], origins: &[Origin]) -> Vec<std::ops::Range<usize>> {
    let mut batches = Vec::new();
    let (mut begin, mut sum, mut end) = (0, 0, None);
    for (position, (entry, origin)) in planned.iter().zip(origins).enumerate() {
        let (PlannedKind::File { from }, Origin::Read(place)) = (&entry.kind, origin) else { continue };
        let follows = end.is_none_or(|end| *place == end);
        if !follows || sum + from.size() > TOGETHER {
            if position > begin {
                batches.push(begin..position);
            }
            (begin, sum) = (position, 0);
        }
        sum += from.size();
        end = Some(place.end(from.size()));
    }
    if begin < origins.len() {
        batches.push(begin..origins.len());
    }
    batches
}

fn batch(
    tree: &SourceTree,
    writer: &PackWriter,
    planned: &[Planned<'_>],
    origins: &[Origin],
    space: &mut Vec<u8>,
) -> Result<Vec<[u8; 32]>, FileError> {
    space.clear();
    let mut unhashed = Vec::new();
    let mut first = None;
    for (entry, origin) in planned.iter().zip(origins) {
        let PlannedKind::File { from } = entry.kind else { continue };
        match origin {
            Origin::Read(place) => {
                first.get_or_insert(*place);
                unhashed.extend(unsaid(from, append(tree, from, space)?));
            }
            Origin::Shared(_) if from.bytes.is_none() => {
                let hash = tree.known_hash(from)?.ok_or_else(|| changed(from))?;
                unhashed.push(hash.into());
            }
            Origin::Shared(_) | Origin::None => {}
        }
    }
    if let Some(first) = first {
        writer.write(first, 0, space)?;
    }
    Ok(unhashed)
}

/// Appends the bytes of a file, exactly as many as it had; says what they hash to.
fn append(tree: &SourceTree, from: &SourceEntry, space: &mut Vec<u8>) -> Result<[u8; 32], FileError> {
    let mut file = tree.open(from)?;
    let begin = space.len();
    let size = usize::try_from(from.size()).map_err(|_| changed(from))?;
    // One more, to see that the file ends there.
    space.resize(begin + size + 1, 0);
    let read = read_full(&mut file, &mut space[begin..]).map_err(|source| read_error(from, source))?;
    space.truncate(begin + size);
    if read != size {
        return Err(changed(from));
    }
    checked(from, blake3::hash(&space[begin..]).into())
}

fn large(
    tree: &SourceTree,
    writer: &PackWriter,
    from: &SourceEntry,
    place: PackedBytes,
) -> Result<[u8; 32], FileError> {
    let mut file = tree.open(from)?;
    let mut space = vec![0; TOGETHER as usize];
    let mut hasher = Hasher::new();
    loop {
        let read = read_full(&mut file, &mut space).map_err(|source| read_error(from, source))?;
        if hasher.count() + read as u64 > from.size() {
            return Err(changed(from));
        }
        if read == 0 {
            break;
        }
        writer.write(place, hasher.count(), &space[..read])?;
        hasher.update(&space[..read]);
        tree.stop().check()?;
    }
    if hasher.count() != from.size() {
        return Err(changed(from));
    }
    checked(from, hasher.finalize().into())
}

fn checked(from: &SourceEntry, hash: [u8; 32]) -> Result<[u8; 32], FileError> {
    match from.bytes {
        Some(expected) if *expected.as_bytes() != hash => Err(changed(from)),
        _ => Ok(hash),
    }
}

/// Reads until the buffer is full or the file ends.
fn read_full(file: &mut File, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn changed(from: &SourceEntry) -> FileError {
    FileError::Changed { path: from.path.display().into_owned() }
}

fn read_error(from: &SourceEntry, source: std::io::Error) -> FileError {
    SourceError::Read { path: from.path.display().into_owned(), source }.into()
}
