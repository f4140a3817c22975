use crate::background::Background;
use crate::collect::names_in;
use crate::database::Database;
use crate::ids::LayerId;
use crate::layers::{Folds, Remembered};
use crate::lock::LockGuard;
use crate::owner::{self, DeadOwner, Owner, ProcessIdentity};
use crate::rebuild::{Rebuilt, rebuild};
use crate::removal::remove_tree;
use crate::scratch::ScratchDir;
use crate::{StoreError, format};
use forge_image::Digest;
use rusqlite::Transaction;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What all parts of an opened store share.
pub(crate) struct Opened {
    root: PathBuf,
    /// Open from the start, so that a sync reports every write error since then and not only those that nobody saw.
    folder: File,
    boot_id: String,
    database: Database,
    rebuilt: Option<Rebuilt>,
    /// Made with the first lease, scratch folder or blob: commands that only read leave no trace.
    owner: Mutex<Option<Owner>>,
    scratch_count: AtomicU64,
    remembered: Remembered,
    background: Background,
    folds: Folds,
}

/// What a process has in a store as long as it lives, for somebody who removes that if it is killed: the folder, then the mark.
pub struct Belongings {
    /// Of its scratch folders.
    pub folder: PathBuf,
    /// Where the lock is. A file that nobody locks is that of a process which was killed.
    pub mark: PathBuf,
    /// Held as long as any copy of this is open.
    pub lock: OwnedFd,
}

impl Opened {
    /// Opens a store; where its database is lost, a new one is made of what is on disk.
    pub(crate) fn open(root: &Path) -> Result<Arc<Self>, StoreError> {
        let root = format::prepare(root)?;
        match Self::open_prepared(root.clone(), None) {
            Err(error) if error.is_lost_database() => {
                let still_lost = || matches!(Self::open_prepared(root.clone(), None), Err(e) if e.is_lost_database());
                let rebuilt = rebuild(&root, still_lost)?;
                Self::open_prepared(root, rebuilt)
            }
            opened => opened,
        }
    }

    fn open_prepared(root: PathBuf, rebuilt: Option<Rebuilt>) -> Result<Arc<Self>, StoreError> {
        let database = Database::open(&root.join("forge.db"))?;
        database.shorten_wal()?;
        let boot_id = owner::boot_id()?;
        let folder = File::open(&root).map_err(StoreError::io("open", &root))?;
        let opened = Self {
            root,
            folder,
            boot_id,
            database,
            rebuilt,
            owner: Mutex::new(None),
            scratch_count: AtomicU64::new(0),
            remembered: Remembered::default(),
            background: Background::default(),
            folds: Folds::default(),
        };
        opened.reap()?;
        Ok(Arc::new(opened))
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn boot_id(&self) -> &str {
        &self.boot_id
    }

    pub(crate) fn rebuilt(&self) -> Option<&Rebuilt> {
        self.rebuilt.as_ref()
    }

    pub(crate) fn database(&self) -> &Database {
        &self.database
    }

    /// What this process knows of layers.
    pub(crate) fn remembered(&self) -> &Remembered {
        &self.remembered
    }

    /// Work on scratch folders that nobody waits for.
    pub(crate) fn background(&self) -> &Background {
        &self.background
    }

    /// The trees made of several layers.
    pub(crate) fn folds(&self) -> &Folds {
        &self.folds
    }

    pub(crate) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs").join(digest.algorithm()).join(digest.hex())
    }

    pub(crate) fn layer_path(&self, id: &LayerId) -> PathBuf {
        // High stacks ask for hundreds with every step: one piece of memory, with room for the tree's name.
        let length = self.root.as_os_str().len() + "/layers/".len() + id.as_str().len() + "/index".len();
        let mut path = PathBuf::with_capacity(length);
        path.extend([self.root.as_path(), Path::new("layers"), Path::new(id.as_str())]);
        path
    }

    pub(crate) fn cache_mount_path(&self, name: &str) -> PathBuf {
        self.root.join("cache-mounts").join(name)
    }

    pub(crate) fn leases_path(&self) -> PathBuf {
        self.root.join("leases")
    }

    pub(crate) fn lock(&self, name: &str) -> Result<LockGuard, StoreError> {
        LockGuard::wait(&self.root.join("locks"), name)
    }

    pub(crate) fn try_lock(&self, name: &str) -> Result<Option<LockGuard>, StoreError> {
        LockGuard::try_now(&self.root.join("locks"), name)
    }

    pub(crate) fn try_lock_shared(&self, name: &str) -> Result<Option<LockGuard>, StoreError> {
        LockGuard::try_shared(&self.root.join("locks"), name)
    }

    /// One syncfs of the store's file system; an error that the kernel met in the background is reported here once.
    pub(crate) fn sync_files(&self) -> Result<(), StoreError> {
        rustix::fs::syncfs(&self.folder).map_err(StoreError::os("sync the file system of", &self.root))
    }

