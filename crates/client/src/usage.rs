//! What a daemon's store holds, and removing what nobody needs.

use crate::connection::Client;
use crate::failure;
use crate::progress::time;
use forge_buildkit_proto::moby::buildkit::v1::{DiskUsageRequest, PruneRequest, UsageRecord};
use forge_engine::{EngineError, Filter, Policy, PruneReport, UsageReport, UsageRow};

impl Client {
    /// What the store holds, and the copies of contexts beside it.
    ///
    /// # Errors
    /// The daemon fails, or the connection ends.
    pub async fn usage(&self, filter: &Filter) -> Result<UsageReport, EngineError> {
        let told = self.control().disk_usage(DiskUsageRequest::default()).await;
        let told = told.map_err(|status| failure::plain(&status))?;
        let mut rows: Vec<UsageRow> = told.into_inner().record.into_iter().map(row).collect();
        rows.sort_by_key(|row| std::cmp::Reverse(row.bytes));
        let total = rows.iter().map(|row| row.bytes).sum();
        let reclaimable = rows.iter().filter(|row| !row.shared && !row.in_use).map(|row| row.bytes).sum();
        rows.retain(|row| filter.matches(&row.facts()));
        Ok(UsageReport { rows, total, reclaimable })
    }

    /// Removes what `policy` means, whose filters are not looked at: `conditions` are those that must all hold, as they are written.
    ///
    /// # Errors
    /// As [`Client::usage`].
    pub async fn prune(&self, policy: &Policy, conditions: &str) -> Result<PruneReport, EngineError> {
        let bytes = |number: Option<u64>| number.and_then(|number| i64::try_from(number).ok()).unwrap_or_default();
        let asked = PruneRequest {
            filter: if conditions.is_empty() { Vec::new() } else { vec![conditions.to_owned()] },
            all: policy.all,
            keep_duration: i64::try_from(policy.keep_duration.as_nanos()).unwrap_or(i64::MAX),
            reserved_space: bytes(policy.reserved_space),
            max_used_space: bytes(policy.max_used_space),
            min_free_space: bytes(policy.min_free_space),
        };
        let told = self.control().prune(asked).await.map_err(|status| failure::plain(&status))?;
        let mut records = told.into_inner();
        let mut report = PruneReport::default();
        while let Some(record) = records.message().await.map_err(|status| failure::plain(&status))? {
            let removed = row(record);
            report.bytes += removed.bytes;
            report.removed.push(removed);
        }
        Ok(report)
    }
}

fn row(record: UsageRecord) -> UsageRow {
    UsageRow {
        id: record.id,
        kind: record.record_type,
        description: record.description,
        bytes: u64::try_from(record.size).unwrap_or_default(),
        in_use: record.in_use,
        shared: record.shared,
        last_used: record.last_used_at.map(time),
        parents: record.parents,
        mutable: record.mutable,
        reason: None,
    }
}
