//! What compressing a large layer takes of memory. Alone in its program, whose memory is measured.

#![allow(clippy::print_stderr, reason = "what was measured is worth to be seen")]

mod layer_store;

use forge_store::{Compression, LayerId, TarOptions};
use layer_store::{Fixture, is_root};
use std::fs;
use std::process::Command;

/// What may be held beside the program itself: the goal for a whole command is 100 MiB, and the program with its store takes 35.
const KIBIBYTES: u64 = 60 << 10;

/// A line of /proc/self/status.
fn status(name: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap()
}

/// Noise and text in turn, short files and long ones: noise is as long as what is made of it, and text takes its time, so that
/// chunks wait.
fn fill(folder: &std::path::Path) {
    for number in 0..60_u64 {
        let length = [70_000, 300_000, 1_900_000, 900_000, 4_100_000, 20_000][number as usize % 6];
        let mut bytes = vec![0; length];
        blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut bytes);
        if number % 4 != 0 {
            bytes.iter_mut().for_each(|byte| *byte = b'a' + *byte % 8);
        }
        fs::write(folder.join(number.to_string()), bytes).unwrap();
    }
}

/// The most memory that was held while a blob was made.
fn peak(fixture: &Fixture, layer: &LayerId, compression: &Compression) -> u64 {
    // Makes the highest mark the present one (proc_pid_clear_refs(5)).
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let (layers, tar) = (fixture.store.layers(), TarOptions::default());
    layers.blob(layer, compression, &tar, &fixture.lease, &mut |_| {}).unwrap();
    status("VmHWM:")
}

/// One case, in a process of its own: what others left with the allocator would count.
fn measure(codec: &str, threads: usize) {
    let fixture = Fixture::new();
    let before = status("VmRSS:");
    let active = fixture.store.layers().prepare(&[]).unwrap();
    fill(active.upper());
    let layer = fixture.store.layers().commit(active, &fixture.lease).unwrap().id;
    let compression = match codec {
        "gzip" => Compression::Gzip { level: None },
        _ => Compression::Zstd { level: None },
    };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let peak = pool.install(|| peak(&fixture, &layer, &compression)) - before;
    eprintln!("{peak} KiB for {codec} with {threads} threads");
    assert!(peak < KIBIBYTES, "{peak} KiB for {codec} with {threads} threads");
}

const CASE: &str = "FORGE_TEST_MEMORY";

/// Seen to fail, with eight threads, where each of them keeps its tables and clears all of its room.
#[test]
fn privileged_compressing_a_layer_takes_little_memory() {
    let name = "privileged_compressing_a_layer_takes_little_memory";
    if !is_root(name) {
        return;
    }
    if let Ok(case) = std::env::var(CASE) {
        let (codec, threads) = case.split_once(' ').unwrap();
        return measure(codec, threads.parse().unwrap());
    }
    for case in ["gzip 2", "zstd 2", "zstd 8"] {
        let mut child = Command::new(std::env::current_exe().unwrap());
        let ended = child.args(["--exact", name, "--nocapture"]).env(CASE, case).status().unwrap();
        assert!(ended.success(), "{case}");
    }
}
