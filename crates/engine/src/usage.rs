//! How much the store holds, and removing what nobody needs.

use crate::engine::{Engine, blocking};
use crate::{EngineError, Facts, Filter, UsageReport, UsageRow};
use forge_cache::{CacheIndex, HeldRecord, Holdings};
use forge_image::ImageId;
use forge_store::{CacheMountRecord, LayerId};
use std::collections::{HashMap, HashSet};

impl Engine {
    /// What the build cache holds of what a filter means, largest first.
    ///
    /// # Errors
    /// The store or the cache index cannot be read.
    pub async fn usage(&self, filter: Filter) -> Result<UsageReport, EngineError> {
        let engine = self.clone();
        let mut report = blocking(move || engine.usage_report()).await?;
        report.rows.retain(|row| filter.matches(&row.facts()));
        Ok(report)
    }

    fn usage_report(&self) -> Result<UsageReport, EngineError> {
        let (shared, leased) = (self.image_layers()?, self.store().leased_layers()?);
        let sizes = self.store().layer_bytes()?;
        let mut counted = HashSet::new();
        let mut rows = Vec::new();
        let held = self.index()?.holdings()?;
        let makers = makers(&held);
        for record in &held.records {
            let row = row(&held, record, &shared, &leased, &sizes, &mut counted);
            rows.push(UsageRow { parents: parents(&held, record, &makers), ..row });
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

    /// The folders that steps keep between builds.
    pub(crate) fn cache_mounts(&self) -> Result<Vec<UsageRow>, EngineError> {
        let row = |(record, in_use): (CacheMountRecord, bool)| UsageRow {
            id: record.name,
            kind: "exec.cachemount".to_owned(),
            description: format!("cache mount {}, began as {}", record.key.id, record.origin),
            bytes: record.bytes,
            in_use,
            shared: false,
            last_used: Some(record.last_used),
            parents: Vec::new(),
            mutable: true,
            reason: None,
        };
        Ok(self.store().cache_mounts().list()?.into_iter().map(row).collect())
    }

    /// The layers that images need.
    pub(crate) fn image_layers(&self) -> Result<HashSet<LayerId>, EngineError> {
        let images = self.store().images();
        let mut layers = HashSet::new();
        for (_, target) in images.list()? {
            for id in &target.images {
                layers.extend(images.get(id)?.into_iter().flat_map(|image| image.layers));
            }
        }
        Ok(layers)
    }

    /// Images that no name stands for.
    pub(crate) fn dangling(&self) -> Result<Vec<ImageId>, EngineError> {
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

/// A record is charged with its own layer only: those below it are its parents'.
pub(crate) fn row(
    held: &Holdings,
    record: &HeldRecord,
    shared: &HashSet<LayerId>,
    leased: &HashSet<LayerId>,
    sizes: &HashMap<LayerId, u64>,
    counted: &mut HashSet<LayerId>,
) -> UsageRow {
    let own = record.own.map(|own| &held.layers[own]);
    let first = own.filter(|layer| counted.insert(*(*layer)));
    UsageRow {
        id: record.key.to_string(),
        kind: if record.is_source { "source.image" } else { "regular" }.to_owned(),
        description: record.name.clone(),
        bytes: first.and_then(|layer| sizes.get(layer)).copied().unwrap_or(0),
        in_use: own.is_some_and(|layer| leased.contains(layer)),
        shared: own.is_some_and(|layer| shared.contains(layer)),
        last_used: Some(record.last_used),
        parents: Vec::new(),
        mutable: false,
        reason: None,
    }
}

/// The ids of the records that made each layer, by the layers' numbers.
pub(crate) type Makers = HashMap<usize, Vec<String>>;

pub(crate) fn makers(held: &Holdings) -> Makers {
    let mut makers = Makers::new();
    for record in &held.records {
        if let Some(own) = record.own {
            makers.entry(own).or_default().push(record.key.to_string());
        }
    }
    makers
}

pub(crate) fn parents(held: &Holdings, record: &HeldRecord, makers: &Makers) -> Vec<String> {
    record.below(&held.stands).and_then(|layer| makers.get(&layer)).cloned().unwrap_or_default()
}

impl UsageRow {
    /// What filters ask.
    pub fn facts(&self) -> Facts {
        Facts {
            id: self.id.clone(),
            kind: self.kind.clone(),
            description: self.description.clone(),
            parents: self.parents.clone(),
            in_use: self.in_use,
            shared: self.shared,
            mutable: self.mutable,
        }
    }
}
