//! Layers: their trees, indexes and blobs.
//!
//! Reading order: [`LayerEntry`], [`LayerIndex`] (what a layer says); [`MergedTree`] (what a stack shows);
//! [`ActiveLayer`] and `commit` (from changes to a layer); [`PackWriter`], [`Pack`], `listed`, `expand` (layers without a
//! tree), `told` (layers that are not here); `blob`, `emit`, `tar_writer`, `chunks`, `compress`, `codec`, `members` (from a layer
//! to its tar); `foreign`, `adopt`, `decompress`, `tar_reader`, `pax`, `entry_name`, `placement`, `unpack` (from a stranger's tar to a
//! layer); `folder`, `xattr`, `apply` (the system calls).

mod active;
mod adopt;
mod apply;
mod blob;
mod check;
mod chunk_index;
mod chunks;
mod codec;
mod commit;
mod compress;
mod contents;
mod decompress;
mod detach;
mod emit;
mod entry;
mod entry_name;
mod error;
mod estargz;
mod expand;
mod extract;
mod fold;
mod folder;
mod foreign;
mod index;
mod index_format;
mod index_writer;
mod known;
mod limits;
mod listed;
mod members;
mod origin;
mod owners;
mod pack;
mod pack_check;
mod pack_format;
mod pack_writer;
mod pax;
mod placement;
mod remote;
mod restack;
mod root;
mod tar_reader;
mod tar_writer;
mod told;
mod tree;
mod unpack;
mod xattr;
mod zstd_chunked;

pub use active::ActiveLayer;
pub use adopt::Adoption;
pub use check::TreeFault;
pub use entry::{EntryKind, LayerEntry, Metadata, path_order};
pub use error::LayerError;
pub use extract::Extracted;
pub(crate) use fold::Folds;
pub use fold::LowerDirs;
pub use index::LayerIndex;
pub use known::{KnownFile, KnownFiles};
pub use limits::UnpackLimits;
pub(crate) use origin::Origin;
pub use pack::{Pack, PackedBytes};
pub(crate) use pack_check::{check_layer, has_contents};
pub use pack_writer::{PackContents, PackWriter, PackedEntry};
pub(crate) use remote::record_of;
pub(crate) use root::Remembered;
pub use told::TableOfContents;
pub use tree::{MergedTree, TreeEntry, TreeFile, TreeFolder, TreeKind};
pub(crate) use xattr::lacks_own_marks;

use index_writer::IndexSums;
use listed::{ListedTree, PackedList};
use owners::Owners;

use crate::background::LAYER_FOLDERS;
use crate::layer_rows::{self, Published};
use crate::opened::Opened;
use crate::remote_rows::RemoteLayer;
use crate::{Blobs, ContentDigest, FileTimes, LayerId, LayerOutline, LayerRecord, Lease, ScratchDir, StoreError};
use forge_image::{ChainId, DiffId};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The layers of a store.
#[derive(Clone)]
pub struct Layers {
    opened: Arc<Opened>,
    blobs: Blobs,
    limits: UnpackLimits,
    /// How many layers were begun.
    prepared: Arc<AtomicU64>,
}

/// How long before its row a layer's index may have been written, to be of the same time.
const NEAR: Duration = Duration::from_secs(10);

fn whole_second(moment: SystemTime) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(moment.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())
}

impl Layers {
    pub(crate) fn new(opened: Arc<Opened>, blobs: Blobs) -> Self {
        Self { opened, blobs, limits: UnpackLimits::default(), prepared: Arc::default() }
    }

    /// The same layers, with other limits for what is unpacked.
    #[must_use]
    pub fn with_limits(&self, limits: UnpackLimits) -> Self {
        Self { limits, ..self.clone() }
    }

    /// Refuses that many bytes that were unpacked from so many packed ones, by the limits of layers.
    ///
    /// # Errors
    /// They are too many.
    pub fn check_unpacked(&self, unpacked: u64, packed: u64) -> Result<(), StoreError> {
        Ok(self.limits.check_bytes(unpacked, packed)?)
    }

    /// What the store knows of a layer.
    ///
    /// # Errors
    /// The database failed.
    pub fn get(&self, id: &LayerId) -> Result<Option<LayerRecord>, StoreError> {
        layer_rows::get(&self.opened, id)
    }

    /// The digests of what layers say, in their order; `None` for one that is not there.
    ///
    /// # Errors
    /// The database failed.
    pub fn contents(&self, ids: &[LayerId]) -> Result<Vec<Option<ContentDigest>>, StoreError> {
        let remembered = self.opened.remembered();
        let mut contents: Vec<_> = ids.iter().map(|id| remembered.content(id)).collect();
        let unknown: Vec<usize> = (0..ids.len()).filter(|place| contents[*place].is_none()).collect();
        let asked: Vec<LayerId> = unknown.iter().map(|place| ids[*place]).collect();
        if !asked.is_empty() {
            for (place, content) in unknown.into_iter().zip(layer_rows::contents(&self.opened, &asked)?) {
                content.iter().for_each(|content| remembered.remember_content(&ids[place], *content));
                contents[place] = content;
            }
        }
        Ok(contents)
    }

