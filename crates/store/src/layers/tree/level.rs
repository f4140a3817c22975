//! A folder of the merged view with its parts of each layer: what a name in it is.

use super::super::entry::join_path;
use super::super::folder::{self, Node, NodeKind};
use super::super::listed::EntryList;
use super::super::root::{Devices, Root};
use super::super::xattr::Markers;
use super::{Found, Level, MergedTree};
use crate::StoreError;
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// One layer's part of a folder.
enum Part<'a> {
    Root(&'a Root),
    Opened(OwnedFd),
    Listed(&'a EntryList),
}

impl Part<'_> {
    fn read(&self, path: &[u8], name: &[u8], markers: Markers) -> Result<Result<Option<Node>, Errno>, StoreError> {
        Ok(match self {
            Self::Root(root) => folder::read_node(root.folder()?, name, markers),
            Self::Opened(folder) => folder::read_node(folder.as_fd(), name, markers),
            Self::Listed(list) => Ok(list.node(&join_path(path, name))),
        })
    }

    fn names(&self, path: &[u8]) -> Result<Result<Vec<Vec<u8>>, Errno>, StoreError> {
        Ok(match self {
            Self::Root(root) => folder::names(root.folder()?),
            Self::Opened(folder) => folder::names(folder),
            Self::Listed(list) => Ok(list.names(path)),
        })
    }

    /// Whether it is certain that there is nothing of that name.
    fn lacks(&self, name: &[u8]) -> bool {
        matches!(self, Self::Root(root) if root.lacks(name))
    }
}

/// The parts of a folder, opened.
pub(in crate::layers) struct OpenLevel<'a> {
    tree: &'a MergedTree,
    level: &'a Level,
    parts: Vec<(usize, Part<'a>)>,
}

impl MergedTree {
    pub(in crate::layers) fn open_level<'a>(&'a self, level: &'a Level) -> Result<OpenLevel<'a>, StoreError> {
        let mut parts = Vec::with_capacity(level.layers.len());
        for &layer in &level.layers {
            let root = &self.roots[layer];
            let part = match root.entries() {
                Some(list) => Part::Listed(list),
                None if level.path.is_empty() => Part::Root(root),
                None => Part::Opened(root.open_folder(&level.path)?),
            };
            parts.push((layer, part));
        }
        Ok(OpenLevel { tree: self, level, parts })
    }
}

impl OpenLevel<'_> {
    /// What has that name here, as overlayfs looks it up.
    pub(in crate::layers) fn find(&self, name: &[u8]) -> Result<Option<Found>, StoreError> {
        for part in 0..self.parts.len() {
            if let Some(node) = self.read(part, name)? {
                return self.found(part, name, node);
            }
        }
        Ok(None)
    }

    /// What the top-most node of a name comes to: a folder is merged with those below it, a whiteout is nothing.
    fn found(&self, part: usize, name: &[u8], node: Node) -> Result<Option<Found>, StoreError> {
        let layer = self.parts[part].0;
        match node.kind {
            NodeKind::Whiteout => Ok(None),
            NodeKind::Directory { opaque } => {
                let layers = if opaque { vec![layer] } else { self.merged_layers(part, name)? };
                let level = Some(Level { path: join_path(&self.level.path, name), layers });
                Ok(Some(Found { node, layer, level }))
            }
            _ => Ok(Some(Found { node, layer, level: None })),
        }
    }

    /// The layers of a folder whose top-most part hides nothing.
    fn merged_layers(&self, top: usize, name: &[u8]) -> Result<Vec<usize>, StoreError> {
        let mut layers = vec![self.parts[top].0];
        for part in top + 1..self.parts.len() {
            match self.read(part, name)?.map(|node| node.kind) {
                None => {}
                Some(NodeKind::Directory { opaque }) => {
                    layers.push(self.parts[part].0);
                    if opaque {
                        break;
                    }
                }
                Some(_) => break,
            }
        }
        Ok(layers)
    }

    fn read(&self, part: usize, name: &[u8]) -> Result<Option<Node>, StoreError> {
        let (layer, part) = &self.parts[part];
        let devices = self.tree.roots[*layer].devices()?;
        if !devices.is_empty()
            && let Some(device) = devices.get(&join_path(&self.level.path, name))
        {
            return Ok(Some(device.clone()));
        }
        if part.lacks(name) {
            return Ok(None);
        }
        let error = || StoreError::os("read", self.disk_path(*layer, name));
        part.read(&self.level.path, name, self.tree.markers)?.map_err(error())
    }

    /// Visits every visible name once, in no order.
    pub(in crate::layers) fn each_child(&self, mut visit: impl FnMut(&[u8], Found)) -> Result<(), StoreError> {
        let mut seen = BTreeSet::new();
        for (part, (layer, opened)) in self.parts.iter().enumerate() {
            let names = opened.names(&self.level.path)?;
            let mut names = names.map_err(StoreError::os("read", self.disk_path(*layer, b"")))?;
            let devices = names_below(self.tree.roots[*layer].devices()?, &self.level.path);
            let more: Vec<Vec<u8>> = devices.filter(|name| names.iter().all(|other| other != name)).collect();
            names.extend(more);
            for name in names {
                if seen.contains(&name) {
                    continue;
                }
                let node = self.read(part, &name)?;
                if let Some(found) = node.map(|node| self.found(part, &name, node)).transpose()?.flatten() {
                    visit(&name, found);
                }
                if self.parts.len() > 1 {
                    seen.insert(name);
                }
            }
        }
        Ok(())
    }

    fn disk_path(&self, layer: usize, name: &[u8]) -> PathBuf {
        let path = join_path(&self.level.path, name);
        self.tree.roots[layer].path().join(OsStr::from_bytes(&path))
    }
}

/// The names of devices in a folder.
fn names_below<'a>(devices: &'a Devices, folder: &'a [u8]) -> impl Iterator<Item = Vec<u8>> + 'a {
    let below = if folder.is_empty() { Vec::new() } else { [folder, b"/"].concat() };
    let prefix = below.clone();
    let within = devices.range(below..).map_while(move |(path, _)| path.strip_prefix(&prefix[..]));
    within.filter(|name| !name.contains(&b'/')).map(<[u8]>::to_vec)
}
