use super::{alone, blob_files, name, names_in, new_store, put_image, put_layer, sql};
use crate::{Store, StoreError};
use forge_image::Digest;
use std::collections::HashSet;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

const ROLE: &str = "FORGE_STORE_TEST_ROLE";
const ROOT: &str = "FORGE_STORE_TEST_ROOT";

/// Not a test of its own: what the other tests' child processes do.
#[test]
fn child_process() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let root = std::env::var_os(ROOT).unwrap();
    let root = Path::new(&root);
    match role.as_str() {
        "hold" => hold(root),
        "write forever" => write_forever(root),
        "use" => use_store(root, 40),
        "collect" => collect_forever(root),
        "umask" => write_under_umask(root),
        "record" => super::crash::act(root),
        other => panic!("no role {other}"),
    }
}

fn spawn(role: &str, root: &Path) -> Child {
    child(&mut Command::new(std::env::current_exe().unwrap()), role, root)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Has a command that starts this program play a role.
pub(super) fn child<'a>(command: &'a mut Command, role: &str, root: &Path) -> &'a mut Command {
    command.args(["--exact", "tests::processes::child_process", "--nocapture"]).env(ROLE, role).env(ROOT, root)
}

fn say(text: &str) {
    let mut out = std::io::stdout();
    out.write_all(format!("said:{text}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

/// Seen to fail with a lock that others can take.
#[test]
fn what_somebody_else_would_remove_is_locked_as_long_as_he_lives() {
    let (_folder, store) = new_store();
    assert!(store.belongings().unwrap().is_none(), "nothing yet");
    let scratch = store.scratch("test").unwrap();
    let belongings = store.belongings().unwrap().unwrap();
    assert!(scratch.path().starts_with(&belongings.folder) && belongings.mark.exists());
    let root = store.root().to_owned();
    // As a killed process leaves its things.
    std::mem::forget((scratch, store));
    drop(Store::open(&root).unwrap());
    assert!(belongings.folder.exists());
    crate::remove_folder(&belongings.folder).unwrap();
    assert!(!belongings.folder.exists());
}

/// The next thing that a child says; the test harness prints lines of its own in between.
fn hear(out: &mut BufReader<ChildStdout>) -> String {
    loop {
        let mut line = String::new();
        assert_ne!(out.read_line(&mut line).unwrap(), 0, "the child ended");
        if let Some((_, text)) = line.split_once("said:") {
            return text.trim_end().to_owned();
        }
    }
}

fn kill(child: &mut Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Holds a blob, a layer and a scratch folder until it is killed.
fn hold(root: &Path) {
    let store = Store::open(root).unwrap();
    let lease = store.lease("child").unwrap();
    store.blobs().write(b"held", &lease).unwrap();
    let (layer, _) = put_layer(&store, &lease, "held", None);
    let scratch = store.scratch("child").unwrap();
    std::fs::write(scratch.path().join("file"), "x").unwrap();
    say(layer.as_str());
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

#[test]
fn a_lease_lasts_as_long_as_its_process() {
    let (_folder, store) = new_store();
    let mut child = spawn("hold", store.root());
    let layer = hear(&mut BufReader::new(child.stdout.take().unwrap())).parse().unwrap();
    let blob = Digest::sha256(b"held");
    let everything = || Store::open(store.root()).unwrap().collect(&HashSet::new(), false).unwrap();

    assert_eq!(everything().bytes, 0);
    assert!(store.lease("test").unwrap().hold_layer(&layer).unwrap());
    kill(&mut child);
    assert_eq!(names_in(&store.root().join("scratch")).len(), 1);
    // Opening is enough to end the lease and to remove the scratch folder.
    let other = Store::open(store.root()).unwrap();
    assert!(names_in(&store.root().join("scratch")).is_empty());
    assert_eq!(other.blobs().stat(&blob).unwrap(), Some(4));
    assert_eq!(everything().layers, [(layer, 4)]);
    assert_eq!(store.blobs().stat(&blob).unwrap(), None);
}

/// F42: after a boot all leases are stale, even where a process with the same pid runs by now.
#[test]
fn f42_a_lease_of_another_boot_is_stale() {
    let (_folder, store) = new_store();
    let mut child = spawn("hold", store.root());
    hear(&mut BufReader::new(child.stdout.take().unwrap()));
    let reopened = || drop(Store::open(store.root()).unwrap());
    let leases = || {
        let sql = "SELECT count(*) FROM leases";
        store.opened.database().read(|c| Ok(c.query_row(sql, [], |row| row.get::<_, i64>(0))?)).unwrap()
    };
    reopened();
    assert_eq!(leases(), 1);
    sql(&store, "UPDATE owners SET boot_id = 'another boot'");
    reopened();
    assert_eq!(leases(), 0);
    kill(&mut child);
}

/// A process that was killed between the file of its lease and its record. Fails where only records are looked at.
#[test]
fn a_lease_without_a_record_ends_with_its_process() {
    let (_folder, store) = new_store();
    let place = |name: &str| store.root().join("leases").join(name);
    std::fs::write(place("dead"), "").unwrap();
    let living = std::fs::File::create(place("living")).unwrap();
    rustix::fs::flock(&living, rustix::fs::FlockOperation::LockExclusive).unwrap();
    drop(Store::open(store.root()).unwrap());
    assert!(place("living").exists() && !place("dead").exists());
}

/// Without its lock file a process is known by pid and start time: a recycled pid does not keep a lease.
#[test]
fn a_recycled_pid_keeps_nothing() {
    let (_folder, store) = new_store();
    let own = crate::owner::ProcessIdentity::own(store.boot_id()).unwrap();
    let insert = |id: &str, start_time: u64| {
        let row = format!("('{id}', {}, {start_time}, '{}')", own.pid, own.boot_id);
        sql(&store, &format!("INSERT INTO owners VALUES {row}"));
    };
    insert("living", own.start_time);
    insert("recycled", own.start_time + 1);
    drop(Store::open(store.root()).unwrap());
    let others = store.opened.database().read(|c| crate::owner::others(c, None)).unwrap();
    assert_eq!(others.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["living"]);
}

fn write_forever(root: &Path) {
    let store = Store::open(root).unwrap();
    let lease = store.lease("child").unwrap();
    for number in 0_u64.. {
        let bytes = number.to_le_bytes().repeat(20_000);
        store.blobs().write(&bytes, &lease).unwrap();
        if number == 0 {
            say("begun");
        }
    }
}

/// F01 in small: fails when `publish` writes the record before the rename, or the bytes under their final name.
#[test]
fn f01_killed_at_any_time_a_writer_leaves_no_partial_blob() {
    let (_folder, store) = new_store();
    for round in 0..25 {
        let mut child = spawn("write forever", store.root());
        hear(&mut BufReader::new(child.stdout.take().unwrap()));
        std::thread::sleep(Duration::from_micros(round * 700));
        kill(&mut child);
        let after = Store::open(store.root()).unwrap();
        for hex in blob_files(after.blobs()) {
            let digest: Digest = format!("sha256:{hex}").parse().unwrap();
            let bytes = std::fs::read(after.blobs().path(&digest)).unwrap();
            assert_eq!(Digest::sha256(&bytes), digest);
        }
        let sql = "SELECT digest, size FROM blobs";
        let rows: Vec<(String, u64)> = after.opened.database().read(|c| query(c, sql)).unwrap();
        for (digest, size) in rows {
            let digest: Digest = digest.parse().unwrap();
            assert_eq!(std::fs::metadata(after.blobs().path(&digest)).unwrap().len(), size);
        }
        assert!(names_in(&after.root().join("scratch")).is_empty());
    }
    store.collect(&HashSet::new(), false).unwrap();
    assert!(blob_files(store.blobs()).is_empty());
}

fn query(connection: &rusqlite::Connection, sql: &str) -> Result<Vec<(String, u64)>, StoreError> {
    let mut select = connection.prepare(sql)?;
    let rows = select.query_map([], |row| Ok((row.get(0)?, row.get::<_, i64>(1)? as u64)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// What builds do: store layers and blobs that others store too, make images of them, name, find, rename and delete.
fn use_store(root: &Path, rounds: usize) {
    let store = Store::open(root).unwrap();
    let process = std::process::id() as usize;
    for round in 0..rounds {
        let lease = store.lease("child").unwrap();
        let text = format!("shared {}", (round + process) % 3);
        let blob = store.blobs().write(text.as_bytes(), &lease).unwrap();
        let chain = forge_image::ChainId::of(&[forge_image::DiffId::new(blob.clone())]).unwrap();
        let (layer, published) = put_layer(&store, &lease, &text, Some(&chain));
        let layer = match published {
            crate::layer_rows::Published::Stored => layer,
            crate::layer_rows::Published::Existing(layer) => layer,
        };
        let id = put_image(&store, &lease, &format!("{text} {layer}"), std::slice::from_ref(&layer));
        let tag = name(&format!("app{}", round % 2));
        match store.images().tag(&tag, &alone(&id)) {
            // The other process may have deleted the very image: a user's error, not one of the store.
            Err(StoreError::ImageNotFound { .. }) => {}
            result => drop(result.unwrap()),
        }
        assert_eq!(store.blobs().read(&blob, 99).unwrap(), text.as_bytes());
        let tree = store.opened.layer_path(&layer).join("tree/f");
        assert_eq!(std::fs::read_to_string(tree).unwrap(), text);
        assert!(store.verify_layer(&layer).unwrap());
        if let Ok(found) = store.images().resolve(&tag.familiar())
            && round % 3 == 0
            && let Some(id) = found.target.images.first()
        {
            store.images().untag(&tag).unwrap();
            store.images().delete_unnamed(id).unwrap();
        }
        drop(lease);
        if round % 4 == 0 {
            store.collect(&HashSet::new(), false).unwrap();
        }
    }
}

/// F17 in small.
#[test]
fn f17_processes_use_one_store_without_an_error() {
    let (_folder, store) = new_store();
    let children: Vec<_> = (0..4).map(|_| spawn("use", store.root())).collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
    for (_, target) in store.images().list().unwrap() {
        for id in target.images {
            let image = store.images().get(&id).unwrap().unwrap();
            assert!(image.layers.iter().all(|layer| store.verify_layer(layer).unwrap()));
            store.images().config(&id).unwrap();
        }
    }
    let check: String =
        store.opened.database().read(|c| Ok(c.query_row("PRAGMA integrity_check", [], |row| row.get(0))?)).unwrap();
    assert_eq!(check, "ok");
}

fn collect_forever(root: &Path) {
    let store = Store::open(root).unwrap();
    say("begun");
    loop {
        store.collect(&HashSet::new(), false).unwrap();
    }
}

/// F18 in small: fails when `hold_layer` trusts a check made before its transaction, or `collect` ignores leases.
#[test]
fn f18_what_a_lease_says_it_holds_stays() {
    let (_folder, store) = new_store();
    let mut child = spawn("collect", store.root());
    hear(&mut BufReader::new(child.stdout.take().unwrap()));
    let until = Instant::now() + Duration::from_secs(4);
    let (mut kept, mut gone) = (0, 0);
    while Instant::now() < until {
        let first = store.lease("first").unwrap();
        let (layer, _) = put_layer(&store, &first, "x", None);
        let blob = store.blobs().write(b"some bytes", &first).unwrap();
        drop(first);
        // Here the collector may come in between, as between a cache hit and its lease.
        let second = store.lease("second").unwrap();
        let path = store.opened.layer_path(&layer).join("tree/f");
        match second.hold_layer(&layer).unwrap() {
            true => {
                std::thread::sleep(Duration::from_millis(1));
                assert_eq!(std::fs::read(&path).unwrap(), b"x");
                kept += 1;
            }
            false => gone += 1,
        }
        if second.hold_blob(&blob).unwrap() {
            assert_eq!(store.blobs().read(&blob, 99).unwrap(), b"some bytes");
        }
    }
    kill(&mut child);
    assert!(kept > 0, "kept {kept}, gone {gone}");
}

fn write_under_umask(root: &Path) {
    rustix::process::umask(rustix::fs::Mode::empty());
    let store = Store::open(root).unwrap();
    let lease = store.lease("child").unwrap();
    let (layer, _) = put_layer(&store, &lease, "x", None);
    let id = put_image(&store, &lease, "x", &[layer]);
    store.images().tag(&name("x"), &alone(&id)).unwrap();
    let (_lock, _scratch) = (store.lock("x").unwrap(), store.scratch("x").unwrap());
    let mut loose = Vec::new();
    look_for_loose_modes(store.root(), &mut loose);
    assert!(loose.is_empty(), "{loose:?}");
}

/// Folders 0700, files 0600; what lies in a layer's tree keeps its own modes behind the 0700 of `layers`.
fn look_for_loose_modes(path: &Path, loose: &mut Vec<String>) {
    let found = std::fs::symlink_metadata(path).unwrap();
    let expect = if found.is_dir() { 0o700 } else { 0o600 };
    if found.mode() & 0o7777 != expect {
        loose.push(format!("{} {:o}", path.display(), found.mode()));
    }
    if found.is_dir() && !path.parent().unwrap().ends_with("layers") {
        for name in names_in(path) {
            look_for_loose_modes(&path.join(name), loose);
        }
    }
}

/// Fails when a mode is left to the umask: `forge.db` without `mode(0o600)` first made by hand comes out as 0666.
#[test]
fn a55_a_loose_umask_loosens_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let output = spawn("umask", &folder.path().join("store")).wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn locks_exclude_threads_and_say_when_taken() {
    let (_folder, store) = new_store();
    let held = store.lock("../../a name\nwith \0 anything").unwrap();
    assert!(store.try_lock("../../a name\nwith \0 anything").unwrap().is_none());
    assert!(store.try_lock("another").unwrap().is_some());
    assert_eq!(names_in(&store.root().join("locks")).len(), 2);
    let waited = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let begin = Instant::now();
            let _guard = store.lock("../../a name\nwith \0 anything").unwrap();
            begin.elapsed()
        });
        std::thread::sleep(Duration::from_millis(50));
        drop(held);
        waiting.join().unwrap()
    });
    assert!(waited >= Duration::from_millis(30));
}
