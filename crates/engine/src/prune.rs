//! Removing what the cache keeps, by a policy.

use crate::engine::{Engine, blocking};
use crate::usage::{makers, parents, row};
use crate::{EngineError, Policy, PruneReport, PruneRequest, UsageRow};
use forge_cache::{CacheIndex, CacheKey, Candidate, Eviction, Holdings, Selected, Space, Weight, select};
use forge_image::ImageId;
use forge_store::LayerId;
use std::collections::HashSet;
use std::time::SystemTime;

/// Records that go in one transaction, for which builds wait a few milliseconds.
const BATCH: usize = 200;

/// The cache as the selection sees it.
pub(crate) struct Prunable {
    held: Holdings,
    /// One for each record, then one for each cache mount.
    rows: Vec<UsageRow>,
    pub(crate) candidates: Vec<Candidate>,
    weights: Vec<Weight>,
}

impl Engine {
    /// Removes cache records that a policy means, and the layers and blobs that nothing needs any more. Without `all`, records
    /// whose layers an image needs stay, and so do cache mounts unless a filter means them. What a running forge
    /// uses always stays. Images without a name go too where nothing narrows down what is meant.
    ///
    /// # Errors
    /// The store or the cache index cannot be changed.
    pub async fn prune(&self, request: PruneRequest) -> Result<PruneReport, EngineError> {
        let engine = self.clone();
        blocking(move || engine.prune_now(&request)).await
    }

    fn prune_now(&self, request: &PruneRequest) -> Result<PruneReport, EngineError> {
        if !request.dry_run {
            self.give_reserve();
            self.flights()?.sweep()?;
        }
        let cache = self.prunable()?;
        let policy = &request.policy;
        let mut candidates = cache.candidates.clone();
        if !policy.all && !policy.filters.iter().any(|filter| filter.names_type("exec.cachemount")) {
            candidates.truncate(cache.held.records.len());
        }
        let space = self.space()?;
        let selected = cache.select(std::slice::from_ref(policy), &candidates, space);
        let evicted: HashSet<usize> = selected.evictions.iter().map(|eviction| eviction.candidate).collect();
        let gone = if request.dry_run { evicted.clone() } else { self.evict(&cache, &evicted)? };
        let mut removed = Vec::new();
        let mut mount_bytes = 0;
        for eviction in selected.evictions.iter().filter(|eviction| gone.contains(&eviction.candidate)) {
            let row = &cache.rows[eviction.candidate];
            mount_bytes += if row.mutable { row.bytes } else { 0 };
            removed.push(UsageRow { reason: Some(eviction.reason), ..row.clone() });
        }
        let roots = match request.dry_run {
            true => cache.layers_without(&evicted),
            false => self.index()?.all_layers()?,
        };
        let images = if names_everything(policy) { self.remove_dangling(request.dry_run)? } else { Vec::new() };
        let collected = self.store().collect(&roots, request.dry_run)?;
        Ok(PruneReport { removed, images, bytes: collected.bytes + mount_bytes, over: selected.over })
    }

    /// Images without a name; with `dry_run` only names them.
    fn remove_dangling(&self, dry_run: bool) -> Result<Vec<ImageId>, EngineError> {
        let mut removed = Vec::new();
        for id in self.dangling()? {
            if dry_run || self.store().images().delete_unnamed(&id)? {
                removed.push(id);
            }
        }
        Ok(removed)
    }

    /// Removes candidates and gives those that were still there. Records go in the order in which the index has them, which
    /// changes the fewest of its pages.
    fn evict(&self, cache: &Prunable, candidates: &HashSet<usize>) -> Result<HashSet<usize>, EngineError> {
        let mut numbers: Vec<usize> = candidates.iter().copied().collect();
        numbers.sort_unstable();
        let (records, mounts) = numbers.split_at(numbers.partition_point(|number| *number < cache.held.records.len()));
        let mut gone = HashSet::new();
        for batch in records.chunks(BATCH) {
            let keys: Vec<CacheKey> = batch.iter().map(|number| cache.held.records[*number].key).collect();
            let removed = self.index()?.remove_all(&keys)?;
            gone.extend(batch.iter().zip(removed).filter_map(|(number, removed)| removed.then_some(*number)));
        }
        for mount in mounts {
            if self.store().cache_mounts().remove(&cache.rows[*mount].id)? {
                gone.insert(*mount);
            }
        }
        Ok(gone)
    }

