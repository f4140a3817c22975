use crate::database::Database;
use crate::{StoreError, file_system, name_files};
use rustix::fs::{FlockOperation, flock};
use std::fs::{DirBuilder, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The layout that this forge writes and reads.
pub(crate) const VERSION: u32 = 4;

const FOLDERS: [&str; 9] =
    ["blobs", "blobs/sha256", "blobs/sha512", "layers", "names", "cache-mounts", "scratch", "locks", "leases"];
/// The journal is there while the database is made, before it writes ahead.
const FILES: [&str; 6] = ["forge.db", "forge.db-journal", "forge.db-wal", "forge.db-shm", "FORMAT", "FORMAT.new"];

/// The `FORMAT` file: who made the store, and in which layout.
///
/// ```text
/// forge-store 4
/// uid-map 0:0:4294967295
/// gid-map 0:0:4294967295
/// ```
/// The maps are those of `/proc/self/uid_map`, entries joined by commas; the uid is that of the folder itself. Lines
/// that a later version adds are ignored as long as the version in the first line is known.
#[derive(Debug, PartialEq, Eq)]
struct Format {
    version: u32,
    id_maps: String,
}

impl Format {
    fn own() -> Result<Self, StoreError> {
        Ok(Self { version: VERSION, id_maps: own_id_maps()? })
    }

    fn to_text(&self) -> String {
        format!("forge-store {}\n{}\n", self.version, self.id_maps)
    }

    /// The version is read before anything else, so that any later layout of the rest is refused by its number.
    fn parse(text: &str, path: &Path) -> Result<Self, StoreError> {
        let damaged = |reason| StoreError::DamagedFormat { path: path.to_owned(), reason };
        let (first, rest) = text.split_once('\n').ok_or_else(|| damaged("it has no complete first line"))?;
        let version =
            first.strip_prefix("forge-store ").ok_or_else(|| damaged("it does not begin with forge-store"))?;
        let version = version.parse().map_err(|_| damaged("its version is not a number"))?;
        if version > VERSION {
            let path = path.parent().unwrap_or(path).to_owned();
            return Err(StoreError::NewerFormat { path, found: version, supported: VERSION });
        }
        let lines = rest.lines().filter(|line| line.starts_with("uid-map ") || line.starts_with("gid-map "));
        let id_maps: Vec<&str> = lines.collect();
        match id_maps.len() {
            2 => Ok(Self { version, id_maps: id_maps.join("\n") }),
            _ => Err(damaged("it does not have one uid-map and one gid-map")),
        }
    }
}

fn own_id_maps() -> Result<String, StoreError> {
    let line = |file: &str, name: &str| {
        let text = std::fs::read_to_string(file).map_err(StoreError::io("read", file))?;
        let entries: Vec<_> = text.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(":")).collect();
        Ok::<_, StoreError>(format!("{name} {}", entries.join(",")))
    };
    // Who cannot set overlayfs's own marks cannot see them either, whatever the maps are.
    let marks = if crate::layers::lacks_own_marks() { " marks-of-users" } else { "" };
    Ok(format!("{}{marks}\n{}", line("/proc/self/uid_map", "uid-map")?, line("/proc/self/gid_map", "gid-map")?))
}

/// Makes the store if there is none, checks it otherwise, and returns its real path.
pub(crate) fn prepare(root: &Path) -> Result<PathBuf, StoreError> {
    require_trusted_link(root)?;
    create_folder(root)?;
    let root = root.canonicalize().map_err(StoreError::io("resolve", root))?;
    require_own(&root)?;
    file_system::require_local(&root)?;
    let path = root.join("FORMAT");
    let format = match read(&path)? {
        Some(format) if format.version < VERSION => upgrade(&root)?,
        Some(format) => format,
        None => create(&root)?,
    };
    let own = own_id_maps()?;
    if format.id_maps != own {
        return Err(StoreError::OtherIdMaps { path: root, recorded: format.id_maps, own });
    }
    tighten(&root)?;
    Ok(root)
}

fn read(path: &Path) -> Result<Option<Format>, StoreError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(Format::parse(&text, path)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StoreError::io("read", path)(error)),
    }
}

/// A link is followed only where the user or root made it (A124): in a shared folder anybody could have.
fn require_trusted_link(root: &Path) -> Result<(), StoreError> {
    let Ok(found) = std::fs::symlink_metadata(root) else { return Ok(()) };
    match found.file_type().is_symlink() && found.uid() != 0 {
        true => require_owner(root, found.uid()),
        false => Ok(()),
    }
}

fn require_own(root: &Path) -> Result<(), StoreError> {
    let found = std::fs::metadata(root).map_err(StoreError::io("inspect", root))?;
    require_owner(root, found.uid())
}

fn require_owner(path: &Path, owner: u32) -> Result<(), StoreError> {
    let own = rustix::process::geteuid().as_raw();
    match owner == own {
        true => Ok(()),
        false => Err(StoreError::ForeignOwner { path: path.to_owned(), owner, own }),
    }
}