    /// The id under which this process holds things, registered at the first call.
    pub(crate) fn owner_id(&self) -> Result<String, StoreError> {
        if let Some(owner) = &*self.owner.lock().unwrap_or_else(PoisonError::into_inner) {
            return Ok(owner.id.clone());
        }
        self.write_as_owner(|_, id| Ok(id.to_owned()))
    }

    /// Writes atomically what belongs to this process, given the id under which it holds things; registers it where that was not
    /// done, in the same transaction.
    pub(crate) fn write_as_owner<T>(
        &self,
        act: impl FnOnce(&Transaction<'_>, &str) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut slot = self.owner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(owner) = &*slot {
            let id = owner.id.clone();
            drop(slot);
            return self.database.write(|transaction| act(transaction, &id));
        }
        let owner = Owner::new(&self.leases_path())?;
        let process = ProcessIdentity::own(&self.boot_id)?;
        let value = self.database.write(|transaction| {
            owner.insert(transaction, &process)?;
            act(transaction, &owner.id)
        })?;
        *slot = Some(owner);
        Ok(value)
    }

    /// What belongs to this process; nothing where it holds nothing.
    pub(crate) fn belongings(&self) -> Result<Option<Belongings>, StoreError> {
        let slot = self.owner.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(owner) = &*slot else { return Ok(None) };
        let mark = self.leases_path().join(&owner.id);
        let lock = owner.lock().map_err(StoreError::io("copy the lock", &mark))?;
        Ok(Some(Belongings { folder: self.scratch_folder(&owner.id), mark, lock }))
    }

    fn scratch_folder(&self, owner: &str) -> PathBuf {
        self.root.join("scratch").join(owner)
    }

    pub(crate) fn scratch(self: &Arc<Self>, purpose: &str) -> Result<ScratchDir, StoreError> {
        ScratchDir::create(self.clone(), purpose)
    }

    /// A path that nobody else uses in this owner's scratch folder, which exists when this returns.
    pub(crate) fn scratch_path(&self, purpose: &str) -> Result<PathBuf, StoreError> {
        let owner = self.owner_id()?;
        let folder = self.scratch_folder(&owner);
        let number = self.scratch_count.fetch_add(1, Ordering::Relaxed);
        if crate::scratch::create_private(&folder)? {
            crate::scratch::spread_children(&folder);
        }
        // The purpose is for people who look at the folder; it must not become a path of its own.
        let purpose: String = purpose.chars().filter(char::is_ascii_alphanumeric).take(24).collect();
        // Where ext4 places a folder follows from its name: each process has other names, see `spread_children`.
        let random = &owner[..8];
        Ok(folder.join(format!("{number}-{purpose}-{random}")))
    }

    /// Removes leases and scratch folders of processes that are dead. Costs one query and a look into one folder when there are
    /// none.
    pub(crate) fn reap(&self) -> Result<(), StoreError> {
        let own = self.owner.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|owner| owner.id.clone());
        let others = self.database.read(|connection| owner::others(connection, own.as_deref()))?;
        let leases = self.leases_path();
        for (id, process) in &others {
            if let Some(dead) = DeadOwner::find(&leases, id, Some(process), &self.boot_id)? {
                self.clear_up(&dead)?;
            }
        }
        // Those that died before they had a record.
        let is_known = |id: &String| own.as_ref() == Some(id) || others.iter().any(|(other, _)| other == id);
        for id in names_in(&leases)?.into_iter().filter(|id| !is_known(id)) {
            if let Some(dead) = DeadOwner::find(&leases, &id, None, &self.boot_id)? {
                self.clear_up(&dead)?;
            }
        }
        Ok(())
    }

    /// Files first, the row last: whoever is interrupted here leaves the row for the next one.
    pub(crate) fn clear_up(&self, dead: &DeadOwner) -> Result<(), StoreError> {
        remove_tree(&self.root.join("scratch"), &dead.id)?;
        self.database.write(|transaction| {
            transaction.prepare_cached("DELETE FROM owners WHERE id = ?1")?.execute([&dead.id])?;
            Ok(())
        })?;
        let path = self.leases_path().join(&dead.id);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(StoreError::io("remove", &path)(error)),
            _ => Ok(()),
        }
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.background.finish();
        let owner = self.owner.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(owner) = owner {
            // What fails here is cleared up by the next process that opens the store: it finds the owner dead.
            let _ = remove_tree(&self.root.join("scratch"), &owner.id);
            let _ = self.database.write(|transaction| {
                transaction.prepare_cached("DELETE FROM owners WHERE id = ?1")?.execute([&owner.id])?;
                Ok(())
            });
        }
    }
}
