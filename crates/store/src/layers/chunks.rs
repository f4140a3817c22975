//! Where a tar is cut into chunks that are compressed on their own.

use super::emit::TarSink;
use crate::StoreError;

/// No chunk of small files is cut earlier by chance: each costs a header and a fresh dictionary.
pub(super) const MIN: u64 = 256 << 10;
/// About the mean size, and the distance of the cuts inside a big file.
pub(super) const MEAN: u64 = 1 << 20;
/// From here on the bytes of a file are chunks of their own: the same file at another place is then the same chunks, and what
/// a fresh dictionary costs is little beside them.
pub(super) const BIG: u64 = 64 << 10;
/// No chunk is larger.
pub(super) const MAX: u64 = 4 << 20;

/// Takes chunks, in order.
pub(super) trait ChunkSink {
    /// Takes a chunk.
    fn chunk(&mut self, bytes: &[u8]) -> Result<(), StoreError>;
}

/// Cuts by content, so that a change in one place moves only the cuts nearby:
///
/// - The data of a file of [`BIG`] bytes or more begins a chunk and ends one, and is cut every [`MEAN`] bytes of its own; the
///   last piece is at least as long, if there are several. Its headers stay with what comes before.
/// - Before any other entry there is a cut with a probability in proportion to its length, decided by a hash of the
///   entry alone, but never below [`MIN`].
/// - Always before a chunk would exceed [`MAX`].
///
/// The cuts are part of a blob's digest: changing these rules changes every compressed layer that forge writes.
pub(super) struct Chunker<'a> {
    out: &'a mut dyn ChunkSink,
    chunk: Vec<u8>,
    /// How far the next cut inside the current entry is.
    until_cut: Option<u64>,
    /// What the current entry has behind that cut.
    left: u64,
}

/// The length of the next piece of a big file.
fn piece(left: u64) -> u64 {
    if left >= 2 * MEAN { MEAN } else { left }
}

impl<'a> Chunker<'a> {
    pub(super) fn new(out: &'a mut dyn ChunkSink) -> Self {
        Self { out, chunk: Vec::new(), until_cut: None, left: 0 }
    }

    /// Hands over the last chunk.
    pub(super) fn finish(mut self) -> Result<(), StoreError> {
        self.cut()
    }

    fn cut(&mut self) -> Result<(), StoreError> {
        if !self.chunk.is_empty() {
            self.out.chunk(&self.chunk)?;
            self.chunk.clear();
        }
        Ok(())
    }

    fn filled(&self) -> u64 {
        self.chunk.len() as u64
    }
}

