//! What goes when the cache has become too large or too old: BuildKit's policies over a list of records. No disk is
//! touched here.

use crate::{Facts, Filter, Stand};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet};
use std::time::{Duration, SystemTime};

/// One rule; several are applied one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// A record is meant if one of these matches; without any, all are.
    pub filters: Vec<Filter>,
    /// Also what an image needs. Removing it frees nothing, so no size is a reason to.
    pub all: bool,
    /// What was used within this time stays.
    pub keep_duration: Duration,
    /// The bytes that may always be kept.
    pub reserved_space: Option<u64>,
    /// The bytes that may be kept at most.
    pub max_used_space: Option<u64>,
    /// The bytes of the file system that should stay free.
    pub min_free_space: Option<u64>,
}

/// One thing that can go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// What filters ask.
    pub facts: Facts,
    /// The number of the layer that it made, if it made one.
    pub own: Option<usize>,
    /// What it needs: the upper-most stand of each of its stacks.
    pub stands: Vec<usize>,
    /// Bytes that belong to no layer.
    pub bytes: u64,
    /// How long it took to make, in milliseconds.
    pub wall_ms: u64,
    /// When it was last used.
    pub last_used: SystemTime,
}

/// A layer of candidates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weight {
    /// What it takes on disk.
    pub bytes: u64,
    /// Whether something that is no candidate needs it: an image with a name.
    pub pinned: bool,
}

/// The file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// Its bytes in all.
    pub total: u64,
    /// The bytes that can be written.
    pub free: u64,
}

/// What is to go, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eviction {
    /// The candidate's number.
    pub candidate: usize,
    /// The reason, for people.
    pub reason: Reason,
}

/// Why something goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A policy without a limit of size means it.
    Meant,
    /// Nobody used it for longer than the policy keeps things.
    Unused(Duration),
    /// The cache is too large, and of what there was this saved the least time for its bytes.
    LeastValuable {
        /// What it took to make.
        wall_ms: u64,
        /// What it takes on disk.
        bytes: u64,
    },
}

/// What the policies came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selected {
    /// What goes, in order.
    pub evictions: Vec<Eviction>,
    /// The bytes by which the last limit of size is exceeded by what is in use or too new.
    pub over: u64,
}

const DAY: f64 = 86_400.0;

/// So much is taken for the size of something that takes no bytes, so that it can be compared.
const LEAST_BYTES: u64 = 4096;

impl Policy {
    /// The four policies that apply where none is configured, within the bounds of `cap`.
    pub fn defaults(cap: &Self) -> Vec<Self> {
        let cheap = ["type==source.local", "type==exec.cachemount", "type==source.git.checkout"];
        let filters = cheap.map(|text| text.parse::<Filter>().expect("these are filters")).to_vec();
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        vec![
            Self { filters, keep_duration: hours(48), max_used_space: Some(512_000_000), ..Self::default() },
            Self { keep_duration: hours(60 * 24), ..cap.clone() },
            cap.clone(),
            Self { all: true, ..cap.clone() },
        ]
    }

    /// How much may stay of `used` bytes; `None` where size is no question.
    pub fn target(&self, used: u64, space: Space) -> Option<u64> {
        let limit = |limit: Option<u64>| limit.filter(|bytes| *bytes > 0);
        let (reserved, max, free) =
            (limit(self.reserved_space), limit(self.max_used_space), limit(self.min_free_space));
        if reserved.is_none() && max.is_none() && free.is_none() {
            return None;
        }
        let mut target = max.unwrap_or(if free.is_some() { used } else { 0 });
        if let Some(excess) = free.and_then(|wanted| wanted.checked_sub(space.free)).filter(|excess| *excess > 0) {
            target = target.min(used.saturating_sub(excess));
        }
        Some(target.max(reserved.unwrap_or(0)))
    }

    fn means(&self, facts: &Facts) -> bool {
        self.filters.is_empty() || self.filters.iter().any(|filter| filter.matches(facts))
    }
}

/// Applies policies, one after the other. `stands` is what candidates stand on, none before one that it stands on; `weights` are
/// those of the layers. What it takes grows with the number of candidates, however high their stacks are.
pub fn select(
    policies: &[Policy],
    candidates: &[Candidate],
    stands: &[Stand],
    weights: &[Weight],
    space: Space,
    now: SystemTime,
) -> Selected {
    let mut table = Table::new(candidates, stands, weights, now);
    let mut space = space;
    for policy in policies {
        let freed = table.freed;
        table.apply(policy, space);
        space.free += table.freed - freed;
    }
    Selected { evictions: table.evictions, over: table.over }
}

