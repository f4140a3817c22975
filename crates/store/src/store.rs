use crate::collect::{self, Collected, Pace};
use crate::opened::{Belongings, Opened};
use crate::usage::{self, Usage};
use crate::verify;
use crate::{
    Blobs, CacheMounts, Finding, Images, LayerId, Layers, Lease, LockGuard, Rebuilt, Repair, ScratchDir, StoreError,
    UnpackLimits, Verification, VerifyDepth, layer_rows,
};
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

/// A store that is open in this process. Clones share it.
#[derive(Clone)]
pub struct Store {
    pub(crate) opened: Arc<Opened>,
    blobs: Blobs,
    layers: Layers,
    images: Images,
}

impl Store {
    /// Opens the store in a folder, and makes it there if the folder is absent or empty.
    ///
    /// Several processes may do this at once. What dead processes left behind is removed. Where the database is lost, a new one
    /// is made of what is on disk: see [`Store::rebuilt`].
    ///
    /// # Errors
    /// The folder belongs to somebody else, holds something else, lies on a network file system, was written by a later
    /// forge or under other user id maps; or the file system or the database failed.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let opened = Opened::open(root)?;
        let blobs = Blobs::new(opened.clone());
        let layers = Layers::new(opened.clone(), blobs.clone());
        let images = Images::new(opened.clone(), blobs.clone());
        Ok(Self { opened, blobs, layers, images })
    }

    /// The same store, with other limits for layers and archives that are unpacked.
    #[must_use]
    pub fn with_unpack_limits(self, limits: UnpackLimits) -> Self {
        Self { layers: self.layers.with_limits(limits), ..self }
    }

    /// The store's folder, links resolved.
    pub fn root(&self) -> &Path {
        self.opened.root()
    }

    /// What became of the records, where opening found the database lost and made a new one.
    pub fn rebuilt(&self) -> Option<&Rebuilt> {
        self.opened.rebuilt()
    }

    /// Bytes by digest.
    pub fn blobs(&self) -> &Blobs {
        &self.blobs
    }

    /// File trees by id.
    pub fn layers(&self) -> &Layers {
        &self.layers
    }

    /// Images by id and by name.
    pub fn images(&self) -> &Images {
        &self.images
    }

    /// The folders that steps keep between builds.
    pub fn cache_mounts(&self) -> CacheMounts {
        CacheMounts::new(self.opened.clone())
    }

    /// Begins a lease; `purpose` is for people to read.
    ///
    /// # Errors
    /// The database failed.
    pub fn lease(&self, purpose: &str) -> Result<Lease, StoreError> {
        Lease::create(self.opened.clone(), purpose)
    }

    /// Waits for the exclusive lock of that name, which may be any text.
    ///
    /// # Errors
    /// The file system failed.
    pub fn lock(&self, name: &str) -> Result<LockGuard, StoreError> {
        self.opened.lock(name)
    }

    /// The exclusive lock of that name, or nothing when somebody has it.
    ///
    /// # Errors
    /// The file system failed.
    pub fn try_lock(&self, name: &str) -> Result<Option<LockGuard>, StoreError> {
        self.opened.try_lock(name)
    }

    /// Makes a private folder; `purpose` becomes part of its name.
    ///
    /// # Errors
    /// The file system failed.
    pub fn scratch(&self, purpose: &str) -> Result<ScratchDir, StoreError> {
        self.opened.scratch(purpose)
    }

    /// What belongs to this process, for somebody who removes it if this process is killed; nothing where it holds nothing.
    ///
    /// # Errors
    /// There are too many descriptors.
    pub fn belongings(&self) -> Result<Option<Belongings>, StoreError> {
        self.opened.belongings()
    }

    /// Counts what the store holds.
    ///
    /// # Errors
    /// The database failed.
    pub fn usage(&self) -> Result<Usage, StoreError> {
        usage::usage(&self.opened)
    }

    /// The bytes of each layer: its files, and the blobs that hold the same.
    ///
    /// # Errors
    /// The database failed.
    pub fn layer_bytes(&self) -> Result<HashMap<LayerId, u64>, StoreError> {
        usage::layer_bytes(&self.opened)
    }

    /// The layers that running processes hold now.
    ///
    /// # Errors
    /// The database failed.
    pub fn leased_layers(&self) -> Result<HashSet<LayerId>, StoreError> {
        usage::leased_layers(&self.opened)
    }

    /// The type of the file system that the store lies on, `ext4`, as `/proc/self/mountinfo` names it.
    ///
    /// # Errors
    /// The mount table cannot be read.
    pub fn file_system(&self) -> Result<String, StoreError> {
        crate::file_system::name_of(self.root())
    }

    /// Removes layers and blobs that no image, no lease and no entry of `roots` needs; with `dry_run` only names them.
    ///
    /// `roots` is what cache records hold. A record saved after `roots` was read does not protect its layers once the
    /// lease of its build has ended: whoever uses a record must see that [`Lease::hold_layer`] says `true`.
    ///
    /// # Errors
    /// The file system or the database failed; what was named by then may be gone.
    pub fn collect(&self, roots: &HashSet<LayerId>, dry_run: bool) -> Result<Collected, StoreError> {
        match dry_run {
            true => collect::plan(&self.opened, roots),
            false => collect::collect(&self.opened, roots, Pace::Swift),
        }
    }

    /// The same in small pieces, each of a few milliseconds, as long as `go_on` says so; the next collection goes on
    /// from there.
    ///
    /// # Errors
    /// As [`Store::collect`].
    pub fn collect_while(&self, roots: &HashSet<LayerId>, go_on: &dyn Fn() -> bool) -> Result<Collected, StoreError> {
        collect::collect(&self.opened, roots, Pace::Gentle(go_on))
    }

    /// Makes everything in the store survive a power cut: one `syncfs`, then one synced commit.
    ///
    /// [`Images::tag`] does this itself. Whoever acknowledges something without a name calls it before.
    ///
    /// # Errors
    /// The kernel could not write everything.
    pub fn sync(&self) -> Result<(), StoreError> {
        layer_rows::make_durable(&self.opened, |_| Ok(()))
    }

    /// Names the running boot of the kernel. A cache record of another boot may name layers whose bytes were lost in a
    /// power cut: [`Store::verify_layer`] tells.
    pub fn boot_id(&self) -> &str {
        self.opened.boot_id()
    }

    /// Whether a layer is whole as far as can be told without reading every file: its record is there, its index is the
    /// one that was written, its tree exists, and its bytes survived any power cut since they were written.
    ///
    /// # Errors
    /// The file system or the database failed.
    pub fn verify_layer(&self, id: &LayerId) -> Result<bool, StoreError> {
        layer_rows::verify(&self.opened, id)
    }

    /// Looks at everything that has a record, and for what has none; holds all of it meanwhile.
    ///
    /// # Errors
    /// The database failed, or a folder of the store cannot be listed. A file that cannot be read is a finding.
    pub fn verify(&self, depth: VerifyDepth) -> Result<Verification, StoreError> {
        verify::verify(&self.opened, depth)
    }

    /// Takes out what [`Store::verify`] found damaged, with the images and names that are nothing without it.
    ///
    /// # Errors
    /// The file system or the database failed; nothing is dropped by halves.
    pub fn repair(&self, findings: &[Finding]) -> Result<Repair, StoreError> {
        verify::repair(&self.opened, findings)
    }
}
