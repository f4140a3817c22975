use super::{changes, fill, tree};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

/// Folders end in `/`, links show where to, whiteouts have `-`, names of one node their first one.
fn shown(top: &Path) -> Vec<String> {
    let mut all = Vec::new();
    let mut pending = vec![top.to_owned()];
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let (name, data) =
                (path.strip_prefix(top).unwrap().display().to_string(), path.symlink_metadata().unwrap());
            all.push(match data.file_type() {
                kind if kind.is_dir() => format!("{name}/ {:o}", data.mode() & 0o7777),
                kind if kind.is_symlink() => format!("{name} -> {}", fs::read_link(&path).unwrap().display()),
                kind if kind.is_file() => format!("{name} {:?} {}", fs::read_to_string(&path).unwrap(), data.nlink()),
                _ => format!("-{name}"),
            });
            if data.is_dir() {
                pending.push(path);
            }
        }
    }
    all.sort();
    all
}

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn whiteout(path: &Path) {
    let kind = rustix::fs::FileType::CharacterDevice;
    rustix::fs::mknodat(rustix::fs::CWD, path, kind, rustix::fs::Mode::empty(), 0).unwrap();
}

/// Anybody may make a whiteout, so this needs no root.
#[test]
fn layers_become_one_tree_and_changes_an_upper_folder() {
    let top = tempfile::tempdir().unwrap();
    let at = |name: &str| top.path().join(name);
    write(&at("one/a/x"), "x");
    write(&at("one/a/y"), "y");
    write(&at("one/b/z"), "z");
    write(&at("one/kept"), "k");
    write(&at("one/gone"), "g");
    fs::hard_link(at("one/kept"), at("one/a/linked")).unwrap();
    symlink("a/x", at("one/link")).unwrap();
    write(&at("two/a/x"), "x of two");
    fs::set_permissions(at("two/a"), PermissionsExt::from_mode(0o2750)).unwrap();
    whiteout(&at("two/gone"));
    write(&at("two/b"), "no folder any more");
    fs::create_dir(at("upper")).unwrap();
    let tree = at("tree");
    fill::fill(&[at("two"), at("one")], Some(&at("upper")), &tree).map_err(|f| f.told("x")).unwrap();
    let merged = [
        "a/ 2750",
        "a/linked \"k\" 2",
        "a/x \"x of two\" 1",
        "a/y \"y\" 1",
        "b \"no folder any more\" 1",
        "kept \"k\" 2",
        "link -> a/x",
    ];
    assert_eq!(shown(&tree), merged);
    let before = tree::record(&tree).map_err(|f| f.told("x")).unwrap();

    // Nothing is done: nothing is changed.
    changes::collect(&tree, &before, &at("upper")).map_err(|f| f.told("x")).unwrap();
    assert!(shown(&at("upper")).is_empty());

    fs::write(tree.join("a/y"), "Y").unwrap();
    fs::rename(tree.join("b"), tree.join("c")).unwrap();
    fs::create_dir_all(tree.join("new/deep")).unwrap();
    write(&tree.join("new/deep/file"), "n");
    fs::remove_file(tree.join("a/linked")).unwrap();
    rustix::fs::lsetxattr(tree.join("new/deep/file"), "user.forge.whiteout", b"y", rustix::fs::XattrFlags::empty())
        .unwrap();
    changes::collect(&tree, &before, &at("upper")).map_err(|f| f.told("x")).unwrap();
    // The node that lost a name was touched.
    let changed = [
        "-a/linked",
        "-b",
        "a/ 2750",
        "a/y \"Y\" 1",
        "c \"no folder any more\" 1",
        "kept \"k\" 1",
        "new/ 755",
        "new/deep/ 755",
        "new/deep/file \"n\" 1",
    ];
    assert_eq!(shown(&at("upper")), changed);
    let mut buffer = [0; 8];
    assert!(
        rustix::fs::lgetxattr(at("upper/new/deep/file"), "user.forge.whiteout", &mut buffer[..]).is_err(),
        "a forged mark"
    );
}

#[test]
fn a_folder_that_is_made_again_hides_the_first_one() {
    let top = tempfile::tempdir().unwrap();
    let at = |name: &str| top.path().join(name);
    write(&at("one/a/x"), "1");
    write(&at("one/a/y"), "2");
    fs::create_dir(at("upper")).unwrap();
    fill::fill(&[at("one")], Some(&at("upper")), &at("tree")).map_err(|f| f.told("x")).unwrap();
    let before = tree::record(&at("tree")).map_err(|f| f.told("x")).unwrap();
    fs::rename(at("tree/a"), at("tree/b")).unwrap();
    write(&at("tree/a/x"), "1");
    changes::collect(&at("tree"), &before, &at("upper")).map_err(|f| f.told("x")).unwrap();
    assert_eq!(shown(&at("upper")), ["a/ 755", "a/x \"1\" 1", "b/ 755", "b/x \"1\" 1", "b/y \"2\" 1"]);
    let folder = fs::File::open(at("upper")).unwrap();
    assert!(tree::has_mark(std::os::fd::AsFd::as_fd(&folder), b"a", &tree::OPAQUE).unwrap());
}

/// The number of a folder that was removed is given to the next one.
#[test]
fn a_folder_that_is_removed_and_made_again_hides_the_first_one() {
    let top = tempfile::tempdir().unwrap();
    let at = |name: &str| top.path().join(name);
    write(&at("one/a/x"), "1");
    fs::create_dir(at("upper")).unwrap();
    fill::fill(&[at("one")], Some(&at("upper")), &at("tree")).map_err(|f| f.told("x")).unwrap();
    let before = tree::record(&at("tree")).map_err(|f| f.told("x")).unwrap();
    fs::remove_dir_all(at("tree/a")).unwrap();
    write(&at("tree/a/y"), "2");
    changes::collect(&at("tree"), &before, &at("upper")).map_err(|f| f.told("x")).unwrap();
    assert_eq!(shown(&at("upper")), ["a/ 755", "a/y \"2\" 1"]);
    let folder = fs::File::open(at("upper")).unwrap();
    assert!(tree::has_mark(std::os::fd::AsFd::as_fd(&folder), b"a", &tree::OPAQUE).unwrap());
}

/// Seen to fail with files taken for untouched that have the same size and time.
#[test]
fn a_file_that_is_rewritten_with_its_old_time_is_changed() {
    let top = tempfile::tempdir().unwrap();
    let at = |name: &str| top.path().join(name);
    write(&at("one/x"), "1");
    fs::create_dir(at("upper")).unwrap();
    fill::fill(&[at("one")], Some(&at("upper")), &at("tree")).map_err(|f| f.told("x")).unwrap();
    let before = tree::record(&at("tree")).map_err(|f| f.told("x")).unwrap();
    let time = fs::metadata(at("tree/x")).unwrap().modified().unwrap();
    fs::write(at("tree/x"), "2").unwrap();
    fs::File::options().write(true).open(at("tree/x")).unwrap().set_modified(time).unwrap();
    changes::collect(&at("tree"), &before, &at("upper")).map_err(|f| f.told("x")).unwrap();
    assert_eq!(shown(&at("upper")), ["x \"2\" 1"]);
}
