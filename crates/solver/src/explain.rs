//! Why a step has to run: compares what its keys are made of with what they were made of in the last build.

use crate::plan::Plan;
use crate::step::Known;
use forge_cache::{
    BuildId, BuildSteps, BuiltStep, CacheKey, Change, Counterpart, EarlierSteps, EntryChange, ListedKind, StepInputs,
    changes,
};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// So many changes of one step are told in its line.
const TOLD: usize = 3;

/// Longer values are cut.
const LONGEST_VALUE: usize = 120;

/// What a build is compared with, and how its causes are told.
#[derive(Clone, Debug)]
pub struct Remembered {
    /// The build's identity: the last build that had the same one is what this one is compared with.
    pub id: BuildId,
    /// Variables that are build arguments, for people to recognise them.
    pub arguments: BTreeSet<String>,
    /// Which steps are told about.
    pub explain: Explain,
}

/// Which of the steps that run say why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Explain {
    /// Those that the last build had found, and whose cause is not another step that says it.
    FirstCauses,
    /// All of them.
    Everything,
}

/// Why a step was not found in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MissCause {
    /// Nothing like it was built before.
    FirstBuild,
    /// The last build had no such step.
    New,
    /// It was to be run, whatever the cache has.
    Asked,
    /// It is what it was, but its result is not there any more.
    Lost,
    /// Something that its result depends on.
    Changed(Vec<NamedChange>),
}

/// A change, and the step that made the input concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedChange {
    /// What changed.
    pub change: Change,
    /// Whether it is a build argument.
    pub is_argument: bool,
    /// The name of the step that makes the input, where that is no source.
    pub input: Option<String>,
    /// The step whose change it is, where that is an earlier one that was found in the cache.
    pub of: Option<String>,
}

impl MissCause {
    /// Whether it says more than that an earlier step came out otherwise.
    pub fn is_first(&self) -> bool {
        match self {
            Self::FirstBuild | Self::New | Self::Asked | Self::Lost => true,
            Self::Changed(changes) => {
                changes.is_empty() || changes.iter().any(|named| !matches!(named.change, Change::Input { .. }))
            }
        }
    }
}

impl fmt::Display for MissCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FirstBuild => f.write_str("it is built for the first time"),
            Self::New => f.write_str("the last build had no such step"),
            Self::Asked => f.write_str("the cache is not to be used"),
            Self::Lost => f.write_str("its result is not in the store any more"),
            Self::Changed(changes) if changes.is_empty() => f.write_str("its instruction changed"),
            Self::Changed(changes) => {
                let told: Vec<String> = changes.iter().take(TOLD).map(ToString::to_string).collect();
                f.write_str(&told.join("; "))?;
                match changes.len().saturating_sub(TOLD) {
                    0 => Ok(()),
                    more => write!(f, "; and {more} more"),
                }
            }
        }
    }
}

impl fmt::Display for NamedChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(of) = &self.of {
            write!(f, "{of}: ")?;
        }
        match &self.change {
            Change::Value { name, old, new } => {
                let (kind, name) = match name.strip_prefix("env ") {
                    Some(name) if self.is_argument => ("ARG ", name),
                    Some(name) => ("ENV ", name),
                    None => ("", name.as_str()),
                };
                let shown = |value: &Option<String>| match value {
                    None => "not set".to_owned(),
                    Some(_) if is_secret(name) => "(hidden)".to_owned(),
                    Some(value) => cut(value),
                };
                write!(f, "{kind}{name}: {} → {}", shown(old), shown(new))
            }
            Change::Entry { path, change, .. } => {
                let path = String::from_utf8_lossy(path);
                let path = if path.is_empty() { "/".into() } else { path };
                write!(f, "{path}: {}", told(change))?;
                self.input.iter().try_for_each(|input| write!(f, " in what {input} made"))
            }
            Change::Input { .. } => match &self.input {
                Some(name) => write!(f, "{name} came out otherwise"),
                None => f.write_str("what it starts from is another one"),
            },
        }
    }
}

fn told(change: &EntryChange) -> String {
    match change {
        EntryChange::Added => "added".to_owned(),
        EntryChange::Removed => "removed".to_owned(),
        EntryChange::Kind(old, new) => format!("{} → {}", kind(*old), kind(*new)),
        EntryChange::Bytes(ListedKind::Symlink) => "target changed".to_owned(),
        EntryChange::Bytes(_) => "bytes changed".to_owned(),
        EntryChange::Mode(old, new) => format!("mode {old:04o} → {new:04o}"),
        EntryChange::Owner(old, new) => format!("owner {}:{} → {}:{}", old.0, old.1, new.0, new.1),
        EntryChange::Attributes => "attributes or time changed".to_owned(),
    }
}

