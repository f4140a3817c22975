//! What is in images, layer by layer and against each other, from the layers' indexes.

use crate::engine::{Engine, blocking};
use crate::flat::{FlatEntry, FlatTree, LayerEffect, is_folder};
use crate::{EngineError, HistoryRow};
use forge_image::{DiffId, ImageId};
use forge_store::{EntryKind, Image, LayerId, LayerIndex};
use std::fmt;

/// A layer of an image.
#[derive(Clone, Debug)]
pub struct LayerRow {
    /// What made it, as the history says.
    pub created_by: String,
    /// The digest of its tar.
    pub diff_id: DiffId,
    /// What it does.
    pub effect: LayerEffect,
}

/// A path in which two images differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileChange {
    /// Its bytes, with a slash before it.
    pub path: Vec<u8>,
    /// How.
    pub change: Change,
}

/// How a path differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Only the second image has it.
    Added,
    /// Only the first one has it.
    Removed,
    /// Both have it, and these differ.
    Changed(Vec<Aspect>),
}

/// What of a path differs, before and after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Aspect {
    /// File, folder, link, …
    Kind(&'static str, &'static str),
    /// The size of a file in bytes.
    Size(u64, u64),
    /// The bytes of a file.
    Bytes,
    /// Where a symbolic link points, or which device it is.
    Target,
    /// The mode.
    Mode(u32, u32),
    /// Owner and group.
    Owner((u32, u32), (u32, u32)),
    /// Extended attributes.
    Attributes,
    /// The time of the last change, in seconds.
    Time(i64, i64),
}

impl fmt::Display for Aspect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kind(a, b) => write!(f, "{a} -> {b}"),
            Self::Size(a, b) => write!(f, "size {a} -> {b}"),
            Self::Bytes => f.write_str("bytes"),
            Self::Target => f.write_str("target"),
            Self::Mode(a, b) => write!(f, "mode {a:04o} -> {b:04o}"),
            Self::Owner((a, b), (c, d)) => write!(f, "owner {a}:{b} -> {c}:{d}"),
            Self::Attributes => f.write_str("attributes"),
            Self::Time(a, b) => write!(f, "time {a} -> {b}"),
        }
    }
}

impl Engine {
    /// What each layer of an image does, lowest first. Layers that lie in a registry only are fetched.
    ///
    /// # Errors
    /// No such image, a layer cannot be fetched, or an index cannot be read.
    pub async fn layers(&self, image: &str) -> Result<Vec<LayerRow>, EngineError> {
        self.bring_to_read(&[image]).await?;
        let (engine, text) = (self.clone(), image.to_owned());
        blocking(move || {
            let (_, image) = engine.one_image(&text)?;
            let config = engine.store().images().config(&image.id)?;
            let effects = FlatTree::effects(&engine.indexes(&image)?);
            let named = config.history.iter().filter(|entry| !entry.empty_layer);
            let mut makers: Vec<String> = named.map(|entry| entry.created_by.clone().unwrap_or_default()).collect();
            // History is optional, and what is missing is at the bottom.
            let missing = effects.len().saturating_sub(makers.len());
            makers.splice(0..0, std::iter::repeat_n(String::new(), missing));
            let rows = effects.into_iter().zip(config.rootfs.diff_ids).zip(makers);
            Ok(rows.map(|((effect, diff_id), created_by)| LayerRow { created_by, diff_id, effect }).collect())
        })
        .await
    }

    /// The paths in which two images differ, in order. Layers that lie in a registry only are fetched.
    ///
    /// # Errors
    /// No such image, a layer cannot be fetched, or an index cannot be read.
    pub async fn diff(&self, first: &str, second: &str) -> Result<Vec<FileChange>, EngineError> {
        self.bring_to_read(&[first, second]).await?;
        let (engine, first, second) = (self.clone(), first.to_owned(), second.to_owned());
        blocking(move || {
            let tree = |text: &str| {
                let (_, image) = engine.one_image(text)?;
                Ok::<_, EngineError>(FlatTree::of(&engine.indexes(&image)?))
            };
            Ok(differences(&tree(&first)?, &tree(&second)?))
        })
        .await
    }

