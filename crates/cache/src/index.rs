use crate::{BuildId, BuildSteps, CacheError, CacheKey, StepInputs, StepRecord};
use forge_store::LayerId;
use std::collections::HashSet;
use std::time::SystemTime;

/// Finds records by their keys. All methods block; call them off the async threads.
///
/// Several processes may use one index at once; each method is atomic.
pub trait CacheIndex: Send + Sync {
    /// The record under a key.
    ///
    /// # Errors
    /// The index cannot be read.
    fn query(&self, key: &CacheKey) -> Result<Option<StepRecord>, CacheError>;

    /// Keeps a record, and what its keys were made of, under each of the keys, in place of what was there. A record that
    /// has no key left is gone.
    ///
    /// # Errors
    /// The index cannot be written.
    fn save(&self, keys: &[CacheKey], record: &StepRecord, inputs: &StepInputs) -> Result<(), CacheError>;

    /// The earliest record whose results amount to this; see [`StepRecord::result`].
    ///
    /// # Errors
    /// The index cannot be read.
    fn equal(&self, result: &CacheKey) -> Result<Option<StepRecord>, CacheError>;

    /// What the keys of the record under this key were made of.
    ///
    /// # Errors
    /// The index cannot be read.
    fn inputs(&self, key: &CacheKey) -> Result<Option<StepInputs>, CacheError>;

    /// The steps of the last build of that identity.
    ///
    /// # Errors
    /// The index cannot be read.
    fn last_build(&self, build: &BuildId) -> Result<Option<BuildSteps>, CacheError>;

    /// Makes a build the last one of its identity. Writes only where its steps are not those of the one before.
    ///
    /// # Errors
    /// The index cannot be written.
    fn note_build(&self, build: &BuildId, steps: &BuildSteps, now: SystemTime) -> Result<(), CacheError>;

    /// Makes the record under `existing` be found under further keys too; `false` if there is none.
    ///
    /// # Errors
    /// The index cannot be written.
    fn link(&self, keys: &[CacheKey], existing: &CacheKey) -> Result<bool, CacheError>;

    /// Notes that the records under these keys were used; keys without a record are passed over. Writes only
    /// where the last note is more than an hour old.
    ///
    /// # Errors
    /// The index cannot be written.
    fn touch(&self, keys: &[CacheKey], now: SystemTime) -> Result<(), CacheError>;

    /// Removes the record under a key, with all its keys; `false` if there was none.
    ///
    /// # Errors
    /// The index cannot be written.
    fn remove(&self, key: &CacheKey) -> Result<bool, CacheError>;

    /// Removes the records that a closure picks and gives them back. Records that another process adds meanwhile
    /// are left alone.
    ///
    /// # Errors
    /// The index cannot be read or written.
    fn remove_where(&self, unwanted: &mut dyn FnMut(&StepRecord) -> bool) -> Result<Vec<StepRecord>, CacheError>;

    /// All records, least recently used first, each once with the smallest of its keys.
    ///
    /// # Errors
    /// The index cannot be read.
    fn list(&self) -> Result<Vec<(CacheKey, StepRecord)>, CacheError>;

    /// Every layer that some record needs: what a garbage collection must leave.
    ///
    /// # Errors
    /// The index cannot be read.
    fn all_layers(&self) -> Result<HashSet<LayerId>, CacheError> {
        let records = self.list()?;
        Ok(records.iter().flat_map(|(_, record)| record.layers()).cloned().collect())
    }
}
