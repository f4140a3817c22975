use super::{Start, block_on};
use crate::args::{DuArgs, InfoArgs, PruneArgs, VersionArgs};
use crate::failure::Failure;
use crate::request::bytes;
use crate::template::Format;
use crate::{output, sanitise, table, terminal, units};
use anyhow::Context;
use forge_engine::{EngineInfo, Filter, Policy, PruneReason, PruneReport, PruneRequest, UsageReport, UsageRow};
use forge_image::Platform;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::IsTerminal;
use std::time::{Duration, SystemTime};

pub fn du(start: &Start, args: &DuArgs) -> Result<(), Failure> {
    let format = Format::read(args.format.as_deref())?;
    let Filters { filter, unused_for, .. } = read_filters(&args.filters)?;
    let mut report = block_on(async {
        match &start.host {
            Some(host) => Ok(host.connect().await?.usage(&filter).await?),
            None => Ok(start.engine()?.usage(filter).await?),
        }
    })?;
    let now = SystemTime::now();
    let rested = |row: &UsageRow| row.last_used.and_then(|time| now.duration_since(time).ok()).unwrap_or_default();
    report.rows.retain(|row| unused_for.is_zero() || rested(row) >= unused_for);
    let text = match format {
        Format::Json => report.rows.iter().map(|row| format!("{}\n", usage_fields(row, now))).collect(),
        Format::Template(template) => {
            let line = |row| Ok(template.render(&usage_fields(row, now))? + "\n");
            report.rows.iter().map(line).collect::<anyhow::Result<String>>()?
        }
        Format::Table if args.verbose => verbose(&report, now),
        Format::Table => usage_table(&report.rows, now) + &totals(&report),
    };
    output::print(&text)?;
    Ok(())
}

fn usage_table(rows: &[UsageRow], now: SystemTime) -> String {
    let cells = |row: &UsageRow| {
        vec![short(&row.id), (!row.in_use).to_string(), units::size_exact(row.bytes), last_used(row, now)]
    };
    table::layout(&["ID", "RECLAIMABLE", "SIZE", "LAST ACCESSED"], &rows.iter().map(cells).collect::<Vec<_>>())
}

fn short(id: &str) -> String {
    sanitise::line(id).chars().take(25).collect()
}

fn last_used(row: &UsageRow, now: SystemTime) -> String {
    let since = |time: SystemTime| format!("{} ago", units::about(now.duration_since(time).unwrap_or_default()));
    row.last_used.map(since).unwrap_or_default()
}

fn totals(report: &UsageReport) -> String {
    let sum = |shared: bool| report.rows.iter().filter(|row| row.shared == shared).map(|row| row.bytes).sum();
    let lines =
        [("Shared", sum(true)), ("Private", sum(false)), ("Reclaimable", report.reclaimable), ("Total", report.total)];
    lines.iter().map(|(name, bytes)| format!("{:<16}{}\n", format!("{name}:"), units::size_exact(*bytes))).collect()
}

fn verbose(report: &UsageReport, now: SystemTime) -> String {
    let rows: String = report.rows.iter().map(|row| row_text(row, now) + "\n").collect();
    rows + &totals(report)
}

fn row_text(row: &UsageRow, now: SystemTime) -> String {
    let fields: [(&str, String); 10] = [
        ("ID", row.id.clone()),
        ("Parents", row.parents.join(", ")),
        ("Description", row.description.clone()),
        ("Type", row.kind.clone()),
        ("Size", units::size_exact(row.bytes)),
        ("Mutable", row.mutable.to_string()),
        ("Reclaimable", (!row.in_use).to_string()),
        ("Shared", row.shared.to_string()),
        ("Last used", last_used(row, now)),
        ("Reason", reason(row)),
    ];
    let mut text = String::new();
    for (name, value) in fields.iter().filter(|(_, value)| !value.is_empty()) {
        let _ = writeln!(text, "{:<16}{}", format!("{name}:"), sanitise::line(value));
    }
    text
}

fn usage_fields(row: &UsageRow, now: SystemTime) -> Value {
    json!({
        "ID": row.id,
        "Description": row.description,
        "Type": row.kind,
        "Size": row.bytes,
        "Reclaimable": !row.in_use,
        "InUse": row.in_use,
        "Shared": row.shared,
        "Mutable": row.mutable,
        "Parents": row.parents,
        "LastUsedAt": row.last_used.map(|time| humantime::format_rfc3339_nanos(time).to_string()),
        "LastUsedSince": last_used(row, now),
    })
}