struct Table<'a> {
    candidates: &'a [Candidate],
    stands: &'a [Stand],
    /// How many layers a stand has, with those below.
    heights: Vec<usize>,
    weights: &'a [Weight],
    now: SystemTime,
    gone: HashSet<usize>,
    /// How many of those that are left, and of the stands that they need, are directly on a stand.
    uses: Vec<usize>,
    /// How many stands of a layer are needed.
    needed: Vec<usize>,
    /// How many of those uses of a layer are not by who made it.
    strangers: Vec<usize>,
    /// The layers that no stranger uses any more.
    released: Vec<usize>,
    /// Who made a layer: they go together.
    makers: HashMap<usize, Vec<usize>>,
    freed: u64,
    over: u64,
    evictions: Vec<Eviction>,
}

impl<'a> Table<'a> {
    fn new(candidates: &'a [Candidate], stands: &'a [Stand], weights: &'a [Weight], now: SystemTime) -> Self {
        let (mut needed, mut strangers) = (vec![0; weights.len()], vec![0; weights.len()]);
        let mut uses = vec![0; stands.len()];
        let mut makers: HashMap<usize, Vec<usize>> = HashMap::new();
        for (number, candidate) in candidates.iter().enumerate() {
            for stand in &candidate.stands {
                uses[*stand] += 1;
                strangers[stands[*stand].layer] += usize::from(candidate.own != Some(stands[*stand].layer));
            }
            if let Some(own) = candidate.own {
                makers.entry(own).or_default().push(number);
            }
        }
        // From the top down: each comes after all that stand on it.
        for (number, Stand { layer, below }) in stands.iter().enumerate().rev() {
            if uses[number] == 0 {
                continue;
            }
            needed[*layer] += 1;
            if let Some(below) = *below {
                uses[below] += 1;
                strangers[stands[below].layer] += 1;
            }
        }
        let mut heights: Vec<usize> = Vec::with_capacity(stands.len());
        for stand in stands {
            heights.push(1 + stand.below.map_or(0, |below| heights[below]));
        }
        let (gone, evictions, released) = (HashSet::new(), Vec::new(), Vec::new());
        let (freed, over) = (0, 0);
        Self {
            candidates,
            stands,
            heights,
            weights,
            now,
            gone,
            uses,
            needed,
            strangers,
            released,
            makers,
            freed,
            over,
            evictions,
        }
    }

    fn apply(&mut self, policy: &Policy, space: Space) {
        let meant = |number: &usize| !self.gone.contains(number) && policy.means(&self.candidates[*number].facts);
        let meant: Vec<usize> = (0..self.candidates.len()).filter(meant).collect();
        let used = self.used(&meant);
        let free_to_go: HashSet<usize> =
            meant.into_iter().filter(|number| self.may_go(policy, &self.candidates[*number])).collect();
        match policy.target(used, space) {
            None => self.evict_all(policy, free_to_go),
            Some(target) => self.evict_down_to(policy, &free_to_go, used, target),
        }
    }

    fn may_go(&self, policy: &Policy, candidate: &Candidate) -> bool {
        !candidate.facts.in_use
            && (policy.all || !candidate.facts.shared)
            && (policy.keep_duration.is_zero() || self.age(candidate) >= policy.keep_duration)
    }

    /// What was used in the future, by a clock that has been set back since, counts as used just now.
    fn age(&self, candidate: &Candidate) -> Duration {
        self.now.duration_since(candidate.last_used).unwrap_or_default()
    }

    /// What these take that nothing else pins: a layer counts once, with those who made it.
    fn used(&self, of: &[usize]) -> u64 {
        let mut counted = HashSet::new();
        let own = of.iter().filter_map(|number| self.candidates[*number].own);
        let layers = own.filter(|layer| counted.insert(*layer) && !self.weights[*layer].pinned);
        let layers: u64 = layers.map(|layer| self.weights[layer].bytes).sum();
        layers + of.iter().map(|number| self.candidates[*number].bytes).sum::<u64>()
    }

    fn evict_all(&mut self, policy: &Policy, numbers: HashSet<usize>) {
        let mut numbers: Vec<usize> = numbers.into_iter().collect();
        // Those with the most below them first: children before parents.
        let height = |number: &usize| -> usize {
            self.candidates[*number].stands.iter().map(|stand| self.heights[*stand]).sum()
        };
        numbers.sort_by_key(|number| (Reverse(height(number)), *number));
        for number in numbers {
            let reason = match policy.keep_duration.is_zero() {
                true => Reason::Meant,
                false => Reason::Unused(self.age(&self.candidates[number])),
            };
            self.evict(number, reason);
        }
    }

