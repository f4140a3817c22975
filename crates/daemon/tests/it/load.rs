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
