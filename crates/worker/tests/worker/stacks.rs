//! Merging trees, and what leads from one to another.

use crate::Test;
use crate::site::{Site, copy_action};
use crate::tree_text;
use forge_cache::{ResultRef, Selector};
use forge_llb::{DiffOp, FileAction, FileInput, FileKind, FileOp, Op};
use forge_store::{FileTimes, TreeKind};
use std::fmt::Write as _;

pub const TESTS: &[Test] = &[
    ("privileged_merged_trees_lie_on_each_other", merged),
    ("privileged_merged_deletions_delete", merged_deletions),
    ("privileged_a_new_folder_hides_only_what_it_replaced", replaced_folders),
    ("privileged_a_folder_with_deletions_alone_is_kept", bare_folders),
    ("privileged_merged_parents_are_those_of_the_new_base", merged_parents),
    ("privileged_a_tree_can_be_merged_twice", merged_twice),
    ("privileged_a_difference_reuses_layers", reused_layers),
    ("privileged_a_difference_of_strangers", strangers),
    ("privileged_a_difference_leads_there", leads_there),
    ("privileged_contexts_can_be_merged_and_compared", contexts),
    ("privileged_a37_linked_copies_replace_links", a37_linked_copies),
    ("privileged_a_linked_copy_is_keyed_apart_from_its_base", linked_keys),
];

fn layer(site: &Site, below: &ResultRef, text: &str) -> ResultRef {
    site.with_layer(below, |upper| tree_text::write(upper, text))
}

fn tree(site: &Site, layers: &[&str]) -> ResultRef {
    layers.iter().fold(ResultRef::scratch(), |below, text| layer(site, &below, text))
}

fn merge(site: &Site, inputs: &[&ResultRef]) -> ResultRef {
    let inputs = inputs.iter().map(|input| (*input).clone()).collect();
    site.run_on(Op::Merge, inputs).unwrap()
}

fn diff(site: &Site, lower: Option<&ResultRef>, upper: Option<&ResultRef>) -> ResultRef {
    let inputs: Vec<ResultRef> = [lower, upper].into_iter().flatten().cloned().collect();
    let op = DiffOp { lower: lower.map(|_| 0), upper: upper.map(|_| inputs.len() - 1) };
    site.run_on(Op::Diff(op), inputs).unwrap()
}

/// What a tree shows, one line a path; times are left out.
pub fn shown(site: &Site, result: &ResultRef) -> String {
    let tree = site.store.layers().tree(result.layers()).unwrap();
    let mut text = String::new();
    let mut todo = match result.layers() {
        [] => Vec::new(),
        _ => vec![std::path::PathBuf::from("/")],
    };
    while let Some(folder) = todo.pop() {
        for entry in tree.children(&folder).unwrap() {
            let path = entry.path.strip_prefix("/").unwrap().display().to_string();
            match &entry.kind {
                TreeKind::Directory => write!(text, "{path}/ {:04o}", entry.mode).unwrap(),
                TreeKind::Symlink { target } => write!(text, "{path} -> {}", target.display()).unwrap(),
                TreeKind::File { .. } => {
                    let bytes = std::fs::read(tree.disk_path(&entry).unwrap()).unwrap();
                    write!(text, "{path} ={} {:04o}", bytes.escape_ascii(), entry.mode).unwrap();
                }
                kind => write!(text, "{path} {kind:?}").unwrap(),
            }
            writeln!(text, " {}:{}", entry.uid, entry.gid).unwrap();
            if entry.is_directory() {
                todo.push(entry.path);
            }
        }
    }
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines.iter().map(|line| line.replace(" 0:0", "").replace(" 0755", "").replace(" 0644", "") + "\n").collect()
}

#[track_caller]
fn check(site: &Site, result: &ResultRef, expected: &str) {
    assert_eq!(shown(site, result), tree_text::trimmed(expected));
}

/// The folder metadata of later trees counts, files and folders take each other's place.
fn merged() {
    let site = Site::new();
    let a = tree(&site, &["d/ 0711\n d/a =1\n x =file\n y/in =\n y/"]);
    let b = tree(&site, &["d/ 0700\n d/b =2\n x/now =folder\n x/\n y =file"]);
    let c = tree(&site, &["d/ 0755\n d/a =3"]);
    check(&site, &merge(&site, &[&a, &b, &c]), "d/\n d/a =3\n d/b =2\n x/\n x/now =folder\n y =file");
    check(&site, &merge(&site, &[&b, &a]), "d/ 0711\n d/a =1\n d/b =2\n x =file\n y/\n y/in =");
    let left = merge(&site, &[&merge(&site, &[&a, &b]), &c]);
    let right = merge(&site, &[&a, &merge(&site, &[&b, &c])]);
    assert_eq!((left.clone(), right), (merge(&site, &[&a, &b, &c]), left));
    // The layers are those of the inputs: nothing is copied.
    let inputs: Vec<_> = [&a, &b, &c].iter().flat_map(|input| input.layers()).cloned().collect();
    assert_eq!(merge(&site, &[&a, &b, &c]).layers(), inputs);
    let nothing = ResultRef::scratch();
    assert_eq!(merge(&site, &[]), nothing);
    assert_eq!(merge(&site, &[&nothing, &a, &nothing]), a);
}