fn create_folder(path: &Path) -> Result<(), StoreError> {
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent).map_err(StoreError::io("create", parent))?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result.map_err(StoreError::io("create", path)),
    }
}

/// The folder is the user's own by now; only they can have loosened it.
fn tighten(root: &Path) -> Result<(), StoreError> {
    let mode = std::fs::metadata(root).map_err(StoreError::io("inspect", root))?.mode() & 0o7777;
    match mode == 0o700 {
        true => Ok(()),
        false => set_mode(root, 0o700),
    }
}

fn set_mode(path: &Path, mode: u32) -> Result<(), StoreError> {
    std::fs::set_permissions(path, Permissions::from_mode(mode)).map_err(StoreError::io("set the mode of", path))
}

/// Makes the store under a lock on the root folder itself. `FORMAT` comes last: without it the rest is begun again.
fn create(root: &Path) -> Result<Format, StoreError> {
    let folder = File::open(root).map_err(StoreError::io("open", root))?;
    flock(&folder, FlockOperation::LockExclusive).map_err(StoreError::os("lock", root))?;
    if let Some(format) = read(&root.join("FORMAT"))? {
        return Ok(format);
    }
    require_nothing_foreign(root)?;
    set_mode(root, 0o700)?;
    for name in FOLDERS {
        create_folder(&root.join(name))?;
        // The mode of mkdir(2) is cut by the umask, which may be as tight as 0777.
        set_mode(&root.join(name), 0o700)?;
    }
    // What is in the root itself is synced with FORMAT.
    let blobs = root.join("blobs");
    File::open(&blobs).and_then(|folder| folder.sync_all()).map_err(StoreError::io("sync", &blobs))?;
    create_database(&root.join("forge.db"))?;
    let format = Format::own()?;
    write_durably(root, &folder, &format.to_text())?;
    Ok(format)
}

/// Brings a store of an earlier format up to this one. `FORMAT` comes last here too.
fn upgrade(root: &Path) -> Result<Format, StoreError> {
    let folder = File::open(root).map_err(StoreError::io("open", root))?;
    flock(&folder, FlockOperation::LockExclusive).map_err(StoreError::os("lock", root))?;
    let Some(found) = read(&root.join("FORMAT"))? else {
        return Err(StoreError::NotAStore { path: root.to_owned() });
    };
    if found.version < VERSION {
        for name in FOLDERS {
            create_folder(&root.join(name))?;
        }
        Database::upgrade(&root.join("forge.db"))?;
        name_files::write_all(root, &Database::open(&root.join("forge.db"))?)?;
        rustix::fs::syncfs(&folder).map_err(StoreError::os("sync the file system of", root))?;
        let format = Format { version: VERSION, ..found };
        write_durably(root, &folder, &format.to_text())?;
        return Ok(format);
    }
    Ok(found)
}

fn require_nothing_foreign(root: &Path) -> Result<(), StoreError> {
    for entry in std::fs::read_dir(root).map_err(StoreError::io("list", root))? {
        let name = entry.map_err(StoreError::io("list", root))?.file_name();
        // A file system made for the store has this folder from the start.
        let known = name == "lost+found" || FOLDERS.iter().chain(&FILES).any(|known| name == *known);
        if !known {
            return Err(StoreError::NotAStore { path: root.to_owned() });
        }
    }
    Ok(())
}

/// SQLite would make the file readable for all; the WAL and its index take over the mode of an existing one.
pub(crate) fn create_database(path: &Path) -> Result<(), StoreError> {
    let file = File::options().append(true).create(true).mode(0o600).open(path);
    file.map_err(StoreError::io("create", path))?;
    set_mode(path, 0o600)?;
    Database::create(path)
}

fn write_durably(root: &Path, folder: &File, text: &str) -> Result<(), StoreError> {
    let (new, path) = (root.join("FORMAT.new"), root.join("FORMAT"));
    let write = || {
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.set_permissions(Permissions::from_mode(0o600))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&new, &path)?;
        folder.sync_all()
    };
    write().map_err(StoreError::io("write", &path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expect: &str) {
        let result = Format::parse(text, Path::new("/r/FORMAT")).map(|format| format.to_text());
        assert_eq!(result.unwrap_or_else(|error| error.to_string()), expect);
    }

    #[test]
    fn format_is_read_back_or_refused() {
        let good = "forge-store 4\nuid-map 0:0:1\ngid-map 0:0:1\n";
        check(good, good);
        check("forge-store 4\nuid-map 0:0:1\nlater x\ngid-map 0:0:1\n", good);
        check("forge-store 5\nanything", "/r has store format 5, this forge reads up to 4");
        check("", "/r/FORMAT is damaged: it has no complete first line");
        check("forge-store 1", "/r/FORMAT is damaged: it has no complete first line");
        check("forge-store x\n", "/r/FORMAT is damaged: its version is not a number");
        check("hello\n", "/r/FORMAT is damaged: it does not begin with forge-store");
        check("forge-store 1\nuid-map \n", "/r/FORMAT is damaged: it does not have one uid-map and one gid-map");
    }
}