    /// Says when a layer was made that came from elsewhere.
    ///
    /// # Errors
    /// The database failed.
    pub fn date(&self, id: &LayerId, made: SystemTime) -> Result<(), StoreError> {
        layer_rows::date(&self.opened, id, made)?;
        let known = layer_rows::outlines(&self.opened, std::slice::from_ref(id))?.pop().flatten();
        if known.is_some_and(|known| known.stored == whole_second(made)) {
            // The rest of the moment is for `stored`, which does without where it cannot be kept.
            let _ = File::open(self.path(id).join("index")).and_then(|index| index.set_modified(made));
        }
        Ok(())
    }

    /// What images say of a layer; `None` where it is not there.
    ///
    /// # Errors
    /// The database failed.
    pub fn outline(&self, id: &LayerId) -> Result<Option<LayerOutline>, StoreError> {
        Ok(self.outlines(std::slice::from_ref(id))?.pop().flatten())
    }

    /// What images say of some layers, in their order; `None` for one that is not there.
    ///
    /// # Errors
    /// The database failed.
    pub fn outlines(&self, ids: &[LayerId]) -> Result<Vec<Option<LayerOutline>>, StoreError> {
        let outlines = layer_rows::outlines(&self.opened, ids)?.into_iter().zip(ids);
        let moment = |(outline, id): (Option<LayerOutline>, _)| {
            outline.map(|outline| LayerOutline { stored: self.moment(id, outline.stored), ..outline })
        };
        Ok(outlines.map(moment).collect())
    }

    /// The moment in a second at which a layer was made: the database knows the second, and the index of a layer that was
    /// made here the moment.
    fn moment(&self, id: &LayerId, second: SystemTime) -> SystemTime {
        let written = std::fs::metadata(self.path(id).join("index")).and_then(|index| index.modified()).ok();
        // It is written shortly before the row is. One that was written later, or long ago, is of another time.
        let near = |moment: &SystemTime| {
            let (before, after) = (second.checked_sub(NEAR), second.checked_add(Duration::from_secs(1)));
            before.is_some_and(|before| before <= *moment) && after.is_some_and(|after| *moment < after)
        };
        written.filter(near).unwrap_or(second)
    }

    /// How many bytes the files of some layers have, each link group once; a layer that is gone has none.
    ///
    /// # Errors
    /// The database failed.
    pub fn bytes(&self, ids: &[LayerId]) -> Result<Vec<u64>, StoreError> {
        layer_rows::bytes(&self.opened, ids)
    }

    /// The layers that were unpacked for exactly this stack of tars, lowest first, all of them held by the lease.
    ///
    /// # Errors
    /// The database failed.
    pub fn find_chain(&self, diff_ids: &[DiffId], lease: &Lease) -> Result<Option<Vec<LayerId>>, StoreError> {
        let mut layers = Vec::with_capacity(diff_ids.len());
        for height in 1..=diff_ids.len() {
            let chain = ChainId::of(&diff_ids[..height]).expect("the stack has a layer");
            match layer_rows::find_by_chain(&self.opened, &chain)? {
                Some(layer) if lease.hold_layer(&layer)? => layers.push(layer),
                _ => return Ok(None),
            }
        }
        Ok(Some(layers))
    }

    /// The entries of a layer.
    ///
    /// # Errors
    /// No such layer, or its index is damaged.
    pub fn index(&self, id: &LayerId) -> Result<LayerIndex, StoreError> {
        Ok(LayerIndex::decode(&self.index_bytes(id)?)?)
    }

    fn index_bytes(&self, id: &LayerId) -> Result<Vec<u8>, StoreError> {
        let path = self.path(id).join("index");
        match std::fs::read(&path) {
            Ok(bytes) => Ok(bytes),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => self.no_files(id),
            Err(error) => Err(StoreError::io("read", &path)(error)),
        }
    }

    /// What a stack of layers, lowest first, looks like when it is mounted.
    ///
    /// # Errors
    /// A layer is not in the store.
    pub fn tree(&self, layers: &[LayerId]) -> Result<MergedTree, StoreError> {
        let roots = layers.iter().rev().map(|id| self.root(id).map(Arc::new));
        Ok(MergedTree::of(roots.collect::<Result<_, _>>()?))
    }

