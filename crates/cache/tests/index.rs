//! What both indexes promise.
#![allow(clippy::print_stdout, reason = "measurements and seeds are for whoever runs the test")]

use forge_cache::*;
use forge_store::LayerId;
use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

fn key(text: &str) -> CacheKey {
    CacheKey::definition(&OpKey::new(text.as_bytes()), &[])
}

fn layer(number: u8) -> LayerId {
    format!("{number:032x}").parse().unwrap()
}

fn time(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn record(name: &str, layers: &[u8]) -> StepRecord {
    StepRecord {
        name: name.to_owned(),
        is_source: false,
        outputs: vec![ResultRef::Layers(layers.iter().map(|number| layer(*number)).collect()), ResultRef::scratch()],
        result: Some(key("result")),
        bytes: 4711,
        wall_ms: 17,
        usage: Some(StepUsage { cpu_us: 12_345, peak_memory: 64 << 20 }),
        created: time(1_000_000),
        last_used: time(1_000_000),
        boot_id: "boot".to_owned(),
    }
}

fn inputs() -> StepInputs {
    let path = b"src/main.rs".to_vec();
    let (kind, mode, owner) = (ListedKind::File, Some(0o644), None);
    let listed = ListedEntry { path, kind, mode, owner, content: *b"contents", rest: [0; 8] };
    StepInputs {
        readable: vec![("args".to_owned(), "\"make\" \u{1f527}".to_owned())],
        parts: vec![
            InputPart::Key { key: key("parent"), output: 1 },
            InputPart::Content(blake3::hash(b"content").into()),
        ],
        listings: vec![(1, Listing::new(vec![listed]))],
        keys: vec![key("content"), key("definition")],
    }
}

fn save(index: &dyn CacheIndex, keys: &[CacheKey], record: &StepRecord) {
    index.save(keys, record, &inputs()).unwrap();
}

/// Runs a check on both indexes.
fn on_both(check: impl Fn(&dyn CacheIndex)) {
    check(&MemoryIndex::new());
    let folder = tempfile::tempdir().unwrap();
    check(&SqliteIndex::open(&folder.path().join("cache.db")).unwrap());
}

fn names(index: &dyn CacheIndex) -> Vec<String> {
    index.list().unwrap().into_iter().map(|(_, record)| record.name).collect()
}

#[test]
fn a_record_comes_back_as_it_was_under_each_key() {
    on_both(|index| {
        let made = record("made", &[1, 2]);
        assert_eq!(index.query(&key("a")).unwrap(), None);
        save(index, &[key("a"), key("b")], &made);
        assert_eq!(index.query(&key("a")).unwrap(), Some(made.clone()));
        assert_eq!(index.query(&key("b")).unwrap(), Some(made.clone()));
        let smallest = key("a").min(key("b"));
        assert_eq!(index.list().unwrap(), [(smallest, made)]);
    });
}

/// L03: what a step of a chain adds to the file does not grow with the chain. Meant to fail with each record holding all of
/// its layers, as they once did.
#[test]
fn l03_records_of_a_chain_share_their_stacks() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache.db");
    let index = SqliteIndex::open(&path).unwrap();
    let layers: Vec<LayerId> = (0..2_000).map(|number| format!("{number:032x}").parse().unwrap()).collect();
    let step = |height: usize| StepRecord {
        outputs: vec![ResultRef::Layers(layers[..height].to_vec())],
        result: None,
        ..record(&height.to_string(), &[])
    };
    let size = || {
        let pages = rusqlite::Connection::open(&path).unwrap();
        pages.query_row("SELECT sum(length(outputs)) FROM records", [], |row| row.get::<_, i64>(0)).unwrap()
            + pages.query_row("SELECT sum(length(layers)) FROM stacks", [], |row| row.get::<_, i64>(0)).unwrap()
    };
    let mut sizes = vec![0];
    for height in 1..=layers.len() {
        save(&index, &[key(&height.to_string())], &step(height));
        if height % 500 == 0 {
            sizes.push(size());
        }
    }
    let grown: Vec<i64> = sizes.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(grown[3] < grown[0] * 5 / 4, "{grown:?}");
    for height in [1, 63, 64, 65, 128, 129, 1_000, 2_000] {
        assert_eq!(index.query(&key(&height.to_string())).unwrap().unwrap(), step(height), "{height}");
    }
    assert_eq!(index.all_layers().unwrap().len(), 2_000);
    assert_eq!(index.list().unwrap().len(), 2_000);
    // What nobody stands on any more is gone.
    index.remove_where(&mut |record| record.outputs[0].layers().len() > 300).unwrap();
    assert_eq!(index.all_layers().unwrap().len(), 300);
    let rows = rusqlite::Connection::open(&path).unwrap();
    assert_eq!(rows.query_row("SELECT count(*) FROM stacks", [], |row| row.get::<_, i64>(0)).unwrap(), 4);
}