    /// Says where an image that was built again is not what it was. Times later than the epoch that it was built with count
    /// as the epoch. Layers that lie in a registry only are fetched where both do not share them.
    ///
    /// # Errors
    /// No such image, a layer cannot be fetched, or an index cannot be read.
    pub async fn first_difference(
        &self,
        recorded: &str,
        rebuilt: &str,
        epoch: Option<i64>,
    ) -> Result<Reproduction, EngineError> {
        let (recorded, rebuilt) = (recorded.to_owned(), rebuilt.to_owned());
        let images = self.blocking(move |engine| Ok((engine.one_image(&recorded)?.1, engine.one_image(&rebuilt)?.1)));
        let (recorded, rebuilt) = images.await?;
        let pairs = recorded.layers.iter().zip(&rebuilt.layers);
        let shared = pairs.take_while(|(before, after)| before == after).count();
        if recorded.id != rebuilt.id {
            self.bring_layers_to_read([&recorded.layers[shared..], &rebuilt.layers[shared..]].concat()).await?;
        }
        let engine = self.clone();
        blocking(move || {
            if recorded.id == rebuilt.id {
                return Ok(Reproduction::Same(recorded.id));
            }
            let rows = |image: &Image| -> Result<Vec<HistoryRow>, EngineError> {
                let mut rows = engine.history_rows(image, &engine.store().images().config(&image.id)?)?;
                rows.reverse();
                Ok(rows)
            };
            let steps = steps_with_layers(&engine.store().images().config(&recorded.id)?.history, &rows(&recorded)?);
            let index = |layers: &[LayerId]| layers.iter().map(|id| Ok(engine.store().layers().index(id)?)).collect();
            let before: Result<Vec<LayerIndex>, EngineError> = index(&recorded.layers[shared..]);
            let after: Result<Vec<LayerIndex>, EngineError> = index(&rebuilt.layers[shared..]);
            for (number, (a, b)) in before?.iter().zip(&after?).enumerate() {
                let number = shared + number;
                let tree = |index| FlatTree::of(std::slice::from_ref(index)).clamped(epoch);
                let mut changes = differences(&tree(a), &tree(b));
                // The bytes of a file say more than the time of the folder that it is in.
                changes.sort_by_key(|it| matches!(&it.change, Change::Changed(aspects) if only_times(aspects)));
                if let Some(first) = changes.into_iter().next() {
                    let step = steps.get(number).cloned().unwrap_or_default();
                    return Ok(Reproduction::Differs { layer: number, step, first });
                }
            }
            match (recorded.layers.len(), rebuilt.layers.len()) {
                (a, b) if a == b => Ok(Reproduction::SameFiles { recorded: recorded.id, rebuilt: rebuilt.id }),
                (a, b) => Ok(Reproduction::Layers { recorded: a, rebuilt: b }),
            }
        })
        .await
    }

    fn indexes(&self, image: &Image) -> Result<Vec<LayerIndex>, EngineError> {
        let index = |id| Ok(self.store().layers().index(id)?);
        image.layers.iter().map(index).collect()
    }
}

/// What building an image again came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reproduction {
    /// The same image, byte for byte.
    Same(ImageId),
    /// All files are the same, to their times; the configurations are not.
    SameFiles {
        /// The image.
        recorded: ImageId,
        /// What the build made now.
        rebuilt: ImageId,
    },
    /// A layer differs.
    Differs {
        /// Its number, from the lowest.
        layer: usize,
        /// What made it.
        step: String,
        /// The first path that differs; one with other bytes before one with another time.
        first: FileChange,
    },
    /// The builds have different numbers of layers, and those that both have are the same.
    Layers {
        /// Of the image.
        recorded: usize,
        /// Of what was built now.
        rebuilt: usize,
    },
}

fn steps_with_layers(history: &[forge_image::HistoryEntry], rows: &[HistoryRow]) -> Vec<String> {
    let pairs = history.iter().zip(rows);
    pairs.filter(|(entry, _)| !entry.empty_layer).map(|(_, row)| row.created_by.clone()).collect()
}

fn only_times(aspects: &[Aspect]) -> bool {
    aspects.iter().all(|aspect| matches!(aspect, Aspect::Time(..)))
}

