//! What goes when the cache has become too large or too old: BuildKit's policies over a list of records. No disk is
//! touched here.

use crate::{Facts, Filter};
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
    /// The numbers of all layers that it needs: its own and those below.
    pub needs: Vec<usize>,
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

/// Applies policies, one after the other.
pub fn select(
    policies: &[Policy],
    candidates: &[Candidate],
    weights: &[Weight],
    space: Space,
    now: SystemTime,
) -> Selected {
    let mut table = Table::new(candidates, weights, now);
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
    weights: &'a [Weight],
    now: SystemTime,
    gone: HashSet<usize>,
    /// How many that are left need a layer.
    needed: Vec<usize>,
    /// Who made a layer: they go together.
    makers: HashMap<usize, Vec<usize>>,
    freed: u64,
    over: u64,
    evictions: Vec<Eviction>,
}

impl<'a> Table<'a> {
    fn new(candidates: &'a [Candidate], weights: &'a [Weight], now: SystemTime) -> Self {
        let mut needed = vec![0; weights.len()];
        let mut makers: HashMap<usize, Vec<usize>> = HashMap::new();
        for (number, candidate) in candidates.iter().enumerate() {
            candidate.needs.iter().for_each(|layer| needed[*layer] += 1);
            if let Some(own) = candidate.own {
                makers.entry(own).or_default().push(number);
            }
        }
        let (gone, evictions) = (HashSet::new(), Vec::new());
        Self { candidates, weights, now, gone, needed, makers, freed: 0, over: 0, evictions }
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
        numbers.sort_by_key(|number| (Reverse(self.candidates[*number].needs.len()), *number));
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
                Some(layer) if self.needed[layer] > group.len() => _ = waiting.insert(layer, group),
                _ => heap.push(Reverse((self.value(&group), group[0]))),
            }
        }
        while used.saturating_sub(self.freed - before) > target {
            let Some(Reverse((_, first))) = heap.pop() else {
                self.over = used.saturating_sub(self.freed - before) - target;
                return;
            };
            let group = self.group_of(first);
            group.iter().for_each(|number| self.evict_for_size(policy, *number));
            let below = group.iter().flat_map(|number| self.candidates[*number].needs.iter().copied());
            let released: HashSet<usize> = below.filter(|layer| waiting.contains_key(layer)).collect();
            for layer in released {
                if self.needed[layer] == waiting[&layer].len() {
                    let group = waiting.remove(&layer).expect("it was just seen");
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
        for layer in &candidate.needs {
            self.needed[*layer] -= 1;
            if self.needed[*layer] == 0 && !self.weights[*layer].pinned {
                self.freed += self.weights[*layer].bytes;
            }
        }
        self.evictions.push(Eviction { candidate: number, reason });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1_000_000_000);

    /// Records as lines: `name stack wall_ms days-since-use flags`. A stack is letters, the last one its own layer; `-` is
    /// none. Each letter takes 10 MB; `mount` takes 10 MB of its own; a capital letter belongs to an image.
    fn check(policy: &str, records: &str, expect: &str) {
        let mut letters: Vec<char> = Vec::new();
        let candidates: Vec<Candidate> = records.lines().map(|line| read(line.trim(), &mut letters)).collect();
        let weight = |letter: &char| Weight { bytes: 10_000_000, pinned: letter.is_uppercase() };
        let weights: Vec<Weight> = letters.iter().map(weight).collect();
        let now = SystemTime::UNIX_EPOCH + NOW;
        let space = Space { total: 1_000_000_000, free: 100_000_000 };
        let selected = select(&policies(policy), &candidates, &weights, space, now);
        let mut text: Vec<String> = selected
            .evictions
            .iter()
            .map(|eviction| {
                let reason = match eviction.reason {
                    Reason::Meant => "meant".to_owned(),
                    Reason::Unused(age) => format!("unused for {} days", age.as_secs() / 86_400),
                    Reason::LeastValuable { wall_ms, .. } => format!("saves {wall_ms} ms"),
                };
                format!("{}: {reason}", candidates[eviction.candidate].facts.id)
            })
            .collect();
        text.extend((selected.over > 0).then(|| format!("over by {}", selected.over)));
        assert_eq!(text.join("; "), expect, "{policy}");
    }

    fn read(line: &str, letters: &mut Vec<char>) -> Candidate {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (stack, flags) = (words[1], words.get(4).copied().unwrap_or_default());
        let mut number = |letter: char| match letters.iter().position(|known| *known == letter) {
            Some(at) => at,
            None => {
                letters.push(letter);
                letters.len() - 1
            }
        };
        let needs: Vec<usize> = stack.chars().filter(char::is_ascii_alphabetic).map(&mut number).collect();
        let mount = flags.contains("mount");
        let days: i64 = words[3].parse().unwrap();
        let seconds = NOW.as_secs().checked_add_signed(-days * 86_400).unwrap();
        Candidate {
            facts: Facts {
                id: words[0].to_owned(),
                kind: if mount { "exec.cachemount" } else { "regular" }.to_owned(),
                in_use: flags.contains("used"),
                shared: stack.ends_with(char::is_uppercase),
                mutable: mount,
                ..Facts::default()
            },
            own: needs.last().copied(),
            needs,
            bytes: if mount { 10_000_000 } else { 0 },
            wall_ms: words[2].parse().unwrap(),
            last_used: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
        }
    }

    /// `max=20,free=..,reserved=..` in MB, `keep=2` in days, `all`, anything else a filter; `;` between policies.
    fn policies(text: &str) -> Vec<Policy> {
        let policy = |text: &str| {
            let mut policy = Policy::default();
            for word in text.split(',').filter(|word| !word.is_empty()) {
                let (name, value) = word.split_once('=').unwrap_or((word, ""));
                let megabytes = || Some(value.parse::<u64>().unwrap() * 1_000_000);
                match name {
                    "max" => policy.max_used_space = megabytes(),
                    "free" => policy.min_free_space = megabytes(),
                    "reserved" => policy.reserved_space = megabytes(),
                    "keep" => policy.keep_duration = Duration::from_secs(value.parse::<u64>().unwrap() * 86_400),
                    "all" => policy.all = true,
                    _ => policy.filters.push(word.parse().unwrap()),
                }
            }
            policy
        };
        text.split(';').map(policy).collect()
    }

    const CHAIN: &str = "base B 5000 0
        one Ba 9000 0
        two Bab 100 0
        three Babc 5000 0
        other Bad 20 0";

    #[test]
    fn what_saves_the_least_time_for_its_bytes_goes_first_and_children_before_parents() {
        check("max=100", CHAIN, "");
        check("max=30", CHAIN, "other: saves 20 ms");
        // `two` saves less than `three` does, but nothing would be free without the layer above it.
        check("max=20", CHAIN, "other: saves 20 ms; three: saves 5000 ms");
        check("max=10", CHAIN, "other: saves 20 ms; three: saves 5000 ms; two: saves 100 ms");
    }

    #[test]
    fn a_cap_takes_nothing_that_is_used_or_that_an_image_needs_and_says_so() {
        let records = "base B 1 0\nrunning Ba 1 0 used\nparent c 1 0\nchild cd 1 0 used";
        check("max=1,all", records, "over by 29000000");
        check("all", records, "base: meant; parent: meant");
    }

    #[test]
    fn records_of_one_layer_go_together() {
        check(
            "max=1",
            "one a 10 0\ntwo a 10 0\nthree b 30 0",
            "one: saves 10 ms; two: saves 10 ms; three: saves 30 ms",
        );
        check("max=10", "one a 10 0\ntwo a 10 0 used\nthree b 90 0", "three: saves 90 ms");
    }

    #[test]
    fn age_counts_and_a_clock_set_back_makes_nothing_old() {
        check("keep=2", "old a 1 3\nnew b 1 1\nfuture c 1 -4000", "old: unused for 3 days");
        check("max=10", "rested a 50 30\nfresh b 10 0", "rested: saves 50 ms");
        check("max=10", "future a 50 -4000\nfresh b 10 0", "fresh: saves 10 ms");
    }

    #[test]
    fn limits_work_together_as_in_buildkit() {
        let four = "a a 1 0\nb b 2 0\nc c 3 0\nd d 4 0";
        check("reserved=20", four, "a: saves 1 ms; b: saves 2 ms");
        check("free=120", four, "a: saves 1 ms; b: saves 2 ms");
        check("free=90", four, "");
        check("free=500,reserved=30", four, "a: saves 1 ms");
        check("max=20,reserved=30", four, "a: saves 1 ms");
        check("max=10,free=110", four, "a: saves 1 ms; b: saves 2 ms; c: saves 3 ms");
        check("id==b", four, "b: meant");
    }

    #[test]
    fn the_default_policies_take_old_mounts_first() {
        let defaults = Policy::defaults(&Policy { max_used_space: Some(20_000_000), ..Policy::default() });
        assert_eq!(defaults.len(), 4);
        assert_eq!(defaults[1].keep_duration.as_secs(), 60 * 86_400);
        assert!(defaults[3].all && !defaults[2].all);
        let text = "max=5,type==exec.cachemount,keep=2;max=20";
        check(text, "cargo - 0 3 mount\npip - 0 1 mount\nstep a 10 0", "cargo: unused for 3 days");
        check(text, "pip - 0 1 mount\nstep a 10 0\nlast b 5 0", "pip: saves 0 ms");
    }
}
