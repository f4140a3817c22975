//! What a COPY writes, and what it finds already there.

use crate::Test;
use crate::exec::{shell, with_busybox};
use crate::site::Site;
use forge_cache::ResultRef;
use forge_llb::Op;
use forge_store::{Finding, LayerId, VerifyDepth};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

pub const TESTS: &[Test] = &[
    ("privileged_a_copy_makes_no_tree_until_one_is_needed", lazily),
    ("privileged_of_a_changed_context_only_what_changed_is_written", changed),
    ("privileged_a_copy_is_found_again_on_another_base", other_base),
    ("privileged_copies_of_packed_stages_share_their_bytes", shared),
    ("privileged_the_tree_of_a_copy_links_to_the_last_one", linked),
    ("privileged_files_of_several_names_are_not_linked_across_layers", linked_names),
    ("privileged_damage_in_a_pack_is_found", damaged),
];

fn folder(site: &Site, layer: &LayerId) -> PathBuf {
    site.path("store/layers").join(layer.as_str())
}

/// The data files of a layer's pack: length and number of names of each, the shortest first.
fn data(site: &Site, layer: &LayerId) -> Vec<(u64, u64)> {
    let listed = std::fs::read_dir(folder(site, layer).join("pack")).unwrap();
    let found = listed.map(|entry| entry.unwrap()).filter(|entry| entry.file_name().len() == 32);
    let mut found: Vec<_> =
        found.map(|entry| entry.metadata().unwrap()).map(|file| (file.len(), file.nlink())).collect();
    found.sort_unstable();
    found
}

fn copy(site: &Site, instruction: &str) -> LayerId {
    site.execute(instruction).unwrap().id
}

fn write(site: &Site, name: &str, text: &str) {
    std::fs::write(site.path("context").join(name), text).unwrap();
}

fn tree(site: &Site, layer: &LayerId) -> PathBuf {
    site.store.layers().lower_dirs(std::slice::from_ref(layer)).unwrap()[0].clone()
}

fn inode(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().ino()
}

fn lazily() {
    let site = Site::new().context("d/f =F\nd/l -> f\ng =G 4711 @5");
    let layer = copy(&site, "COPY . /app/");
    let stack = [layer];
    let seen = site.store.layers().tree(&stack).unwrap();
    let lines = |folder: &str| -> Vec<String> {
        let children = seen.children(Path::new(folder)).unwrap();
        children.iter().map(|entry| format!("{} {:o}", entry.name.display(), entry.mode)).collect()
    };
    assert_eq!(
        (lines("/app"), lines("/app/d")),
        (vec!["d 755".to_owned(), "g 4711".to_owned()], vec!["f 644".to_owned(), "l 777".to_owned()])
    );
    assert_eq!(std::io::read_to_string(seen.open(Path::new("/app/d/f")).unwrap()).unwrap(), "F");
    assert!(!folder(&site, &layer).join("tree").exists());
    let of_pack = site.store.layers().diff_id(&layer, &Default::default()).unwrap();
    // Two at once: one of them makes it.
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| assert_eq!(std::fs::read(tree(&site, &layer).join("app/g")).unwrap(), b"G"));
        }
    });
    assert!(site.store.verify(VerifyDepth::Bytes).unwrap().findings.is_empty());
    // The same tar comes from a tree: a layer whose pack is taken away has it still.
    std::fs::remove_dir_all(folder(&site, &layer).join("pack")).unwrap();
    let mut tar = Vec::new();
    assert_eq!(site.store.layers().write_tar(&layer, &Default::default(), &mut tar).unwrap(), of_pack);
}

fn changed() {
    let site = Site::new();
    (0..200).for_each(|number| write(&site, &number.to_string(), &format!("{number}\n").repeat(1000)));
    let first = copy(&site, "COPY . /app/");
    let [(whole, 1)] = data(&site, &first)[..] else { panic!("one file of its own") };
    write(&site, "17", "changed");
    let second = copy(&site, "COPY . /app/");
    assert_eq!(data(&site, &second), [(7, 1), (whole, 2)]);
    assert_eq!(site.print(&second).matches("=changed").count(), 1);
    // Another operation is none of its business.
    assert_eq!(data(&site, &copy(&site, "COPY . /other/")).len(), 1);
    // What is hardly needed any more is left behind.
    (20..200).for_each(|number| std::fs::remove_file(site.path("context").join(number.to_string())).unwrap());
    let third = copy(&site, "COPY . /app/");
    assert_eq!(data(&site, &third).len(), 2, "the change, which is shared, and the rest");
    assert!(data(&site, &third).iter().all(|(size, _)| *size < whole / 5));
    assert_eq!(site.store.layers().index(&third).unwrap().get(b"app/17").unwrap().size(), 7);
}

