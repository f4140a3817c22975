//! What is in a build context: the largest entries, and what no step reads.

use crate::EngineError;
use forge_image::ErrorKind;
use forge_session::{Context, ContextEntry, ContextError, ContextPath, EntryKind, PatternMatcher};
use std::collections::HashSet;

/// So many entries are named in each list.
const NAMED: usize = 10;

/// What is in a build context, less what its ignore file names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContextReport {
    /// How many files there are.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The largest files, largest first.
    pub largest: Vec<ContextItem>,
    /// Bytes of the files that no step reads.
    pub unused_bytes: u64,
    /// What no step reads, largest first: folders of which nothing is read stand for what is in them.
    pub unused: Vec<ContextItem>,
}

/// A file or folder of a context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContextItem {
    /// The path; a folder's ends in a slash.
    pub path: String,
    /// The bytes of the file, or of everything in the folder.
    pub bytes: u64,
}

/// A folder whose entries are being looked at.
struct Open {
    path: ContextPath,
    rest: std::vec::IntoIter<ContextEntry>,
    bytes: u64,
    used: bool,
    /// What is unused in it: told only where something else of it is used.
    unused: Vec<ContextItem>,
}

/// Walks a whole context. `used` are the paths that steps read.
pub(crate) fn of(
    files: &dyn Context,
    ignore: &[String],
    used: &HashSet<ContextPath>,
) -> Result<ContextReport, EngineError> {
    let ignored = PatternMatcher::new(ignore).map_err(|error| EngineError::caused(ErrorKind::UserInput, error))?;
    let mut report = ContextReport::default();
    let mut trail = vec![open(files, ContextPath::default())?];
    while let Some(folder) = trail.last_mut() {
        let Some(entry) = folder.rest.next() else {
            let done = trail.pop().expect("the loop holds a folder");
            close(done, trail.last_mut(), &mut report);
            continue;
        };
        let hidden = ignored.matches(&entry.path);
        match entry.kind {
            EntryKind::Directory if hidden && !ignored.may_match_below(&entry.path) => {}
            EntryKind::Directory => trail.push(open(files, entry.path)?),
            EntryKind::File { size } if !hidden => file(folder, &entry.path, size, used, &mut report),
            _ => {}
        }
    }
    report.unused.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.path.cmp(&b.path)));
    report.unused.truncate(NAMED);
    Ok(report)
}

fn open(files: &dyn Context, path: ContextPath) -> Result<Open, EngineError> {
    let entries = files.children(&path).map_err(unreadable)?;
    Ok(Open { path, rest: entries.into_iter(), bytes: 0, used: false, unused: Vec::new() })
}

fn file(folder: &mut Open, path: &ContextPath, size: u64, used: &HashSet<ContextPath>, report: &mut ContextReport) {
    report.files += 1;
    report.bytes += size;
    folder.bytes += size;
    let item = ContextItem { path: path.display().into_owned(), bytes: size };
    let place = report.largest.partition_point(|other| other.bytes >= size);
    if place < NAMED {
        report.largest.insert(place, item.clone());
        report.largest.truncate(NAMED);
    }
    match used.contains(path) {
        true => folder.used = true,
        false => {
            report.unused_bytes += size;
            folder.unused.push(item);
        }
    }
}

fn close(done: Open, parent: Option<&mut Open>, report: &mut ContextReport) {
    let Some(parent) = parent else {
        report.unused.extend(done.unused);
        return;
    };
    parent.bytes += done.bytes;
    parent.used |= done.used;
    match done.used {
        true => report.unused.extend(done.unused),
        false if done.bytes > 0 => {
            let path = format!("{}/", done.path.display());
            parent.unused.push(ContextItem { path, bytes: done.bytes });
        }
        false => {}
    }
}

fn unreadable(error: ContextError) -> EngineError {
    EngineError::caused(ErrorKind::Environment, error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use forge_session::LocalContext;

    #[test]
    fn what_nothing_reads_is_named_once() {
        let folder = tempfile::tempdir().unwrap();
        let files = [
            ("a/used", 10),
            ("a/idle", 20),
            ("modules/x/1", 300),
            ("modules/x/2", 400),
            ("modules/y", 5),
            ("top", 7),
            ("hidden/z", 9000),
        ];
        for (path, size) in files {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, vec![b'x'; size]).unwrap();
        }
        let context = LocalContext::open(folder.path()).unwrap();
        let used = HashSet::from([ContextPath::clean("a/used")]);
        let report = of(&context, &["hidden".to_owned()], &used).unwrap();
        let shown = |items: &[ContextItem]| {
            items.iter().map(|item| format!("{} {}", item.path, item.bytes)).collect::<Vec<_>>().join(", ")
        };
        assert_eq!((report.files, report.bytes, report.unused_bytes), (6, 742, 732));
        assert_eq!(shown(&report.unused), "modules/ 705, a/idle 20, top 7");
        assert!(shown(&report.largest).starts_with("modules/x/2 400, modules/x/1 300, a/idle 20"));
    }
}
