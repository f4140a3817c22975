//! From a stranger's tar to a tree, whatever the tar says.
//!
//! Entries are placed by [`Placement`], which knows what this layer and those below have; the disk is then touched only
//! through descriptors of folders that were opened without following any link ([`folder`]), so that a mistake in the
//! first is an error in the second and not a way out (A46 to A50). The folder that is unpacked into has no name that
//! anybody knows yet (A65).

mod deletions;
mod files;
mod writers;

use super::apply;
use super::entry::{EntryKind, Metadata, join_path, split_path};
use super::entry_name::{self, EntryName};
use super::error::{LayerError, shown};
use super::folder::{self, NodeKind};
use super::index::LayerIndex;
use super::owners::Owners;
use super::placement::{Missing, Place, Placement, Seen};
use super::tar_reader::{ReadError, TarEntry, TarKind, TarReader};
use super::tree::{Found, MergedTree};
use super::xattr::{self, Markers};
use crate::StoreError;
use deletions::{Deletion, LaterDeletion};
use rustix::fs::{AtFlags, FileType, Mode};
use rustix::io::Errno;
use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use writers::Writers;

const BUFFER: usize = 1 << 17;

/// Unpacks an archive over the layers below into an empty folder, and says what it holds.
pub(super) fn unpack<R: Read>(
    reader: &mut TarReader<R>,
    lower: &MergedTree,
    tree: &Path,
) -> Result<LayerIndex, UnpackError> {
    let root = folder::open_root(tree).map_err(StoreError::os("open", tree))?;
    let mut unpacker = Unpacker {
        tree,
        root,
        placement: Placement::new(lower)?,
        markers: Markers::of(tree),
        later: Vec::new(),
        open: None,
        ways: HashMap::new(),
        buffer: vec![0; BUFFER],
        writers: Writers::new(tree),
        without_devices: false,
    };
    while let Some(entry) = reader.next()? {
        unpacker.entry(entry, reader)?;
    }
    Ok(unpacker.finish()?)
}

/// What stopped the unpacking.
pub(super) enum UnpackError {
    Store(StoreError),
    Source(std::io::Error),
}

impl From<StoreError> for UnpackError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<LayerError> for UnpackError {
    fn from(error: LayerError) -> Self {
        Self::Store(error.into())
    }
}

impl From<ReadError> for UnpackError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Archive(error) => error.into(),
            ReadError::Source(error) => Self::Source(error),
        }
    }
}

struct Unpacker<'a> {
    tree: &'a Path,
    root: OwnedFd,
    placement: Placement<'a>,
    markers: Markers,
    later: Vec<LaterDeletion>,
    /// The folder of the last entry: most entries have the same as the one before.
    open: Option<(Vec<u8>, OwnedFd)>,
    /// Folders as the archive names them, and where they led; forgotten when something on the way may have changed.
    ways: HashMap<Vec<u8>, Vec<u8>>,
    buffer: Vec<u8>,
    writers: Writers,
    /// A device could not be made, and so none can.
    without_devices: bool,
}

