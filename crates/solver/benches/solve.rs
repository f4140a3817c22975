//! What the solver itself costs, keys included: graphs of steps that do nothing, cold and warm. Run by
//! `cargo bench`; `cargo test --benches` runs each case once.

#[path = "../tests/fake/mod.rs"]
mod fake;

use fake::{Fake, FakeSession, GraphBuilder, solver};
use forge_llb::Graph;
use std::io::Write;
use std::time::{Duration, Instant};

/// Chains of steps that end in one.
fn graph(chains: usize, length: usize) -> Graph {
    let mut builder = GraphBuilder::default();
    let mut ends = Vec::new();
    for chain in 0..chains {
        let mut end = builder.add(&format!("source {chain}"), &[]);
        for step in 0..length {
            end = builder.add(&format!("step {chain}.{step}"), &[&end]);
        }
        ends.push(end);
    }
    let inputs: Vec<_> = ends.iter().collect();
    let goal = builder.add("goal", &inputs);
    builder.goal(&goal)
}

fn main() {
    let rounds = if std::env::args().any(|argument| argument == "--bench") { 11 } else { 1 };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let mut out = std::io::stdout().lock();
    for (chains, length) in [(1, 60), (20, 5), (10, 100)] {
        let graph = graph(chains, length);
        let (mut cold, mut warm) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            let solver = solver(&Fake::default());
            for times in [&mut cold, &mut warm] {
                let begin = Instant::now();
                runtime.block_on(solver.solve(&graph, FakeSession::new())).expect("no step fails");
                times.push(begin.elapsed());
            }
        }
        let median = |times: &mut Vec<Duration>| {
            times.sort_unstable();
            times[times.len() / 2]
        };
        let (cold, warm) = (median(&mut cold), median(&mut warm));
        let line = format!("{chains:3} chains of {length:4} steps: cold {cold:10.1?} warm {warm:10.1?}\n");
        out.write_all(line.as_bytes()).expect("standard output is open");
    }
}