#[test]
fn what_keys_were_made_of_comes_back_beside_the_record() {
    on_both(|index| {
        assert_eq!(index.inputs(&key("a")).unwrap(), None);
        save(index, &[key("a")], &record("made", &[1]));
        assert_eq!(index.inputs(&key("a")).unwrap(), Some(inputs()));
        index.remove(&key("a")).unwrap();
        assert_eq!(index.inputs(&key("a")).unwrap(), None);
    });
}

#[test]
fn the_earliest_of_equal_results_is_found() {
    on_both(|index| {
        assert_eq!(index.equal(&key("result")).unwrap(), None);
        for (name, number) in [("first", 1), ("second", 2)] {
            save(index, &[key(name)], &record(name, &[number]));
        }
        assert_eq!(index.equal(&key("result")).unwrap().unwrap().name, "first");
        index.remove(&key("first")).unwrap();
        assert_eq!(index.equal(&key("result")).unwrap().unwrap().name, "second");
    });
}

#[test]
fn the_last_build_is_remembered_by_its_identity() {
    on_both(|index| {
        let (one, other) = (BuildId::new(&[b"a", b"bc"]), BuildId::new(&[b"ab", b"c"]));
        assert_ne!(one, other);
        let steps = |name: &str| BuildSteps(vec![BuiltStep { name: name.to_owned(), key: key(name) }]);
        assert_eq!(index.last_build(&one).unwrap(), None);
        index.note_build(&one, &steps("x"), time(1)).unwrap();
        index.note_build(&one, &steps("x"), time(2)).unwrap();
        index.note_build(&one, &steps("y"), time(3)).unwrap();
        assert_eq!(index.last_build(&one).unwrap(), Some(steps("y")));
        assert_eq!(index.last_build(&other).unwrap(), None);
    });
}

#[test]
fn a_record_without_keys_is_gone() {
    on_both(|index| {
        save(index, &[key("a"), key("b")], &record("old", &[1]));
        save(index, &[key("a")], &record("new", &[2]));
        assert_eq!(index.query(&key("b")).unwrap().unwrap().name, "old");
        save(index, &[key("b")], &record("new too", &[3]));
        assert_eq!(names(index), ["new", "new too"]);
        assert_eq!(index.all_layers().unwrap(), HashSet::from([layer(2), layer(3)]));
        save(index, &[], &record("nameless", &[4]));
        assert_eq!(index.list().unwrap().len(), 2);
    });
}

#[test]
fn further_keys_lead_to_the_same_record() {
    on_both(|index| {
        assert!(!index.link(&[key("b")], &key("a")).unwrap());
        save(index, &[key("a")], &record("one", &[1]));
        save(index, &[key("b")], &record("two", &[2]));
        assert!(index.link(&[key("b"), key("c"), key("a")], &key("a")).unwrap());
        assert_eq!(names(index), ["one"]);
        assert!(index.remove(&key("c")).unwrap());
        assert_eq!(index.query(&key("a")).unwrap(), None);
        assert!(!index.remove(&key("c")).unwrap());
        assert!(index.all_layers().unwrap().is_empty());
    });
}

#[test]
fn uses_are_noted_once_an_hour_and_order_the_list() {
    on_both(|index| {
        save(index, &[key("a")], &record("a", &[1]));
        save(index, &[key("b")], &record("b", &[2]));
        let used = |name: &str| index.query(&key(name)).unwrap().unwrap().last_used;
        index.touch(&[key("a"), key("none")], time(1_000_000 + 3599)).unwrap();
        assert_eq!(used("a"), time(1_000_000));
        index.touch(&[key("a"), key("none")], time(1_000_000 + 3700)).unwrap();
        assert_eq!((used("a"), used("b")), (time(1_003_700), time(1_000_000)));
        assert_eq!(names(index), ["b", "a"]);
        // A clock that goes back changes nothing.
        index.touch(&[key("a")], time(5)).unwrap();
        assert_eq!(used("a"), time(1_003_700));
    });
}

