//! What it costs here to make things survive: medians of wall time, for `docs/design/003-durability.md`.
//!
//! Measures in a new folder under `FORGE_BENCH_DIR`, or the system's temporary folder. Run by `cargo bench`; `cargo test --benches`
//! runs each case once.

use forge_store::{Image, Store, Target};
use rusqlite::Connection;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

struct Bench {
    rounds: u32,
}

impl Bench {
    /// Prints the median, the fastest and the slowest of `run`; what `before` does is not counted.
    fn case<T>(&self, name: &str, mut before: impl FnMut(u32) -> T, mut run: impl FnMut(T)) {
        let mut times: Vec<Duration> = (0..self.rounds)
            .map(|round| {
                let prepared = before(round);
                let begin = Instant::now();
                run(prepared);
                begin.elapsed()
            })
            .collect();
        times.sort_unstable();
        let micros = |time: &Duration| time.as_secs_f64() * 1e6;
        let (median, last) = (&times[times.len() / 2], &times[times.len() - 1]);
        let line = format!("{name:58} {:10.1} {:10.1} {:10.1}\n", micros(median), micros(&times[0]), micros(last));
        std::io::stdout().write_all(line.as_bytes()).expect("standard output is open");
    }
}

fn main() {
    let full = std::env::args().any(|argument| argument == "--bench");
    let bench = Bench { rounds: if full { 31 } else { 1 } };
    let base = std::env::var_os("FORGE_BENCH_DIR").map_or_else(std::env::temp_dir, Into::into);
    let folder = tempfile::tempdir_in(base).expect("the folder can be written to");
    let header = format!("{:58} {:>10} {:>10} {:>10}\n", "µs", "median", "min", "max");
    std::io::stdout().write_all(header.as_bytes()).expect("standard output is open");
    files(&bench, folder.path());
    database(&bench, folder.path());
    wal_recovery(&bench, folder.path());
    store(&bench, &folder.path().join("store"));
}

fn write(path: &Path, size: usize) -> File {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(path).expect("can be made");
    file.write_all(&vec![7; size]).expect("can be written");
    file
}

fn files(bench: &Bench, folder: &Path) {
    let handle = File::open(folder).expect("it was just made");
    let syncfs = || rustix::fs::syncfs(&handle).expect("the disk works");
    let quiet = || syncfs();
    let many = |count: usize, size: usize| {
        (0..count).for_each(|n| drop(write(&folder.join(format!("many{n}")), size)));
    };
    bench.case("write 4 KiB, rename", |_| quiet(), |()| rename(folder, false));
    bench.case("write 4 KiB, fsync, rename, fsync of the folder", |_| quiet(), |()| rename(folder, true));
    let fsync = |file: File| file.sync_all().expect("the disk works");
    bench.case("fsync of a new file of 4 KiB", |_| write(&folder.join("a"), 4096), fsync);
    bench.case("fsync of a new file of 16 MiB", |_| write(&folder.join("b"), 16 << 20), fsync);
    bench.case("syncfs, nothing to write", |_| quiet(), |()| syncfs());
    bench.case("syncfs after one file of 4 KiB", |_| drop(write(&folder.join("c"), 4096)), |()| syncfs());
    bench.case("syncfs after 1,000 files of 4 KiB", |_| many(1000, 4096), |()| syncfs());
    bench.case(
        "fsync of each of 1,000 files of 4 KiB",
        |_| many(1000, 4096),
        |()| {
            (0..1000).for_each(|n| fsync(File::open(folder.join(format!("many{n}"))).expect("written above")));
        },
    );
    bench.case("syncfs after one file of 64 MiB", |_| drop(write(&folder.join("d"), 64 << 20)), |()| syncfs());
}

fn rename(folder: &Path, durably: bool) {
    let (from, to) = (folder.join("new"), folder.join("named"));
    let file = write(&from, 4096);
    if durably {
        file.sync_all().expect("the disk works");
    }
    std::fs::rename(from, to).expect("both are in one folder");
    if durably {
        File::open(folder).and_then(|folder| folder.sync_all()).expect("the disk works");
    }
}

fn connect(path: &Path, synchronous: &str) -> Connection {
    let connection = Connection::open(path).expect("can be made");
    let settings = format!("PRAGMA journal_mode = WAL; PRAGMA synchronous = {synchronous};");
    connection.execute_batch(&settings).expect("WAL works here");
    connection.execute_batch("CREATE TABLE IF NOT EXISTS t (a TEXT PRIMARY KEY, b TEXT)").expect("valid SQL");
    connection
}

