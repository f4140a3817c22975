//! Lists a tree for whoever lacks some of it.

use crate::packets::mode;
use forge_buildkit_proto::fsutil::types::Stat;
use forge_session::{Context, ContextEntry, ContextPath, EntryKind, PatternMatcher};
use std::collections::HashMap;
use std::io;

/// What of a tree is listed, by patterns as `.dockerignore` has them.
pub struct Selected {
    include: PatternMatcher,
    exclude: PatternMatcher,
}

impl Selected {
    /// Reads patterns: what is taken, everything where empty; and what of that is left out.
    ///
    /// # Errors
    /// A pattern is none.
    pub fn new(include: &[String], exclude: &[String]) -> io::Result<Self> {
        let read = |patterns: &[String]| PatternMatcher::new(patterns).map_err(io::Error::other);
        Ok(Self { include: read(include)?, exclude: read(exclude)? })
    }

    fn takes(&self, path: &ContextPath) -> bool {
        (self.include.is_empty() || self.include.matches(path)) && !self.exclude.matches(path)
    }

    fn may_take_below(&self, folder: &ContextPath) -> bool {
        let may_be_included =
            self.include.is_empty() || self.include.matches(folder) || self.include.may_lead_to_match(folder);
        may_be_included && self.exclude.may_match_below(folder)
    }
}

/// Calls `take` for every entry that is selected, folders before what is in them, names in the order of their bytes, as the
/// receiver wants them. A folder that is not selected itself is told before what is in it that is. What has one owner at the
/// other end is told to be root's. A further name of a file is told as a link to its first one. Pipes, devices and sockets are passed over. Blocks.
///
/// # Errors
/// The tree cannot be read, a name is not UTF-8, which is all that a packet can hold, or `take` fails.
pub fn list(
    context: &dyn Context,
    selected: &Selected,
    take: &mut dyn FnMut(Stat, &ContextEntry) -> io::Result<()>,
) -> io::Result<()> {
    let (mut pending, mut names) = (Vec::new(), HashMap::new());
    let mut take_linked = |mut stat: Stat, entry: &ContextEntry| {
        if entry.is_linked && entry.stamp.inode != 0 {
            match names.get(&(entry.stamp.device, entry.stamp.inode)) {
                Some(first) => stat.linkname = String::clone(first),
                None => _ = names.insert((entry.stamp.device, entry.stamp.inode), stat.path.clone()),
            }
        }
        take(stat, entry)
    };
    below(context, &ContextPath::default(), selected, &mut pending, &mut take_linked)
}

/// `pending` are folders that are told with the first entry in them.
fn below(
    context: &dyn Context,
    folder: &ContextPath,
    selected: &Selected,
    pending: &mut Vec<ContextEntry>,
    take: &mut dyn FnMut(Stat, &ContextEntry) -> io::Result<()>,
) -> io::Result<()> {
    for entry in context.children(folder).map_err(io::Error::other)? {
        if entry.kind == EntryKind::Special {
            continue;
        }
        let is_taken = selected.takes(&entry.path);
        if is_taken {
            for folder in pending.drain(..) {
                take(stat_of(&folder)?, &folder)?;
            }
            take(stat_of(&entry)?, &entry)?;
        }
        if entry.kind == EntryKind::Directory && selected.may_take_below(&entry.path) {
            let path = entry.path.clone();
            if !is_taken {
                pending.push(entry);
            }
            below(context, &path, selected, pending, take)?;
            if pending.last().is_some_and(|folder| folder.path == path) {
                pending.pop();
            }
        }
    }
    Ok(())
}

fn stat_of(entry: &ContextEntry) -> io::Result<Stat> {
    let text = |bytes: &[u8]| {
        let read = String::from_utf8(bytes.to_vec());
        read.map_err(|_| io::Error::other(format!("{:?}: names that are not UTF-8 cannot be sent", entry.path)))
    };
    let (kind, size, linkname) = match &entry.kind {
        EntryKind::File { size } => (0, *size, String::new()),
        EntryKind::Directory => (mode::DIRECTORY, 0, String::new()),
        EntryKind::Symlink { target } => (mode::SYMLINK, 0, text(target)?),
        EntryKind::Special => (mode::FIFO, 0, String::new()),
    };
    Ok(Stat {
        path: text(entry.path.as_bytes())?,
        mode: kind | mode::of_permissions(entry.mode),
        size: i64::try_from(size).unwrap_or(i64::MAX),
        mod_time: i64::try_from(entry.stamp.mtime_ns).unwrap_or_default(),
        linkname,
        ..Stat::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use forge_session::LocalContext;
    use std::fs;

    fn listed(include: &[&str], exclude: &[&str]) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        for path in ["a/deep/x", "a/y", "a-b", "b/z"] {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "text").unwrap();
        }
        std::os::unix::fs::symlink("a/y", folder.path().join("link")).unwrap();
        let context = LocalContext::open(folder.path()).unwrap();
        let own = |patterns: &[&str]| patterns.iter().map(|pattern| (*pattern).to_owned()).collect::<Vec<_>>();
        let mut found = Vec::new();
        let selected = Selected::new(&own(include), &own(exclude)).unwrap();
        list(&context, &selected, &mut |stat, _| {
            found.push(stat.path);
            Ok(())
        })
        .unwrap();
        found
    }

    #[test]
    fn folders_come_before_what_is_in_them_and_names_in_order() {
        assert_eq!(listed(&[], &[]), ["a", "a/deep", "a/deep/x", "a/y", "a-b", "b", "b/z", "link"]);
    }

    #[test]
    fn further_names_are_links_to_the_first_that_is_selected() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("bar"), "bar").unwrap();
        ["foo1", "foo2"]
            .iter()
            .for_each(|name| fs::hard_link(folder.path().join("bar"), folder.path().join(name)).unwrap());
        let context = LocalContext::open(folder.path()).unwrap();
        let told = |include: &[String]| {
            let mut found = Vec::new();
            let selected = Selected::new(include, &[]).unwrap();
            let take = &mut |stat: Stat, _: &ContextEntry| {
                found.push((stat.path, stat.linkname));
                Ok(())
            };
            list(&context, &selected, take).unwrap();
            found
        };
        let linked = |name: &str, to: &str| (name.to_owned(), to.to_owned());
        assert_eq!(told(&[]), [linked("bar", ""), linked("foo1", "bar"), linked("foo2", "bar")]);
        assert_eq!(told(&["foo*".to_owned()]), [linked("foo1", ""), linked("foo2", "foo1")]);
    }

    #[test]
    fn patterns_select_and_folders_come_with_what_is_in_them() {
        assert_eq!(listed(&["a/deep/x"], &[]), ["a", "a/deep", "a/deep/x"]);
        assert_eq!(listed(&["b"], &[]), ["b", "b/z"]);
        assert_eq!(listed(&[], &["a", "!a/deep"]), ["a", "a/deep", "a/deep/x", "a-b", "b", "b/z", "link"]);
        assert_eq!(listed(&["a/none"], &[]), [""; 0]);
        assert_eq!(listed(&[], &["**/z", "link"]), ["a", "a/deep", "a/deep/x", "a/y", "a-b", "b"]);
    }
}
