//! What hostile files may cost (A113, A114): each ends soon, and all of them together leave the process below 512 MiB.
//! One test in a program of its own, since the kernel counts for the whole process.

use forge_frontend::{
    Checked, Dockerfile, ImageKeySource, LowerOptions, Lowered, Outlined, ResolvedImage, ResolvedImages, check, lower,
    outline, parse,
};
use forge_image::{DiffId, Digest, ImageConfig};
use std::fmt::Write as _;
use std::time::Duration;

/// The bound that users see is a second; programs without optimisation take many times as long. It is the processor's time
/// that counts: a busy machine is not the file's fault.
const LIMIT: Duration = Duration::from_secs(if cfg!(debug_assertions) { 60 } else { 1 });

const MIB: usize = 1 << 20;

/// The most memory that the process ever had, in MiB.
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() >> 10
}

/// The processor's time that the process used so far; the kernel counts it in hundredths of a second (`USER_HZ`).
fn used() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    // Behind the program's name, which may hold anything: utime and stime are fields 14 and 15.
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 10)
}

/// Parses and lowers; says whether it was accepted.
fn build(text: &[u8], images: &mut ResolvedImages) -> Result<(Dockerfile, LowerOptions), String> {
    let dockerfile = parse("Dockerfile", text).map_err(|error| error.to_string())?;
    let options = LowerOptions::new("linux/amd64".parse().unwrap());
    while let Lowered::Need(requests) = lower(&dockerfile, &options, images).map_err(|error| error.to_string())? {
        for request in requests {
            let ImageKeySource::Image(reference) = &request.key.source else { panic!("{request:?}") };
            let digest = Digest::sha256(reference.to_string().as_bytes());
            let mut config = ImageConfig::new(&request.key.platform);
            config.rootfs.diff_ids = vec![DiffId::new(digest.clone())];
            images.insert(request.key, ResolvedImage { digest, config, replaced: None });
        }
    }
    Ok((dockerfile, options))
}

/// Builds, checks and outlines, each of which is what one command does: how long the longest took, and why the file was
/// refused.
fn take(text: &[u8]) -> (Duration, Option<String>) {
    let mut images = ResolvedImages::new();
    let started = used();
    let built = build(text, &mut images);
    let mut longest = used() - started;
    let (dockerfile, options) = match built {
        Ok(built) => built,
        Err(error) => return (longest, Some(error)),
    };
    let mut timed = |work: &dyn Fn() -> bool| {
        let started = used();
        assert!(work());
        longest = longest.max(used() - started);
    };
    timed(&|| matches!(check(&dockerfile, &options, &images), Checked::Done(_)));
    timed(&|| matches!(outline(&dockerfile, &options, &images), Ok(Outlined::Done(_))));
    (longest, None)
}

fn repeated(head: &str, part: &str, bytes: usize) -> String {
    let mut text = head.to_owned();
    while text.len() + part.len() <= bytes {
        text.push_str(part);
    }
    text
}

fn numbered(head: &str, count: usize, line: impl Fn(usize) -> String) -> String {
    let mut text = head.to_owned();
    (0..count).for_each(|number| _ = writeln!(text, "{}", line(number)));
    text
}

// Without limits on instructions and words, these take gigabytes and minutes.
#[test]
fn a113_a114_hostile_files_cost_little_time_and_memory() {
    let x = "FROM scratch\n";
    let all = 16 * MIB - 64;
    let bomb = numbered("FROM scratch\nARG a0=0123456789\n", 64, |n| format!("ARG a{}=$a{n}$a{n}", n + 1));
    let replaced = format!("FROM scratch\nARG a={}\nENV b=${{a//x/{}}}\n", "x".repeat(900_000), "y".repeat(900_000));
    let copies = |n: usize| format!("FROM scratch AS s{}\nCOPY --from=s{n} / /", n + 1);
    type Case<'a> = (&'a str, Box<dyn Fn() -> String + 'a>);
    let cases: Vec<Case<'_>> = vec![
        ("17 MiB", Box::new(|| repeated(x, "LABEL a=b\n", 17 * MIB))),
        ("16 MiB of labels", Box::new(|| repeated(x, "LABEL a=b\n", all))),
        ("16 MiB of users", Box::new(|| repeated(x, "USER a\n", all))),
        ("16 MiB of comments", Box::new(|| repeated("", "#a\n", all) + x)),
        ("16 MiB of words", Box::new(|| repeated("FROM scratch\nLABEL ", "a=b \\\n", all))),
        ("16 MiB of strings", Box::new(|| repeated("FROM scratch\nCMD [", "\"\",\\\n", all) + "\"\"]")),
        ("16 MiB of flags", Box::new(|| repeated("FROM scratch\nRUN ", "--a \\\n", all))),
        ("16 MiB of continuations", Box::new(|| repeated("FROM scratch\nRUN a", "\\\n", all))),
        ("16 MiB of short continuations", Box::new(|| repeated("FROM scratch\nRUN a", "b\\\n", all))),
        ("16 MiB of heredocs", Box::new(|| repeated(x, "COPY <<A /\nA\n", all))),
        ("16 MiB of openings", Box::new(|| repeated("FROM scratch\nRUN ", "<<A \\\n", all))),
        ("16 MiB of undefined variables", Box::new(|| repeated("FROM scratch\nENV a=", "$z\\\n", all))),
        ("16 MiB of empty continuations", Box::new(|| repeated(x, "USER a\\\n\n\n", all))),
        ("100,000 stages", Box::new(|| numbered("FROM scratch AS s0\n", 100_000, copies))),
        (
            "100,000 stages in a chain",
            Box::new(|| numbered("FROM x AS s0\n", 100_000, |n| format!("FROM s{n} AS s{}", n + 1))),
        ),
        ("79,999 ARGs", Box::new(|| numbered(x, 79_999, |n| format!("ARG a{n}=$a{}", n / 2)))),
        (
            "100,000 ARGs before FROM",
            Box::new(|| numbered("", 100_000, |n| format!("ARG a{n}=$a{}", n / 2)) + "FROM x$a99999\n"),
        ),
        ("doubling", Box::new(|| bomb.clone())),
        ("replacing", Box::new(|| replaced.clone())),
        (
            "nested defaults",
            Box::new(|| format!("FROM scratch\nENV a={}{}\n", "${b:-".repeat(100_000), "}".repeat(100_000))),
        ),
        ("16 MiB of JSON", Box::new(|| repeated("{\"a\":[", "{},\n", all) + "{}]}")),
        ("39,000 stages that copy", Box::new(|| numbered("FROM scratch AS s0\n", 39_000, copies))),
    ];
    for (name, text) in &cases {
        let text = text();
        let before = peak();
        let (took, refused) = take(text.as_bytes());
        #[allow(clippy::print_stdout, reason = "what it costs is worth a line")]
        {
            println!("{name}: {took:.1?}, peak {before} to {} MiB: {refused:?}", peak());
        }
        assert!(took < LIMIT, "{name}: {took:?}");
        assert!(peak() < 512, "{name}: {} MiB", peak());
    }
}