fn database(bench: &Bench, folder: &Path) {
    for synchronous in ["OFF", "NORMAL", "FULL"] {
        let connection = connect(&folder.join(format!("{synchronous}.db")), synchronous);
        let insert = |round| {
            let sql = "BEGIN IMMEDIATE; INSERT INTO t VALUES ('KEY', 'value'); COMMIT";
            connection.execute_batch(&sql.replace("KEY", &format!("{round:032}"))).expect("a new key");
        };
        bench.case(&format!("SQLite WAL commit of one row, synchronous={synchronous}"), |round| round, insert);
    }
}

/// The first to open a database reads the whole WAL: how long does that take, by its size?
fn wal_recovery(bench: &Bench, folder: &Path) {
    for pages in [0_u32, 64, 256, 1000] {
        let path = folder.join(format!("wal{pages}.db"));
        let filled = connect(&path, "NORMAL");
        filled.execute_batch("PRAGMA wal_checkpoint(TRUNCATE); PRAGMA wal_autocheckpoint = 0").expect("valid SQL");
        for key in 0..pages {
            let text = "x".repeat(3000);
            filled.execute("INSERT INTO t VALUES (?1, ?2)", (key.to_string(), text)).expect("a new key");
        }
        let copy = folder.join(format!("copy{pages}.db"));
        let fresh = |_| {
            std::fs::copy(&path, &copy).expect("it is there");
            let wal = |path: &Path| path.with_extension("db-wal");
            std::fs::copy(wal(&path), wal(&copy)).expect("it is there");
            let _ = std::fs::remove_file(copy.with_extension("db-shm"));
        };
        let read = |()| {
            let connection = Connection::open(&copy).expect("it is there");
            let count = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0));
            assert_ne!(count.expect("valid SQL"), 0);
            // Closing would checkpoint, which is not what is measured.
            std::mem::forget(connection);
        };
        bench.case(&format!("open a database whose WAL has {pages} transactions"), fresh, read);
    }
}

fn image(store: &Store, text: &str, lease: &forge_store::Lease) -> Target {
    let platform = forge_image::Platform::new("linux", "amd64", None);
    let mut config = forge_image::ImageConfig::new(&platform);
    config.author = Some(text.to_owned());
    let bytes = config.to_json();
    let id = forge_image::ImageConfig::id_of(&bytes);
    let (layers, stored) = (Vec::new(), SystemTime::now());
    let image = Image { id: id.clone(), platform, layers, manifest: None, created: None, stored };
    store.images().put(&image, &bytes, lease).expect("the store works");
    Target { index: None, images: vec![id] }
}

fn store(bench: &Bench, root: &Path) {
    let open = || Store::open(root).expect("the store works");
    bench.case("Store::open that makes the store", |_| drop(std::fs::remove_dir_all(root)), |()| drop(open()));
    let filled = open();
    let lease = filled.lease("bench").expect("the store works");
    let name: forge_image::Reference = "app:1.0".parse().expect("a name");
    for n in 0..200 {
        let target = image(&filled, &format!("filler {n}"), &lease);
        let name = format!("filler:{n}").parse().expect("a name");
        filled.images().tag(&name, &target).expect("the store works");
    }
    let target = image(&filled, "app", &lease);
    filled.images().tag(&name, &target).expect("the store works");
    bench.case("Store::open, another process has it open", |_| (), |()| drop(open()));
    drop(lease);
    drop(filled);
    bench.case("Store::open, nobody else has it open", |_| (), |()| drop(open()));
    bench.case(
        "the same and one lookup of an image by name",
        |_| (),
        |()| {
            open().images().resolve("app:1.0").expect("it is there");
        },
    );
    bench.case(
        "a lease: begin, hold one blob, end",
        |_| open(),
        |store| {
            let lease = store.lease("bench").expect("the store works");
            assert!(lease.hold_blob(target.images[0].digest()).expect("the store works"));
            drop(lease);
            drop(store);
        },
    );
    let store = open();
    let lease = store.lease("bench").expect("the store works");
    bench.case(
        "Blobs::write of 4 KiB",
        |round| [round as u8; 4096],
        |bytes| {
            store.blobs().write(&bytes, &lease).expect("the store works");
        },
    );
    bench.case("Images::put of a new image", |round| format!("{round}"), |text| drop(image(&store, &text, &lease)));
    let new = |round| image(&store, &format!("new {round}"), &lease);
    bench.case("Images::tag of a new image (syncfs, FULL)", new, |target| {
        store.images().tag(&name, &target).expect("the store works");
    });
    let synced = |round| {
        let target = new(round);
        store.sync().expect("the store works");
        target
    };
    bench.case("Images::tag of an image that was synced (FULL)", synced, |target| {
        store.images().tag(&name, &target).expect("the store works");
    });
    let target = image(&store, "app", &lease);
    store.images().tag(&name, &target).expect("the store works");
    bench.case(
        "Images::tag that changes nothing",
        |_| (),
        |()| {
            store.images().tag(&name, &target).expect("the store works");
        },
    );
}
