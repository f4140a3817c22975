//! Garbage collection beside a build: the policies of buildkitd.toml, applied while steps run.
//!
//! It works in pieces of a few milliseconds, rests as long as it works, and ends with the build, wherever it is by then: the
//! next one goes on from there. What a build holds by its lease stays, whatever the limits.

use crate::engine::Engine;
use crate::{EngineError, Filter, Policy};
use forge_cache::{CacheIndex, Space};
use forge_image::chain;
use std::cell::Cell;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// Whether and by which policies the build cache is kept small.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GcOptions {
    /// Whether builds collect garbage at all.
    pub enabled: bool,
    /// Bounds of the whole cache, for the default policies; BuildKit's own where none of the three is set.
    pub bounds: GcBounds,
    /// Policies instead of the default ones.
    pub policies: Vec<GcPolicy>,
}

/// BuildKit's three limits of size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GcBounds {
    /// What may always be kept.
    pub reserved_space: Option<DiskSpace>,
    /// What may be kept at most.
    pub max_used_space: Option<DiskSpace>,
    /// What should stay free of the file system.
    pub min_free_space: Option<DiskSpace>,
}

/// One `[[worker.oci.gcpolicy]]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GcPolicy {
    /// A record is meant if one of these matches; without any, all are.
    pub filters: Vec<Filter>,
    /// Also what an image needs.
    pub all: bool,
    /// What was used within this time stays.
    pub keep_duration: Duration,
    /// Its limits.
    pub bounds: GcBounds,
}

/// A size, or a part of the file system's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskSpace {
    /// So many bytes.
    Bytes(u64),
    /// So many hundredths of the file system.
    Percent(u8),
}

/// A build that ends within this time has nothing to do with garbage.
const SOON: Duration = Duration::from_millis(20);

/// A collection that is not overdue waits so long, so that it does not compete with the start of a build.
const LATER: Duration = Duration::from_millis(230);

/// So often it is looked whether there is garbage; BuildKit does so a minute after a build.
const INTERVAL: Duration = Duration::from_secs(60);

/// After this time even short builds have to do it.
const OVERDUE: Duration = Duration::from_secs(3600);

/// Records that go in one transaction.
const BATCH: usize = 64;

/// What removing everything takes in the databases' logs before the first byte is free.
const RESERVE: usize = 512 << 10;

/// It works so long before it rests as long: half a processor at most. A low priority would not do, since a thread that
/// nobody lets run would keep the database's lock from builds.
const TURN: Duration = Duration::from_millis(4);

impl Default for GcOptions {
    fn default() -> Self {
        Self { enabled: true, bounds: GcBounds::default(), policies: Vec::new() }
    }
}

impl GcOptions {
    /// The policies for a file system.
    pub(crate) fn policies(&self, space: Space) -> Vec<Policy> {
        if self.policies.is_empty() {
            let bounds = if self.bounds == GcBounds::default() { GcBounds::of_buildkit(space) } else { self.bounds };
            return Policy::defaults(&bounds.of(space));
        }
        let policy = |policy: &GcPolicy| Policy {
            filters: policy.filters.clone(),
            all: policy.all,
            keep_duration: policy.keep_duration,
            ..policy.bounds.of(space)
        };
        self.policies.iter().map(policy).collect()
    }
}

impl GcBounds {
    /// What buildkitd keeps where nothing is configured.
    fn of_buildkit(space: Space) -> Self {
        let least = |percent: u8, most: u64| {
            let part = DiskSpace::Percent(percent).of(space);
            Some(DiskSpace::Bytes(part.min(most)))
        };
        Self {
            reserved_space: least(10, 10_000_000_000),
            max_used_space: least(80, 100_000_000_000),
            min_free_space: Some(DiskSpace::Percent(20)),
        }
    }

    /// A policy with nothing but these limits.
    fn of(&self, space: Space) -> Policy {
        let bytes = |size: Option<DiskSpace>| size.map(|size| size.of(space));
        Policy {
            reserved_space: bytes(self.reserved_space),
            max_used_space: bytes(self.max_used_space),
            min_free_space: bytes(self.min_free_space),
            ..Policy::default()
        }
    }
}

impl DiskSpace {
    fn of(self, space: Space) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => space.total / 100 * u64::from(percent),
        }
    }
}

impl Engine {
    /// The policies by which garbage is collected beside builds, as they are for the store's file system; none where none is
    /// collected.
    ///
    /// # Errors
    /// The file system cannot be asked.
    pub fn gc_policies(&self) -> Result<Vec<Policy>, EngineError> {
        let gc = &self.options().gc;
        if !gc.enabled {
            return Ok(Vec::new());
        }
        Ok(gc.policies(self.space()?))
    }

    /// Runs a build and collects garbage beside it, where that is wanted; also what the build's user is to know of that. The
    /// collection is over when this returns. The build is on the heap: else the future had room for it several times.
    pub fn collecting<T>(&self, build: impl Future<Output = T>) -> impl Future<Output = (T, Option<String>)> {
        let build = Box::pin(build);
        async move {
            if !self.options().gc.enabled {
                return (build.await, None);
            }
            let stop = CancellationToken::new();
            let build = async {
                let built = build.await;
                stop.cancel();
                built
            };
            // On one task: a second one would wake another thread for every build, and most have nothing to collect.
            tokio::join!(build, run(self.clone(), stop.clone()))
        }
    }
}

