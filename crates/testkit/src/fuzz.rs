//! Random tests: seconds in the usual run, minutes with `cargo xtask fuzz`.
//!
//! A target is a test named `fuzz_pNN_…` that calls [`run`]. Without `FORGE_FUZZ_SECONDS` it takes two seconds from a
//! fixed seed, so that the usual run is the same every time; with it, it goes on for as long from a seed of the clock. A
//! failure prints its seed: `FORGE_FUZZ_SEED` repeats that one case. Inputs that were found to fail are kept in
//! `testdata/fuzz/pNN`, and tried first ([`corpus`]). The module uses the standard library alone, so that crates below this
//! one can include it by its path.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// A generator with a seed (splitmix64): the same seed gives the same numbers on every machine.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below a bound that is not zero.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.number() % bound as u64) as usize
    }

    /// One of several.
    pub fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len())]
    }

    /// Up to `most` pieces in a row.
    pub fn text(&mut self, pieces: &[&str], most: usize) -> String {
        (0..self.below(most + 1)).map(|_| self.pick(pieces)).collect()
    }

    /// Some bytes with a few changes: pieces put in, bytes changed, taken out or repeated.
    pub fn mutated(&mut self, input: &[u8], pieces: &[&str]) -> Vec<u8> {
        let mut bytes = input.to_vec();
        for _ in 0..=self.below(6) {
            let at = self.below(bytes.len() + 1);
            match self.below(6) {
                0 => bytes.truncate(at),
                1 if at < bytes.len() => bytes[at] = self.number() as u8,
                2 if at < bytes.len() => drop(bytes.remove(at)),
                3 => {
                    let end = (at + self.below(20)).min(bytes.len());
                    let again = bytes[at..end].to_vec();
                    drop(bytes.splice(at..at, again));
                }
                _ => drop(bytes.splice(at..at, self.pick(pieces).bytes())),
            }
        }
        bytes
    }
}

fn from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text}: expected a number")))
}

/// Tries random cases until the time is up. `one` panics where a case shows a fault.
pub fn run(target: &str, mut one: impl FnMut(&mut Random)) {
    if let Some(seed) = from_environment("FORGE_FUZZ_SEED") {
        return one(&mut Random::new(seed));
    }
    let seconds = from_environment("FORGE_FUZZ_SECONDS");
    let clock = || SystemTime::UNIX_EPOCH.elapsed().map_or(0, |elapsed| elapsed.as_nanos() as u64);
    let first = if seconds.is_some() { clock() } else { 1 };
    let end = Instant::now() + Duration::from_secs(seconds.unwrap_or(2));
    let mut count = 0;
    while Instant::now() < end {
        let seed = Random::new(first.wrapping_add(count)).number();
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| one(&mut Random::new(seed)))) {
            report(&format!("{target}: case {count} failed: FORGE_FUZZ_SEED={seed} repeats it"));
            resume_unwind(panic);
        }
        count += 1;
    }
    report(&format!("{target}: {count} cases"));
}

#[allow(clippy::print_stdout, reason = "the seed of a failure must be seen")]
fn report(line: &str) {
    println!("{line}");
}

/// The files of a folder of the project, sorted by their names. Those of folders in it count too.
pub fn corpus(folder: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(folder), &mut found);
    found.sort();
    found
}

fn collect(folder: &Path, found: &mut Vec<(PathBuf, Vec<u8>)>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        match path.is_dir() {
            true => collect(&path, found),
            false => found.extend(std::fs::read(&path).ok().map(|bytes| (path, bytes))),
        }
    }
}