fn merged_deletions() {
    let site = Site::new();
    let base = tree(&site, &["d/keep =K\n d/gone =G\n d/\n o/below =\n o/"]);
    let upper = tree(&site, &["d/gone =2\n d/\n o/old =\n o/"]);
    let removed = site.with_layer(&upper, |upper| {
        let folder = upper.join("d");
        std::fs::create_dir(&folder).unwrap();
        whiteout(&folder.join("gone"));
        opaque(&upper.join("o"));
    });
    check(&site, &merge(&site, &[&base, &removed]), "d/\n d/keep =K\n o/\n o/below =");
}

/// Makes a folder that hides what is below it, as the kernel writes it for this user.
fn opaque(folder: &std::path::Path) {
    std::fs::create_dir(folder).unwrap();
    let name = if crate::rootless::is_asked_for() { "user.overlay.opaque" } else { "trusted.overlay.opaque" };
    rustix::fs::lsetxattr(folder, name, b"y", rustix::fs::XattrFlags::empty()).unwrap();
}

/// A folder that was removed and made again deletes what it had, and nothing that another base has in it.
fn replaced_folders() {
    let site = Site::new();
    let old = tree(&site, &["d/ 0711\n d/a =A\n d/b =B\n d/sub/\n d/sub/x =X\n d/sub/y =Y\n d/keep/\n d/keep/z =Z"]);
    let upper = site.with_layer(&old, |upper| {
        opaque(&upper.join("d"));
        tree_text::write(upper, "d/b =new\n d/link == d/b\n d/sub/y =new\n d/sub/");
    });
    let seen = "d/\n d/b =new\n d/link =new\n d/sub/\n d/sub/y =new";
    check(&site, &upper, seen);
    let new =
        tree(&site, &["d/\n d/a =2\n d/mine =M\n d/sub/\n d/sub/x =2\n d/sub/mine =M\n d/keep/\n d/keep/mine =M"]);
    let rebased = "d/\n d/b =new\n d/link =new\n d/mine =M\n d/sub/\n d/sub/mine =M\n d/sub/y =new";
    check(&site, &merge(&site, &[&new, &upper]), rebased);
    let difference = diff(&site, Some(&old), Some(&upper));
    check(&site, &merge(&site, &[&new, &difference]), rebased);
    check(&site, &merge(&site, &[&old, &difference]), seen);
    assert_eq!(diff(&site, Some(&old), Some(&upper)).layers().len(), 1);
    // What the difference says stays said wherever it is laid first.
    let other = tree(&site, &["other ="]);
    let twice = merge(&site, &[&new, &merge(&site, &[&other, &difference])]);
    check(&site, &twice, &format!("{rebased}\n other ="));
}

/// Where only something that is not there is deleted, the folder would be in no tar.
fn bare_folders() {
    let site = Site::new();
    let old = tree(&site, &["d/ 0711\n d/e/ 0700\n d/e/gone =G"]);
    let removed = site.with_layer(&old, |upper| {
        tree_text::write(upper, "d/ 0711\n d/e/ 0700");
        whiteout(&upper.join("d/e/gone"));
        // As the lower ones are, so that they say nothing by themselves.
        copy_times(&site, &old, upper, &["d/e", "d"]);
    });
    let index = site.store.layers().index(removed.layers().last().unwrap()).unwrap();
    assert!(index.get(b"d/e").unwrap().is_implied());
    let difference = diff(&site, Some(&old), Some(&removed));
    let base = tree(&site, &["f =F"]);
    for result in [merge(&site, &[&base, &difference]), merge(&site, &[&base, &removed])] {
        check(&site, &result, "d/ 0711\n d/e/ 0700\n f =F");
        assert_eq!(site.print(result.layers().last().unwrap()).matches("d/").count(), 3, "the tar has the folders");
    }
}

