use crate::client::{Served, TestDaemon};
use std::fs;

fn open_files() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn mounts() -> usize {
    fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count()
}

/// Other tests of this process open files too.
const SLACK: usize = 60;

#[tokio::test(flavor = "multi_thread")]
async fn l02_two_hundred_builds_leave_nothing_open() {
    let daemon = TestDaemon::start().await;
    let client = daemon.client().await;
    let served = |number: usize| {
        let text = format!("text {number:03}");
        Served::context("dockerfile", &[("Dockerfile", "FROM scratch\nCOPY a /\n")]).and("context", &[("a", &text)])
    };
    for number in 0..20 {
        client.build(&format!("warm-{number}"), served(number), &[]).await.unwrap();
    }
    let before = (open_files(), mounts());
    for number in 0..180 {
        let (_, files) = client.build(&format!("build-{number}"), served(number), &[]).await.unwrap();
        assert_eq!(files["a"], format!("text {number:03}").into_bytes());
    }
    let after = (open_files(), mounts());
    assert!(after.0 <= before.0 + SLACK && after.1 <= before.1 + SLACK, "{before:?} {after:?}");
}

/// F26: as killed clients leave it: the connection is closed wherever the build is, and nobody says so. `FORGE_TEST_ROUNDS` says how
/// many, 30 if nothing does.
///
/// Meant to fail (the last name was never free) when a build that nobody waits for goes on.
#[tokio::test(flavor = "multi_thread")]
async fn f26_clients_that_vanish_leave_nothing_open() {
    let rounds = std::env::var("FORGE_TEST_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(30);
    let daemon = TestDaemon::start().await;
    let files: Vec<(String, String)> = (0..50).map(|number| (format!("f{number}"), "x".repeat(10_000))).collect();
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (&name[..], &text[..])).collect();
    let served = |number: usize| {
        let text = format!("FROM scratch\nLABEL n={number}\nCOPY . /{number}/\n");
        Served::context("dockerfile", &[("Dockerfile", &text)]).and("context", &files)
    };
    let build = async |number: usize| daemon.client().await.build(&format!("same-{number}"), served(number), &[]).await;
    let begin = std::time::Instant::now();
    build(0).await.unwrap();
    let longest = begin.elapsed().as_micros() as usize + 2_000;
    let before = (open_files(), mounts());
    for number in 1..=rounds {
        let moment = std::time::Duration::from_micros((number * 7919 % longest) as u64);
        // A build that is quicker than its end is none of those that count.
        let _ = tokio::time::timeout(moment, build(number)).await;
    }
    // Of the last one too nothing is left: its name is free, and so is all else.
    let free = async {
        while build(rounds).await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        while open_files() > before.0 + SLACK {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let ended = tokio::time::timeout(std::time::Duration::from_secs(20), free).await;
    assert!(ended.is_ok(), "{before:?} {:?}", (open_files(), mounts()));
    assert!(mounts() <= before.1 + SLACK);
}
