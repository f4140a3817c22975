//! File systems of images, from registries and from layouts.

use super::{Asked, Source, SourceState, Sources};
use crate::error::WorkError;
use crate::keys;
use async_trait::async_trait;
use forge_cache::ResultRef;
use forge_image::{Digest, Platform};
use forge_llb::{ImageSource, OciLayoutSource};
use forge_solver::CacheMap;

pub(super) struct Image<'a> {
    pub sources: &'a Sources,
    pub op: &'a ImageSource,
    pub platform: Option<&'a Platform>,
}

pub(super) struct Layout<'a> {
    pub sources: &'a Sources,
    pub op: &'a OciLayoutSource,
    pub platform: Option<&'a Platform>,
}

fn effective(platform: Option<&Platform>) -> Platform {
    platform.cloned().unwrap_or_else(Platform::host)
}

impl Sources {
    async fn known(&self, manifest: &Digest, asked: &Asked<'_>) -> Result<ResultRef, WorkError> {
        Ok(ResultRef::Layers(self.images.layers(manifest, &asked.vertex).await?))
    }
}

#[async_trait]
impl Source for Image<'_> {
    async fn cache_map(&self, _asked: &Asked<'_>) -> Result<CacheMap, WorkError> {
        let manifest = self.sources.images.pin(self.op, &effective(self.platform)).await?;
        let key = keys::of_image(&manifest, self.platform, &self.op.reference.to_string());
        Ok(match self.op.layer_limit {
            Some(limit) => keys::of_lowest_layers(key, limit),
            None => key,
        })
    }

    async fn state(&self, _asked: &Asked<'_>) -> Result<SourceState, WorkError> {
        Ok(SourceState::Image(self.sources.images.pin(self.op, &effective(self.platform)).await?))
    }

    async fn snapshot(&self, asked: &Asked<'_>) -> Result<ResultRef, WorkError> {
        let manifest = self.sources.images.pin(self.op, &effective(self.platform)).await?;
        let mut layers = self.sources.images.layers(&manifest, &asked.vertex).await?;
        layers.truncate(self.op.layer_limit.unwrap_or(usize::MAX));
        Ok(ResultRef::Layers(layers))
    }
}

#[async_trait]
impl Source for Layout<'_> {
    async fn cache_map(&self, _asked: &Asked<'_>) -> Result<CacheMap, WorkError> {
        let manifest = self.sources.images.pin_layout(self.op, &effective(self.platform)).await?;
        Ok(keys::of_image(&manifest, self.platform, &self.op.name))
    }

    async fn state(&self, _asked: &Asked<'_>) -> Result<SourceState, WorkError> {
        Ok(SourceState::Image(self.sources.images.pin_layout(self.op, &effective(self.platform)).await?))
    }

    async fn snapshot(&self, asked: &Asked<'_>) -> Result<ResultRef, WorkError> {
        let manifest = self.sources.images.pin_layout(self.op, &effective(self.platform)).await?;
        self.sources.known(&manifest, asked).await
    }
}