#[test]
fn unwanted_records_are_removed_with_all_their_keys() {
    on_both(|index| {
        for (name, number) in [("a", 1), ("b", 2), ("c", 3)] {
            save(index, &[key(name), key(&format!("{name}2"))], &record(name, &[number]));
        }
        let removed = index.remove_where(&mut |record| record.name != "b").unwrap();
        let mut removed: Vec<String> = removed.into_iter().map(|record| record.name).collect();
        removed.sort();
        assert_eq!(removed, ["a", "c"]);
        assert_eq!(names(index), ["b"]);
        assert_eq!(index.query(&key("a2")).unwrap(), None);
        assert_eq!(index.all_layers().unwrap(), HashSet::from([layer(2)]));
    });
}

fn open(path: &Path) -> SqliteIndex {
    SqliteIndex::open(path).unwrap()
}

#[test]
fn records_outlive_the_index_and_are_seen_by_others_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache.db");
    let (one, two) = (open(&path), open(&path));
    save(&one, &[key("a")], &record("a", &[1]));
    assert_eq!(two.query(&key("a")).unwrap().unwrap().name, "a");
    drop((one, two));
    assert_eq!(open(&path).query(&key("a")).unwrap().unwrap().name, "a");
}

/// Every opener of a new file races for making the schema; every writer for the lock.
#[test]
fn many_users_at_once_lose_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path: Arc<Path> = folder.path().join("cache.db").into();
    let threads: Vec<_> = (0..8)
        .map(|thread| {
            let path = path.clone();
            std::thread::spawn(move || {
                let index = open(&path);
                for number in 0..25 {
                    save(&index, &[key(&format!("{thread} {number}")), key("shared")], &record("x", &[1]));
                    index.query(&key("shared")).unwrap().unwrap();
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(open(&path).list().unwrap().len(), 200);
}

/// Those who make the file at once get into each other's way, and none fails for that.
#[test]
fn an_index_is_made_by_many_at_once() {
    let folder = tempfile::tempdir().unwrap();
    for round in 0..60 {
        let path = folder.path().join(format!("{round}.db"));
        std::thread::scope(|scope| {
            let opened: Vec<_> = (0..4).map(|_| scope.spawn(|| SqliteIndex::open(&path))).collect();
            for opened in opened {
                assert!(opened.join().unwrap().unwrap().list().unwrap().is_empty());
            }
        });
    }
}

#[test]
fn a_file_of_another_format_is_refused_or_emptied() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache.db");
    let format = |format: i64| {
        let connection = rusqlite::Connection::open(&path).unwrap();
        connection.pragma_update(None, "user_version", format).unwrap();
    };
    save(&open(&path), &[key("a")], &record("a", &[1]));
    format(99);
    let error = SqliteIndex::open(&path).err().unwrap();
    assert!(matches!(error, CacheError::NewerFormat { found: 99, .. }), "{error}");
    format(2);
    let index = open(&path);
    assert!(index.list().unwrap().is_empty());
    assert_eq!(index.emptied(), Some(2));
    assert_eq!(open(&path).emptied(), None);
}

#[test]
fn damage_is_an_error_and_not_a_miss() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache.db");
    save(&open(&path), &[key("a")], &record("a", &[1]));
    rusqlite::Connection::open(&path).unwrap().execute("UPDATE records SET outputs = '[{}]'", []).unwrap();
    let error = open(&path).query(&key("a")).unwrap_err();
    assert_eq!(error.to_string(), "the cache index holds a damaged record for \"a\"");
    assert!(error.hint().is_some());
    std::fs::write(folder.path().join("text"), "this is no database, though it is long enough to be one").unwrap();
    assert!(SqliteIndex::open(&folder.path().join("text")).is_err());
}

/// A build that finds everything spends most of its time on what happens once.
#[test]
fn opening_and_asking_are_fast() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache.db");
    let index = open(&path);
    for number in 0..1000 {
        save(&index, &[key(&number.to_string())], &record("x", &[1]));
    }
    drop(index);
    let measure = || {
        let begin = std::time::Instant::now();
        let index = open(&path);
        let opened = begin.elapsed();
        index.query(&key("7")).unwrap().unwrap();
        (opened, begin.elapsed() - opened)
    };
    let (opened, asked) = (0..50).map(|_| measure()).min().unwrap();
    println!("opened in {opened:?}, first answer after {asked:?}");
    assert!(opened < Duration::from_millis(1) && asked < Duration::from_millis(1), "{opened:?} {asked:?}");
}
