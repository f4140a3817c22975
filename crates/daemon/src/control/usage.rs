//! What the store holds, and removing what nobody needs.

use crate::daemon::Shared;
use crate::filter;
use crate::progress::time;
use crate::reply;
use forge_buildkit_proto::moby::buildkit::v1::{PruneRequest, UsageRecord};
use forge_engine::{Filter, Policy, UsageRow};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tonic::Status;

/// Everything that the filters let through.
pub(super) async fn list(shared: &Arc<Shared>, filters: &[String]) -> Result<Vec<UsageRecord>, Status> {
    let report = shared.engine.usage(Filter::default()).await.map_err(|error| reply::status(&error))?;
    let mut records: Vec<UsageRecord> = report.rows.into_iter().map(record).collect();
    records.extend(kept_files(shared).await?);
    let mut passed = Vec::new();
    for record in records {
        if passes(&record, filters)? {
            passed.push(record);
        }
    }
    Ok(passed)
}

/// Removes what may be removed; gives what was. Limits of size choose in the build cache; of the tree copies of
/// clients all go that the filters mean.
pub(super) async fn prune(shared: &Arc<Shared>, request: &PruneRequest) -> Result<Vec<UsageRecord>, Status> {
    let mut removed = Vec::new();
    for record in kept_files(shared).await? {
        if record.in_use || !passes(&record, &request.filter)? {
            continue;
        }
        let (files, id) = (shared.files.clone(), record.id.clone());
        if blocking(move || files.remove(&id)).await? {
            removed.push(record);
        }
    }
    let request = forge_engine::PruneRequest { policy: policy(request)?, dry_run: false };
    let report = shared.engine.prune(request).await.map_err(|error| reply::status(&error))?;
    removed.extend(report.removed.into_iter().map(record));
    Ok(removed)
}

fn policy(request: &PruneRequest) -> Result<Policy, Status> {
    let filters = request.filter.iter().map(|filter| filter.parse());
    let filters: Result<Vec<Filter>, forge_engine::FilterError> = filters.collect();
    let bytes = |number: i64| u64::try_from(number).ok().filter(|bytes| *bytes > 0);
    Ok(Policy {
        filters: filters.map_err(|error| Status::invalid_argument(error.to_string()))?,
        all: request.all,
        keep_duration: Duration::from_nanos(u64::try_from(request.keep_duration).unwrap_or(0)),
        reserved_space: bytes(request.reserved_space),
        max_used_space: bytes(request.max_used_space),
        min_free_space: bytes(request.min_free_space),
    })
}

async fn kept_files(shared: &Arc<Shared>) -> Result<Vec<UsageRecord>, Status> {
    let files = shared.files.clone();
    let kept = blocking(move || files.list()).await?;
    let record = |kept: crate::session::Kept| UsageRecord {
        id: kept.id,
        mutable: true,
        in_use: kept.in_use,
        size: i64::try_from(kept.bytes).unwrap_or(i64::MAX),
        created_at: Some(time(SystemTime::now())),
        description: kept.about,
        record_type: "source.local".to_owned(),
        ..UsageRecord::default()
    };
    Ok(kept.into_iter().map(record).collect())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> std::io::Result<T> + Send + 'static) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(work).await.map_err(|error| Status::internal(error.to_string()))?;
    done.map_err(|error| Status::internal(error.to_string()))
}

fn record(row: UsageRow) -> UsageRecord {
    UsageRecord {
        id: row.id,
        mutable: row.mutable,
        parents: row.parents,
        in_use: row.in_use,
        size: i64::try_from(row.bytes).unwrap_or(i64::MAX),
        created_at: row.last_used.map(time),
        last_used_at: row.last_used.map(time),
        usage_count: 1,
        description: row.description,
        record_type: row.kind,
        shared: row.shared,
        ..UsageRecord::default()
    }
}

fn passes(record: &UsageRecord, filters: &[String]) -> Result<bool, Status> {
    let field = |path: &str| match path {
        "id" => Some(record.id.clone()),
        "type" => Some(record.record_type.clone()),
        "description" => Some(record.description.clone()),
        "inuse" => record.in_use.then(String::new),
        "mutable" => record.mutable.then(String::new),
        "immutable" => (!record.mutable).then(String::new),
        "shared" => record.shared.then(String::new),
        "private" => (!record.shared).then(String::new),
        _ => None,
    };
    filter::matches(filters, field)
}