    /// The same where layers may be absent. What their tables of contents told is known ([`Layers::tell`]); whoever looks at
    /// anything else of them is told [`StoreError::LayerAbsent`] then.
    ///
    /// # Errors
    /// A layer is not known to the store.
    pub fn known_tree(&self, layers: &[LayerId]) -> Result<MergedTree, StoreError> {
        let root = |id: &LayerId| match self.root(id) {
            Err(StoreError::LayerAbsent { layer, repository }) => {
                let told = self.opened.remembered().told(id);
                let absent = root::AbsentLayer { layer, repository: *repository, told };
                Ok(root::Root::of_absent(self.tree_folder(id), absent))
            }
            root => root,
        };
        let roots = layers.iter().rev().map(|id| root(id).map(Arc::new));
        Ok(MergedTree::of(roots.collect::<Result<_, _>>()?))
    }

    /// Where a layer is read: its tree if it has one, else its index.
    fn root(&self, id: &LayerId) -> Result<root::Root, StoreError> {
        let (remembered, path) = (self.opened.remembered(), || self.tree_folder(id));
        if let Some(root) = remembered.known_root(id) {
            return Ok(root);
        }
        // Its tree may be there by now, and says the same.
        if let Some(list) = remembered.known_list(id) {
            return Ok(root::Root::of_list(path(), ListedTree::new(self.clone(), *id, list)));
        }
        if let Some(root) = remembered.root(id, path())? {
            return Ok(root);
        }
        let list = || match self.packed(id)? {
            Some((index, pack)) => Ok(PackedList::new(id, index, pack)),
            None => self.no_files(id),
        };
        let list = ListedTree::new(self.clone(), *id, remembered.list(id, list)?);
        Ok(root::Root::of_list(path(), list))
    }

    /// The trees of a stack of layers, given lowest first, as an overlay wants them: top-most first. Those of a high
    /// stack are fewer than its layers, see `fold`; they stay as long as what is returned. Packed layers get theirs now; the
    /// layers must be held by a lease.
    ///
    /// # Errors
    /// A layer is not in the store, or the file system failed.
    pub fn lower_dirs(&self, layers: &[LayerId]) -> Result<LowerDirs, StoreError> {
        LowerDirs::new(self.mounted_tree(&self.mounted(layers)?)?)
    }

    /// Removes, beside whatever follows, the trees that were made for high stacks and that nobody mounts or reads now. Who needs
    /// one again has it made again.
    pub fn forget_folds(&self) {
        self.opened.folds().forget();
    }

    /// Begins a layer over its parents, lowest first. The parents must be held by a lease until it is committed.
    ///
    /// # Errors
    /// A parent is not in the store, or the file system failed.
    pub fn prepare(&self, parents: &[LayerId]) -> Result<ActiveLayer, StoreError> {
        let lower_dirs = self.lower_dirs(parents)?;
        // What no tree has, since it cannot be made here, is known of each layer alone.
        let is_whole = Owners::of_this_process().are_all();
        let lower = if is_whole { lower_dirs.tree().clone() } else { self.tree(parents)? };
        let scratch = self.layer_folders()?;
        let staged = scratch.path().join("layer");
        let (upper, work) = (staged.join("tree"), scratch.path().join("work"));
        apply::copy_root(&lower, &upper)?;
        let merged = lower.under(root::Root::open(upper.clone())?);
        let parents = parents.to_vec();
        let times = FileTimes::default();
        Ok(ActiveLayer { staged, upper, work, lower_dirs, parents, lower, merged, times, scratch })
    }

    /// Makes a layer of what changed: entries proved equal to the lower ones, by metadata and bytes, are dropped, the
    /// index is written and the tree moved into place. An empty difference is a layer with no entries.
    ///
    /// No process may run in it and nothing be mounted from it any more: the digest is that of the bytes as they are now.
    ///
    /// # Errors
    /// A name that layers cannot hold ([`LayerError::ReservedName`], [`LayerError::PathTooLong`]), or the file system or
    /// the database failed.
    pub fn commit(&self, active: ActiveLayer, lease: &Lease) -> Result<LayerRecord, StoreError> {
        self.commit_known(active, &KnownFiles::default(), lease)
    }

    /// The same, where what is in the files is known already.
    ///
    /// # Errors
    /// As with [`Layers::commit`].
    pub fn commit_known(
        &self,
        active: ActiveLayer,
        known: &KnownFiles,
        lease: &Lease,
    ) -> Result<LayerRecord, StoreError> {
        let index = commit::diff(&active.upper, &active.lower, known, active.times)?;
        let record = self.record_of_index(&index, active.times);
        self.publish(&active.staged, &index, &record, None, lease)?;
        active.scratch.renew();
        Ok(record)
    }

