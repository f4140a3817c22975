//! Many files, and deep trees.

use crate::Test;
use crate::site::Site;
use forge_cache::ResultRef;
use std::path::Path;
use std::time::{Duration, Instant};

pub const TESTS: &[Test] = &[
    ("privileged_many_files_are_copied_soon", many_files),
    ("privileged_many_files_in_other_ways", other_ways),
    ("privileged_deep_trees_are_copied", deep_trees),
    ("privileged_the_deepest_trees_are_an_error_at_most", deepest_trees),
];

const FILES: usize = 100;
/// Far above what it takes (half a second in a debug build), far below what a look-up from the root for each file would.
const LIMIT: Duration = Duration::from_secs(30);

fn fill(folder: &Path, folders: usize) {
    for number in 0..folders {
        let sub = folder.join(format!("src/module-{}/part-{number}", number % 20));
        std::fs::create_dir_all(&sub).unwrap();
        for file in 0..FILES {
            std::fs::write(sub.join(format!("file-{file}.rs")), format!("// {number} {file}\n").repeat(60)).unwrap();
        }
    }
}

fn timed(what: &str, work: impl FnOnce()) {
    let begin = Instant::now();
    work();
    let took = begin.elapsed();
    // Shown with --nocapture, for who wants to compare.
    print_time(what, took);
    assert!(took < LIMIT, "{what} took {took:?}");
}

#[expect(clippy::print_stdout, reason = "times are for people")]
fn print_time(what: &str, took: Duration) {
    println!("{what}: {} ms", took.as_millis());
}

fn many_files() {
    let site = Site::new();
    fill(&site.path("context"), 200);
    timed("cp -a", || {
        let mut cp = std::process::Command::new("cp");
        assert!(cp.arg("-a").arg(site.path("context")).arg(site.path("cp")).status().unwrap().success());
    });
    timed("the key", || drop(site.keys("COPY . /app/").unwrap()));
    // Besides the files: src, 20 modules, 200 parts, app.
    let copy = || assert_eq!(site.execute("COPY . /app/").unwrap().entries as usize, 200 * FILES + 222);
    timed("COPY into a new folder", copy);
}

fn other_ways() {
    let mut site = Site::new();
    fill(&site.path("context"), 30);
    let record = site.execute("COPY . /app/").unwrap();
    site.base = ResultRef::Layers(vec![record.id]);
    site.stage = site.base.clone();
    timed("COPY over the same files", || {
        assert_eq!(site.execute("COPY --chown=1 . /app/").unwrap().entries as usize, 30 * FILES + 51);
    });
    timed("COPY that changes nothing", || assert_eq!(site.execute("COPY . /app/").unwrap().entries, 0));
    site.base = ResultRef::scratch();
    for number in 0..9 {
        site = site.stage(&format!("layer-{number} =x"));
    }
    timed("COPY --from a stage of ten layers", || {
        site.execute("COPY --from=stage /app /app").unwrap();
    });
    timed("COPY by a wildcard", || {
        site.execute("COPY src/*/*/*.rs /app/").unwrap();
    });
}

/// Folders in each other, made one by one: the whole path may be longer than the kernel takes.
fn nest(folder: &Path, name: &str, depth: usize) {
    use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let mut at = openat(CWD, folder, flags, Mode::empty()).unwrap();
    for _ in 0..depth {
        mkdirat(&at, name, Mode::from_raw_mode(0o755)).unwrap();
        at = openat(&at, name, flags, Mode::empty()).unwrap();
    }
}

fn deep_trees() {
    let site = Site::new();
    nest(&site.path("context"), "d", 1_900);
    site.keys("COPY . /t/").unwrap();
    let record = site.execute("COPY . /t/").unwrap();
    assert_eq!(record.entries, 1_901);
    let mut deep = site;
    deep.stage = ResultRef::Layers(vec![record.id]);
    timed("COPY of a deep stage", || assert_eq!(deep.execute("COPY --from=stage / /").unwrap().entries, 1_901));
    deep.base = deep.stage.clone();
    timed("COPY of a deep tree over itself", || assert_eq!(deep.execute("COPY . /t/").unwrap().entries, 0));
}

fn deepest_trees() {
    let site = Site::new();
    nest(&site.path("context"), &"n".repeat(200), 30);
    let shown = site.does("COPY . /t/");
    assert!(shown.contains("cannot read") || shown.contains("too long"), "{shown}");
    let site = Site::new();
    nest(&site.path("context"), "d", 2_040);
    let shown = site.does(&format!("COPY . /{}/", "long".repeat(60)));
    assert!(shown.contains("cannot write") || shown.contains("too long"), "{shown}");
}