impl TarSink for Chunker<'_> {
    fn begin_entry(&mut self, mark: u64, headers: u64, data: u64) -> Result<(), StoreError> {
        let big = data >= BIG;
        // Data of its own chunks does not count here.
        let length = if big { headers } else { headers + data };
        // A cut before one in (MEAN - MIN) / length entries: after MIN bytes that is MEAN - MIN more on the average.
        let chosen = !big && mark < (u64::MAX / (MEAN - MIN)).saturating_mul(length);
        if (chosen && self.filled() >= MIN) || self.filled() + length > MAX {
            self.cut()?;
        }
        if big {
            (self.until_cut, self.left) = (Some(headers), data);
        }
        Ok(())
    }

    fn write(&mut self, mut bytes: &[u8]) -> Result<(), StoreError> {
        while let Some(distance) = self.until_cut.filter(|distance| *distance <= bytes.len() as u64) {
            let (before, rest) = bytes.split_at(distance as usize);
            self.chunk.extend_from_slice(before);
            self.cut()?;
            let next = piece(self.left);
            self.left -= next;
            self.until_cut = (next > 0).then_some(next);
            bytes = rest;
        }
        self.until_cut = self.until_cut.map(|distance| distance - bytes.len() as u64);
        self.chunk.extend_from_slice(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Collected(Vec<Vec<u8>>);

    impl ChunkSink for Collected {
        fn chunk(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
            self.0.push(bytes.to_vec());
            Ok(())
        }
    }

    /// Cuts entries of these lengths; the hash of an entry is made from its number.
    fn cut(entries: &[(u64, u64)], write: usize) -> Vec<Vec<u8>> {
        let mut collected = Collected::default();
        let mut chunker = Chunker::new(&mut collected);
        for &(seed, data) in entries {
            let hash = blake3::hash(&seed.to_le_bytes());
            let mark = u64::from_le_bytes(hash.as_bytes()[..8].try_into().unwrap());
            chunker.begin_entry(mark, 512, data).unwrap();
            let mut bytes = vec![0; (data + 512) as usize];
            blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
            bytes.chunks(write).for_each(|piece| chunker.write(piece).unwrap());
        }
        chunker.finish().unwrap();
        collected.0
    }

    fn many() -> Vec<(u64, u64)> {
        let mut entries: Vec<(u64, u64)> = (0..3000).map(|seed| (seed, seed * 7919 % 20_000 / 512 * 512)).collect();
        entries.insert(1500, (9001, 9 << 20));
        entries.insert(700, (9002, (1 << 20) + 512));
        entries
    }

    #[test]
    fn chunks_keep_to_their_sizes() {
        let chunks = cut(&many(), 100_000);
        assert!(chunks.iter().all(|chunk| chunk.len() as u64 <= MAX));
        let small = chunks.iter().filter(|chunk| (chunk.len() as u64) < MIN).count();
        assert!(small <= 3, "only before big files and at the end: {small}");
        let mean = chunks.iter().map(Vec::len).sum::<usize>() / chunks.len();
        assert!((600_000..1_500_000).contains(&mean), "{mean}");
    }

    #[test]
    fn a_big_file_is_the_same_chunks_wherever_it_stands() {
        let file = (9003, (3 << 20) + 512 * 77);
        let (first, second) = (cut(&[(1, 512), file, (2, 1024)], 1000), cut(&[(3, 5120), (4, 512), file], 70_000));
        assert_eq!(first[1..4], second[1..4]);
        let lengths: Vec<usize> = first.iter().map(Vec::len).collect();
        assert_eq!(lengths, [1024 + 512, 1 << 20, 1 << 20, (1 << 20) + 512 * 77, 1536]);
    }

    #[test]
    fn a_tar_that_is_not_taken_apart_is_cut_evenly() {
        let mut collected = Collected::default();
        let mut chunker = Chunker::new(&mut collected);
        chunker.begin_entry(0, 0, u64::MAX).unwrap();
        chunker.write(&vec![1; (MEAN * 5 / 2) as usize]).unwrap();
        chunker.finish().unwrap();
        let lengths: Vec<u64> = collected.0.iter().map(|chunk| chunk.len() as u64).collect();
        assert_eq!(lengths, [MEAN, MEAN, MEAN / 2]);
    }

    #[test]
    fn cuts_do_not_depend_on_how_bytes_arrive() {
        assert_eq!(cut(&many(), 1 << 20), cut(&many(), 777));
    }

    #[test]
    fn a_change_moves_only_the_cuts_nearby() {
        let before: std::collections::HashSet<Vec<u8>> = cut(&many(), 1 << 20).into_iter().collect();
        let mut changed = many();
        changed[200] = (77_777, 333 * 512);
        let after = cut(&changed, 1 << 20);
        let fresh = after.iter().filter(|chunk| !before.contains(*chunk)).count();
        assert!(fresh <= 4, "{fresh} of {} chunks changed", after.len());
    }

    #[test]
    fn a_run_of_unlucky_entries_stays_below_the_maximum() {
        let mut collected = Collected::default();
        let mut chunker = Chunker::new(&mut collected);
        for _ in 0..200 {
            chunker.begin_entry(u64::MAX, 512, BIG - 512).unwrap();
            chunker.write(&vec![7; BIG as usize]).unwrap();
        }
        chunker.finish().unwrap();
        assert!(collected.0.iter().all(|chunk| chunk.len() as u64 <= MAX));
        assert_eq!(collected.0.iter().map(Vec::len).sum::<usize>() as u64, 200 * BIG);
    }
}