    /// Removes records at once; the next collection removes the files.
    pub(crate) fn evict_all(&self, cache: &Prunable, evictions: &[Eviction]) -> Result<(), EngineError> {
        let number = |eviction: &Eviction| eviction.candidate;
        let keys = evictions.iter().filter_map(|it| cache.held.records.get(number(it))).map(|record| record.key);
        self.index()?.remove_all(&keys.collect::<Vec<_>>())?;
        for mount in evictions.iter().map(number).filter(|number| *number >= cache.held.records.len()) {
            self.store().cache_mounts().give_up(&cache.rows[mount].id)?;
        }
        Ok(())
    }

    pub(crate) fn prunable(&self) -> Result<Prunable, EngineError> {
        let (shared, leased) = (self.image_layers()?, self.store().leased_layers()?);
        let sizes = self.store().layer_bytes()?;
        let held = self.index()?.holdings()?;
        let makers = makers(&held);
        let weight =
            |layer: &LayerId| Weight { bytes: sizes.get(layer).copied().unwrap_or(0), pinned: shared.contains(layer) };
        let weights: Vec<Weight> = held.layers.iter().map(weight).collect();
        // Whether an image needs a layer of the stack.
        let mut pinned: Vec<bool> = Vec::with_capacity(held.stands.len());
        for stand in &held.stands {
            pinned.push(weights[stand.layer].pinned || stand.below.is_some_and(|below| pinned[below]));
        }
        let (mut rows, mut candidates, mut counted) = (Vec::new(), Vec::new(), HashSet::new());
        for record in &held.records {
            let mut row = row(&held, record, &shared, &leased, &sizes, &mut counted);
            row.parents = parents(&held, record, &makers);
            // Not by what it stands on: builds that run have the base of most records.
            row.in_use = record.stands.iter().any(|stand| leased.contains(&held.layers[held.stands[*stand].layer]));
            row.shared =
                record.stands.iter().any(|stand| pinned[*stand]) && record.own.is_none_or(|own| weights[own].pinned);
            candidates.push(Candidate {
                facts: row.facts(),
                own: record.own,
                stands: record.stands.clone(),
                bytes: 0,
                wall_ms: record.wall_ms,
                last_used: record.last_used,
            });
            rows.push(row);
        }
        for row in self.cache_mounts()? {
            let last_used = row.last_used.unwrap_or(SystemTime::UNIX_EPOCH);
            let (facts, bytes) = (row.facts(), row.bytes);
            candidates.push(Candidate { facts, own: None, stands: Vec::new(), bytes, wall_ms: 0, last_used });
            rows.push(row);
        }
        Ok(Prunable { held, rows, candidates, weights })
    }

    /// What the store's file system has. Where its inodes run out before its bytes do, as much of it counts as taken as of
    /// them (F10).
    pub(crate) fn space(&self) -> Result<Space, EngineError> {
        let root = self.store().root();
        let found = rustix::fs::statvfs(root).map_err(|errno| {
            let error = std::io::Error::from(errno);
            EngineError::caused(forge_image::ErrorKind::Environment, error)
                .context(&format!("cannot see how much space {} has", root.display()))
        })?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        let total = bytes(found.f_blocks);
        let by_inodes = match found.f_files {
            // File systems that make inodes as they are needed have none to count.
            0 => u64::MAX,
            files => (u128::from(total) * u128::from(found.f_favail) / u128::from(files)) as u64,
        };
        Ok(Space { total, free: bytes(found.f_bavail).min(by_inodes) })
    }
}

impl Prunable {
    /// Applies policies to candidates of this cache, or to the first ones of them.
    pub(crate) fn select(&self, policies: &[Policy], candidates: &[Candidate], space: Space) -> Selected {
        select(policies, candidates, &self.held.stands, &self.weights, space, SystemTime::now())
    }

    /// The layers that stay needed once some records are gone.
    fn layers_without(&self, gone: &HashSet<usize>) -> HashSet<LayerId> {
        let (mut layers, mut seen) = (HashSet::new(), vec![false; self.held.stands.len()]);
        let kept = self.held.records.iter().enumerate().filter(|(number, _)| !gone.contains(number));
        for stand in kept.flat_map(|(_, record)| &record.stands) {
            let mut next = Some(*stand).filter(|stand| !seen[*stand]);
            while let Some(number) = next {
                seen[number] = true;
                let stand = self.held.stands[number];
                layers.insert(self.held.layers[stand.layer]);
                next = stand.below.filter(|below| !seen[*below]);
            }
        }
        layers
    }
}

/// Whether a policy has no condition but `all`.
fn names_everything(policy: &Policy) -> bool {
    *policy == Policy { all: policy.all, ..Policy::default() }
}
