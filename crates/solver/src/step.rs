use crate::{CacheMap, MissCause};
use forge_cache::{CacheKey, InputPart, ResultRef, Selector};
use std::sync::Arc;

/// How far a step has come.
///
/// ```text
/// Initial -> Unkeyed -> Keying -> Fast -> Asking -> Waiting -> Slow -> Complete
///                          \        \        \________________________/
///                           \        \-> Skipped      (a hit)
///                            \-> (no content needed: straight on to Fast)
/// ```
/// In `Initial`, `Keying`, `Asking` and `Slow` exactly one task works for the step; in `Unkeyed` and `Waiting` it
/// is other steps' turn; in `Fast` nobody wants its result.
pub(crate) enum State {
    /// The worker is being asked what the vertex is worth as a key.
    Initial,
    /// So many inputs have neither a definition key nor, lacking one for good, a result.
    Unkeyed { map: CacheMap, missing: usize },
    /// Inputs without a definition key are being read.
    Keying,
    /// The definition key is known, or that there is none.
    Fast(Arc<Known>),
    /// The cache is being asked for the definition key.
    Asking(Arc<Known>),
    /// So many inputs are not complete.
    Waiting { known: Arc<Known>, missing: usize },
    /// Inputs are being read, the cache asked for the content key, and on a miss the vertex is run.
    Slow(Arc<Known>),
    /// The results are there. `miss`: why it ran, where that was asked.
    Complete { known: Arc<Known>, outputs: Vec<ResultRef>, cached: bool, miss: Option<MissCause> },
    /// It would have to run, which is not wanted: nothing above it can be completed.
    WouldRun { known: Arc<Known>, miss: MissCause },
    /// Everything that could want the result was found without it.
    Skipped(Arc<Known>),
    /// It failed or was cancelled.
    Failed,
}

impl State {
    /// What is known of the step once it is keyed.
    pub fn known(&self) -> Option<&Arc<Known>> {
        match self {
            Self::Fast(known)
            | Self::Asking(known)
            | Self::Waiting { known, .. }
            | Self::Slow(known)
            | Self::Complete { known, .. }
            | Self::WouldRun { known, .. }
            | Self::Skipped(known) => Some(known),
            Self::Initial | Self::Unkeyed { .. } | Self::Keying | Self::Failed => None,
        }
    }

    pub fn outputs(&self) -> Option<&[ResultRef]> {
        match self {
            Self::Complete { outputs, .. } => Some(outputs),
            _ => None,
        }
    }

    /// Whether a consumer can compute its definition key as far as this step is concerned.
    pub fn is_keyed(&self) -> bool {
        match self.known() {
            Some(known) => known.keys.is_some() || self.outputs().is_some(),
            None => false,
        }
    }
}

/// What is known of a step before it runs.
pub(crate) struct Known {
    pub map: CacheMap,
    /// `None` where the op has no key: the step is known by its content only.
    pub keys: Option<Keys>,
}

/// The keys of a step, as far as they are known before its inputs are read.
pub(crate) struct Keys {
    pub definition: CacheKey,
    /// What the inputs contributed to the definition key.
    pub parts: Vec<InputPart>,
    /// What the inputs contribute to the content key.
    pub content: Vec<ContentPart>,
    /// Whether the definition key must not be looked up: a step below it ignores the cache, so that the records
    /// under this key are of earlier runs of that step.
    pub stale: bool,
}

/// What an input contributes to a content key.
#[derive(Clone)]
pub(crate) enum ContentPart {
    /// Known already.
    Known(InputPart),
    /// The digest of what the selector shows.
    Selected(Selector),
    /// A definition key that is stale: the digest of the whole input stands in for it.
    Stale,
}

impl Known {
    /// Whether records of what stands above this step may be of an earlier run of this step.
    pub fn taints(&self, ignore_cache: bool) -> bool {
        self.keys.as_ref().is_some_and(|keys| ignore_cache || keys.stale)
    }
}
