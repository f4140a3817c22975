//! Files that the session hands over: read where they lie, never copied as a whole.

use super::{Asked, Source};
use crate::error::WorkError;
use crate::keys;
use async_trait::async_trait;
use forge_cache::ResultRef;
use forge_llb::LocalSource;
use forge_solver::CacheMap;

pub(super) struct Local<'a> {
    pub op: &'a LocalSource,
}

#[async_trait]
impl Source for Local<'_> {
    async fn cache_map(&self, _asked: &Asked<'_>) -> Result<CacheMap, WorkError> {
        Ok(keys::of_context(&self.op.name))
    }

    async fn snapshot(&self, _asked: &Asked<'_>) -> Result<ResultRef, WorkError> {
        let LocalSource { name, include, exclude } = self.op.clone();
        Ok(ResultRef::Context { name, include, exclude })
    }
}
