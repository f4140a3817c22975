//! What the store holds, and removing what nobody needs.

use crate::daemon::Shared;
use crate::filter;
use crate::progress::time;
use crate::reply;
use forge_buildkit_proto::google::protobuf::Timestamp;
use forge_buildkit_proto::moby::buildkit::v1::{PruneRequest, UsageRecord};
use forge_engine::{Filter, Policy, Space, UsageRow};
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

/// Removes what may be removed; gives what was. Limits of size hold for the build cache and the copies of clients' files together;
/// the copies go first, the longest unused before others, since they are the cheapest to have again.
pub(super) async fn prune(shared: &Arc<Shared>, request: &PruneRequest) -> Result<Vec<UsageRecord>, Status> {
    let policy = policy(request)?;
    let (mut removed, mut kept) = (Vec::new(), 0);
    let mut files = kept_files(shared).await?;
    files.sort_by_key(|record| record.last_used_at.map(|time| (time.seconds, time.nanos)));
    let mut over = excess(shared, &policy, &files).await?;
    let oldest = SystemTime::now().checked_sub(policy.keep_duration).map(time);
    for record in files {
        let is_recent = !policy.keep_duration.is_zero() && is_later(record.last_used_at, oldest);
        let is_meant = !record.in_use && !is_recent && over != Some(0) && passes(&record, &request.filter)?;
        let (files, id) = (shared.files.clone(), record.id.clone());
        if is_meant && blocking(move || files.remove(&id)).await? {
            over = over.map(|bytes| bytes.saturating_sub(size_of(&record)));
            removed.push(record);
        } else {
            kept += size_of(&record);
        }
    }
    let request = forge_engine::PruneRequest { policy: beside(policy, kept), dry_run: false };
    let report = shared.engine.prune(request).await.map_err(|error| reply::status(&error))?;
    removed.extend(report.removed.into_iter().map(record));
    Ok(removed)
}

/// How many bytes are to go; `None` where size is no question.
async fn excess(shared: &Arc<Shared>, policy: &Policy, files: &[UsageRecord]) -> Result<Option<u64>, Status> {
    let cache = shared.engine.usage(Filter::default()).await.map_err(|error| reply::status(&error))?;
    let used = cache.total + files.iter().map(size_of).sum::<u64>();
    let files = shared.files.clone();
    let free = blocking(move || files.free()).await?;
    Ok(policy.target(used, Space { free, ..Space::default() }).map(|target| used.saturating_sub(target)))
}

/// The policy of what lies beside other things of so many bytes. Zero would be no limit.
fn beside(policy: Policy, others: u64) -> Policy {
    let less = |limit: Option<u64>| limit.map(|bytes| bytes.saturating_sub(others).max(1));
    Policy { reserved_space: less(policy.reserved_space), max_used_space: less(policy.max_used_space), ..policy }
}

fn size_of(record: &UsageRecord) -> u64 {
    u64::try_from(record.size).unwrap_or(0)
}

fn is_later(time: Option<Timestamp>, than: Option<Timestamp>) -> bool {
    let moment = |time: Timestamp| (time.seconds, time.nanos);
    match (time, than) {
        (Some(time), Some(than)) => moment(time) > moment(than),
        // Nothing is older than the clock can tell.
        (time, None) => time.is_some(),
        (None, _) => false,
    }
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
        created_at: Some(time(kept.used.0)),
        last_used_at: Some(time(kept.used.1)),
        usage_count: 1,
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
