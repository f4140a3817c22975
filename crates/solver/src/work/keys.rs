//! The keys of a step, as far as they are known.

use crate::CacheMap;
use crate::step::{ContentPart, Keys, Known};
use forge_cache::{CacheKey, InputPart, OpKey, ResultRef, Selector};

/// What a definition key will be made of.
pub(crate) struct PendingKeys {
    pub map: CacheMap,
    pub op: OpKey,
    pub parts: Vec<PendingPart>,
    /// Which inputs have a definition key that is stale.
    pub stale: Vec<bool>,
}

/// What an input will contribute to a definition key.
#[derive(Clone)]
pub(crate) enum PendingPart {
    /// Known already.
    Known(InputPart),
    /// The digest of what the selector shows of a result.
    Unread(ResultRef, Selector),
}

impl PendingKeys {
    /// The parts, if nothing has to be read.
    pub fn known_parts(&self) -> Option<Vec<InputPart>> {
        let known = |part: &PendingPart| match part {
            PendingPart::Known(part) => Some(*part),
            PendingPart::Unread(..) => None,
        };
        self.parts.iter().map(known).collect()
    }

    /// Makes the keys of what the inputs contribute.
    pub fn finish(self, parts: Vec<InputPart>) -> Known {
        let inputs = self.map.inputs.iter().zip(&parts).zip(&self.stale);
        let content = inputs.map(|((key, part), stale)| content_part(key, part, *stale)).collect();
        let definition = CacheKey::definition(&self.op, &parts);
        let keys = Keys { definition, parts, content, stale: self.stale.contains(&true) };
        Known { map: self.map, keys: Some(keys) }
    }
}

fn content_part(key: &crate::InputKey, part: &InputPart, stale: bool) -> ContentPart {
    match (part, key) {
        // Read for the definition key already, with the same selector.
        (InputPart::Content(_), _) => ContentPart::Known(*part),
        (InputPart::Key { .. }, crate::InputKey::Content(selector)) => ContentPart::Selected(selector.clone()),
        (InputPart::Key { .. }, crate::InputKey::Definition) if stale => ContentPart::Stale,
        (InputPart::Key { .. }, crate::InputKey::Definition) => ContentPart::Known(*part),
    }
}

/// The content key of a step whose inputs were read, and the other keys of its record.
pub(super) struct ContentKeys {
    pub(super) key: CacheKey,
    pub(super) parts: Vec<InputPart>,
    /// The definition key; and with stale inputs the content key that a build without `ignore_cache` computes,
    /// which must not lead to an older record any more.
    pub(super) further: Vec<CacheKey>,
    /// The key without what is beneath, where the step may come out the same on something else: it leads to a step that
    /// did, and says nothing of this one.
    pub(super) detached: Option<CacheKey>,
}

impl ContentKeys {
    pub(super) fn keys(&self) -> Vec<CacheKey> {
        std::iter::once(self.key).chain(self.further.iter().copied()).collect()
    }

    pub(super) fn all(&self) -> Vec<CacheKey> {
        self.keys().into_iter().chain(self.detached).collect()
    }

    pub(super) fn new(op: &OpKey, keys: &Keys, beneath: Option<usize>, parts: Vec<InputPart>) -> Self {
        let detached = beneath.map(|beneath| CacheKey::detached(op, &parts, beneath));
        let key = CacheKey::content(op, &parts);
        let nominal = |((part, read), nominal): ((&ContentPart, &InputPart), &InputPart)| match part {
            ContentPart::Stale => *nominal,
            _ => *read,
        };
        let nominal: Vec<InputPart> = keys.content.iter().zip(&parts).zip(&keys.parts).map(nominal).collect();
        let mut further = vec![keys.definition, CacheKey::content(op, &nominal)];
        further.retain(|other| *other != key);
        Self { key, parts, further, detached }
    }
}
