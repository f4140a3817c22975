//! Load: what a store costs when it is large. A fiftieth of the load in the usual run, all of it with `cargo xtask load`.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "the figures are for whoever runs the test")]

use forge_cache::{CacheIndex, CacheKey, OpKey, ResultRef, SqliteIndex, StepInputs, StepRecord};
use forge_engine::{Engine, EngineOptions, Filter, GcOptions, Policy, Proxy, PruneRequest, VerifyDepth};
use forge_store::{LayerId, Lease, Store};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// How much of the load is tried: 1 for all.
fn scale() -> f64 {
    std::env::var("FORGE_LOAD_SCALE").ok().and_then(|text| text.parse().ok()).unwrap_or(0.02)
}

fn part_of(number: usize) -> usize {
    (number as f64 * scale()) as usize
}

fn options(root: &Path) -> EngineOptions {
    EngineOptions {
        root: root.to_owned(),
        registries: BTreeMap::new(),
        docker_config: root.join("config.json"),
        offline: true,
        intake: forge_engine::IntakeLimits::default(),
        proxy: Proxy::default(),
        max_parallelism: None,
        device_folders: Vec::new(),
        oci_runtime: None,
        gc: GcOptions::default(),
        user_agent: None,
    }
}

fn key(number: usize) -> CacheKey {
    CacheKey::definition(&OpKey::new(&number.to_le_bytes()), &[])
}

fn layer(store: &Store, number: usize, lease: &Lease) -> LayerId {
    let active = store.layers().prepare(&[]).unwrap();
    std::fs::write(active.upper().join("file"), number.to_le_bytes().repeat(128)).unwrap();
    store.layers().commit(active, lease).unwrap().id
}

fn record(number: usize, layers: Vec<LayerId>) -> StepRecord {
    let now = SystemTime::now();
    StepRecord {
        name: format!("[{number}/50000] RUN make part{number}"),
        is_source: false,
        outputs: vec![ResultRef::Layers(layers)],
        result: None,
        bytes: 1024,
        wall_ms: (number % 977) as u64,
        usage: None,
        created: now,
        last_used: now,
        boot_id: StepRecord::current_boot().to_owned(),
    }
}

/// Loose blobs as broken pulls leave them, layers in stacks of ten, records of which some share a layer.
fn fill(root: &Path) -> (usize, usize, usize) {
    let (blobs, layers, records) = (part_of(100_000), part_of(20_000), part_of(50_000));
    let store = Store::open(root).unwrap();
    let index = SqliteIndex::open(&root.join("cache.db")).unwrap();
    let lease = store.lease("fill").unwrap();
    for number in 0..blobs {
        store.blobs().write(format!("blob {number}").as_bytes(), &lease).unwrap();
    }
    let ids: Vec<LayerId> = (0..layers).map(|number| layer(&store, number, &lease)).collect();
    for number in 0..records {
        let own = number % layers;
        let stack = ids[own - own % 10..=own].to_vec();
        index.save(&[key(number)], &record(number, stack), &StepInputs::default()).unwrap();
    }
    (blobs, layers, records)
}

/// What builds do meanwhile: look up, hold, store. Gives how long lookups took.
fn work(root: &Path, records: usize, done: &AtomicBool) -> Vec<Duration> {
    let store = Store::open(root).unwrap();
    let index = SqliteIndex::open(&root.join("cache.db")).unwrap();
    let mut taken = Vec::new();
    for number in 0.. {
        if done.load(Ordering::Relaxed) {
            break;
        }
        let lease = store.lease("work").unwrap();
        taken.push(look_up(&store, &index, &lease, number * 7919 % records));
        if number % 10 == 0 {
            let own = layer(&store, number, &lease);
            assert!(store.verify_layer(&own).unwrap());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    taken
}

/// A cache hit: the record, and its layers held.
fn look_up(store: &Store, index: &SqliteIndex, lease: &Lease, number: usize) -> Duration {
    let begin = Instant::now();
    let Some(found) = index.query(&key(number)).unwrap() else { return begin.elapsed() };
    let layers: Vec<LayerId> = found.layers().cloned().collect();
    let held = lease.hold_layers(&layers).unwrap();
    let taken = begin.elapsed();
    if held {
        // What is held can be read, whatever is collected meanwhile.
        let folders = store.layers().lower_dirs(&layers).unwrap();
        assert!(folders.iter().all(|folder| folder.join("file").exists()));
    }
    taken
}

fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort();
    times[(times.len() * percent / 100).min(times.len() - 1)]
}

/// Fails when a collection deletes everything in one transaction: lookups beside it then wait for all of it.
#[test]
fn l11_a_large_store_opens_looks_up_collects_and_verifies() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let root = folder.path().join("store");
    let begin = Instant::now();
    let (blobs, layers, records) = fill(&root);
    println!("L11: {blobs} blobs, {layers} layers, {records} records made in {:.1?}", begin.elapsed());

    let begin = Instant::now();
    let engine = Engine::open(options(&root)).unwrap();
    drop(SqliteIndex::open(&root.join("cache.db")).unwrap());
    let opened = begin.elapsed();
    let (store, index) = (Store::open(&root).unwrap(), SqliteIndex::open(&root.join("cache.db")).unwrap());
    let look = |number: usize| look_up(&store, &index, &store.lease("look").unwrap(), number * 31 % records);
    let mut alone: Vec<Duration> = (0..1000).map(look).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().build().unwrap();
    let begin = Instant::now();
    let report = runtime.block_on(engine.usage(Filter::default())).unwrap();
    let counted = begin.elapsed();
    assert_eq!(report.rows.len(), records);

    let (done, half) = (AtomicBool::new(false), report.rows.iter().map(|row| row.bytes).sum::<u64>() / 2);
    let policy = Policy { all: true, max_used_space: Some(half), ..Policy::default() };
    let (mut beside, collected, pruned) = std::thread::scope(|scope| {
        let worker = scope.spawn(|| work(&root, records, &done));
        let begin = Instant::now();
        let pruned = runtime.block_on(engine.prune(PruneRequest { policy, dry_run: false })).unwrap();
        let collected = begin.elapsed();
        done.store(true, Ordering::Relaxed);
        (worker.join().unwrap(), collected, pruned)
    });
    let left = runtime.block_on(engine.usage(Filter::default())).unwrap();
    assert!(left.rows.iter().map(|row| row.bytes).sum::<u64>() <= half + half / 10, "{}", left.total);
    assert!(pruned.removed.len() >= records / 3 && store.usage().unwrap().blobs.count == 0);

    let begin = Instant::now();
    let verified = store.verify(VerifyDepth::Records).unwrap();
    let quick = begin.elapsed();
    assert_eq!(verified.findings, []);
    println!(
        "L11: open {opened:.1?}, lookup p99 {:.1?} alone and {:.1?} beside a collection, du {counted:.1?}, \
         collection of half {collected:.1?} ({} records), quick verify {quick:.1?}",
        percentile(&mut alone, 99),
        percentile(&mut beside, 99),
        pruned.removed.len(),
    );
    // The bars of a release build on a quiet machine; a test build beside others gets five times that.
    let bar = |milliseconds| Duration::from_millis(milliseconds) * 5;
    assert!(opened <= bar(100) && quick <= bar(10_000) && collected <= bar(60_000));
    assert!(percentile(&mut alone, 99) <= bar(5), "{:?}", percentile(&mut alone, 99));
    assert!(percentile(&mut beside, 99) <= bar(50), "{:?}", percentile(&mut beside, 99));
}