impl Unpacker<'_> {
    fn entry<R: Read>(&mut self, entry: TarEntry, reader: &mut TarReader<R>) -> Result<(), UnpackError> {
        let TarEntry { name, kind, metadata } = entry;
        let metadata = portable(metadata, &kind);
        match EntryName::parse(&name)? {
            EntryName::Aufs => Ok(()),
            EntryName::Root => Ok(self.root_entry(&name, &kind, metadata)?),
            EntryName::Opaque { folder } => Ok(self.delete(&folder, &Deletion::Contents)?),
            EntryName::Whiteout { parent, name } => Ok(self.delete(&parent, &Deletion::Name(name.to_vec()))?),
            EntryName::Node { parent, name } => self.node(&parent, name, kind, metadata, reader),
        }
    }

    /// The root is a folder and stays one (A51).
    fn root_entry(&mut self, name: &[u8], kind: &TarKind, metadata: Metadata) -> Result<(), LayerError> {
        if *kind != TarKind::Directory {
            return refuse(name, "the root can only be a folder");
        }
        let root = self.placement.get_mut(b"").expect("there always is a root");
        root.metadata = metadata;
        set_explicit(&mut root.kind);
        Ok(())
    }

    fn node<R: Read>(
        &mut self,
        parent: &[&[u8]],
        name: &[u8],
        kind: TarKind,
        metadata: Metadata,
        reader: &mut TarReader<R>,
    ) -> Result<(), UnpackError> {
        reader.limits().check_depth(parent.len() + 1)?;
        let parent = self.make_way(parent)?;
        let path = join_path(&parent, name);
        // Links on the way may have led deeper.
        reader.limits().check_depth(path.split(|byte| *byte == b'/').count())?;
        if path.len() > super::entry::MAX_PATH {
            return Err(LayerError::PathTooLong { path: shown(&path), limit: super::entry::MAX_PATH }.into());
        }
        if let Err(id) = Owners::of_this_process().settle(metadata.uid, metadata.gid) {
            return Err(LayerError::UnmappedOwner { path: shown(&path), id }.into());
        }
        match kind {
            TarKind::File { size } => {
                self.clear(&path)?;
                self.file(&path, metadata, size, |buffer| reader.data(buffer).map_err(UnpackError::from))
            }
            TarKind::Directory => Ok(self.directory(&path, metadata)?),
            TarKind::HardLink { target } => Ok(self.hard_link(&path, &target)?),
            TarKind::Symlink { target } => Ok(self.symlink(&path, &target, metadata)?),
            TarKind::CharDevice { major: 0, minor: 0 } => {
                // Docker would make the node, and overlayfs take it for a deletion (A53).
                Ok(refuse(&path, "a character device 0:0 is overlayfs's mark of a deletion")?)
            }
            TarKind::CharDevice { major, minor } => {
                Ok(self.special(&path, EntryKind::CharDevice { major, minor }, metadata)?)
            }
            TarKind::BlockDevice { major, minor } => {
                Ok(self.special(&path, EntryKind::BlockDevice { major, minor }, metadata)?)
            }
            TarKind::Fifo => Ok(self.special(&path, EntryKind::Fifo, metadata)?),
        }
    }

    /// Finds the folder of an entry, and makes what is missing on the way: with the metadata of the lower folder, so
    /// that mode 1777 of `/tmp` survives a layer that has only `tmp/x`, else as 0755 of root.
    fn make_way(&mut self, components: &[&[u8]]) -> Result<Vec<u8>, StoreError> {
        let asked = components.join(&b'/');
        if let Some(path) = self.ways.get(&asked) {
            return Ok(path.clone());
        }
        let place = self.placement.folder(components, Missing::BecomesFolder)?;
        let Place { path, missing, .. } = self.followed(place.expect("what is missing becomes a folder"));
        for (path, metadata) in missing {
            self.make_folder(&path)?;
            self.placement.insert(&path, EntryKind::Directory { opaque: false, implied: true }, metadata);
        }
        self.ways.insert(asked, path.clone());
        Ok(path)
    }

    fn followed(&mut self, place: Place) -> Place {
        self.placement.follow(&place);
        place
    }

    fn make_folder(&mut self, path: &[u8]) -> Result<(), StoreError> {
        // Its own mode comes last, see `finish_folders`: one without write permission could not be filled.
        self.in_folder("create", path, |folder, name| rustix::fs::mkdirat(folder, name, Mode::RWXU))
    }

    /// Makes room for something that is not a folder.
    fn clear(&mut self, path: &[u8]) -> Result<(), StoreError> {
        if self.placement.get(path).is_none() {
            return Ok(());
        }
        self.placement.remove(path);
        self.ways.clear();
        let (parent, name) = split_path(path).expect("the root is never cleared");
        let error = StoreError::os("open", self.tree.join(OsStr::from_bytes(parent)));
        let folder = folder::open_folder(self.root.as_fd(), parent).map_err(error)?;
        self.open = None;
        let by_descriptor = format!("/proc/self/fd/{}", folder.as_raw_fd());
        crate::removal::remove_tree(Path::new(&by_descriptor), OsStr::from_bytes(name))
    }

    /// A folder over a folder only changes its metadata; over anything else of this layer it is new, and hides what
    /// lower layers had there, since that was gone already.
    fn directory(&mut self, path: &[u8], metadata: Metadata) -> Result<(), StoreError> {
        if let Some(placed) = self.placement.get_mut(path)
            && let EntryKind::Directory { .. } = placed.kind
        {
            set_explicit(&mut placed.kind);
            placed.metadata = metadata;
            return Ok(());
        }
        let replaces = self.placement.get(path).is_some();
        self.clear(path)?;
        self.make_folder(path)?;
        self.placement.insert(path, EntryKind::Directory { opaque: replaces, implied: false }, metadata);
        Ok(())
    }

    fn symlink(&mut self, path: &[u8], target: &[u8], metadata: Metadata) -> Result<(), StoreError> {
        if target.is_empty() || target.len() > super::entry::MAX_PATH {
            return Ok(refuse(path, "a symbolic link without a target, or with one that is too long")?);
        }
        self.clear(path)?;
        let place = OsStr::from_bytes(target);
        self.in_folder("create", path, |folder, name| rustix::fs::symlinkat(place, folder, name))?;
        // Linux has no mode for them; what the archive says would only make equal layers differ.
        let metadata = Metadata { mode: 0o777, ..metadata };
        self.set_metadata(path, &metadata)?;
        self.placement.insert(path, EntryKind::Symlink { target: place.to_owned() }, metadata);
        Ok(())
    }

    /// Devices and pipes. Whether a device can be opened is the sandbox's business (A54).
    fn special(&mut self, path: &[u8], kind: EntryKind, metadata: Metadata) -> Result<(), StoreError> {
        self.clear(path)?;
        let (file_type, device) = match kind {
            EntryKind::CharDevice { major, minor } => (FileType::CharacterDevice, (major, minor)),
            EntryKind::BlockDevice { major, minor } => (FileType::BlockDevice, (major, minor)),
            _ => (FileType::Fifo, (0, 0)),
        };
        self.make_device(path, file_type, rustix::fs::makedev(device.0, device.1))?;
        if !self.is_left_out(&kind) {
            self.set_metadata(path, &metadata)?;
        }
        self.placement.insert(path, kind, metadata);
        Ok(())
    }

    /// Whether the tree lacks what the index has.
    fn is_left_out(&self, kind: &EntryKind) -> bool {
        self.without_devices && matches!(kind, EntryKind::CharDevice { .. } | EntryKind::BlockDevice { .. })
    }

    /// Nobody can make devices in a user namespace: there steps do not see them. The index has them, and so has what is sent
    /// elsewhere.
    fn make_device(&mut self, path: &[u8], file_type: FileType, device: u64) -> Result<(), StoreError> {
        match self.make_node(path, file_type, device) {
            Err(StoreError::Io { source, .. }) if device != 0 && source.kind() == ErrorKind::PermissionDenied => {
                self.without_devices = true;
                self.hide_beneath(path)
            }
            other => other,
        }
    }

    /// Keeps what lower layers have at the place of a device from being seen. A mark that hides nothing would itself be
    /// listed in a folder that is not merged, and could neither be read nor removed.
    fn hide_beneath(&mut self, path: &[u8]) -> Result<(), StoreError> {
        match self.placement.beneath(path)? {
            Some(_) => self.make_whiteout(path),
            None => Ok(()),
        }
    }

    fn make_whiteout(&mut self, path: &[u8]) -> Result<(), StoreError> {
        let markers = self.markers;
        self.in_folder("mark as deleted", path, |folder, name| markers.put_whiteout(folder.as_fd(), name.as_bytes()))
    }

    fn make_node(&mut self, path: &[u8], file_type: FileType, device: u64) -> Result<(), StoreError> {
        let mode = Mode::RUSR | Mode::WUSR;
        self.in_folder("create", path, |folder, name| rustix::fs::mknodat(folder, name, file_type, mode, device))
    }

    /// A further name of something in this layer, or of something below, which then becomes part of this layer. Target
    /// paths are relative to the root, with or without a slash; nothing resolves them against a working directory (A48).
    fn hard_link(&mut self, path: &[u8], target: &[u8]) -> Result<(), StoreError> {
        let components = entry_name::clean(target)?;
        let Some((name, parent)) = components.split_last() else {
            return Ok(refuse(path, "a hard link to the root")?);
        };
        let place = self.placement.folder(parent, Missing::EndsTheWay)?;
        let Some(place) = place else { return Ok(refuse(path, "a hard link to nothing")?) };
        let target = join_path(&self.followed(place).path, name);
        if target != path && target.starts_with(path) && target[path.len()] == b'/' {
            return Ok(refuse(path, "a hard link to something in what it replaces")?);
        }
        self.bring_up(path, &target)?;
        if target == path {
            return Ok(());
        }
        self.clear(path)?;
        let placed = self.placement.get(&target).expect("it was there or brought up").clone();
        if self.is_left_out(&placed.kind) {
            self.hide_beneath(path)?;
            self.placement.link(path, placed);
            return Ok(());
        }
        let (target_parent, target_name) = split_path(&target).expect("the root was refused");
        let error = || StoreError::os("link", self.tree.join(OsStr::from_bytes(path)));
        let from = folder::open_folder(self.root.as_fd(), target_parent).map_err(error())?;
        let target_name = OsStr::from_bytes(target_name);
        self.in_folder("link", path, |folder, name| {
            rustix::fs::linkat(&from, target_name, folder, name, AtFlags::empty())
        })?;
        self.placement.link(path, placed);
        Ok(())
    }

    /// Sees to it that the target of a hard link is in this layer: links across layers cannot be.
    fn bring_up(&mut self, link: &[u8], target: &[u8]) -> Result<(), StoreError> {
        match self.placement.see(target)? {
            Seen::Own(placed) if matches!(placed.kind, EntryKind::Directory { .. }) => {
                Ok(refuse(link, "a hard link to a folder")?)
            }
            Seen::Own(_) => Ok(()),
            Seen::Nothing => Ok(refuse(link, "a hard link to nothing")?),
            Seen::Lower(found) => {
                let parent: Vec<&[u8]> = target.split(|byte| *byte == b'/').collect();
                self.make_way(&parent[..parent.len() - 1])?;
                self.copy_up(link, target, found)
            }
        }
    }

    fn copy_up(&mut self, link: &[u8], path: &[u8], found: Found) -> Result<(), StoreError> {
        let metadata = found.node.metadata;
        match found.node.kind {
            NodeKind::File { size } => {
                let mut source = self.placement.lower().open_found(path, found.layer)?;
                let read = |buffer: &mut [u8]| source.read(buffer).map_err(UnpackError::Source);
                self.file(path, metadata, size, read).map_err(|error| match error {
                    UnpackError::Store(error) => error,
                    UnpackError::Source(error) => StoreError::io("read", OsStr::from_bytes(path))(error),
                })
            }
            NodeKind::Symlink { target } => self.symlink(path, target.as_bytes(), metadata),
            NodeKind::CharDevice { major, minor } => {
                self.special(path, EntryKind::CharDevice { major, minor }, metadata)
            }
            NodeKind::BlockDevice { major, minor } => {
                self.special(path, EntryKind::BlockDevice { major, minor }, metadata)
            }
            NodeKind::Fifo => self.special(path, EntryKind::Fifo, metadata),
            _ => Ok(refuse(link, "a hard link to a folder")?),
        }
    }

    /// Runs a call on the folder of a path and the last component, which is all that the call may name.
    fn in_folder<T>(
        &mut self,
        action: &'static str,
        path: &[u8],
        call: impl FnOnce(&OwnedFd, &OsStr) -> Result<T, Errno>,
    ) -> Result<T, StoreError> {
        let error = StoreError::os(action, self.tree.join(OsStr::from_bytes(path)));
        let (parent, name) = split_path(path).expect("the root is never made");
        if self.open.as_ref().is_none_or(|(open, _)| open != parent) {
            let folder = match folder::open_folder(self.root.as_fd(), parent) {
                Ok(folder) => folder,
                Err(errno) => return Err(error(errno)),
            };
            self.open = Some((parent.to_vec(), folder));
        }
        let (_, folder) = self.open.as_ref().expect("it was opened above");
        call(folder, OsStr::from_bytes(name)).map_err(error)
    }

    fn set_metadata(&mut self, path: &[u8], metadata: &Metadata) -> Result<(), StoreError> {
        self.in_folder("set metadata of", path, |folder, name| {
            apply::set_all(folder.as_fd(), name.as_bytes(), metadata)?;
            apply::set_mtime(folder, name.as_bytes(), metadata.mtime)
        })
    }

    /// Settles what depends on all entries, then the metadata of folders, whose times change with every name in them.
    fn finish(mut self) -> Result<LayerIndex, StoreError> {
        self.settle_later()?;
        self.open_root_by_names()?;
        self.settle_deletions()?;
        self.placement.settle_folders()?;
        self.drop_needless_folders()?;
        self.writers.finish()?;
        self.finish_folders()?;
        Ok(self.placement.into_index()?)
    }

    /// Folders that were made on the way to a link and hold nothing.
    fn drop_needless_folders(&mut self) -> Result<(), StoreError> {
        let mut needed: HashSet<Vec<u8>> = HashSet::new();
        let mut needless = Vec::new();
        for (path, placed) in self.placement.entries().rev() {
            let empty = matches!(placed.kind, EntryKind::Directory { implied: true, opaque: false });
            match split_path(&path) {
                Some(_) if empty && !needed.contains(&path) => needless.push(path),
                Some((parent, _)) => drop(needed.insert(parent.to_vec())),
                None => {}
            }
        }
        for path in needless {
            self.clear(&path)?;
        }
        Ok(())
    }

    fn finish_folders(&mut self) -> Result<(), StoreError> {
        // Whatever this descriptor points to may have been removed or replaced.
        self.open = None;
        for (path, placed) in self.placement.entries().rev() {
            let EntryKind::Directory { opaque, .. } = placed.kind else { continue };
            let error = || StoreError::os("set metadata of", self.tree.join(OsStr::from_bytes(&path)));
            let folder = folder::open_folder(self.root.as_fd(), &path).map_err(error())?;
            apply::set_all(folder.as_fd(), b".", &placed.metadata).map_err(error())?;
            if opaque {
                let marker = OsString::from(self.markers.opaque());
                xattr::set(folder.as_fd(), b".", &marker, b"y").map_err(error())?;
            }
            apply::set_mtime(&folder, b"", placed.metadata.mtime).map_err(error())?;
        }
        Ok(())
    }
}

/// Attributes that layers hold, on kinds that can have them: Linux has `user.*` on files and folders only.
fn portable(metadata: Metadata, kind: &TarKind) -> Metadata {
    let carries_user = matches!(kind, TarKind::File { .. } | TarKind::Directory);
    let keep = |(name, value): (OsString, Vec<u8>)| {
        let kept = xattr::keeps_xattr(name.as_bytes()) && (carries_user || !name.as_bytes().starts_with(b"user."));
        let value = if kept { xattr::portable_value(name.as_bytes(), value) } else { None };
        value.map(|value| (OsString::from_vec(name.into_vec()), value))
    };
    Metadata { xattrs: metadata.xattrs.into_iter().filter_map(keep).collect(), ..metadata }
}

fn set_explicit(kind: &mut EntryKind) {
    if let EntryKind::Directory { implied, .. } = kind {
        *implied = false;
    }
}

fn refuse<T>(path: &[u8], reason: &'static str) -> Result<T, LayerError> {
    Err(LayerError::RefusedEntry { path: shown(path), reason })
}