fn copy_times(site: &Site, from: &ResultRef, to: &std::path::Path, folders: &[&str]) {
    let tree = site.store.layers().tree(from.layers()).unwrap();
    for folder in folders {
        let (seconds, nanos) = tree.lookup(std::path::Path::new(folder)).unwrap().unwrap().mtime;
        let time = std::time::UNIX_EPOCH + std::time::Duration::new(seconds as u64, nanos);
        let times = std::fs::FileTimes::new().set_modified(time);
        std::fs::File::open(to.join(folder)).unwrap().set_times(times).unwrap();
    }
}

fn whiteout(path: &std::path::Path) {
    let (mode, kind) = (rustix::fs::Mode::empty(), rustix::fs::FileType::CharacterDevice);
    rustix::fs::mknodat(rustix::fs::CWD, path, kind, mode, 0).unwrap();
}

/// A folder that a layer has only as a parent is the new base's, with its mode and owner; where that has none, what
/// an unpacker makes of it; where it has something else, the layer's own.
fn merged_parents() {
    let site = Site::new();
    let old = tree(&site, &["tmp/ 1777\n etc/ 0700 1:2\n etc/x/\n l/"]);
    let changed = layer(&site, &old, "tmp/ 1777\n tmp/f =F\n etc/ 0700 1:2\n etc/x/\n etc/x/f =F\n l/\n l/f =F");
    let only = diff(&site, Some(&old), Some(&changed));
    assert_eq!(only.layers(), &changed.layers()[1..]);
    let new = tree(&site, &["tmp/ 0711 5:6\n l -> tmp"]);
    let merged = merge(&site, &[&new, &only]);
    check(&site, &merged, "etc/\n etc/x/\n etc/x/f =F\n l/\n l/f =F\n tmp/ 0711 5:6\n tmp/f =F");
    assert_ne!(merged.layers().last(), only.layers().last());
    // What it says is the same, and so is its tar where the parents are folders.
    let index = |result: &ResultRef| site.store.layers().index(result.layers().last().unwrap()).unwrap();
    let simple = tree(&site, &["tmp/ 0711 5:6"]);
    let twice = merge(&site, &[&simple, &only]);
    assert_eq!(index(&twice).content_digest(&FileTimes::Ignored), index(&only).content_digest(&FileTimes::Ignored));
    // The original is as it was.
    check(&site, &changed, "etc/ 0700 1:2\n etc/x/\n etc/x/f =F\n l/\n l/f =F\n tmp/ 1777\n tmp/f =F");
    assert_eq!(merge(&site, &[&old, &only]), changed);
}

/// Seen to fail with the same layer twice in a stack: no overlay can be mounted from it.
fn merged_twice() {
    let site = Site::new();
    let a = tree(&site, &["f =A\n g =A"]);
    let b = layer(&site, &a, "f =B");
    let c = layer(&site, &a, "g =C");
    assert_eq!(merge(&site, &[&a, &b]), b);
    assert_eq!(merge(&site, &[&a, &a]), a);
    let merged = merge(&site, &[&b, &c]);
    check(&site, &merged, "f =A\n g =C");
    let mut ids = merged.layers().to_vec();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 4);
}

fn reused_layers() {
    let site = Site::new();
    let lower = tree(&site, &["a =1", "b =2"]);
    let upper = layer(&site, &layer(&site, &lower, "c =3"), "a =4");
    assert_eq!(diff(&site, Some(&lower), Some(&upper)).layers(), &upper.layers()[2..]);
    assert_eq!(diff(&site, None, Some(&upper)), upper);
    assert_eq!(diff(&site, Some(&upper), Some(&upper)), ResultRef::scratch());
    assert_eq!(diff(&site, None, None), ResultRef::scratch());
    let layer = diff(&site, Some(&lower), None);
    assert_eq!(site.print(&layer.layers()[0]), "a deleted\nb deleted\n");
}

fn strangers() {
    let site = Site::new();
    let same = "same/ 0711 @5\n same/f =F\n same/l -> f\n same/p fifo\n";
    let lower =
        tree(&site, &[same, "d/ 0700\n d/gone =G\n d/mode =M\n d/time =T @5\n d/bytes =1\n x =file\n y/old =\n y/"]);
    let upper = tree(
        &site,
        &[
            "x/new =\n x/\n y =file\n d/ 0755\n d/mode =M 0600\n d/time =T @6\n",
            &format!("{same} d/ 0755\n d/bytes =2\n n/\n n/1 =N\n n/2 == n/1"),
        ],
    );
    let difference = diff(&site, Some(&lower), Some(&upper));
    let expected = "d/\n d/bytes =2\n d/gone deleted\n d/mode =M 0600\n d/time =T @6\n n/\n n/1 =N\n n/2 == n/1\n x/\n x/new =\n y =file";
    assert_eq!(site.print(&difference.layers()[0]), tree_text::trimmed(expected));
    // Two trees that show the same, however they are layered.
    let again = tree(&site, &["a =1", "b =2"]);
    let at_once = tree(&site, &["a =1\n b =2"]);
    assert_eq!(diff(&site, Some(&again), Some(&at_once)), ResultRef::scratch());
}