    /// A scratch folder with those of a layer in it, made ahead where layers are made one after the other.
    fn layer_folders(&self) -> Result<ScratchDir, StoreError> {
        let background = self.opened.background();
        if self.prepared.fetch_add(1, Ordering::Relaxed) > 0 {
            let ready = background.take_prepared();
            background.prepare(|| self.opened.scratch_path("layer"))?;
            if let Some(path) = ready {
                return Ok(ScratchDir::of(self.opened.clone(), path));
            }
        }
        let scratch = self.opened.scratch("layer")?;
        for folder in LAYER_FOLDERS {
            crate::scratch::create_private(&scratch.path().join(folder))?;
        }
        Ok(scratch)
    }

    /// Removes a layer that this lease alone holds and nothing else can have come to know: one that was just made and
    /// turned out to be the same as another. What somebody else may need stays for the next collection.
    ///
    /// # Errors
    /// The database or the file system failed.
    pub fn discard(&self, id: &LayerId, lease: &Lease) -> Result<(), StoreError> {
        match layer_rows::discard(&self.opened, id, lease)? {
            true => crate::collect::empty_trash(&self.opened),
            false => Ok(()),
        }
    }

    fn record_of_index(&self, index: &LayerIndex, times: FileTimes) -> LayerRecord {
        let sums = IndexSums { entries: index.entries().len(), changes: index.changes(), bytes: index.bytes() };
        self.record_of(index.content_digest(&times), sums, times)
    }

    fn record_of(&self, content: ContentDigest, sums: IndexSums, times: FileTimes) -> LayerRecord {
        LayerRecord {
            id: LayerId::of_new_layer(),
            content,
            times,
            bytes: sums.bytes,
            entries: sums.changes,
            diff_id: None,
            foreign: false,
            blobs: Vec::new(),
        }
    }

    fn publish(
        &self,
        staged: &Path,
        index: &LayerIndex,
        record: &LayerRecord,
        chain: Option<&ChainId>,
        lease: &Lease,
    ) -> Result<Published, StoreError> {
        self.write_beside(staged, index, record, chain)?;
        self.publish_written(staged, record, chain, lease)
    }

    /// The same, where everything is written already.
    fn publish_written(
        &self,
        staged: &Path,
        record: &LayerRecord,
        chain: Option<&ChainId>,
        lease: &Lease,
    ) -> Result<Published, StoreError> {
        let published = layer_rows::publish(&self.opened, staged, record, chain, lease)?;
        self.opened.remembered().remember_content(&record.id, record.content);
        Ok(published)
    }

    fn tree_folder(&self, id: &LayerId) -> PathBuf {
        let mut path = self.path(id);
        path.push("tree");
        path
    }

    fn write_beside(
        &self,
        staged: &Path,
        index: &LayerIndex,
        record: &LayerRecord,
        chain: Option<&ChainId>,
    ) -> Result<(), StoreError> {
        let path = staged.join("index");
        std::fs::write(&path, index.encode()).map_err(StoreError::io("write", &path))?;
        match record.blobs.iter().find(|blob| blob.foreign) {
            Some(foreign) => Origin::new(foreign, chain).write(staged),
            None => Ok(()),
        }
    }

    fn tree_path(&self, id: &LayerId) -> Result<PathBuf, StoreError> {
        let path = self.tree_folder(id);
        if path.is_dir() { Ok(path) } else { self.expand(id, path) }
    }

    /// Makes the tree of a packed layer, once for all who ask.
    fn expand(&self, id: &LayerId, path: PathBuf) -> Result<PathBuf, StoreError> {
        let _turn = self.opened.lock(&format!("tree {id}"))?;
        if path.is_dir() {
            return Ok(path);
        }
        let Some((index, pack)) = self.packed(id)? else { return self.no_files(id) };
        let scratch = self.opened.scratch("expand")?;
        let staged = scratch.path().join("tree");
        crate::scratch::create_private(&staged)?;
        expand::expand(&index, &pack, self.sibling(id).as_ref(), &staged)?;
        std::fs::rename(&staged, &path).map_err(StoreError::io("move into place", &path))?;
        Ok(path)
    }

    /// The tree of the last layer of the same paths. Where it is gone, or going, its files are written anew.
    fn sibling(&self, id: &LayerId) -> Option<expand::Sibling> {
        let last = std::fs::read_to_string(self.path(id).join(pack::FOLDER).join(pack::LAST)).ok()?;
        let last = last.parse().ok()?;
        expand::Sibling::open(self.index(&last).ok()?, &self.tree_folder(&last))
    }

    fn path(&self, id: &LayerId) -> PathBuf {
        self.opened.layer_path(id)
    }

    fn no_files<T>(&self, id: &LayerId) -> Result<T, StoreError> {
        match self.remote(id)? {
            Some(RemoteLayer { layer, repository, .. }) => {
                Err(StoreError::LayerAbsent { layer, repository: Box::new(repository) })
            }
            None => Err(StoreError::LayerNotFound { layer: *id }),
        }
    }
}
