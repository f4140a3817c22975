use crate::CacheKey;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// Identifies what is built again and again: the same file, context, target and platform, whatever is in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BuildId([u8; 32]);

impl BuildId {
    /// The identity that these words make.
    pub fn new(words: &[&[u8]]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("forge build v1");
        for word in words {
            hasher.update(&(word.len() as u64).to_le_bytes()).update(word);
        }
        Self(hasher.finalize().into())
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// The steps of a build that succeeded, or came as far as it did, in the order of its graph.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BuildSteps(pub Vec<BuiltStep>);

/// A step of an earlier build.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuiltStep {
    /// What users saw, `[build 2/5] RUN make`.
    pub name: String,
    /// Under which its record was found or kept.
    pub key: CacheKey,
}

/// How an earlier step is known for what a step is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counterpart<'a> {
    /// It has the same definition.
    Same(&'a BuiltStep),
    /// It has the same instruction, or the same place in the same stage.
    Earlier(&'a BuiltStep),
}

/// The steps of an earlier build, to be found by what they were: each look-up among thousands takes no walk.
#[derive(Clone, Debug, Default)]
pub struct EarlierSteps {
    steps: Vec<BuiltStep>,
    by_key: HashMap<CacheKey, usize>,
    by_text: HashMap<String, Vec<usize>>,
    /// By stage, number and the instruction's word.
    by_place: HashMap<(String, String, String), Vec<usize>>,
}

impl From<BuildSteps> for EarlierSteps {
    fn from(BuildSteps(steps): BuildSteps) -> Self {
        let mut earlier = Self::default();
        for (position, step) in steps.iter().enumerate() {
            let (Place { stage, number }, text) = split(&step.name);
            earlier.by_key.entry(step.key).or_insert(position);
            earlier.by_text.entry(text.to_owned()).or_default().push(position);
            let place = (stage.to_owned(), number.to_owned(), verb(text).to_owned());
            earlier.by_place.entry(place).or_default().push(position);
        }
        Self { steps, ..earlier }
    }
}

impl EarlierSteps {
    /// The step that one of a later build was, if there was one. `is_there` says which keys the later build has too:
    /// what is still there cannot be what became another step.
    pub fn counterpart(
        &self,
        name: &str,
        key: Option<&CacheKey>,
        is_there: impl Fn(&CacheKey) -> bool,
    ) -> Option<Counterpart<'_>> {
        if let Some(same) = key.and_then(|key| self.by_key.get(key)) {
            return Some(Counterpart::Same(&self.steps[*same]));
        }
        let (place, text) = split(name);
        let gone = |positions: Option<&'_ Vec<usize>>| -> Vec<&BuiltStep> {
            let steps = positions.into_iter().flatten().map(|position| &self.steps[*position]);
            steps.filter(|step| !is_there(&step.key)).collect()
        };
        let same_text = gone(self.by_text.get(text));
        let in_stage = || same_text.iter().copied().find(|step| split(&step.name).0.stage == place.stage);
        let in_place = || {
            let place = (place.stage.to_owned(), place.number.to_owned(), verb(text).to_owned());
            gone(self.by_place.get(&place)).first().copied()
        };
        let found = in_stage().or_else(in_place).or_else(|| same_text.first().copied())?;
        Some(Counterpart::Earlier(found))
    }
}

/// Where a step stands.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Place<'a> {
    stage: &'a str,
    number: &'a str,
}

/// `[build 2/5] RUN make` is step 2 of the stage `build`, with the text `RUN make`; how many steps a stage has is no
/// matter.
fn split(name: &str) -> (Place<'_>, &str) {
    let nowhere = Place { stage: "", number: "" };
    let Some((place, text)) = name.strip_prefix('[').and_then(|rest| rest.split_once("] ")) else {
        return (nowhere, name);
    };
    let (stage, number) = place.rsplit_once(' ').unwrap_or(("", place));
    (Place { stage, number: number.split('/').next().unwrap_or(number) }, text)
}

fn verb(text: &str) -> &str {
    text.split(' ').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::OpKey;

    fn key(text: &str) -> CacheKey {
        CacheKey::definition(&OpKey::new(text.as_bytes()), &[])
    }

    /// The name of what each step of a build was in the one before; `=` where it is the same.
    fn check(old: &[&str], new: &[&str], expect: &[&str]) {
        let steps = BuildSteps(old.iter().map(|name| BuiltStep { name: (*name).to_owned(), key: key(name) }).collect());
        let steps = EarlierSteps::from(steps);
        let is_there = |there: &CacheKey| new.iter().any(|name| key(name) == *there);
        let found: Vec<String> = new
            .iter()
            .map(|name| match steps.counterpart(name, Some(&key(name)), is_there) {
                Some(Counterpart::Same(step)) => format!("= {}", step.name),
                Some(Counterpart::Earlier(step)) => step.name.clone(),
                None => String::new(),
            })
            .collect();
        assert_eq!(found, expect);
    }

    #[test]
    fn steps_are_known_again_by_text_and_place() {
        check(&["[1/2] FROM a", "[2/2] RUN x"], &["[1/2] FROM a", "[2/2] RUN y"], &["= [1/2] FROM a", "[2/2] RUN x"]);
        // A step came in between: the text tells.
        check(
            &["[1/3] FROM a", "[2/3] RUN x", "[3/3] RUN y"],
            &["[1/4] FROM a", "[2/4] RUN new", "[3/4] RUN x", "[4/4] RUN y"],
            &["[1/3] FROM a", "[2/3] RUN x", "[2/3] RUN x", "[3/3] RUN y"],
        );
        // Another stage is another place, and COPY never was RUN.
        check(&["[a 2/2] RUN x"], &["[b 2/2] RUN y"], &[""]);
        check(&["[2/2] COPY x"], &["[2/2] RUN y"], &[""]);
        check(&["[a 2/2] RUN x"], &["[b 2/3] RUN x"], &["[a 2/2] RUN x"]);
    }
}
