//! `forge layers` and `forge diff`.

use super::{Start, block_on};
use crate::args::{DiffArgs, LayersArgs};
use crate::failure::Failure;
use crate::{output, sanitise, table, units};
use forge_engine::{Aspect, Change, FileChange, LayerRow};
use serde_json::{Value, json};

/// As much of what made a layer is shown, as `docker history` shows it.
const SHORT: usize = 45;

pub fn layers(start: &Start, args: &LayersArgs) -> Result<(), Failure> {
    let json = is_json(args.format.as_deref())?;
    let rows = block_on(async { Ok(start.engine()?.layers(&args.image).await?) })?;
    let text = match json {
        true => rows.iter().map(|row| format!("{}\n", layer_json(row))).collect(),
        false => layer_table(&rows, args.no_trunc),
    };
    output::print(&text)?;
    Ok(())
}

fn is_json(format: Option<&str>) -> anyhow::Result<bool> {
    match format {
        None | Some("table") => Ok(false),
        Some("json") => Ok(true),
        Some(other) => anyhow::bail!("--format {}: expected table or json", sanitise::line(other)),
    }
}

fn layer_json(row: &LayerRow) -> Value {
    let effect = &row.effect;
    json!({
        "DiffID": row.diff_id.to_string(),
        "CreatedBy": row.created_by,
        "Added": effect.added,
        "Changed": effect.changed,
        "Deleted": effect.deleted,
        "Bytes": effect.bytes,
        "Wasted": effect.wasted,
    })
}

fn layer_table(rows: &[LayerRow], whole: bool) -> String {
    let cells = |(number, row): (usize, &LayerRow)| {
        let effect = &row.effect;
        let maker = sanitise::line(&row.created_by).into_owned();
        let maker = match whole || maker.chars().count() <= SHORT {
            true => maker,
            false => maker.chars().take(SHORT - 1).chain(['…']).collect(),
        };
        let count = |count: u64| count.to_string();
        vec![
            (number + 1).to_string(),
            units::size(effect.bytes),
            count(effect.added),
            count(effect.changed),
            count(effect.deleted),
            units::size(effect.wasted),
            maker,
        ]
    };
    let cells: Vec<Vec<String>> = rows.iter().enumerate().map(cells).collect();
    let text = table::layout(&["LAYER", "SIZE", "ADDED", "CHANGED", "DELETED", "WASTED", "CREATED BY"], &cells);
    let sum = |part: fn(&LayerRow) -> u64| rows.iter().map(part).sum::<u64>();
    let (bytes, wasted) = (sum(|row| row.effect.bytes), sum(|row| row.effect.wasted));
    format!(
        "{text}{} layers, {}, of which {} are covered or deleted\n",
        rows.len(),
        units::size(bytes),
        units::size(wasted)
    )
}

pub fn diff(start: &Start, args: &DiffArgs) -> Result<u8, Failure> {
    let json = is_json(args.format.as_deref())?;
    let changes = block_on(async { Ok(start.engine()?.diff(&args.first, &args.second).await?) })?;
    let changes: Vec<FileChange> =
        changes.into_iter().filter(|it| !args.ignore_times || !is_time(&it.change)).collect();
    let line = |change: &FileChange| match json {
        true => format!("{}\n", change_json(change)),
        false => change_line(change) + "\n",
    };
    output::print(&changes.iter().map(line).collect::<String>())?;
    Ok(u8::from(!changes.is_empty()))
}

fn is_time(change: &Change) -> bool {
    matches!(change, Change::Changed(aspects) if aspects.iter().all(|aspect| matches!(aspect, Aspect::Time(..))))
}

fn letter(change: &Change) -> char {
    match change {
        Change::Added => 'A',
        Change::Removed => 'D',
        Change::Changed(_) => 'C',
    }
}

fn aspects(change: &Change) -> Vec<String> {
    match change {
        Change::Changed(aspects) => aspects.iter().map(Aspect::to_string).collect(),
        Change::Added | Change::Removed => Vec::new(),
    }
}

/// A letter, the path, and what of it differs: as `docker diff`, and more.
pub(super) fn change_line(change: &FileChange) -> String {
    let path = change.path.escape_ascii().to_string();
    let path = std::str::from_utf8(&change.path).map_or(path, |text| sanitise::line(text).into_owned());
    match aspects(&change.change).join(", ") {
        aspects if aspects.is_empty() => format!("{} {path}", letter(&change.change)),
        aspects => format!("{} {path} ({aspects})", letter(&change.change)),
    }
}

fn change_json(change: &FileChange) -> Value {
    let path = String::from_utf8_lossy(&change.path);
    json!({ "Kind": letter(&change.change).to_string(), "Path": path, "Aspects": aspects(&change.change) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_read_as_dockers_and_hostile_names_are_shown() {
        let line = |path: &[u8], change| change_line(&FileChange { path: path.to_vec(), change });
        assert_eq!(line(b"/a", Change::Added), "A /a");
        let aspects = vec![Aspect::Mode(0o644, 0o755), Aspect::Bytes];
        assert_eq!(line(b"/b", Change::Changed(aspects)), "C /b (mode 0644 -> 0755, bytes)");
        assert_eq!(line(b"/\x1b[31m", Change::Removed), "D /\\x1b[31m");
        assert_eq!(line(b"/\xff", Change::Removed), "D /\\xff");
    }
}
