//! What becomes of the upper folder of an overlay.

mod layer_store;
mod raw_tar;

use forge_store::{ActiveLayer, ContentDigest, EntryKind, FileTimes, LayerError, LayerId, StoreError, TarOptions};
use layer_store::{Fixture, chain, dump, is_root};
use raw_tar::{RawHeader, RawTar};
use std::fmt::Write as _;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// An overlay as a build step gets it; unmounted on drop.
struct Mounted<'a> {
    active: &'a ActiveLayer,
    root: PathBuf,
}

impl<'a> Mounted<'a> {
    fn new(active: &'a ActiveLayer) -> Self {
        let root = active.work().parent().unwrap().join("merged");
        std::fs::create_dir(&root).unwrap();
        let lower: Vec<&str> = active.lower_dirs().iter().map(|path| path.to_str().unwrap()).collect();
        let options = format!(
            "lowerdir={},upperdir={},workdir={},index=off,metacopy=off,redirect_dir=off,xino=off",
            lower.join(":"),
            active.upper().display(),
            active.work().display()
        );
        run("mount", &["-t", "overlay", "overlay", "-o", &options, root.to_str().unwrap()]);
        Self { active, root }
    }

    fn shell(&self, script: &str) {
        run("sh", &["-euc", &format!("cd {}; {script}", self.root.display())]);
    }

    /// What the kernel shows, as [`dump`] prints it.
    fn seen(&self) -> String {
        let mut text = String::new();
        let mut todo = vec![self.root.clone()];
        while let Some(path) = todo.pop() {
            text.push_str(&kernel_line(&self.root, &path));
            if std::fs::symlink_metadata(&path).unwrap().is_dir() {
                let mut children: Vec<PathBuf> =
                    std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()).collect();
                children.sort_by(|a, b| b.file_name().cmp(&a.file_name()));
                todo.extend(children);
            }
        }
        text
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        unmount(&self.root);
        let _ = std::fs::remove_dir(self.active.work().parent().unwrap().join("merged"));
    }
}

