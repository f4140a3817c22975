//! Removing what the cache keeps, by a policy.

use crate::engine::{Engine, blocking};
use crate::usage::{makers, parents};
use crate::{EngineError, Policy, PruneReport, PruneRequest, UsageRow};
use forge_cache::{CacheIndex, CacheKey, Candidate, Space, StepRecord, Weight, select};
use forge_image::ImageId;
use forge_store::LayerId;
use std::collections::{HashMap, HashSet};
use std::time::SystemTime;

/// The cache as the selection sees it.
struct Cache {
    records: Vec<(CacheKey, StepRecord)>,
    /// One for each record, then one for each cache mount.
    rows: Vec<UsageRow>,
    candidates: Vec<Candidate>,
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
        let cache = self.cache()?;
        let policy = &request.policy;
        let mut candidates = cache.candidates.clone();
        if !policy.all && !policy.filters.iter().any(|filter| filter.names_type("exec.cachemount")) {
            candidates.truncate(cache.records.len());
        }
        let space = self.space()?;
        let selected = select(std::slice::from_ref(policy), &candidates, &cache.weights, space, SystemTime::now());
        let mut removed = Vec::new();
        let mut mount_bytes = 0;
        for eviction in &selected.evictions {
            let row = &cache.rows[eviction.candidate];
            let gone = request.dry_run || self.evict(&cache, eviction.candidate)?;
            if gone {
                mount_bytes += if row.mutable { row.bytes } else { 0 };
                removed.push(UsageRow { reason: Some(eviction.reason), ..row.clone() });
            }
        }
        let evicted: HashSet<usize> = selected.evictions.iter().map(|eviction| eviction.candidate).collect();
        let roots = match request.dry_run {
            true => cache.layers_without(&evicted),
            false => self.index()?.all_layers()?,
        };
        let images = if names_everything(policy) { self.dangling()? } else { Vec::new() };
        if !request.dry_run {
            images.iter().try_for_each(|id: &ImageId| self.store().images().delete(id))?;
        }
        let collected = self.store().collect(&roots, request.dry_run)?;
        Ok(PruneReport { removed, images, bytes: collected.bytes + mount_bytes, over: selected.over })
    }

    /// `false` where it was taken into use in the meantime, or is gone already.
    fn evict(&self, cache: &Cache, number: usize) -> Result<bool, EngineError> {
        Ok(match cache.records.get(number) {
            Some((key, _)) => self.index()?.remove(key)?,
            None => self.store().cache_mounts().remove(&cache.rows[number].id)?,
        })
    }

    fn cache(&self) -> Result<Cache, EngineError> {
        let (shared, leased) = (self.image_layers()?, self.store().leased_layers()?);
        let sizes = self.store().layer_bytes()?;
        let records = self.index()?.list()?;
        let makers = makers(&records);
        let (mut numbers, mut weights) = (HashMap::new(), Vec::new());
        let (mut rows, mut candidates, mut counted) = (Vec::new(), Vec::new(), HashSet::new());
        for (key, record) in &records {
            let mut number = |layer: &LayerId| {
                *numbers.entry(layer.clone()).or_insert_with(|| {
                    let bytes = sizes.get(layer).copied().unwrap_or(0);
                    weights.push(Weight { bytes, pinned: shared.contains(layer) });
                    weights.len() - 1
                })
            };
            let needs: HashSet<usize> = record.layers().map(&mut number).collect();
            let own = record.outputs.first().and_then(|output| output.layers().last()).map(&mut number);
            let mut row = self.row(key, record, &shared, &leased, &mut counted)?;
            row.parents = parents(record, &makers);
            row.in_use = record.layers().any(|layer| leased.contains(layer));
            row.shared =
                record.layers().any(|layer| shared.contains(layer)) && own.is_none_or(|own| weights[own].pinned);
            candidates.push(Candidate {
                facts: row.facts(),
                own,
                needs: needs.into_iter().collect(),
                bytes: 0,
                wall_ms: record.wall_ms,
                last_used: record.last_used,
            });
            rows.push(row);
        }
        for row in self.cache_mounts()? {
            let last_used = row.last_used.unwrap_or(SystemTime::UNIX_EPOCH);
            let (facts, bytes) = (row.facts(), row.bytes);
            candidates.push(Candidate { facts, own: None, needs: Vec::new(), bytes, wall_ms: 0, last_used });
            rows.push(row);
        }
        Ok(Cache { records, rows, candidates, weights })
    }

    /// What the store's file system has.
    fn space(&self) -> Result<Space, EngineError> {
        let root = self.store().root();
        let found = rustix::fs::statvfs(root).map_err(|errno| {
            let error = std::io::Error::from(errno);
            EngineError::caused(forge_image::ErrorKind::Environment, error)
                .context(&format!("cannot see how much space {} has", root.display()))
        })?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        Ok(Space { total: bytes(found.f_blocks), free: bytes(found.f_bavail) })
    }
}

impl Cache {
    /// The layers that stay needed once some records are gone.
    fn layers_without(&self, gone: &HashSet<usize>) -> HashSet<LayerId> {
        let kept = self.records.iter().enumerate().filter(|(number, _)| !gone.contains(number));
        kept.flat_map(|(_, (_, record))| record.layers().cloned()).collect()
    }
}

/// Whether a policy has no condition but `all`.
fn names_everything(policy: &Policy) -> bool {
    *policy == Policy { all: policy.all, ..Policy::default() }
}
