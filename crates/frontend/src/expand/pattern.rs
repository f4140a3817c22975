//! The patterns of `${v#p}`, `${v%p}` and `${v/p/r}`: `*` and `?`, matched without backtracking.

use super::budget::Budget;
use crate::Problem;

/// One element of a pattern.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Item {
    /// This character.
    Char(char),
    /// Any one character (`?`).
    One,
}

/// A pattern: pieces with any text between two of them (`*`).
pub(super) struct Pattern {
    pieces: Vec<Vec<Item>>,
}

/// How much of a text a pattern takes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Greed {
    Shortest,
    Longest,
}

impl Pattern {
    /// Reads a pattern.
    pub fn new(text: &str, escape: char) -> Result<Self, String> {
        let mut pieces = vec![Vec::new()];
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            let item = match c {
                '*' => {
                    pieces.push(Vec::new());
                    continue;
                }
                '?' => Item::One,
                c if c == escape => match chars.next() {
                    Some(c) if matches!(c, '*' | '?' | '/' | '}') || c == escape => Item::Char(c),
                    other => return Err(invalid(text, &format!("invalid escape '{escape}{}'", shown(other)))),
                },
                c => Item::Char(c),
            };
            pieces.last_mut().expect("there is always a last piece").push(item);
        }
        Ok(Self { pieces })
    }

    /// The same pattern for reversed texts.
    pub fn reversed(mut self) -> Self {
        self.pieces.reverse();
        self.pieces.iter_mut().for_each(|piece| piece.reverse());
        self
    }

    /// Whether it matches nothing but the empty text.
    pub fn is_empty(&self) -> bool {
        self.pieces.len() == 1 && self.pieces[0].is_empty()
    }

    /// Whether a failure at one place means a failure at each later one that begins with the first piece.
    fn has_star(&self) -> bool {
        self.pieces.len() > 1
    }

    /// Where a match that begins at `start` ends.
    pub fn match_at(
        &self,
        text: &[char],
        start: usize,
        greed: Greed,
        budget: &Budget,
    ) -> Result<Option<usize>, Problem> {
        let (first, rest) = self.pieces.split_first().expect("there is always a first piece");
        if !fits(first, text, start, budget)? {
            return Ok(None);
        }
        let mut at = start + first.len();
        let Some((last, middle)) = rest.split_last() else { return Ok(Some(at)) };
        for piece in middle {
            match find(piece, text, at..text.len() + 1, budget)? {
                Some(found) => at = found + piece.len(),
                None => return Ok(None),
            }
        }
        let found = match greed {
            Greed::Shortest => find(last, text, at..text.len() + 1, budget)?,
            Greed::Longest => find(last, text, (at..text.len() + 1).rev(), budget)?,
        };
        Ok(found.map(|found| found + last.len()))
    }

    /// The first match at or behind `from`: the longest one there.
    pub fn find(&self, text: &[char], from: usize, budget: &Budget) -> Result<Option<(usize, usize)>, Problem> {
        for start in from..=text.len() {
            if !fits(&self.pieces[0], text, start, budget)? {
                continue;
            }
            match self.match_at(text, start, Greed::Longest, budget)? {
                Some(end) => return Ok(Some((start, end))),
                None if self.has_star() => return Ok(None),
                None => {}
            }
        }
        Ok(None)
    }
}

fn find(
    piece: &[Item],
    text: &[char],
    places: impl Iterator<Item = usize>,
    budget: &Budget,
) -> Result<Option<usize>, Problem> {
    for place in places {
        if fits(piece, text, place, budget)? {
            return Ok(Some(place));
        }
    }
    Ok(None)
}

fn fits(piece: &[Item], text: &[char], start: usize, budget: &Budget) -> Result<bool, Problem> {
    let Some(text) = text.get(start..start + piece.len()) else { return Ok(false) };
    let same = piece.iter().zip(text).take_while(|(item, c)| match item {
        Item::One => true,
        Item::Char(wanted) => wanted == *c,
    });
    let same = same.count();
    budget.work(same + 1)?;
    Ok(same == piece.len())
}

fn shown(c: Option<char>) -> String {
    c.map(String::from).unwrap_or_default()
}

fn invalid(pattern: &str, reason: &str) -> String {
    format!("invalid pattern ({pattern}) in substitution: {reason}")
}
