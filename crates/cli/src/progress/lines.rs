/// A line longer than this is cut, so that a step that never ends its line does not fill the memory.
const LONGEST_LINE: usize = 64 * 1024;

/// Cuts a stream of bytes into lines.
#[derive(Default)]
pub struct LineSplitter {
    rest: Vec<u8>,
}

impl LineSplitter {
    /// Takes bytes and gives the lines that they complete, without line ends.
    pub fn push(&mut self, data: &[u8]) -> Vec<Vec<u8>> {
        let mut lines = Vec::new();
        for part in data.split_inclusive(|byte| *byte == b'\n') {
            self.rest.extend_from_slice(part.strip_suffix(b"\n").unwrap_or(part));
            if part.ends_with(b"\n") || self.rest.len() >= LONGEST_LINE {
                lines.push(std::mem::take(&mut self.rest));
            }
        }
        lines
    }

    /// Gives what was not ended by a line end.
    pub fn finish(&mut self) -> Option<Vec<u8>> {
        (!self.rest.is_empty()).then(|| std::mem::take(&mut self.rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_joined_across_pieces() {
        let mut splitter = LineSplitter::default();
        assert_eq!(splitter.push(b"a\nb"), [b"a".to_vec()]);
        assert_eq!(splitter.push(b"c\n\nd"), [b"bc".to_vec(), b"".to_vec()]);
        assert_eq!(splitter.finish(), Some(b"d".to_vec()));
        assert_eq!(splitter.finish(), None);
    }

    #[test]
    fn an_endless_line_is_cut() {
        let mut splitter = LineSplitter::default();
        let lines = splitter.push(&vec![b'x'; LONGEST_LINE]);
        assert_eq!(lines.len(), 1);
        assert_eq!(splitter.finish(), None);
    }
}
