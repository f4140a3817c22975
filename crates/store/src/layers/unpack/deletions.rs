//! What a layer deletes of the layers below: settled when all of its entries are known.

use super::super::apply;
use super::super::entry::{EntryKind, Metadata, join_path, split_path};
use super::super::placement::Missing;
use super::Unpacker;
use crate::StoreError;

/// A deletion whose way led through a link of a lower layer, which this layer may yet replace: it is settled when all
/// entries are known, so that their order does not matter (A52).
pub(super) struct LaterDeletion {
    folder: Vec<Vec<u8>>,
    what: Deletion,
}

#[derive(Clone)]
pub(super) enum Deletion {
    Name(Vec<u8>),
    Contents,
}

impl Unpacker<'_> {
    pub(super) fn delete(&mut self, components: &[&[u8]], what: &Deletion) -> Result<(), StoreError> {
        self.ways.clear();
        let Some(place) = self.placement.folder(components, Missing::EndsTheWay)? else { return Ok(()) };
        if place.is_provisional() {
            let folder = components.iter().map(|name| name.to_vec()).collect();
            self.later.push(LaterDeletion { folder, what: what.clone() });
            return Ok(());
        }
        self.delete_at(&place.path, what)
    }

    fn delete_at(&mut self, folder: &[u8], what: &Deletion) -> Result<(), StoreError> {
        match what {
            Deletion::Name(name) => Ok(self.placement.hide(&join_path(folder, name))?),
            Deletion::Contents => {
                self.placement.refuse_followed(folder, false)?;
                let components: Vec<&[u8]> =
                    folder.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).collect();
                self.make_way(&components)?;
                let placed = self.placement.get_mut(folder).expect("the way was made");
                if let EntryKind::Directory { opaque, .. } = &mut placed.kind {
                    *opaque = true;
                }
                Ok(())
            }
        }
    }

    /// Settles what could not be before.
    pub(super) fn settle_later(&mut self) -> Result<(), StoreError> {
        for LaterDeletion { folder, what } in std::mem::take(&mut self.later) {
            let components: Vec<&[u8]> = folder.iter().map(Vec::as_slice).collect();
            if let Some(place) = self.placement.folder(&components, Missing::EndsTheWay)? {
                self.delete_at(&place.path, &what)?;
            }
        }
        Ok(())
    }

    /// Overlayfs reads no marker on the root: what it would hide is deleted name by name.
    pub(super) fn open_root_by_names(&mut self) -> Result<(), StoreError> {
        let root = self.placement.get_mut(b"").expect("there always is a root");
        let EntryKind::Directory { opaque, .. } = &mut root.kind else { return Ok(()) };
        if !std::mem::take(opaque) {
            return Ok(());
        }
        let lower = self.placement.lower().root()?.and_then(|found| found.level);
        let Some(level) = lower else { return Ok(()) };
        let mut names = Vec::new();
        self.placement.lower().open_level(&level)?.each_child(|name, _| names.push(name.to_vec()))?;
        names.iter().try_for_each(|name| Ok(self.placement.hide(name)?))
    }

    /// A deletion becomes a whiteout where lower layers have something that is still to be seen, an opaque folder where
    /// this layer has a folder of that name, and else nothing: whiteouts that hide nothing would show in folders that
    /// are not merged.
    pub(super) fn settle_deletions(&mut self) -> Result<(), StoreError> {
        for path in self.placement.hidden() {
            let (parent, _) = split_path(&path).expect("the root is never deleted");
            if let Some(placed) = self.placement.get_mut(&path) {
                if let EntryKind::Directory { opaque, implied } = &mut placed.kind {
                    *opaque = true;
                    if std::mem::take(implied) {
                        placed.metadata = apply::default_root();
                    }
                }
                continue;
            }
            if self.placement.beneath(&path)?.is_some() {
                let components: Vec<&[u8]> =
                    parent.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).collect();
                self.make_way(&components)?;
                self.make_whiteout(&path)?;
                self.placement.insert(&path, EntryKind::Whiteout, Metadata::default());
            }
        }
        Ok(())
    }
}