fn kind(kind: ListedKind) -> &'static str {
    match kind {
        ListedKind::File => "file",
        ListedKind::Directory => "folder",
        ListedKind::Symlink => "link",
        ListedKind::Node => "device",
    }
}

/// Words that make a variable's value nobody's business, as BuildKit's check has them (`SecretsUsedInArgOrEnv`).
fn is_secret(name: &str) -> bool {
    const WORDS: [&str; 9] =
        ["apikey", "auth", "credential", "credentials", "key", "password", "pword", "passwd", "secret"];
    let lower = name.to_ascii_lowercase();
    lower.contains("token") || lower.split('_').any(|word| WORDS.contains(&word))
}

fn cut(value: &str) -> String {
    match value.char_indices().nth(LONGEST_VALUE) {
        Some((end, _)) => format!("{}…", &value[..end]),
        None => value.to_owned(),
    }
}

/// What is known of a build's steps for telling causes.
#[derive(Default)]
pub(crate) struct Notes(Mutex<NotesState>);

#[derive(Default)]
struct NotesState {
    /// The definition keys of the steps that have one so far.
    keys: HashMap<usize, CacheKey>,
    there: HashSet<CacheKey>,
    missed: HashSet<usize>,
}

impl Notes {
    pub fn keyed(&self, step: usize, known: &Known) {
        if let Some(keys) = &known.keys {
            let mut state = self.state();
            state.keys.insert(step, keys.definition);
            state.there.insert(keys.definition);
        }
    }

    pub fn missed(&self, step: usize) {
        self.state().missed.insert(step);
    }

    fn state(&self) -> MutexGuard<'_, NotesState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The key of a step that was found, where it is another one than in the last build, and what it was then.
    fn found(&self, plan: &Plan, step: usize, last: &EarlierSteps) -> Option<(CacheKey, CacheKey)> {
        let state = self.state();
        let key = state.keys.get(&step).filter(|_| !state.missed.contains(&step))?;
        let name = &plan.step(step).vertex.metadata.name;
        match last.counterpart(name, Some(key), |key| state.there.contains(key))? {
            Counterpart::Earlier(earlier) => Some((*key, earlier.key)),
            Counterpart::Same(_) => None,
        }
    }

    fn counterpart<'a>(
        &self,
        plan: &Plan,
        step: usize,
        key: Option<&CacheKey>,
        last: &'a EarlierSteps,
    ) -> Option<Counterpart<'a>> {
        let state = self.state();
        last.counterpart(&plan.step(step).vertex.metadata.name, key, |key| state.there.contains(key))
    }

    /// The key of a step, and of what it was in the last build.
    pub fn keys(&self, plan: &Plan, step: usize, last: Option<&EarlierSteps>) -> (Option<CacheKey>, Option<CacheKey>) {
        let key = self.state().keys.get(&step).copied();
        let earlier = last.and_then(|last| self.counterpart(plan, step, key.as_ref(), last));
        let earlier = earlier.map(|earlier| match earlier {
            Counterpart::Same(step) | Counterpart::Earlier(step) => step.key,
        });
        (key, earlier)
    }

    /// The steps for the next build to compare with: those of this build as far as it came, else what they were.
    pub fn steps(&self, plan: &Plan, is_done: impl Fn(usize) -> bool, last: Option<&EarlierSteps>) -> BuildSteps {
        let state = self.state();
        let mut steps = Vec::new();
        for step in plan.graph.node_indices().map(petgraph::graph::NodeIndex::index) {
            let name = &plan.step(step).vertex.metadata.name;
            let key = state.keys.get(&step);
            let counterpart = || match last?.counterpart(name, key, |key| state.there.contains(key))? {
                Counterpart::Same(step) | Counterpart::Earlier(step) => Some(step.key),
            };
            let key = match is_done(step) {
                true => key.copied(),
                false => counterpart(),
            };
            steps.extend(key.map(|key| BuiltStep { name: name.clone(), key }));
        }
        BuildSteps(steps)
    }
}

/// Reads what the keys of a record were made of.
pub(crate) trait ReadInputs {
    async fn inputs(&self, key: CacheKey) -> Option<StepInputs>;
}

/// A step that was not found.
pub(crate) struct Missed<'a> {
    pub plan: &'a Plan,
    pub notes: &'a Notes,
    pub remembered: &'a Remembered,
    pub last: Option<&'a EarlierSteps>,
    pub step: usize,
}

