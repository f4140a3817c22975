use crate::{BuildId, BuildSteps, CacheError, CacheIndex, CacheKey, StepInputs, StepRecord};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

/// How much later a use must be for being noted.
pub(crate) const TOUCH_INTERVAL: Duration = Duration::from_secs(3600);

/// An index that ends with the process.
#[derive(Default)]
pub struct MemoryIndex(Mutex<State>);

#[derive(Default)]
struct State {
    keys: HashMap<CacheKey, u64>,
    records: BTreeMap<u64, Kept>,
    builds: HashMap<BuildId, BuildSteps>,
    next: u64,
}

struct Kept {
    record: StepRecord,
    inputs: StepInputs,
    keys: BTreeSet<CacheKey>,
}

impl State {
    fn get(&self, key: &CacheKey) -> Option<&Kept> {
        self.records.get(self.keys.get(key)?)
    }

    /// Makes `key` lead to the record `id`, and drops the record it led to when that was its last key.
    fn point(&mut self, key: CacheKey, id: u64) {
        let before = self.keys.insert(key, id);
        if let Some(old) = before.filter(|old| *old != id) {
            self.unlink(&key, old);
        }
        if let Some(kept) = self.records.get_mut(&id) {
            kept.keys.insert(key);
        }
    }

    fn unlink(&mut self, key: &CacheKey, id: u64) {
        let Some(kept) = self.records.get_mut(&id) else { return };
        kept.keys.remove(key);
        if kept.keys.is_empty() {
            self.records.remove(&id);
        }
    }

    fn drop_record(&mut self, id: u64) -> Option<StepRecord> {
        let kept = self.records.remove(&id)?;
        kept.keys.iter().for_each(|key| _ = self.keys.remove(key));
        Some(kept.record)
    }
}

impl MemoryIndex {
    /// An empty index.
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CacheIndex for MemoryIndex {
    fn query(&self, key: &CacheKey) -> Result<Option<StepRecord>, CacheError> {
        Ok(self.state().get(key).map(|kept| kept.record.clone()))
    }

    fn save(&self, keys: &[CacheKey], record: &StepRecord, inputs: &StepInputs) -> Result<(), CacheError> {
        let mut state = self.state();
        if keys.is_empty() {
            return Ok(());
        }
        let id = state.next;
        state.next += 1;
        state.records.insert(id, Kept { record: record.clone(), inputs: inputs.clone(), keys: BTreeSet::new() });
        keys.iter().for_each(|key| state.point(*key, id));
        Ok(())
    }

    fn equal(&self, result: &CacheKey) -> Result<Option<StepRecord>, CacheError> {
        let state = self.state();
        let equal = state.records.values().find(|kept| kept.record.result.as_ref() == Some(result));
        Ok(equal.map(|kept| kept.record.clone()))
    }

    fn inputs(&self, key: &CacheKey) -> Result<Option<StepInputs>, CacheError> {
        Ok(self.state().get(key).map(|kept| kept.inputs.clone()))
    }

    fn last_build(&self, build: &BuildId) -> Result<Option<BuildSteps>, CacheError> {
        Ok(self.state().builds.get(build).cloned())
    }

    fn note_build(&self, build: &BuildId, steps: &BuildSteps, _now: SystemTime) -> Result<(), CacheError> {
        self.state().builds.insert(*build, steps.clone());
        Ok(())
    }

    fn link(&self, keys: &[CacheKey], existing: &CacheKey) -> Result<bool, CacheError> {
        let mut state = self.state();
        let Some(id) = state.keys.get(existing).copied() else { return Ok(false) };
        keys.iter().for_each(|key| state.point(*key, id));
        Ok(true)
    }

    fn touch(&self, keys: &[CacheKey], now: SystemTime) -> Result<(), CacheError> {
        let mut state = self.state();
        for key in keys {
            let Some(id) = state.keys.get(key).copied() else { continue };
            let Some(kept) = state.records.get_mut(&id) else { continue };
            if now.duration_since(kept.record.last_used).is_ok_and(|past| past > TOUCH_INTERVAL) {
                kept.record.last_used = now;
            }
        }
        Ok(())
    }

    fn remove(&self, key: &CacheKey) -> Result<bool, CacheError> {
        let mut state = self.state();
        let id = state.keys.get(key).copied();
        Ok(id.and_then(|id| state.drop_record(id)).is_some())
    }

    fn remove_where(&self, unwanted: &mut dyn FnMut(&StepRecord) -> bool) -> Result<Vec<StepRecord>, CacheError> {
        let mut state = self.state();
        let picked: Vec<u64> =
            state.records.iter().filter(|(_, kept)| unwanted(&kept.record)).map(|(id, _)| *id).collect();
        Ok(picked.into_iter().filter_map(|id| state.drop_record(id)).collect())
    }

    fn list(&self) -> Result<Vec<(CacheKey, StepRecord)>, CacheError> {
        let state = self.state();
        let first = |kept: &Kept| Some((*kept.keys.first()?, kept.record.clone()));
        let mut list: Vec<(CacheKey, StepRecord)> = state.records.values().filter_map(first).collect();
        list.sort_by_key(|(_, record)| record.last_used);
        Ok(list)
    }
}
