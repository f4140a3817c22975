//! Where a tar is cut into chunks that are compressed on their own.

use super::emit::TarSink;
use crate::StoreError;

/// No chunk but the last is smaller: each costs a header and a fresh dictionary.
pub(super) const MIN: u64 = 256 << 10;
/// About the mean size, and the distance of the cuts inside a big file.
pub(super) const MEAN: u64 = 1 << 20;
/// No chunk is larger.
pub(super) const MAX: u64 = 4 << 20;

/// Takes chunks, in order.
pub(super) trait ChunkSink {
    /// Takes a chunk, and hands back a buffer for the next one.
    fn chunk(&mut self, bytes: Vec<u8>) -> Result<Vec<u8>, StoreError>;
}

/// Cuts by content, so that a change in one place moves only the cuts nearby:
///
/// - A file of [`MEAN`] bytes or more is cut every [`MEAN`] bytes of its own data, whatever comes before it.
/// - Before any other entry there is a cut with a probability in proportion to its length, decided by a hash of the
///   entry alone; before a big file there always is.
/// - Never below [`MIN`], and always before a chunk would exceed [`MAX`].
///
/// The cuts are part of a blob's digest: changing these rules changes every compressed layer that forge writes.
pub(super) struct Chunker<'a> {
    out: &'a mut dyn ChunkSink,
    chunk: Vec<u8>,
    /// How far the next cut inside the current entry is.
    until_cut: Option<u64>,
    /// What the current entry still has to write.
    left: u64,
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
        if self.chunk.is_empty() {
            return Ok(());
        }
        self.chunk = self.out.chunk(std::mem::take(&mut self.chunk))?;
        Ok(())
    }

    fn filled(&self) -> u64 {
        self.chunk.len() as u64
    }
}

impl TarSink for Chunker<'_> {
    fn begin_entry(&mut self, mark: u64, headers: u64, data: u64) -> Result<(), StoreError> {
        let length = headers.saturating_add(data);
        let big = data >= MEAN;
        // A cut before one in (MEAN - MIN) / length entries: after MIN bytes that is MEAN - MIN more on the average.
        let chosen = big || mark < (u64::MAX / (MEAN - MIN)).saturating_mul(length);
        let first_piece = if big { headers + MEAN } else { length };
        if (chosen && self.filled() >= MIN) || self.filled() + first_piece > MAX {
            self.cut()?;
        }
        self.left = length;
        self.until_cut = big.then_some(headers + MEAN);
        Ok(())
    }

    fn write(&mut self, mut bytes: &[u8]) -> Result<(), StoreError> {
        while let Some(distance) = self.until_cut.filter(|distance| *distance <= bytes.len() as u64) {
            let (piece, rest) = bytes.split_at(distance as usize);
            self.chunk.extend_from_slice(piece);
            self.left -= piece.len() as u64;
            self.cut()?;
            // A short rest is left to what follows the file.
            self.until_cut = (self.left >= MEAN).then_some(MEAN);
            bytes = rest;
        }
        self.until_cut = self.until_cut.map(|distance| distance - bytes.len() as u64);
        self.left = self.left.saturating_sub(bytes.len() as u64);
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
        fn chunk(&mut self, bytes: Vec<u8>) -> Result<Vec<u8>, StoreError> {
            self.0.push(bytes);
            Ok(Vec::new())
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
        let (last, rest) = chunks.split_last().unwrap();
        assert!(rest.iter().all(|chunk| (MIN..=MAX).contains(&(chunk.len() as u64))));
        assert!(last.len() as u64 <= MAX);
        let mean = rest.iter().map(Vec::len).sum::<usize>() / rest.len();
        assert!((600_000..1_500_000).contains(&mean), "{mean}");
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
        for _ in 0..20 {
            chunker.begin_entry(u64::MAX, 512, MEAN - 512).unwrap();
            chunker.write(&vec![7; MEAN as usize]).unwrap();
        }
        chunker.finish().unwrap();
        assert!(collected.0.iter().all(|chunk| chunk.len() as u64 <= MAX));
        assert_eq!(collected.0.iter().map(Vec::len).sum::<usize>() as u64, 20 * MEAN);
    }
}