pub fn prune(start: &Start, args: &PruneArgs) -> Result<(), Failure> {
    if !args.force && !args.dry_run && !confirm(args.all)? {
        return Ok(());
    }
    let request = prune_request(args)?;
    let report = block_on(async {
        match &start.host {
            Some(_) if args.dry_run => {
                Err(Failure::new("--dry-run is not supported with --host: a daemon only removes"))
            }
            Some(host) => {
                let conditions = read_filters(&args.filters)?.conditions;
                Ok(host.connect().await?.prune(&request.policy, &conditions).await?)
            }
            None => Ok(start.engine()?.prune(request).await?),
        }
    })?;
    output::print(&prune_text(&report, args, SystemTime::now()))?;
    if report.over > 0 {
        let over = units::size(report.over);
        output::note(&format!("forge: {over} more than the limit stay: in use, needed by what is, or not meant"));
    }
    Ok(())
}

fn prune_request(args: &PruneArgs) -> anyhow::Result<PruneRequest> {
    let Filters { filter, unused_for: keep_duration, .. } = read_filters(&args.filters)?;
    let space = |flag: &str, text: &Option<String>| text.as_deref().map(|text| bytes(flag, text)).transpose();
    let policy = Policy {
        filters: if filter == Filter::default() { Vec::new() } else { vec![filter] },
        all: args.all,
        keep_duration,
        reserved_space: space("reserved-space", &args.reserved_space)?,
        max_used_space: space("max-used-space", &args.max_used_space)?,
        min_free_space: space("min-free-space", &args.min_free_space)?,
    };
    Ok(PruneRequest { policy, dry_run: args.dry_run })
}

/// buildx's filters: `until=24h` is a time, everything else a condition.
struct Filters {
    /// Between commas.
    conditions: String,
    filter: Filter,
    unused_for: Duration,
}

fn read_filters(texts: &[String]) -> anyhow::Result<Filters> {
    let (mut conditions, mut unused_for) = (Vec::new(), Duration::ZERO);
    for text in texts.iter().flat_map(|text| text.split(',')) {
        match text.split_once('=') {
            Some((name @ ("until" | "unused-for"), value)) => {
                let wrong = || format!("--filter {name}={value}: expected a duration such as 24h");
                unused_for = humantime::parse_duration(value).with_context(wrong)?;
            }
            // In buildx an id is looked for anywhere.
            Some(("id", value)) if !value.starts_with('=') => conditions.push(format!("id~={value}")),
            _ => conditions.push(text.to_owned()),
        }
    }
    let conditions = conditions.join(",");
    let filter = conditions.parse().context("--filter")?;
    Ok(Filters { conditions, filter, unused_for })
}

