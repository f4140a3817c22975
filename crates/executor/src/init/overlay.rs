//! Overlays that are attached nowhere.

use super::mounts::{FsOption, new_filesystem};
use super::rights::Rights;
use crate::message::Failure;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Result;
use rustix::mount::MountAttrFlags;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

/// An overlay to be.
pub(super) struct Overlay<'a> {
    /// From the highest to the lowest.
    pub(super) lower: Vec<&'a Path>,
    /// What is changed, and the kernel's folder beside it. Without them it takes two layers at least: the kernel's rule.
    pub(super) changes: Option<(&'a Path, &'a Path)>,
    /// Whether changes may be lost when the machine fails.
    pub(super) volatile: bool,
}

impl Overlay<'_> {
    /// Makes it.
    pub(super) fn mount(&self, rights: &Rights, attributes: MountAttrFlags) -> std::result::Result<OwnedFd, Failure> {
        let lower = self.lower.iter().map(|path| FsOption::Text("lowerdir+", path)).collect();
        let refused = match self.made_of(lower, rights, attributes) {
            Err(failure @ Failure::System { errno: libc::EINVAL, .. }) => failure,
            made => return made,
        };
        match self.by_descriptors(rights, attributes) {
            None | Some(Err(Failure::System { errno: libc::EINVAL, .. })) => Err(refused),
            Some(made) => made,
        }
    }

    fn made_of(
        &self,
        lower: Vec<FsOption<'_>>,
        rights: &Rights,
        attributes: MountAttrFlags,
    ) -> std::result::Result<OwnedFd, Failure> {
        let mut options = options(rights);
        options.extend(lower);
        if let Some((upper, work)) = &self.changes {
            options.extend([FsOption::Text("upperdir", upper), FsOption::Text("workdir", work)]);
        }
        if self.volatile {
            options.push(FsOption::Flag("volatile"));
        }
        new_filesystem("overlay", &options, attributes)
    }

    /// The same for Linux before 6.7, which wants all layers in one option of at most 255 bytes without a comma: numbers of open
    /// descriptors, looked up in the folder that has them. That is enough for 60 layers, above which the store folds
    /// them. `None` if there are more.
    fn by_descriptors(
        &self,
        rights: &Rights,
        attributes: MountAttrFlags,
    ) -> Option<std::result::Result<OwnedFd, Failure>> {
        const MAX_VALUE: usize = 255;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = |path: &Path| openat(CWD, path, flags, Mode::empty());
        let layers: Vec<_> = self.lower.iter().map(|path| open(path)).collect::<Result<_>>().ok()?;
        let numbers: Vec<_> = layers.iter().map(|layer| layer.as_raw_fd().to_string()).collect();
        let lower = numbers.join(":");
        if lower.len() > MAX_VALUE {
            return None;
        }
        let here = open(Path::new(".")).ok()?;
        rustix::process::chdir("/proc/self/fd").ok()?;
        let made = self.made_of(vec![FsOption::Text("lowerdir", Path::new(&lower))], rights, attributes);
        rustix::process::fchdir(&here).ok()?;
        Some(made)
    }
}

/// What every overlay is mounted with. Markers are `user.*` attributes where `trusted.*` ones cannot be set; these imply
/// `metacopy=off` and a `redirect_dir` that the kernel does not let one name (`ovl_fs_params_verify`).
fn options(rights: &Rights) -> Vec<FsOption<'static>> {
    let off = |name: &&'static str| FsOption::Text(name, Path::new("off"));
    match rights.trusted {
        true => ["index", "metacopy", "redirect_dir", "xino"].iter().map(off).collect(),
        false => ["index", "xino"].iter().map(off).chain([FsOption::Flag("userxattr")]).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// What a kernel before 6.7 is asked for gives the same tree on any other one.
    #[test]
    #[expect(clippy::print_stdout, reason = "a skipped test says so")]
    fn privileged_layers_can_be_numbers_of_descriptors() {
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED (needs root): layers as numbers");
            return;
        }
        // SAFETY: the folder that this thread goes to is its own then, and memory and descriptors stay shared.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS) }
            .expect("a working directory of its own");
        let folder = tempfile::tempdir().expect("folder");
        let part = |name: &str| folder.path().join(name);
        for name in ["high, with a comma: and more", "low", "upper", "work"] {
            fs::create_dir(part(name)).expect("layer");
            fs::write(part(name).join("which"), name).expect("file");
        }
        fs::remove_file(part("upper").join("which")).expect("an empty upper folder");
        let (high, low, upper, work) = (part("high, with a comma: and more"), part("low"), part("upper"), part("work"));
        let overlay = Overlay { lower: vec![&high, &low], changes: Some((&upper, &work)), volatile: true };
        let before = std::env::current_dir().expect("a working directory");
        let mount =
            overlay.by_descriptors(&Rights::find(), MountAttrFlags::empty()).expect("few layers").expect("mounts");
        assert_eq!(std::env::current_dir().expect("a working directory"), before);
        let which = openat(&mount, "which", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).expect("a file");
        assert_eq!(std::io::read_to_string(fs::File::from(which)).expect("text"), "high, with a comma: and more");

        let many = Overlay { lower: vec![&low; 200], ..overlay };
        assert!(many.by_descriptors(&Rights::find(), MountAttrFlags::empty()).is_none());
    }
}