async fn run(engine: Engine, stop: CancellationToken) -> Option<String> {
    stop.run_until_cancelled(tokio::time::sleep(SOON)).await?;
    match engine.age_of_collection() {
        Some(age) if age < INTERVAL => return None,
        Some(age) if age < OVERDUE => stop.run_until_cancelled(tokio::time::sleep(LATER)).await?,
        _ => {}
    }
    let (told, tells) = oneshot::channel();
    let work = move || {
        let began = Cell::new(Instant::now());
        let go_on = || {
            if began.get().elapsed() >= TURN && !stop.is_cancelled() {
                std::thread::sleep(TURN);
                began.set(Instant::now());
            }
            !stop.is_cancelled()
        };
        let found = engine.collect_garbage(&go_on);
        drop(engine);
        _ = told.send(found);
    };
    // Without a thread there is no collection, and the next build tries again.
    std::thread::Builder::new().name("forge-gc".to_owned()).spawn(work).ok()?;
    match tells.await.ok()? {
        Ok(0) => None,
        Ok(over) => Some(format!(
            "the build cache takes {} MB more than it may: what is in use, or was just used, stays",
            over.div_ceil(1_000_000)
        )),
        Err(error) => Some(format!("the build cache was not made smaller: {}", chain(&error))),
    }
}

impl Engine {
    /// Applies the policies as long as `go_on` says so, unless another process does; the bytes by which what stays exceeds
    /// them.
    fn collect_garbage(&self, go_on: &dyn Fn() -> bool) -> Result<u64, EngineError> {
        let Some(_turn) = self.store().try_lock("gc")? else { return Ok(0) };
        self.flights()?.sweep()?;
        let space = self.space()?;
        let cache = self.prunable()?;
        let policies = self.options().gc.policies(space);
        let selected = cache.select(&policies, &cache.candidates, space);
        for batch in selected.evictions.chunks(BATCH) {
            if !go_on() {
                return Ok(0);
            }
            self.evict_all(&cache, batch)?;
        }
        if !go_on() {
            return Ok(0);
        }
        self.store().collect_while(&self.index()?.all_layers()?, go_on)?;
        if go_on() {
            self.note_collection()?;
        }
        Ok(selected.over)
    }

    fn stamp(&self) -> PathBuf {
        self.store().root().join("collected")
    }

    /// How long ago garbage was last collected to the end; `None` where that is not known, as after a clock was set back.
    fn age_of_collection(&self) -> Option<Duration> {
        let modified = std::fs::metadata(self.stamp()).and_then(|found| found.modified()).ok()?;
        SystemTime::now().duration_since(modified).ok()
    }

    /// Notes that garbage was collected, in a file that takes some room.
    fn note_collection(&self) -> Result<(), EngineError> {
        let noted = File::create(self.stamp()).and_then(|mut file| {
            // Bytes other than zero: a file system that compresses would not keep room for others.
            file.write_all(&vec![b'.'; RESERVE])?;
            file.set_modified(SystemTime::now())
        });
        match noted {
            // Where there is no room, there is none to reserve.
            Err(error) if error.kind() == std::io::ErrorKind::StorageFull => Ok(()),
            noted => noted.map_err(EngineError::io),
        }
    }

    /// Gives back the room that [`Self::note_collection`] took: on a full disk not even a removal could be recorded
    /// otherwise.
    pub(crate) fn give_reserve(&self) {
        // Where it is not there, there is nothing to give back.
        let _ = std::fs::remove_file(self.stamp());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: Space = Space { total: 1_000_000_000_000, free: 500_000_000_000 };

    fn bounds(policy: &Policy) -> [Option<u64>; 3] {
        [policy.reserved_space, policy.max_used_space, policy.min_free_space]
            .map(|it| it.map(|bytes| bytes / 1_000_000))
    }

    #[test]
    fn the_defaults_are_buildkits() {
        let policies = GcOptions::default().policies(DISK);
        assert_eq!(policies.len(), 4);
        assert_eq!(bounds(&policies[0]), [None, Some(512), None]);
        assert_eq!(policies[0].filters.len(), 3);
        for policy in &policies[1..] {
            assert_eq!(bounds(policy), [Some(10_000), Some(100_000), Some(200_000)]);
        }
        let small = Space { total: 10_000_000_000, free: 0 };
        assert_eq!(bounds(&GcOptions::default().policies(small)[3]), [Some(1000), Some(8000), Some(2000)]);
    }

    #[test]
    fn one_bound_replaces_the_other_defaults() {
        let bounds_set = GcBounds { max_used_space: Some(DiskSpace::Percent(5)), ..GcBounds::default() };
        let policies = GcOptions { bounds: bounds_set, ..GcOptions::default() }.policies(DISK);
        assert_eq!(bounds(&policies[3]), [None, Some(50_000), None]);
        let own = GcPolicy { all: true, bounds: bounds_set, ..GcPolicy::default() };
        let policies = GcOptions { policies: vec![own], ..GcOptions::default() }.policies(DISK);
        assert!(policies.len() == 1 && policies[0].all && policies[0].max_used_space == Some(50_000_000_000));
    }
}
