//! Files of a context that did not change are not read again.

use crate::Test;
use crate::site::Site;
use crate::tree_text;
use forge_session::{Context, ContextEntry, ContextError, ContextPath, LocalContext};
use forge_testkit::TestSession;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

pub const TESTS: &[Test] = &[
    ("privileged_unchanged_files_are_not_read_again", unchanged),
    ("privileged_changes_that_hide_are_seen", hidden_changes),
    ("privileged_files_that_were_just_written_are_not_believed", just_written),
    ("privileged_a_damaged_index_is_an_empty_one", damaged),
    ("privileged_only_so_many_indexes_are_kept", few_indexes),
    ("privileged_an_index_forgets_what_is_gone", forgetting),
];

const COPY: &str = "COPY . /t/";

/// A context that counts the files which are opened.
struct Counted {
    inner: LocalContext,
    opened: AtomicUsize,
}

impl Context for Counted {
    fn identity(&self) -> String {
        self.inner.identity()
    }

    fn stat(&self, path: &ContextPath) -> Result<Option<ContextEntry>, ContextError> {
        self.inner.stat(path)
    }

    fn children(&self, path: &ContextPath) -> Result<Vec<ContextEntry>, ContextError> {
        self.inner.children(path)
    }

    fn open(&self, path: &ContextPath) -> Result<File, ContextError> {
        self.opened.fetch_add(1, Ordering::Relaxed);
        self.inner.open(path)
    }
}

/// A site whose context counts.
fn site(text: &str) -> (Site, Arc<Counted>) {
    let mut site = Site::new().context(text);
    let inner = LocalContext::open(&site.path("context")).unwrap();
    let counted = Arc::new(Counted { inner, opened: AtomicUsize::new(0) });
    site.session = Arc::new(TestSession::new().with_context("context", counted.clone()));
    (site, counted)
}

/// How many files a build reads for its key.
fn read(site: &Site, context: &Counted) -> usize {
    context.opened.store(0, Ordering::Relaxed);
    site.keys(COPY).unwrap();
    context.opened.load(Ordering::Relaxed)
}

/// Until times of files written now can be told from those of files written later.
fn settle() {
    std::thread::sleep(Duration::from_millis(250));
}

fn indexes(site: &Site) -> Vec<PathBuf> {
    let listed = std::fs::read_dir(site.store.root().join("contexts"));
    listed.map(|listed| listed.map(|entry| entry.unwrap().path()).collect()).unwrap_or_default()
}

fn unchanged() {
    let (site, context) = site("a =1\n d/b =2\n d/c =3\n d/\n l -> a");
    settle();
    let key = site.keys(COPY).unwrap();
    assert_eq!(read(&site, &context), 0);
    assert_eq!(site.keys(COPY).unwrap(), key);
    // A build copies without hashing first; what it copies is read, once.
    context.opened.store(0, Ordering::Relaxed);
    site.check(COPY, "t/ @now\n t/a =1\n t/d/\n t/d/b =2\n t/d/c =3\n t/l -> a");
    assert_eq!(context.opened.load(Ordering::Relaxed), 3);
    tree_text::write(&site.path("context"), "d/b =4\n new =5");
    assert_eq!(read(&site, &context), 2);
    assert_ne!(site.keys(COPY).unwrap(), key);
    // The same bytes again are read again, and lead to the same key.
    std::fs::remove_file(site.path("context/new")).unwrap();
    tree_text::write(&site.path("context"), "d/b =2");
    assert_eq!(site.keys(COPY).unwrap(), key);
    assert_eq!(indexes(&site).len(), 1);
}

/// Equal size and modification time prove nothing.
///
/// Seen to fail with stamps without the change time, and with ones without inode and change time.
fn hidden_changes() {
    let (site, context) = site("a =1\n b =2");
    settle();
    let before = site.keys(COPY).unwrap();
    assert_eq!(read(&site, &context), 0);
    tree_text::write(&site.path("context"), "a =3");
    assert_eq!(read(&site, &context), 1);
    assert_ne!(site.keys(COPY).unwrap(), before);
    tree_text::write(&site.path(""), "aside =4");
    let changed = site.keys(COPY).unwrap();
    std::fs::rename(site.path("aside"), site.path("context/b")).unwrap();
    assert_ne!(site.keys(COPY).unwrap(), changed);
}

/// Seen to fail with an index that takes what was written in the moment of the look: one of some hundred rounds.
fn just_written() {
    let (site, context) = site("a =0");
    std::fs::write(site.path("context/a"), "1").unwrap();
    site.keys(COPY).unwrap();
    assert_eq!(read(&site, &context), 1);
    assert!(indexes(&site).is_empty());
    // Two writes in a tick of the clock leave the same times.
    for round in 0..200 {
        let write = |bytes: &str| std::fs::write(site.path("context/a"), bytes).unwrap();
        write(&format!("{round:05}"));
        let first = site.keys(COPY).unwrap();
        write(&format!("{:05}", round + 1));
        assert_ne!(site.keys(COPY).unwrap(), first, "round {round}");
    }
    settle();
    assert_eq!((read(&site, &context), read(&site, &context)), (1, 0));
}

fn damaged() {
    let (site, context) = site("a =1\n b =2");
    settle();
    let key = site.keys(COPY).unwrap();
    let index = indexes(&site).remove(0);
    let whole = std::fs::read(&index).unwrap();
    let mut flipped = whole.clone();
    flipped[100] ^= 1;
    for bytes in [&b""[..], &whole[..whole.len() - 1], &whole[..40], &flipped, b"forge-stats\x02\0\0\0\0"] {
        std::fs::write(&index, bytes).unwrap();
        assert_eq!(read(&site, &context), 2);
        assert_eq!(site.keys(COPY).unwrap(), key);
        assert_eq!(read(&site, &context), 0);
    }
    // An index that cannot be written costs time, and nothing else.
    std::fs::remove_dir_all(index.parent().unwrap()).unwrap();
    std::fs::write(index.parent().unwrap(), "").unwrap();
    assert_eq!((read(&site, &context), read(&site, &context)), (2, 2));
}

/// Contexts come and go, and their indexes with them.
fn few_indexes() {
    let (site, context) = site("a =1");
    settle();
    site.keys(COPY).unwrap();
    let folder = indexes(&site)[0].parent().unwrap().to_owned();
    for number in 0..150 {
        std::fs::write(folder.join(format!("old-{number}")), "").unwrap();
        tree_text::set_time(&folder.join(format!("old-{number}")), number);
    }
    std::fs::write(site.path("context/b"), "2").unwrap();
    settle();
    assert_eq!(read(&site, &context), 1);
    assert_eq!(indexes(&site).len(), 100);
    assert_eq!(read(&site, &context), 0);
}

fn forgetting() {
    let many: String = (0..6000).map(|number| format!("many/{number} =x\n")).collect();
    let (site, context) = site(&format!("{many} keep =K"));
    settle();
    assert_eq!(read(&site, &context), 6001);
    let large = std::fs::metadata(&indexes(&site)[0]).unwrap().len();
    std::fs::remove_dir_all(site.path("context/many")).unwrap();
    std::fs::write(site.path("context/new"), "N").unwrap();
    settle();
    assert_eq!(read(&site, &context), 1);
    let small = std::fs::metadata(&indexes(&site)[0]).unwrap().len();
    assert!(small < large / 1000, "{small} of {large}");
    assert_eq!(read(&site, &context), 0);
}
