//! All patterns as one automaton, whose states are made as paths lead to them.

use super::PatternMatcher;
use super::syntax::Step;
use std::collections::HashMap;

/// The characters of a path. Each byte that is not UTF-8 becomes one of a private plane, so that names which
/// differ stay different.
pub(super) fn letters(path: &[u8]) -> impl Iterator<Item = char> {
    let private = |byte: &u8| char::from_u32(0x10_f000 + u32::from(*byte)).expect("the private plane has no gap");
    path.utf8_chunks().flat_map(move |chunk| chunk.valid().chars().chain(chunk.invalid().iter().map(private)))
}

pub(super) type StateId = u32;

/// States that paths have led to so far. A state is the set of positions that the patterns may be at.
#[derive(Debug, Default)]
pub(super) struct Automaton {
    states: Vec<State>,
    ids: HashMap<Vec<u32>, StateId>,
    /// Transitions with characters beyond ASCII.
    rare: HashMap<(StateId, char), StateId>,
    /// Positions in all states together.
    size: usize,
}

#[derive(Debug)]
struct State {
    positions: Vec<u32>,
    /// The last pattern that ends here.
    matched: Option<usize>,
    /// Transitions with ASCII characters.
    common: [StateId; 128],
}

/// A transition that was not asked for yet.
const UNKNOWN: StateId = StateId::MAX;

impl Automaton {
    pub(super) const START: StateId = 0;

    /// Some 16 MiB: then it begins anew.
    const MAX_SIZE: usize = 4 << 20;

    pub(super) fn new(matcher: &PatternMatcher) -> Self {
        let mut automaton = Self::default();
        let mut positions = Vec::new();
        matcher.starts.iter().for_each(|start| enter(matcher, *start as u32, &mut positions));
        automaton.intern(matcher, positions);
        automaton
    }

    pub(super) fn forget_if_large(&mut self, matcher: &PatternMatcher) {
        if self.size > Self::MAX_SIZE {
            *self = Self::new(matcher);
        }
    }

    pub(super) fn positions(&self, state: StateId) -> &[u32] {
        &self.states[state as usize].positions
    }

    pub(super) fn matched(&self, state: StateId) -> Option<usize> {
        self.states[state as usize].matched
    }

    /// The state behind a character.
    pub(super) fn next(&mut self, matcher: &PatternMatcher, state: StateId, c: char) -> StateId {
        let known = match self.states[state as usize].common.get(c as usize) {
            Some(next) => *next,
            None => self.rare.get(&(state, c)).copied().unwrap_or(UNKNOWN),
        };
        if known != UNKNOWN {
            return known;
        }
        let mut positions = Vec::new();
        for position in &self.states[state as usize].positions {
            follow(matcher, *position, c, &mut positions);
        }
        let next = self.intern(matcher, positions);
        match self.states[state as usize].common.get_mut(c as usize) {
            Some(entry) => *entry = next,
            None => {
                self.rare.insert((state, c), next);
                self.size += 4;
            }
        }
        next
    }

    fn intern(&mut self, matcher: &PatternMatcher, mut positions: Vec<u32>) -> StateId {
        positions.sort_unstable();
        positions.dedup();
        if let Some(id) = self.ids.get(&positions) {
            return *id;
        }
        let ends = positions.iter().filter_map(|position| match matcher.steps[*position as usize] {
            Step::End(pattern) => Some(pattern),
            _ => None,
        });
        let state = State { matched: ends.max(), positions: positions.clone(), common: [UNKNOWN; 128] };
        let id = self.states.len() as StateId;
        self.size += 2 * positions.len() + 128;
        self.states.push(state);
        self.ids.insert(positions, id);
        id
    }
}

/// The positions behind a character.
fn follow(matcher: &PatternMatcher, position: u32, c: char, positions: &mut Vec<u32>) {
    let (stays, goes) = match &matcher.steps[position as usize] {
        Step::Char(wanted) => (false, *wanted == c),
        Step::One => (false, c != '/'),
        Step::Class(class) => (false, class.has(c)),
        Step::Star => (c != '/', false),
        Step::DeepLoop => (true, c == '/'),
        Step::Rest | Step::Anything => (true, false),
        Step::DeepEntry | Step::End(_) => (false, false),
    };
    if stays {
        enter(matcher, position, positions);
    }
    if goes {
        enter(matcher, position + 1, positions);
    }
}

/// Adds a position and those that it reaches for nothing.
fn enter(matcher: &PatternMatcher, position: u32, positions: &mut Vec<u32>) {
    let mut position = position;
    loop {
        positions.push(position);
        match matcher.steps[position as usize] {
            Step::Star | Step::Rest | Step::Anything => position += 1,
            Step::DeepEntry => {
                positions.push(position + 1);
                position += 2;
            }
            _ => return,
        }
    }
}