    fn evict_down_to(&mut self, policy: &Policy, may_go: &HashSet<usize>, used: u64, target: u64) {
        let before = self.freed;
        let mut heap: BinaryHeap<Reverse<(u128, usize)>> = BinaryHeap::new();
        let mut waiting: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for group in self.groups(may_go) {
            match self.candidates[group[0]].own {
                Some(layer) if self.strangers[layer] > 0 => _ = waiting.insert(layer, group),
                _ => heap.push(Reverse((self.value(&group), group[0]))),
            }
        }
        self.released.clear();
        while used.saturating_sub(self.freed - before) > target {
            let Some(Reverse((_, first))) = heap.pop() else {
                self.over = used.saturating_sub(self.freed - before) - target;
                return;
            };
            let group = self.group_of(first);
            group.iter().for_each(|number| self.evict_for_size(policy, *number));
            for layer in std::mem::take(&mut self.released) {
                if let Some(group) = waiting.remove(&layer) {
                    heap.push(Reverse((self.value(&group), group[0])));
                }
            }
        }
        self.over = 0;
    }

    fn evict_for_size(&mut self, policy: &Policy, number: usize) {
        let candidate = &self.candidates[number];
        let bytes = candidate.bytes + candidate.own.map_or(0, |layer| self.weights[layer].bytes);
        let reason = match policy.keep_duration.is_zero() {
            true => Reason::LeastValuable { wall_ms: candidate.wall_ms, bytes },
            false => Reason::Unused(self.age(candidate)),
        };
        self.evict(number, reason);
    }

    /// Those that can only go together, where all of them may and something would be freed.
    fn groups(&self, may_go: &HashSet<usize>) -> Vec<Vec<usize>> {
        let first = |number: &usize| self.group_of(*number).first() == Some(number);
        let pinned = |number: &usize| self.candidates[*number].own.is_some_and(|layer| self.weights[layer].pinned);
        let firsts = may_go.iter().filter(|number| first(number) && !pinned(number));
        let groups = firsts.map(|number| self.group_of(*number));
        groups.filter(|group| group.iter().all(|number| may_go.contains(number))).collect()
    }

    /// Everything left that made the same layer, in order.
    fn group_of(&self, number: usize) -> Vec<usize> {
        match self.candidates[number].own.and_then(|layer| self.makers.get(&layer)) {
            Some(makers) => makers.iter().copied().filter(|maker| !self.gone.contains(maker)).collect(),
            None => vec![number],
        }
    }

    /// Time saved for a byte, less with every day of rest; a thousandth of a nanosecond is the unit.
    fn value(&self, group: &[usize]) -> u128 {
        let one = &self.candidates[group[0]];
        let wall: u64 = group.iter().map(|number| self.candidates[*number].wall_ms).sum();
        let rest = group.iter().map(|number| self.age(&self.candidates[*number])).min().unwrap_or_default();
        let bytes = one.bytes + one.own.map_or(0, |layer| self.weights[layer].bytes);
        let days = 1.0 + rest.as_secs_f64() / DAY;
        (wall as f64 * 1e9 / (bytes.max(LEAST_BYTES) as f64 * days)) as u128
    }

    fn evict(&mut self, number: usize, reason: Reason) {
        if !self.gone.insert(number) {
            return;
        }
        let candidate = &self.candidates[number];
        self.freed += candidate.bytes;
        for stand in &candidate.stands {
            self.leave(*stand, candidate.own != Some(self.stands[*stand].layer));
        }
        self.evictions.push(Eviction { candidate: number, reason });
    }

    /// Takes a use of a stand away, and with the last one the stand's own use of what is below.
    fn leave(&mut self, stand: usize, mut is_stranger: bool) {
        let mut next = Some(stand);
        while let Some(number) = next {
            let Stand { layer, below } = self.stands[number];
            if is_stranger {
                self.strangers[layer] -= 1;
                self.released.extend((self.strangers[layer] == 0).then_some(layer));
            }
            self.uses[number] -= 1;
            if self.uses[number] > 0 {
                return;
            }
            self.needed[layer] -= 1;
            if self.needed[layer] == 0 && !self.weights[layer].pinned {
                self.freed += self.weights[layer].bytes;
            }
            (next, is_stranger) = (below, true);
        }
    }
}

#[cfg(test)]
mod tests;
