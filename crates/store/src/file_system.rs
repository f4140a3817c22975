use crate::StoreError;
use std::path::Path;

/// Magic numbers of statfs(2) for file systems that other machines may write to at the same time. SQLite's WAL needs
/// memory shared by all writers, and flock there is missing or local to one machine. FUSE is among them because
/// virtiofs and sshfs cannot be told from a local FUSE file system.
const SHARED: [(u64, &str); 19] = [
    (0x6969, "NFS"),
    (0x517B, "SMB"),
    (0xFF53_4D42, "CIFS"),
    (0xFE53_4D42, "SMB"),
    (0x0102_1997, "9p"),
    (0x6573_5546, "FUSE or virtiofs"),
    (0x5346_414F, "AFS"),
    (0x6B41_4653, "AFS"),
    (0x00C3_6400, "Ceph"),
    (0x7375_7245, "Coda"),
    (0x564C, "NCP"),
    (0x0BD0_0BD0, "Lustre"),
    (0x0116_1970, "GFS2"),
    (0x7461_636F, "OCFS2"),
    (0x4750_4653, "GPFS"),
    (0x1983_0326, "BeeGFS"),
    (0xAAD7_AAEA, "PanFS"),
    (0x786F_4256, "a VirtualBox shared folder"),
    (0xBACB_ACBC, "a VMware shared folder"),
];

/// Refuses a folder that SQLite and flock cannot protect.
pub(crate) fn require_local(path: &Path) -> Result<(), StoreError> {
    let found = rustix::fs::statfs(path).map_err(StoreError::os("inspect the file system of", path))?;
    match shared(found.f_type as u64) {
        Some(file_system) => Err(StoreError::NetworkFileSystem { path: path.to_owned(), file_system }),
        None => Ok(()),
    }
}

/// The type of the file system under a path: that of the mount with the longest mount point above it.
pub(crate) fn name_of(path: &Path) -> Result<String, StoreError> {
    let table_path = Path::new("/proc/self/mountinfo");
    let table = std::fs::read_to_string(table_path).map_err(StoreError::io("read", table_path))?;
    let path = path.canonicalize().map_err(StoreError::io("find", path))?;
    let mount = |line: &str| {
        // proc(5): the mount point is the fifth field, the type the first one after a lone hyphen.
        let (before, after) = line.split_once(" - ")?;
        let point = before.split(' ').nth(4)?.to_owned();
        let name = after.split(' ').next()?.to_owned();
        path.starts_with(&point).then_some((point.len(), name))
    };
    // Of two mounts on one point the later one is seen.
    let found = table.lines().filter_map(mount).max_by_key(|(length, _)| *length);
    Ok(found.map_or_else(|| "unknown".to_owned(), |(_, name)| name))
}

fn shared(magic: u64) -> Option<&'static str> {
    // The kernel's field is signed and as wide as a word: CIFS's number may arrive sign-extended.
    let magic = magic & 0xFFFF_FFFF;
    SHARED.iter().find(|(number, _)| *number == magic).map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_file_systems_are_told_from_local_ones() {
        let check = |magic: u64, expect: Option<&str>| assert_eq!(shared(magic), expect, "{magic:#x}");
        check(0x6969, Some("NFS"));
        check(0xFFFF_FFFF_FF53_4D42, Some("CIFS"));
        check(0xEF53, None); // ext4
        check(0x9123_683E, None); // btrfs
        check(0x5846_5342, None); // xfs
        check(0x0102_1994, None); // tmpfs
        check(0x794C_7630, None); // overlayfs
    }
}
