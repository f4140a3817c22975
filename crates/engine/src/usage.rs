//! How much the store holds, and removing what nobody needs.

use crate::engine::{Engine, blocking};
use crate::{EngineError, PruneReport, UsageReport, UsageRow};
use forge_cache::{CacheIndex, CacheKey, StepRecord};
use forge_image::ImageId;
use forge_store::{CacheMountRecord, LayerId};
use std::collections::HashSet;

impl Engine {
    /// What the build cache holds, largest first.
    ///
    /// # Errors
    /// The store or the cache index cannot be read.
    pub async fn usage(&self) -> Result<UsageReport, EngineError> {
        let engine = self.clone();
        blocking(move || engine.usage_report()).await
    }

    fn usage_report(&self) -> Result<UsageReport, EngineError> {
        let (shared, leased) = (self.image_layers()?, self.store().leased_layers()?);
        let mut counted = HashSet::new();
        let mut rows = Vec::new();
        for (key, record) in self.index()?.list()? {
            rows.push(self.row(&key, &record, &shared, &leased, &mut counted)?);
        }
        let mounts: Vec<UsageRow> = self.cache_mounts()?;
        let mount_bytes: u64 = mounts.iter().map(|row| row.bytes).sum();
        rows.extend(mounts);
        rows.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.id.cmp(&b.id)));
        let usage = self.store().usage()?;
        let total = usage.layers.bytes + usage.blobs.bytes + mount_bytes;
        let reclaimable = rows.iter().filter(|row| !row.shared && !row.in_use).map(|row| row.bytes).sum();
        Ok(UsageReport { rows, total, reclaimable })
    }

    /// A record is charged with its own layer only: those below it are its parents'.
    fn row(
        &self,
        key: &CacheKey,
        record: &StepRecord,
        shared: &HashSet<LayerId>,
        leased: &HashSet<LayerId>,
        counted: &mut HashSet<LayerId>,
    ) -> Result<UsageRow, EngineError> {
        let own = record.outputs.first().and_then(|output| output.layers().last());
        let bytes = match own {
            Some(layer) if counted.insert(layer.clone()) => {
                self.store().layers().get(layer)?.map_or(0, |record| record.bytes)
            }
            _ => 0,
        };
        Ok(UsageRow {
            id: key.to_string(),
            kind: if record.is_source { "source.image" } else { "regular" }.to_owned(),
            description: record.name.clone(),
            bytes,
            in_use: own.is_some_and(|layer| leased.contains(layer)),
            shared: own.is_some_and(|layer| shared.contains(layer)),
            last_used: Some(record.last_used),
        })
    }

    /// The folders that steps keep between builds.
    fn cache_mounts(&self) -> Result<Vec<UsageRow>, EngineError> {
        let row = |(record, in_use): (CacheMountRecord, bool)| UsageRow {
            id: record.name,
            kind: "exec.cachemount".to_owned(),
            description: format!("cache mount {}, began as {}", record.key.id, record.origin),
            bytes: record.bytes,
            in_use,
            shared: false,
            last_used: Some(record.last_used),
        };
        Ok(self.store().cache_mounts().list()?.into_iter().map(row).collect())
    }

    /// Removes the cache mounts that nobody uses, or only names them.
    fn prune_cache_mounts(&self, dry_run: bool) -> Result<Vec<UsageRow>, EngineError> {
        let mut removed = Vec::new();
        for row in self.cache_mounts()?.into_iter().filter(|row| !row.in_use) {
            // One that was taken into use in the meantime stays.
            if dry_run || self.store().cache_mounts().remove(&row.id)? {
                removed.push(row);
            }
        }
        Ok(removed)
    }

    /// The layers that images need.
    fn image_layers(&self) -> Result<HashSet<LayerId>, EngineError> {
        let images = self.store().images();
        let mut layers = HashSet::new();
        for (_, target) in images.list()? {
            for id in &target.images {
                layers.extend(images.get(id)?.into_iter().flat_map(|image| image.layers));
            }
        }
        Ok(layers)
    }

    /// Removes cache records, and the layers and blobs that nothing needs any more. Without `all`, records whose
    /// layers an image needs stay, and so do cache mounts, which are no results. What a running forge uses always stays.
    ///
    /// # Errors
    /// The store or the cache index cannot be changed.
    pub async fn prune(&self, all: bool, dry_run: bool) -> Result<PruneReport, EngineError> {
        let engine = self.clone();
        blocking(move || engine.prune_now(all, dry_run)).await
    }

    fn prune_now(&self, all: bool, dry_run: bool) -> Result<PruneReport, EngineError> {
        let (shared, leased) = (self.image_layers()?, self.store().leased_layers()?);
        let unwanted = |record: &StepRecord| {
            let mut layers = record.layers();
            let used = layers.any(|layer| leased.contains(layer));
            !used && (all || !record.layers().any(|layer| shared.contains(layer)))
        };
        let index = self.index()?;
        let mut counted = HashSet::new();
        let mut removed = Vec::new();
        for (key, record) in index.list()?.iter().filter(|(_, record)| unwanted(record)) {
            removed.push(self.row(key, record, &shared, &leased, &mut counted)?);
        }
        let roots = if dry_run {
            let kept = index.list()?.into_iter().filter(|(_, record)| !unwanted(record));
            kept.flat_map(|(_, record)| record.layers().cloned().collect::<Vec<_>>()).collect()
        } else {
            index.remove_where(&mut |record| unwanted(record))?;
            index.all_layers()?
        };
        let images = self.dangling()?;
        if !dry_run {
            images.iter().try_for_each(|id| self.store().images().delete(id))?;
        }
        let collected = self.store().collect(&roots, dry_run)?;
        let mounts = if all { self.prune_cache_mounts(dry_run)? } else { Vec::new() };
        let bytes = collected.bytes + mounts.iter().map(|row| row.bytes).sum::<u64>();
        removed.extend(mounts);
        Ok(PruneReport { removed, images, bytes })
    }

    /// Images that no name stands for.
    fn dangling(&self) -> Result<Vec<ImageId>, EngineError> {
        let listed = self.store().images().list()?.into_iter();
        Ok(listed.filter(|(name, _)| name.is_none()).flat_map(|(_, target)| target.images).collect())
    }

    /// Frees what no image and no cache record needs.
    pub(crate) fn collect_layers(&self) -> Result<(), EngineError> {
        let roots = self.index()?.all_layers()?;
        self.store().collect(&roots, false)?;
        Ok(())
    }
}
