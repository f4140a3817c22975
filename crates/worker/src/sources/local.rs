//! Files that the session hands over: read where they lie; the session brings in those that lie elsewhere.

use super::{Asked, Source, SourceState};
use crate::error::WorkError;
use crate::keys;
use async_trait::async_trait;
use forge_cache::ResultRef;
use forge_llb::{CompareFiles, LocalSource};
use forge_session::ContextSelection;
use forge_solver::CacheMap;

pub(super) struct Local<'a> {
    pub op: &'a LocalSource,
}

#[async_trait]
impl Source for Local<'_> {
    async fn cache_map(&self, _asked: &Asked<'_>) -> Result<CacheMap, WorkError> {
        Ok(keys::of_context(&self.op.name))
    }

    async fn state(&self, _asked: &Asked<'_>) -> Result<SourceState, WorkError> {
        Ok(SourceState::Context)
    }

    async fn snapshot(&self, asked: &Asked<'_>) -> Result<ResultRef, WorkError> {
        let LocalSource { name, include, exclude, follow, metadata_only, compare } = self.op.clone();
        let wanted = ContextSelection {
            include: &include,
            exclude: &exclude,
            follow: &follow,
            metadata_only: metadata_only.as_deref(),
            trusts_stamps: compare == CompareFiles::Metadata,
            vertex: Some(&asked.vertex),
            ..ContextSelection::all(&name)
        };
        asked.session.fetch_context(&wanted).await?;
        Ok(ResultRef::Context { name, include, exclude, follow, metadata_only })
    }
}