fn other_base() {
    let site = Site::new().context("f =F").base("a =A\nopt/\n").base("b =B");
    let first = copy(&site, "COPY . /opt/app/");
    let site = site.base("c =C");
    assert_eq!(copy(&site, "COPY . /opt/app/"), first);
    // Its parents look otherwise: the layer would say something that is not so.
    let site = site.base("opt/ 0700");
    let other = copy(&site, "COPY . /opt/app/");
    assert_ne!(other, first);
    // Once more on itself: a tree cannot be mounted twice.
    let mut above = site;
    above.base = ResultRef::Layers([above.base.layers(), std::slice::from_ref(&other)].concat());
    let above = above.base("opt/app/f =other");
    let again = copy(&above, "COPY . /opt/app/");
    assert!(!above.base.layers().contains(&again));
}

fn shared() {
    let mut site = Site::new().context("d/f =some-bytes\ng =other");
    let stage = copy(&site, "COPY . /app/");
    site.stage = ResultRef::Layers(vec![stage]);
    let layer = copy(&site, "COPY --from=stage /app /srv");
    assert_eq!(data(&site, &layer), [(0, 1), (15, 2)]);
    assert!(!folder(&site, &stage).join("tree").exists());
    assert_eq!(
        site.print(&layer),
        crate::tree_text::trimmed("srv/ @now\n srv/d/ @now\n srv/d/f =some-bytes\n srv/g =other")
    );
}

fn linked() {
    let mut site = with_busybox().context("same =S\nchanges =1\nmode =M");
    let first = copy(&site, "COPY . /app/");
    let first_tree = tree(&site, &first);
    write(&site, "changes", "2");
    std::fs::set_permissions(site.path("context/mode"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let second = copy(&site, "COPY . /app/");
    let second_tree = tree(&site, &second);
    let is_linked =
        |name: &str| inode(&first_tree.join("app").join(name)) == inode(&second_tree.join("app").join(name));
    assert_eq!((is_linked("same"), is_linked("changes"), is_linked("mode")), (true, false, false));
    site.base = ResultRef::Layers([site.base.layers(), std::slice::from_ref(&second)].concat());
    let change = "cd /app; echo X >> same; chmod 0777 same; ln same other; touch -d @1 same";
    site.run(Op::Exec(shell(change))).unwrap();
    for tree in [&first_tree, &second_tree] {
        let file = tree.join("app/same");
        assert_eq!(std::fs::read(&file).unwrap(), b"S");
        let found = std::fs::metadata(&file).unwrap();
        assert_eq!((found.mode() & 0o7777, found.mtime()), (0o644, crate::tree_text::TIME));
    }
    assert!(site.store.verify(VerifyDepth::Bytes).unwrap().findings.is_empty());
}

/// A file that had two names in the last layer has one now: linked to the old one, the other name would be its again where
/// both layers are in one stack.
fn linked_names() {
    let mut site = Site::new().stage("a/x =X\na/y == a/x\na/z =Z");
    let first = copy(&site, "COPY --from=stage /a /app/");
    let first_tree = tree(&site, &first);
    site.stage = ResultRef::scratch();
    let mut site = site.stage("a/x =X\na/z =Z");
    let second = copy(&site, "COPY --from=stage /a /app/");
    let second_tree = tree(&site, &second);
    let is_linked = |name: &str| inode(&first_tree.join(name)) == inode(&second_tree.join(name));
    assert_eq!((is_linked("app/x"), is_linked("app/z")), (false, true));
    site.base = ResultRef::Layers(vec![first, second]);
    let seen = site.store.layers().tree(site.base.layers()).unwrap();
    let of = |path: &str| seen.lookup(Path::new(path)).unwrap().unwrap().inode;
    assert_ne!(of("/app/x"), of("/app/y"));
}

fn damaged() {
    let site = Site::new().context("f =12345");
    let layer = copy(&site, "COPY . /app/");
    let pack = folder(&site, &layer).join("pack");
    let file = std::fs::read_dir(&pack).unwrap().map(|entry| entry.unwrap().path());
    let file = file.into_iter().find(|path| path.file_name().unwrap().len() == 32).unwrap();
    std::fs::write(&file, "12x45").unwrap();
    let found = site.store.verify(VerifyDepth::Bytes).unwrap().findings;
    assert!(matches!(&found[..], [Finding::Layer { id, .. }] if *id == layer), "{found:?}");
    std::fs::write(&file, "123").unwrap();
    assert_eq!(site.store.verify(VerifyDepth::Bytes).unwrap().findings.len(), 1);
    std::fs::remove_file(&file).unwrap();
    assert_eq!(site.store.verify(VerifyDepth::Bytes).unwrap().findings.len(), 1);
    assert!(site.store.layers().lower_dirs(&[layer]).is_err());
}
