//! Where vertices come from.

use crate::pb;
use forge_image::Digest;
use forge_llb::InstructionSpan;

/// So much text is taken for all vertices together: thousands of them may each come from the whole of a large file.
/// Who comes later has no place.
const MOST_BYTES: usize = 32 << 20;

/// The files of a definition, and the places in them.
pub struct Spans<'a> {
    source: Option<&'a pb::Source>,
    /// Where the lines of each file begin.
    lines: Vec<Vec<u32>>,
    left: usize,
}

impl<'a> Spans<'a> {
    /// The files together are no larger than definitions may be, so that places in them fit.
    pub fn new(source: Option<&'a pb::Source>) -> Self {
        let begins = |data: &Vec<u8>| {
            let behind = data.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at as u32 + 1);
            [0].into_iter().chain(behind).collect()
        };
        let lines = source.into_iter().flat_map(|source| &source.infos).map(|info| begins(&info.data)).collect();
        Self { source, lines, left: MOST_BYTES }
    }

    /// The first place that a vertex comes from.
    pub fn of(&mut self, digest: &Digest) -> Option<InstructionSpan> {
        let source = self.source?;
        let location = source.locations.get(digest.as_str())?.locations.first()?;
        let index = usize::try_from(location.source_index).ok()?;
        let (info, lines) = (source.infos.get(index)?, self.lines.get(index)?);
        let range = location.ranges.first()?;
        let line = |position: Option<pb::Position>| u32::try_from(position?.line).ok().filter(|line| *line > 0);
        let first_line = line(range.start)?;
        let last_line = line(range.end).unwrap_or(first_line).max(first_line);
        let text = text(&info.data, lines, first_line, last_line);
        self.left = self.left.checked_sub(text.len() + info.filename.len())?;
        let text = String::from_utf8_lossy(text).into_owned();
        Some(InstructionSpan { file: info.filename.clone(), first_line, last_line, text })
    }
}

/// Those lines of a text, which count from 1, without the last one's end.
fn text<'a>(data: &'a [u8], lines: &[u32], first: u32, last: u32) -> &'a [u8] {
    let Some(begin) = lines.get(first as usize - 1) else { return &[] };
    let end = lines.get(last as usize).map_or(data.len(), |next| *next as usize - 1);
    &data[*begin as usize..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_count_from_1() {
        let source = |data: &str| pb::Source {
            infos: vec![pb::SourceInfo { data: data.into(), ..Default::default() }],
            ..Default::default()
        };
        let check = |data: &str, first: u32, last: u32, expected: &str| {
            let source = source(data);
            let spans = Spans::new(Some(&source));
            assert_eq!(text(data.as_bytes(), &spans.lines[0], first, last), expected.as_bytes(), "{data:?} {first}");
        };
        check("a\nb\nc\n", 1, 1, "a");
        check("a\nb\nc\n", 2, 3, "b\nc");
        check("a\nb\nc", 3, 3, "c");
        check("a\nb", 2, u32::MAX, "b");
        check("a\n", 2, 2, "");
        check("a", 2, 3, "");
        check("", 1, 1, "");
    }
}
