//! What reading and lowering a long Dockerfile costs. Run by `cargo bench`; `cargo test --benches` runs each case once.

use forge_frontend::{LowerOptions, Lowered, ResolvedImages, lower, parse};
use forge_image::Platform;
use std::io::Write;
use std::time::{Duration, Instant};

/// Stages that each copy from the one before, ten instructions long.
fn dockerfile(stages: usize) -> String {
    let mut text = String::from("FROM scratch AS s0\n");
    for stage in 1..stages {
        text += &format!("FROM scratch AS s{stage}\nARG V{stage}=1\nENV A=$V{stage} B=\"${{A:-x}}\"\n");
        text += &format!("COPY --from=s{} /a /b/ \nWORKDIR /srv/$A\nLABEL a=b c=\"d e\"\n", stage - 1);
        text += "COPY one two \\\n  three /dest/\nEXPOSE 80 443/tcp\nUSER 1000:1000\nCMD [\"a\", \"b\"]\n";
    }
    text
}

fn median(rounds: u32, mut run: impl FnMut()) -> Duration {
    let time = |_| {
        let begin = Instant::now();
        run();
        begin.elapsed()
    };
    let mut times: Vec<Duration> = (0..rounds).map(time).collect();
    times.sort_unstable();
    times[times.len() / 2]
}

fn main() {
    let rounds = if std::env::args().any(|argument| argument == "--bench") { 21 } else { 1 };
    let options = LowerOptions::new(Platform::new("linux", "amd64", None));
    let mut out = std::io::stdout().lock();
    for stages in [10, 100, 500] {
        let text = dockerfile(stages);
        let parsed = parse("Dockerfile", text.as_bytes()).expect("the text is a Dockerfile");
        let reading = median(rounds, || {
            parse("Dockerfile", text.as_bytes()).expect("the text is a Dockerfile");
        });
        let lowering = median(rounds, || {
            let lowered = lower(&parsed, &options, &ResolvedImages::new()).expect("the Dockerfile is in order");
            assert!(matches!(lowered, Lowered::Done(_)));
        });
        let line = format!(
            "{stages:5} stages, {:6} lines: parse {reading:10.1?} lower {lowering:10.1?}\n",
            text.lines().count()
        );
        out.write_all(line.as_bytes()).expect("standard output is open");
    }
}
