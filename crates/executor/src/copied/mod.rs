//! File systems without overlayfs: the layers are copied into one folder, and afterwards what became different of it is put
//! where an overlay would have put it.
//!
//! Needed where overlayfs takes no changes: on an overlay, which the root of most containers is, and where mounts are
//! forbidden. It costs a copy of the whole stack for each container; where the file system can share bytes between files
//! ([`rustix::fs::ioctl_ficlone`]) only of its names. Hard links would be cheaper and wrong: who writes into a file that is
//! linked writes into the layer.

mod changes;
mod fill;
mod placed;
mod tree;

use crate::{ExecutorError, MountSource, RootFs, SandboxSpec};
use placed::Placed;
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use tree::Record;

/// `f_type` of overlayfs.
const OVERLAYFS_SUPER_MAGIC: u64 = 0x794c_7630;

/// A copy that a container changes.
struct Copied {
    tree: PathBuf,
    before: Record,
    /// Where the changes go; `None` where they are thrown away.
    upper: Option<PathBuf>,
}

/// All copies of a container. Dropping them removes what no scratch folder of the caller's holds.
#[derive(Default)]
pub(crate) struct Copies {
    all: Vec<Copied>,
    placed: Vec<Placed>,
    own_folder: Option<PathBuf>,
}

/// Why an overlay cannot be mounted with that upper folder, as words to follow a colon. What is wrong with a specification is
/// no such reason.
pub(crate) fn refusal(upper: &Path) -> Option<String> {
    let folder = std::fs::File::open(upper).ok()?;
    is_on_overlay(&folder).then(|| "the store lies on an overlay, on which no other one keeps changes".to_owned())
}

fn is_on_overlay(folder: impl AsFd) -> bool {
    // The kernel's field is signed and as wide as a word.
    rustix::fs::fstatfs(folder).is_ok_and(|found| found.f_type as u64 & 0xffff_ffff == OVERLAYFS_SUPER_MAGIC)
}

/// The upper folder that decides whether overlays can be mounted, if there is any overlay.
pub(crate) fn upper_of(spec: &SandboxSpec) -> Option<&Path> {
    match &spec.root {
        RootFs::Overlay { upper, .. } => Some(upper),
        RootFs::Directory(_) => spec.mounts.iter().find_map(|mount| match &mount.source {
            MountSource::Overlay { changes: Some(changes), .. } => Some(&*changes.upper),
            _ => None,
        }),
    }
}

impl Copies {
    /// Puts a copy in the place of each overlay.
    pub(crate) fn replace(spec: &mut SandboxSpec, runtime: &Path, id: &str) -> Result<Self, ExecutorError> {
        let mut copies = Self::default();
        let folder = match &spec.root {
            RootFs::Overlay { work, .. } => work.clone(),
            RootFs::Directory(_) => copies.own(runtime, id)?.to_owned(),
        };
        if let RootFs::Overlay { lower, upper, .. } = &spec.root {
            let tree = copies.add(lower, Some(upper), folder.join("root"))?;
            spec.root = RootFs::Directory(tree);
        }
        for (number, mount) in spec.mounts.iter_mut().enumerate() {
            let MountSource::Overlay { lower, changes, path } = &mount.source else { continue };
            let upper = changes.as_ref().map(|changes| &*changes.upper);
            let root = copies.add(lower, upper, folder.join(format!("mount-{number}")))?;
            mount.source = MountSource::BindBeneath { root, path: path.clone() };
        }
        Ok(copies)
    }

    /// Puts into the copies what cannot be mounted, and gives the listening sides of its sockets.
    pub(crate) fn place(&mut self, spec: &mut SandboxSpec) -> Result<Vec<OwnedFd>, ExecutorError> {
        let (RootFs::Directory(tree), Some(root)) = (&spec.root, placed::root_of(&self.all)) else {
            let what = "a sandbox of the machine's own programs, where forge may mount nothing,";
            return Err(ExecutorError::Unsupported { what: what.into() });
        };
        let aside = root.parent().unwrap_or(root).to_owned();
        let mounts = std::mem::take(&mut spec.mounts);
        placed::place_all(tree, (&mounts, &self.all), spec.stubs, &aside, &mut self.placed)
    }

    fn own(&mut self, runtime: &Path, id: &str) -> Result<&Path, ExecutorError> {
        let path = runtime.join(format!("copies-{id}"));
        std::fs::create_dir(&path)
            .map_err(|error| ExecutorError::system(format!("create {}", path.display()), error))?;
        Ok(self.own_folder.insert(path))
    }

    fn add(&mut self, lower: &[PathBuf], upper: Option<&Path>, tree: PathBuf) -> Result<PathBuf, ExecutorError> {
        let filled = fill::fill(lower, upper, &tree).and_then(|()| tree::record(&tree));
        let before = filled.map_err(|failed| failed.told("copy layers to"))?;
        self.all.push(Copied { tree: tree.clone(), before, upper: upper.map(Path::to_owned) });
        Ok(tree)
    }

    /// Brings the changes where they belong. Nothing may run in the copies any more, nor be mounted in them.
    pub(crate) fn settle(&mut self) -> Result<(), ExecutorError> {
        while let Some(placed) = self.placed.pop() {
            placed.take_out()?;
        }
        for Copied { tree, before, upper } in self.all.drain(..) {
            if let Some(upper) = upper {
                changes::collect(&tree, &before, &upper).map_err(|failed| failed.told("collect the changes of"))?;
            }
        }
        Ok(())
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        if let Some(folder) = &self.own_folder {
            // What cannot be removed is in nobody's way.
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

/// A system call that failed, and the place.
struct Failed {
    path: PathBuf,
    errno: Errno,
}

impl Failed {
    fn told(self, action: &str) -> ExecutorError {
        ExecutorError::system(format!("{action} {}", self.path.display()), self.errno)
    }
}

/// What one call here gives.
type Done<T> = Result<T, Failed>;

/// Names the place of a failure.
trait At<T> {
    fn at(self, path: impl AsRef<Path>) -> Done<T>;
}

impl<T> At<T> for rustix::io::Result<T> {
    fn at(self, path: impl AsRef<Path>) -> Done<T> {
        self.map_err(|errno| Failed { path: path.as_ref().to_owned(), errno })
    }
}

impl<T> At<T> for std::io::Result<T> {
    fn at(self, path: impl AsRef<Path>) -> Done<T> {
        self.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO)).at(path)
    }
}

#[cfg(test)]
mod tests;