/// A program that another test has just forked holds the descriptors of this one until it is executed.
fn unmount(root: &Path) {
    for _ in 0..100 {
        let output = Command::new("umount").arg(root).output().unwrap();
        if output.status.success() || !String::from_utf8_lossy(&output.stderr).contains("busy") {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(root.to_str().unwrap()), "{} stays mounted", root.display());
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn kernel_line(root: &Path, path: &Path) -> String {
    let meta = std::fs::symlink_metadata(path).unwrap();
    let shown = format!("/{}", path.strip_prefix(root).unwrap().display());
    let rights = format!("{:04o} {}:{}", meta.mode() & 0o7777, meta.uid(), meta.gid());
    let (major, minor) = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
    match meta.mode() & 0o170000 {
        0o100000 => {
            let bytes = std::fs::read(path).unwrap();
            format!("file {rights} {shown} {}\n", bytes[..bytes.len().min(32)].escape_ascii())
        }
        0o040000 => format!("dir  {rights} {shown}\n"),
        0o120000 => format!("link {shown} -> {}\n", std::fs::read_link(path).unwrap().display()),
        0o020000 => format!("char {rights} {shown} {major}:{minor}\n"),
        0o060000 => format!("blk  {rights} {shown} {major}:{minor}\n"),
        0o010000 => format!("fifo {rights} {shown}\n"),
        _ => String::new(),
    }
}

fn base(fixture: &Fixture) -> Vec<LayerId> {
    let low = RawTar::new()
        .dir("etc")
        .file("etc/passwd", b"root:0")
        .file("etc/group", b"root:x")
        .dir("usr")
        .dir("usr/lib")
        .file("usr/lib/a", b"A")
        .symlink("lib", "usr/lib")
        .header(RawHeader::new("tmp", b'5').mode(0o1777))
        .dir("gone")
        .file("gone/x", b"1")
        .dir("again")
        .file("again/old", b"2")
        .file("twin1", b"same")
        .hard_link("twin2", "twin1")
        .end();
    let high = RawTar::new().file("etc/group", b"root:y").file(".wh.gone", b"").dir("srv").file("srv/z", b"z").end();
    fixture.stack(&[low, high])
}

/// Changes a mounted stack by a script, commits, and demands that the result shows what the kernel showed, and that its
/// tar, unpacked over the same layers, is the same layer again. Answers with the layer's own entries.
fn check(script: &str) -> String {
    let fixture = Fixture::new();
    let parents = base(&fixture);
    let active = fixture.layers().prepare(&parents).unwrap();
    let mounted = Mounted::new(&active);
    mounted.shell(script);
    let seen = mounted.seen();
    drop(mounted);
    verify(&fixture, active, &parents, &seen)
}

/// But for times: a tar holds seconds.
fn content(fixture: &Fixture, layer: &LayerId) -> ContentDigest {
    fixture.layers().index(layer).unwrap().content_digest(&FileTimes::Ignored)
}

fn verify(fixture: &Fixture, active: ActiveLayer, parents: &[LayerId], seen: &str) -> String {
    assert_eq!(
        dump(&active.merged()).lines().filter(|line| !line.starts_with("sock")).collect::<Vec<_>>().join("\n") + "\n",
        seen
    );
    let layer = fixture.layers().commit(active, &fixture.lease).unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(fixture.tree(&[parents, std::slice::from_ref(&layer.id)].concat()), seen);
    fixture.check_layer(&layer.id);
    let mut tar = Vec::new();
    let diff_id = fixture.layers().write_tar(&layer.id, &TarOptions::default(), &mut tar).unwrap();
    assert_eq!(fixture.layers().diff_id(&layer.id, &TarOptions::default()).unwrap(), diff_id);
    let again = fixture.unpack(parents, &tar).unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(content(fixture, &again.id), content(fixture, &layer.id));
    assert_eq!(fixture.tree(&[parents, &[again.id]].concat()), seen);
    entries(fixture, &layer.id)
}

fn entries(fixture: &Fixture, id: &LayerId) -> String {
    let index = fixture.layers().index(id).unwrap();
    let mut text = String::new();
    for entry in index.entries().iter().filter(|entry| entry.is_change()) {
        let kind = match &entry.kind {
            EntryKind::File { .. } if entry.link.is_some() => "link to",
            EntryKind::File { .. } => "file",
            EntryKind::Directory { opaque: true, .. } => "opaque",
            EntryKind::Directory { .. } => "dir",
            EntryKind::Symlink { .. } => "symlink",
            EntryKind::CharDevice { .. } | EntryKind::BlockDevice { .. } => "device",
            EntryKind::Fifo => "fifo",
            EntryKind::Whiteout => "deleted",
        };
        write!(text, "{kind} /{}; ", entry.path().display()).unwrap();
    }
    text.trim_end_matches("; ").to_owned()
}

#[test]
fn privileged_a_step_is_what_it_changed() {
    if !is_root("privileged_a_step_is_what_it_changed") {
        return;
    }
    assert_eq!(check("true"), "");
    assert_eq!(check("echo x > etc/new"), "dir /etc; file /etc/new");
    assert_eq!(check("echo x >> etc/passwd"), "file /etc/passwd");
    assert_eq!(check("chmod 600 etc/passwd"), "file /etc/passwd");
    assert_eq!(check("rm etc/passwd"), "dir /etc; deleted /etc/passwd");
    assert_eq!(check("rm -r again"), "deleted /again");
    assert_eq!(check("rm -r again; mkdir again; touch again/new"), "opaque /again; file /again/new");
    assert_eq!(check("rm -r again; echo x > again"), "file /again");
    assert_eq!(check("rm lib; mkdir lib; touch lib/x"), "dir /lib; file /lib/x");
    assert_eq!(check("mkdir -p new/deep; touch new/deep/x"), "dir /new; dir /new/deep; file /new/deep/x");
    assert_eq!(check("touch lib/b"), "dir /usr/lib; file /usr/lib/b");
    assert_eq!(check("mkdir gone; touch gone/y"), "dir /gone; file /gone/y");
    assert_eq!(check("ln srv/z srv/hard; ln srv/z top"), "dir /srv; file /srv/hard; link to /srv/z; link to /top");
    assert_eq!(check("mkfifo p; mknod n c 1 3; ln -s x s"), "device /n; fifo /p; symlink /s");
    assert_eq!(check("chown 5:6 usr/lib; chmod 2755 srv"), "dir /srv; dir /usr/lib");
    assert_eq!(check("chmod 700 ."), "dir /");
    assert_eq!(check("mkdir d; mv d e; touch tmp/x; rm tmp/x"), "dir /e; dir /tmp");
    assert_eq!(check("echo same > twin2"), "file /twin2", "a copied-up name is a node of its own");
}

/// Seen to fail with equal size and time taken for equal bytes.
#[test]
fn privileged_equal_size_and_time_prove_nothing() {
    if !is_root("privileged_equal_size_and_time_prove_nothing") {
        return;
    }
    let touched = "touch -d @7.5 x y; touch -d @5 .";
    let fixture = Fixture::new();
    let active = fixture.layers().prepare(&[]).unwrap();
    run("sh", &["-euc", &format!("cd {}; echo aaa > x; echo bbb > y; {touched}", active.upper().display())]);
    let low = fixture.layers().commit(active, &fixture.lease).unwrap();
    let parents = [low.id];
    let active = fixture.layers().prepare(&parents).unwrap();
    let mounted = Mounted::new(&active);
    mounted.shell("mv y x");
    let seen = mounted.seen();
    drop(mounted);
    assert_eq!(verify(&fixture, active, &parents, &seen), "file /x; deleted /y");
    assert!(seen.contains("/x bbb"), "{seen}");
}

/// What was changed and changed back, or only copied up, is no change.
#[test]
fn privileged_what_is_equal_is_dropped() {
    if !is_root("privileged_what_is_equal_is_dropped") {
        return;
    }
    assert_eq!(check("chmod 600 etc/passwd; chmod 644 etc/passwd"), "");
    assert_eq!(check("chmod 600 etc; chmod 755 etc; chown -h 1 lib; chown -h 0 lib"), "");
    assert_eq!(check("cp -p etc/passwd t; cp -p t etc/passwd; rm t"), "");
    let both = "chmod 600 twin1 twin2; chmod 644 twin1 twin2";
    // Overlayfs cut the link when it copied them up; nobody asked for that, and what is below stays linked.
    assert_eq!(check(both), "");
    assert_eq!(check("cp -p srv/z srv/y; ln -f srv/y srv/z"), "dir /srv; file /srv/y; link to /srv/z", "one node now");
    let fixture = Fixture::new();
    let parents = base(&fixture);
    let active = fixture.layers().prepare(&parents).unwrap();
    // As COPY writes: the same file over the lower one, in folders with the lower ones' metadata.
    let script = "mkdir -p usr/lib; echo -n A > usr/lib/a; touch -d @1 usr/lib/a usr/lib usr; mkdir etc; echo -n root:0 > etc/passwd; \
                  touch -d @2 etc/passwd; touch -d @1 etc";
    run("sh", &["-euc", &format!("cd {}; {script}", active.upper().display())]);
    let layer = fixture.layers().commit(active, &fixture.lease).unwrap();
    assert_eq!(entries(&fixture, &layer.id), "file /etc/passwd", "another time is another file");
    assert_eq!(layer.entries, 1);
    fixture.check_layer(&layer.id);
}

/// A folder in which something was made and removed has another time, which is that of the step: it is no change. What has a
/// time of its own is one.
#[test]
fn privileged_when_a_step_ran_is_no_change_of_a_folder() {
    if !is_root("privileged_when_a_step_ran_is_no_change_of_a_folder") {
        return;
    }
    let check = |script: &str| {
        let fixture = Fixture::new();
        let parents = base(&fixture);
        let mut active = fixture.layers().prepare(&parents).unwrap();
        let mounted = Mounted::new(&active);
        let started = std::time::SystemTime::now();
        mounted.shell(script);
        drop(mounted);
        active.set_times(FileTimes::of_step(started, std::time::SystemTime::now()));
        let layer = fixture.layers().commit(active, &fixture.lease).unwrap();
        fixture.check_layer(&layer.id);
        entries(&fixture, &layer.id)
    };
    assert_eq!(check("touch tmp/x; rm tmp/x; mkdir etc/a etc/a/b; rm -r etc/a"), "");
    assert_eq!(check("cp -p srv/z srv/y; mv srv/y srv/z"), "");
    assert_eq!(check("touch tmp/x; rm tmp/x; touch etc/new"), "dir /etc; file /etc/new");
    assert_eq!(check("touch etc/x; rm etc/x; rm usr/lib/a"), "dir /usr/lib; deleted /usr/lib/a");
    assert_eq!(check("touch -d @5 etc"), "dir /etc");
    assert_eq!(check("touch tmp/x; rm tmp/x; chmod 700 tmp"), "dir /tmp");
}

#[test]
fn privileged_sockets_and_needless_markers_are_dropped() {
    if !is_root("privileged_sockets_and_needless_markers_are_dropped") {
        return;
    }
    let fixture = Fixture::new();
    let parents = base(&fixture);
    let active = fixture.layers().prepare(&parents).unwrap();
    let socket = active.upper().join("s");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    run("mknod", &[active.upper().join("nothing-below").to_str().unwrap(), "c", "0", "0"]);
    std::fs::create_dir(active.upper().join("fresh")).unwrap();
    let fresh = active.upper().join("fresh");
    rustix::fs::lsetxattr(&fresh, "trusted.overlay.opaque", b"y", rustix::fs::XattrFlags::empty()).unwrap();
    let layer = fixture.layers().commit(active, &fixture.lease).unwrap();
    assert_eq!(entries(&fixture, &layer.id), "dir /fresh");
    fixture.check_layer(&layer.id);
}

#[test]
fn names_that_layers_cannot_hold_are_refused() {
    let fixture = Fixture::new();
    let commit = |fill: &dyn Fn(&Path)| {
        let active = fixture.layers().prepare(&[]);
        let active = active.unwrap();
        fill(active.upper());
        fixture.layers().commit(active, &fixture.lease)
    };
    let reserved = commit(&|upper| {
        std::fs::create_dir(upper.join("d")).unwrap();
        std::fs::write(upper.join("d/.wh.x"), "").unwrap();
    });
    assert!(matches!(reserved, Err(StoreError::Layer(LayerError::ReservedName { ref path })) if path == "d/.wh.x"));
    let long = commit(&|upper| {
        let script = "i=0; while [ $i -lt 22 ]; do mkdir $0; cd -P $0; i=$((i+1)); done";
        let status = Command::new("sh").args(["-c", script, &"n".repeat(200)]).current_dir(upper).status().unwrap();
        assert!(status.success());
    });
    assert!(matches!(long, Err(StoreError::Layer(LayerError::PathTooLong { .. }))), "{long:?}");
    assert_eq!(layer_store::names(&fixture.store.root().join("layers")), Vec::<String>::new());
}

/// Random histories on a real overlay (P06, P07): the committed stack shows what the kernel showed.
#[test]
fn privileged_random_steps_agree_with_the_kernel() {
    if !is_root("privileged_random_steps_agree_with_the_kernel") {
        return;
    }
    for seed in 0..12 {
        let fixture = Fixture::new();
        let mut random = Random(seed * 7919 + 1);
        let mut parents = Vec::new();
        let active = fixture.layers().prepare(&[]).unwrap();
        for _ in 0..30 {
            change(active.upper(), &mut random);
        }
        parents.push(fixture.layers().commit(active, &fixture.lease).unwrap().id);
        for _ in 0..4 {
            let active = fixture.layers().prepare(&parents).unwrap();
            let mounted = Mounted::new(&active);
            for _ in 0..12 {
                change(&mounted.root, &mut random);
            }
            let seen = mounted.seen();
            drop(mounted);
            let merged = dump(&active.merged());
            assert_eq!(merged, seen, "seed {seed}");
            let layer = fixture.layers().commit(active, &fixture.lease).unwrap();
            let mut tar = Vec::new();
            fixture.layers().write_tar(&layer.id, &TarOptions::default(), &mut tar).unwrap();
            let again = fixture.unpack(&parents, &tar).unwrap_or_else(|error| panic!("seed {seed}: {}", chain(&error)));
            assert_eq!(content(&fixture, &again.id), content(&fixture, &layer.id), "seed {seed}");
            assert_eq!(fixture.tree(&[&parents[..], &[again.id]].concat()), seen, "seed {seed}");
            fixture.check_layer(&layer.id);
            parents.push(layer.id);
            assert_eq!(fixture.tree(&parents), seen, "seed {seed}");
        }
    }
}

/// What one layer does: makes, replaces, deletes, moves.
const OPERATIONS: [&str; 6] =
    ["mkdir -p a/b", "[ -d a ] || echo 1 > a", "mkdir -p a; echo 2 > a/f", "rm -rf a", "mv a c", "mv c a"];

/// Every history of up to four of these, a layer for each, on a real overlay (P07): what the stack shows is what the kernel
/// showed, and so is what comes of its tars. Meant to fail where a folder that takes a deleted one's place is not opaque.
#[test]
fn privileged_p07_all_short_histories_agree_with_the_kernel() {
    if !is_root("privileged_p07_all_short_histories_agree_with_the_kernel") {
        return;
    }
    let fixture = Fixture::new();
    let active = fixture.layers().prepare(&[]).unwrap();
    run("sh", &["-euc", &format!("cd {}; mkdir -p a/b; echo 0 > a/b/f; echo 0 > c", active.upper().display())]);
    let base = fixture.layers().commit(active, &fixture.lease).unwrap().id;
    // Histories that came to the same tree by the same layers go on in the same way.
    let mut seen_before = std::collections::HashSet::new();
    let mut todo = vec![vec![base]];
    while let Some(parents) = todo.pop() {
        for operation in OPERATIONS {
            let active = fixture.layers().prepare(&parents).unwrap();
            let mounted = Mounted::new(&active);
            mounted.shell(&format!("({operation}) 2>/dev/null || true"));
            let seen = mounted.seen();
            drop(mounted);
            assert_eq!(dump(&active.merged()), seen, "{operation} on {parents:?}");
            let layer = fixture.layers().commit(active, &fixture.lease).unwrap();
            let stack = [&parents[..], &[layer.id]].concat();
            assert_eq!(fixture.tree(&stack), seen, "{operation} on {parents:?}");
            let mut tar = Vec::new();
            fixture.layers().write_tar(&layer.id, &TarOptions::default(), &mut tar).unwrap();
            let again = fixture.unpack(&parents, &tar).unwrap_or_else(|error| panic!("{operation}: {}", chain(&error)));
            assert_eq!(fixture.tree(&[&parents[..], &[again.id]].concat()), seen, "{operation} on {parents:?}");
            let is_new = seen_before.insert((stack.len(), seen, content(&fixture, &layer.id)));
            todo.extend((stack.len() < 5 && is_new).then_some(stack));
        }
    }
    assert!(seen_before.len() > 50, "{}", seen_before.len());
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}

/// One change somewhere in a small name space, so that names meet again. Whatever cannot be done is left.
fn change(root: &Path, random: &mut Random) {
    let mut place = || {
        let names = ["a", "b", "c"];
        let depth = 1 + random.below(3);
        (0..depth).fold(root.to_owned(), |path, _| path.join(names[random.below(3)]))
    };
    let (path, other) = (place(), place());
    // Never through a link: the host's paths are not those of the root.
    let through_link = |path: &Path| path.ancestors().skip(1).any(|parent| parent.is_symlink());
    if through_link(&path) || through_link(&other) {
        return;
    }
    let is_dir = |path: &Path| std::fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir());
    let _ = match random.below(10) {
        0 | 1 => std::fs::create_dir_all(&path),
        2 | 3 if !path.is_symlink() => std::fs::write(&path, [b'0' + random.below(4) as u8]),
        4 if is_dir(&path) => std::fs::remove_dir_all(&path),
        4 | 5 => std::fs::remove_file(&path),
        6 => symlink(["a", "../b", "/c"][random.below(3)], &path),
        7 if !path.is_symlink() => {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode([0o755, 0o700, 0o644][random.below(3)]))
        }
        8 => std::fs::hard_link(&path, &other),
        9 if !is_dir(&path) => std::fs::rename(&path, &other),
        _ => Ok(()),
    };
}