fn differences(before: &FlatTree, after: &FlatTree) -> Vec<FileChange> {
    let mut changes = Vec::new();
    for (path, entry) in before.entries() {
        let change = match after.get(&path) {
            None => Change::Removed,
            Some(other) => match aspects(entry, other) {
                aspects if aspects.is_empty() => continue,
                aspects => Change::Changed(aspects),
            },
        };
        changes.push(FileChange { path: [b"/", &path[..]].concat(), change });
    }
    let added = after.entries().filter(|(path, _)| before.get(path).is_none());
    changes.extend(added.map(|(path, _)| FileChange { path: [b"/", &path[..]].concat(), change: Change::Added }));
    changes.sort_by(|a, b| forge_store::path_order(&a.path[1..], &b.path[1..]));
    changes
}

fn aspects(a: &FlatEntry, b: &FlatEntry) -> Vec<Aspect> {
    let mut found = Vec::new();
    match (&a.kind, &b.kind) {
        (EntryKind::File { size: s, blake3: x }, EntryKind::File { size: t, blake3: y }) => {
            found.extend((s != t).then_some(Aspect::Size(*s, *t)));
            found.extend((s == t && x != y).then_some(Aspect::Bytes));
        }
        (x, y) if std::mem::discriminant(x) != std::mem::discriminant(y) => found.push(Aspect::Kind(word(x), word(y))),
        (x, y) if is_folder(x) && is_folder(y) => {}
        (x, y) => found.extend((x != y).then_some(Aspect::Target)),
    }
    let (m, n) = (&a.metadata, &b.metadata);
    found.extend((m.mode != n.mode).then_some(Aspect::Mode(m.mode, n.mode)));
    let owners = ((m.uid, m.gid), (n.uid, n.gid));
    found.extend((owners.0 != owners.1).then_some(Aspect::Owner(owners.0, owners.1)));
    found.extend((m.xattrs != n.xattrs).then_some(Aspect::Attributes));
    // Layers hold whole seconds.
    found.extend((m.mtime.0 != n.mtime.0).then_some(Aspect::Time(m.mtime.0, n.mtime.0)));
    found
}

fn word(kind: &EntryKind) -> &'static str {
    match kind {
        EntryKind::File { .. } => "file",
        EntryKind::Directory { .. } => "folder",
        EntryKind::Symlink { .. } => "symbolic link",
        EntryKind::CharDevice { .. } => "character device",
        EntryKind::BlockDevice { .. } => "block device",
        EntryKind::Fifo => "pipe",
        EntryKind::Whiteout => "deletion",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use forge_store::{LayerEntry, Metadata};

    fn tree(files: &[(&str, u64, u32, i64)]) -> FlatTree {
        let folder = EntryKind::Directory { opaque: false, implied: true };
        let root = LayerEntry { path: Vec::new(), kind: folder, metadata: Metadata::default(), link: None };
        let file = |(path, size, mode, time): &(&str, u64, u32, i64)| LayerEntry {
            path: path.as_bytes().to_vec(),
            kind: EntryKind::File { size: *size, blake3: [*size as u8; 32] },
            metadata: Metadata { mode: *mode, mtime: (*time, 0), ..Metadata::default() },
            link: None,
        };
        let entries = std::iter::once(root).chain(files.iter().map(file)).collect();
        FlatTree::of(&[LayerIndex::new(entries).unwrap()])
    }

    #[test]
    fn every_aspect_is_told() {
        let before = tree(&[("a", 1, 0o644, 5), ("b", 1, 0o644, 5), ("c", 1, 0o644, 5), ("e", 1, 0, 0)]);
        let after = tree(&[("a", 1, 0o755, 6), ("b", 2, 0o644, 5), ("d", 1, 0, 0), ("e", 1, 0, 0)]);
        let shown = |it: &FileChange| {
            let path = String::from_utf8(it.path.clone()).unwrap();
            match &it.change {
                Change::Added => format!("A {path}"),
                Change::Removed => format!("D {path}"),
                Change::Changed(aspects) => {
                    format!("C {path} {}", aspects.iter().map(Aspect::to_string).collect::<Vec<_>>().join(", "))
                }
            }
        };
        let found: Vec<String> = differences(&before, &after).iter().map(shown).collect();
        assert_eq!(found, ["C /a mode 0644 -> 0755, time 5 -> 6", "C /b size 1 -> 2", "D /c", "A /d"]);
    }
}