fn leads_there() {
    let site = Site::new();
    let trees = [
        tree(&site, &["a/b/c =1\n a/b/\n a/\n l -> a\n f =F 0600 1:2"]),
        tree(&site, &["a =file\n l/x =X\n l/", "f/sub/deep =D\n f/sub/\n f/ 0711"]),
        tree(&site, &["a/b =B\n a/ 0700 3:4\n f =F 0600 1:2", "a/q/r =R\n a/q/\n a/ 0711 3:4"]),
        ResultRef::scratch(),
    ];
    for lower in &trees {
        for upper in &trees {
            let difference = diff(&site, Some(lower), Some(upper));
            let there = merge(&site, &[lower, &difference]);
            assert_eq!(shown(&site, &there), shown(&site, upper));
        }
    }
}

fn contexts() {
    let site = Site::new().context("d/ 0700 @5\n d/f =F\n ignored =").ignore(&["ignored"]).base("d/ 0755\n d/old =O");
    let context = site.inputs().remove(1);
    check(&site, &merge(&site, &[&site.base, &context]), "d/ 0700\n d/f =F\n d/old =O");
    let difference = diff(&site, Some(&site.base), Some(&context));
    assert_eq!(site.print(&difference.layers()[0]), "d/ 0700 @5\nd/f =F\nd/old deleted\n");
}

/// A linked copy: made on nothing, then laid on the base.
fn linked(site: &Site, instruction: &str) -> ResultRef {
    let copy = FileKind::Copy(copy_action(instruction));
    let actions = vec![FileAction { base: FileInput::Scratch, kind: copy }];
    let made = site.run(Op::File(FileOp { actions })).unwrap();
    merge(site, &[&site.base, &made])
}

/// Seen to fail with the copy made on the base.
fn a37_linked_copies() {
    let site = Site::new();
    let canary = site.path("canary");
    let base =
        format!("d -> {}\n inner/\n inner/keep =K\n l -> inner\n f -> inner/keep\n loop -> loop", canary.display());
    let site = site.base(&base).context("x =X\n s/y =Y\n s/");
    let shows = |instruction: &str| shown(&site, &linked(&site, instruction));
    let rest = "f -> inner/keep\ninner/\ninner/keep =K\n";
    let canary = canary.display();
    let expected = |mine: &str, links: &str| {
        let text = format!("{mine}\n{rest}{links}");
        let mut lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
        lines.sort_unstable();
        lines.join("\n") + "\n"
    };
    assert_eq!(shows("COPY x /d/"), expected("d/\nd/x =X", "l -> inner\nloop -> loop"));
    assert_eq!(shows("COPY s /d"), expected("d/\nd/y =Y", "l -> inner\nloop -> loop"));
    assert_eq!(shows("COPY s /l"), expected("l/\nl/y =Y", &format!("d -> {canary}\nloop -> loop")));
    assert_eq!(
        shows("COPY x /l/deep/x"),
        expected("l/\nl/deep/\nl/deep/x =X", &format!("d -> {canary}\nloop -> loop"))
    );
    assert_eq!(shows("COPY x /loop/x"), expected("loop/\nloop/x =X", &format!("d -> {canary}\nl -> inner")));
    site.check_canary();
}

/// The copy's key knows nothing of the base, and its layer is the same on every base.
fn linked_keys() {
    let site = Site::new().context("x =X\n other =O").base("etc/f =1\n etc/");
    let first = linked(&site, "COPY x /app/x");
    let site = site.base("etc/f =2\n etc/");
    let key = || {
        let copy = FileKind::Copy(copy_action("COPY x /app/x"));
        let op = FileOp { actions: vec![FileAction { base: FileInput::Scratch, kind: copy }] };
        site.key_parts(op)
    };
    let before = key();
    std::fs::write(site.path("context/other"), "changed").unwrap();
    assert_eq!(key(), before, "what is not copied is not in the key");
    let made = ResultRef::Layers(first.layers()[1..].to_vec());
    let again = merge(&site, &[&site.base, &made]);
    assert_eq!(again.layers().last(), first.layers().last());
    check(&site, &again, "app/\n app/x =X\n etc/\n etc/f =2");
    assert_ne!(site.digest(&first, &Selector::all()), site.digest(&again, &Selector::all()));
}
