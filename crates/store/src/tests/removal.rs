use super::is_root;
use crate::removal::remove_tree;
use rustix::fs::{AtFlags, CWD, IFlags, Mode, OFlags, RenameFlags};
use std::fs::File;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

#[test]
fn anything_is_removed_once_and_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    std::fs::create_dir_all(path.join("t/a/b")).unwrap();
    std::fs::write(path.join("t/a/f"), "x").unwrap();
    std::fs::write(path.join("canary"), "x").unwrap();
    symlink("../../canary", path.join("t/a/link")).unwrap();
    symlink("..", path.join("t/a/up")).unwrap();
    symlink(path.join("canary"), path.join("direct")).unwrap();
    std::fs::set_permissions(path.join("t/a"), std::fs::Permissions::from_mode(0o000)).unwrap();
    for name in ["t", "t", "direct", "missing"] {
        remove_tree(path, name).unwrap();
    }
    remove_tree(&path.join("no such folder"), "x").unwrap();
    assert_eq!(super::names_in(path), ["canary"]);
}

/// 3,000 levels: a path of 9,000 bytes, and three times the usual limit of open files.
#[test]
fn depth_does_not_matter() {
    let folder = tempfile::tempdir().unwrap();
    let name = "deep";
    let mut at = File::open(folder.path()).unwrap();
    for _ in 0..3_000 {
        rustix::fs::mkdirat(&at, name, Mode::RWXU).unwrap();
        at = rustix::fs::openat(&at, name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap().into();
        rustix::fs::openat(&at, "file", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap();
    }
    remove_tree(folder.path(), name).unwrap();
    assert!(super::names_in(folder.path()).is_empty());
}

/// Fails when `open_without_following` opens without NOFOLLOW and NO_SYMLINKS.
#[test]
fn a66_a_folder_exchanged_for_a_link_is_never_followed() {
    let folder = tempfile::tempdir().unwrap();
    let canary = folder.path().join("canary");
    std::fs::create_dir(&canary).unwrap();
    std::fs::write(canary.join("flag"), "x").unwrap();
    for round in 0..60 {
        let name = format!("t{round}");
        let tree = folder.path().join(&name);
        for n in 0..20 {
            std::fs::create_dir_all(tree.join(format!("d{n}/e"))).unwrap();
            symlink(&canary, tree.join(format!("l{n}"))).unwrap();
        }
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| exchange(&tree, &done));
            let result = remove_tree(folder.path(), &name);
            done.store(true, Ordering::Relaxed);
            result.unwrap();
        });
        assert!(canary.join("flag").exists(), "round {round}");
    }
}

fn exchange(tree: &Path, done: &AtomicBool) {
    let Ok(tree) = rustix::fs::open(tree, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()) else { return };
    while !done.load(Ordering::Relaxed) {
        for n in 0..20 {
            let (folder, link) = (format!("d{n}"), format!("l{n}"));
            let _ = rustix::fs::renameat_with(&tree, &folder, &tree, &link, RenameFlags::EXCHANGE);
        }
    }
}

#[test]
fn privileged_immutable_files_are_removed() {
    if !is_root("privileged_immutable_files_are_removed") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("t/a")).unwrap();
    std::fs::write(folder.path().join("t/a/f"), "x").unwrap();
    for path in ["t/a/f", "t/a", "t"] {
        let file = File::open(folder.path().join(path)).unwrap();
        let Ok(flags) = rustix::fs::ioctl_getflags(&file) else { return };
        // tmpfs knows the flags only since Linux 6.6.
        if rustix::fs::ioctl_setflags(&file, flags | IFlags::IMMUTABLE).is_err() {
            return;
        }
    }
    assert!(std::fs::remove_file(folder.path().join("t/a/f")).is_err());
    remove_tree(folder.path(), "t").unwrap();
    assert!(super::names_in(folder.path()).is_empty());
}

/// rmdir(2) refuses a mount point before anything in it is looked at, which alone holds; NO_XDEV stands behind it. Fails
/// when folders are entered before their removal is tried and NO_XDEV is left out.
#[test]
fn privileged_nothing_is_removed_through_a_mount() {
    if !is_root("privileged_nothing_is_removed_through_a_mount") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (canary, target) = (folder.path().join("canary"), folder.path().join("t/mnt"));
    std::fs::create_dir_all(&target).unwrap();
    std::fs::create_dir(&canary).unwrap();
    std::fs::write(canary.join("flag"), "x").unwrap();
    rustix::mount::mount_bind(&canary, &target).unwrap();
    let result = remove_tree(folder.path(), "t");
    let intact = canary.join("flag").exists();
    rustix::mount::unmount(&target, rustix::mount::UnmountFlags::DETACH).unwrap();
    assert!(result.is_err() && intact);
    remove_tree(folder.path(), "t").unwrap();
    assert!(rustix::fs::statat(CWD, &target, AtFlags::empty()).is_err());
}