fn confirm(all: bool) -> Result<bool, Failure> {
    let what = if all {
        "the whole build cache and all images without a name"
    } else {
        "dangling build cache and dangling images"
    };
    if !std::io::stdin().is_terminal() {
        return Err(Failure::new(format!("prune removes {what}: use --force where nobody can be asked")));
    }
    let answer =
        terminal::ask(&format!("WARNING! This will remove {what}. Are you sure you want to continue? [y/N] "))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn prune_text(report: &PruneReport, args: &PruneArgs, now: SystemTime) -> String {
    let dry_run = args.dry_run;
    let mut text = String::new();
    if !report.images.is_empty() {
        text.push_str(if dry_run { "Images that would be removed:\n" } else { "Deleted Images:\n" });
        report.images.iter().for_each(|id| text += &format!("deleted: {id}\n"));
        text.push('\n');
    }
    match (args.verbose, dry_run) {
        _ if report.removed.is_empty() => {}
        (true, _) => report.removed.iter().for_each(|row| text += &(row_text(row, now) + "\n")),
        (false, true) => text += &reason_table(&report.removed, now),
        (false, false) => text += &usage_table(&report.removed, now),
    }
    let total = if dry_run { "Would reclaim:" } else { "Total reclaimed space:" };
    text + &format!("{total} {}\n", units::size(report.bytes))
}

/// What would go, and why.
fn reason_table(rows: &[UsageRow], now: SystemTime) -> String {
    let cells = |row: &UsageRow| vec![short(&row.id), units::size_exact(row.bytes), last_used(row, now), reason(row)];
    table::layout(&["ID", "SIZE", "LAST ACCESSED", "REASON"], &rows.iter().map(cells).collect::<Vec<_>>())
}

fn reason(row: &UsageRow) -> String {
    match row.reason {
        None => String::new(),
        Some(PruneReason::Meant) => "meant by what was asked".to_owned(),
        Some(PruneReason::Unused(age)) => format!("not used for {}", units::about(age)),
        Some(PruneReason::LeastValuable { wall_ms, bytes }) => {
            format!(
                "saves {:.1}s of building for {}, the least that was left",
                wall_ms as f64 / 1000.0,
                units::size(bytes)
            )
        }
    }
}

pub fn version(args: &VersionArgs) -> Result<(), Failure> {
    let (version, platform) = (env!("CARGO_PKG_VERSION"), Platform::host());
    let fields = json!({"Client": {"Version": version, "Os": platform.os, "Arch": platform.architecture}});
    let text = match Format::read(args.format.as_deref())? {
        Format::Json => format!("{fields}\n"),
        Format::Template(template) => template.render(&fields)? + "\n",
        Format::Table => format!("forge:\n Version:           {version}\n OS/Arch:           {platform}\n"),
    };
    output::print(&text)?;
    Ok(())
}

pub fn info(start: &Start, args: &InfoArgs) -> Result<(), Failure> {
    let format = Format::read(args.format.as_deref())?;
    let info = block_on(async { Ok(start.engine()?.info().await?) })?;
    let fields = info_fields(&info);
    let text = match format {
        Format::Json => format!("{fields}\n"),
        Format::Template(template) => template.render(&fields)? + "\n",
        Format::Table => info_text(&info),
    };
    output::print(&text)?;
    Ok(())
}

fn info_fields(info: &EngineInfo) -> Value {
    json!({
        "ServerVersion": env!("CARGO_PKG_VERSION"),
        "DockerRootDir": info.root,
        "Driver": "overlay",
        "BackingFilesystem": info.file_system,
        "Images": info.images,
        "Layers": info.layers,
        "Bytes": info.bytes,
        "OSType": info.platform.os,
        "Architecture": info.platform.architecture,
        "KernelVersion": info.kernel,
        "Warnings": info.notices,
    })
}

fn info_text(info: &EngineInfo) -> String {
    let rows = [
        ("Version", env!("CARGO_PKG_VERSION").to_owned()),
        ("Root folder", info.root.display().to_string()),
        ("File system", info.file_system.clone()),
        ("Images", info.images.to_string()),
        ("Layers", info.layers.to_string()),
        ("Size", units::size(info.bytes)),
        ("Platform", info.platform.to_string()),
        ("Kernel", info.kernel.clone()),
    ];
    let mut text: String = rows.iter().map(|(name, value)| format!("{name}: {}\n", sanitise::line(value))).collect();
    info.notices.iter().for_each(|notice| text += &format!("WARNING: {}\n", sanitise::line(notice)));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use forge_image::{Digest, ImageId};

    fn row() -> UsageRow {
        UsageRow {
            id: "0123456789abcdef".to_owned(),
            kind: "regular".to_owned(),
            description: "[2/2] RUN true".to_owned(),
            bytes: 8192,
            in_use: false,
            shared: true,
            last_used: Some(SystemTime::UNIX_EPOCH),
            parents: Vec::new(),
            mutable: false,
            reason: None,
        }
    }

    fn args(dry_run: bool) -> PruneArgs {
        PruneArgs {
            all: false,
            force: true,
            dry_run,
            filters: Vec::new(),
            reserved_space: None,
            max_used_space: None,
            min_free_space: None,
            verbose: false,
        }
    }

    #[test]
    fn usage_reads_as_buildxs() {
        let report = UsageReport { rows: vec![row()], total: 10_000, reclaimable: 8192 };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(5);
        insta::assert_snapshot!(usage_table(&report.rows, now) + &totals(&report), @r"
        ID                 RECLAIMABLE   SIZE      LAST ACCESSED
        0123456789abcdef   true          8.192kB   5 seconds ago
        Shared:         8.192kB
        Private:        0B
        Reclaimable:    8.192kB
        Total:          10kB
        ");
        assert!(verbose(&report, now).contains("Description:    [2/2] RUN true\n"));
    }

    #[test]
    fn prune_says_what_went() {
        let report = PruneReport {
            removed: vec![row()],
            images: vec![ImageId::new(Digest::sha256(b"x"))],
            bytes: 8192,
            over: 0,
        };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(5);
        insta::assert_snapshot!(prune_text(&report, &args(false), now), @r"
        Deleted Images:
        deleted: sha256:2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881

        ID                 RECLAIMABLE   SIZE      LAST ACCESSED
        0123456789abcdef   true          8.192kB   5 seconds ago
        Total reclaimed space: 8.19kB
        ");
        assert!(prune_text(&PruneReport::default(), &args(true), now) == "Would reclaim: 0B\n");
    }

    #[test]
    fn a_dry_run_says_why() {
        let value = PruneReason::LeastValuable { wall_ms: 1500, bytes: 8192 };
        let report = PruneReport { removed: vec![UsageRow { reason: Some(value), ..row() }], ..PruneReport::default() };
        let text = prune_text(&report, &args(true), SystemTime::UNIX_EPOCH);
        assert!(text.contains("saves 1.5s of building for 8.19kB, the least that was left\n"), "{text}");
    }

    #[test]
    fn filters_and_sizes_are_read_as_buildxs() {
        let filters = ["until=24h", "id=abc,type!=regular"].map(str::to_owned).to_vec();
        let request = prune_request(&PruneArgs { filters, max_used_space: Some("1gb".into()), ..args(false) }).unwrap();
        assert_eq!(request.policy.filters[0].to_string(), "id~=abc,type!=regular");
        assert_eq!((request.policy.keep_duration.as_secs(), request.policy.max_used_space), (86_400, Some(1 << 30)));
        assert!(read_filters(&["until=soon".to_owned()]).is_err());
        assert!(read_filters(&["colour=red".to_owned()]).is_err());
    }
}