impl Missed<'_> {
    /// Finds out why.
    pub async fn cause(&self, known: &Known, now: &StepInputs, reader: &impl ReadInputs) -> MissCause {
        if self.plan.step(self.step).vertex.metadata.ignore_cache {
            return MissCause::Asked;
        }
        let Some(last) = self.last else { return MissCause::FirstBuild };
        let key = known.keys.as_ref().map(|keys| keys.definition);
        let earlier = match self.notes.counterpart(self.plan, self.step, key.as_ref(), last) {
            None => return MissCause::New,
            Some(Counterpart::Same(step) | Counterpart::Earlier(step)) => step,
        };
        let Some(before) = reader.inputs(earlier.key).await else { return MissCause::Lost };
        let changed = changes(&before, now);
        if changed.is_empty() && key == Some(earlier.key) {
            return MissCause::Lost;
        }
        let mut named: Vec<NamedChange> =
            changed.into_iter().map(|change| self.named(change, self.step, None)).collect();
        if named.iter().all(|named| matches!(named.change, Change::Input { .. })) {
            named.extend(self.behind(&named, last, reader).await);
        }
        // What says more comes first.
        named.sort_by_key(|named| matches!(named.change, Change::Input { .. }));
        MissCause::Changed(named)
    }

    fn named(&self, change: Change, step: usize, of: Option<&str>) -> NamedChange {
        let name = |input: usize| {
            let step = self.plan.step(self.plan.step(step).inputs.get(input)?.step);
            // What sources bring in needs no further name.
            (!step.inputs.is_empty()).then(|| step.vertex.metadata.name.clone())
        };
        let input = match &change {
            Change::Entry { input, .. } | Change::Input { input } => name(*input),
            Change::Value { .. } => None,
        };
        let is_argument = match &change {
            Change::Value { name, .. } => {
                name.strip_prefix("env ").is_some_and(|name| self.remembered.arguments.contains(name))
            }
            _ => false,
        };
        NamedChange { change, is_argument, input, of: of.map(str::to_owned) }
    }

    /// What changed in earlier steps that were found in the cache all the same, and so say nothing themselves.
    async fn behind(&self, named: &[NamedChange], last: &EarlierSteps, reader: &impl ReadInputs) -> Vec<NamedChange> {
        let of_inputs = |step: usize, inputs: Vec<usize>| -> Vec<usize> {
            inputs.into_iter().filter_map(|input| Some(self.plan.step(step).inputs.get(input)?.step)).collect()
        };
        let inputs = named.iter().filter_map(|named| match named.change {
            Change::Input { input } => Some(input),
            _ => None,
        });
        let mut todo = of_inputs(self.step, inputs.collect());
        let (mut seen, mut found) = (HashSet::new(), Vec::new());
        while let Some(step) = todo.pop() {
            if !seen.insert(step) {
                continue;
            }
            let Some((now, before)) = self.notes.found(self.plan, step, last) else { continue };
            let (Some(before), Some(now)) = (reader.inputs(before).await, reader.inputs(now).await) else { continue };
            let mut further = Vec::new();
            for change in changes(&before, &now) {
                match change {
                    Change::Input { input } => further.push(input),
                    change => {
                        let name = self.plan.step(step).vertex.metadata.name.clone();
                        found.push(self.named(change, step, Some(&name)));
                    }
                }
            }
            todo.extend(of_inputs(step, further));
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(name: &str, old: Option<&str>, new: Option<&str>, is_argument: bool) -> NamedChange {
        let (old, new) = (old.map(str::to_owned), new.map(str::to_owned));
        let change = Change::Value { name: name.to_owned(), old, new };
        NamedChange { change, is_argument, input: None, of: None }
    }

    fn entry(path: &str, change: EntryChange) -> NamedChange {
        let change = Change::Entry { input: 1, path: path.into(), change };
        NamedChange { change, is_argument: false, input: None, of: None }
    }

    #[test]
    fn causes_read_like_this() {
        let check = |changes: Vec<NamedChange>, expect: &str| {
            assert_eq!(MissCause::Changed(changes).to_string(), expect);
        };
        check(vec![value("env VERSION", Some("1"), Some("2"), true)], "ARG VERSION: 1 → 2");
        check(vec![value("env A", None, Some("2"), false)], "ENV A: not set → 2");
        check(vec![value("env NPM_TOKEN", Some("x"), Some("y"), true)], "ARG NPM_TOKEN: (hidden) → (hidden)");
        check(vec![value("command", Some("make"), Some("make -j"), false)], "command: make → make -j");
        check(vec![entry("run.sh", EntryChange::Mode(0o644, 0o664))], "run.sh: mode 0644 → 0664");
        check(vec![entry("f", EntryChange::Owner((0, 0), (1000, 1000)))], "f: owner 0:0 → 1000:1000");
        let many = ["a", "b", "c", "d", "e"].map(|path| entry(path, EntryChange::Added)).to_vec();
        check(many, "a: added; b: added; c: added; and 2 more");
        check(Vec::new(), "its instruction changed");
        let long = "x".repeat(200);
        let shown = MissCause::Changed(vec![value("env A", Some(&long), None, false)]).to_string();
        assert!(shown.contains("x…") && shown.len() < 200, "{shown}");
    }
}
