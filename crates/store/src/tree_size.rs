use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, openat, statat};
use rustix::io::{Errno, Result};
use std::collections::HashSet;
use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::path::Path;

/// Folders further down are not counted: each open one costs a descriptor.
const DEPTH: usize = 256;

/// The bytes of all regular files of a tree, each once, whatever number of names it has. Links are not followed.
pub(crate) fn tree_size(root: &Path) -> Result<u64> {
    let mut sum = Sum::default();
    let stat = statat(CWD, root, AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Ok(stat.st_size.max(0).cast_unsigned());
    }
    let mut open = vec![Level::new(openat(CWD, root, FOLDER, Mode::empty())?)?];
    while let Some(level) = open.last_mut() {
        let Some(name) = level.names.pop() else {
            open.pop();
            continue;
        };
        let stat = match statat(&level.folder, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => continue,
            other => other?,
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => sum.add(&stat),
            FileType::Directory if open.len() < DEPTH => {
                let level = open.last().expect("the loop holds a level");
                match openat(&level.folder, &name, FOLDER, Mode::empty()) {
                    Ok(folder) => open.push(Level::new(folder)?),
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::ACCESS) => {}
                    Err(errno) => return Err(errno),
                }
            }
            _ => {}
        }
    }
    Ok(sum.bytes)
}

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

struct Level {
    folder: OwnedFd,
    names: Vec<CString>,
}

impl Level {
    fn new(folder: OwnedFd) -> Result<Self> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&folder)? {
            let name = entry?.file_name().to_owned();
            if !matches!(name.to_bytes(), b"." | b"..") {
                names.push(name);
            }
        }
        Ok(Self { folder, names })
    }
}

#[derive(Default)]
struct Sum {
    bytes: u64,
    seen: HashSet<(u64, u64)>,
}

impl Sum {
    fn add(&mut self, stat: &rustix::fs::Stat) {
        if stat.st_nlink < 2 || self.seen.insert((stat.st_dev, stat.st_ino)) {
            self.bytes = self.bytes.saturating_add(stat.st_size.max(0).cast_unsigned());
        }
    }
}
