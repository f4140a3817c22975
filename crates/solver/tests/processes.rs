//! Builds in several processes that share an index and a folder of flights. The test binary starts itself anew.

mod fake;

use fake::*;
use forge_cache::{Flights, SqliteIndex};
use forge_solver::Solver;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Names the folder that a child shares with its parent; tests do nothing else then.
const FOLDER: &str = "FORGE_TEST_SHARED_FOLDER";

/// How long the steps of a child take, in milliseconds.
const TAKES: &str = "FORGE_TEST_STEP_MS";

fn shared_solver(folder: &Path, takes: Duration) -> (Solver, Fake) {
    let fake = Fake::default();
    std::fs::create_dir_all(folder.join("results")).unwrap();
    fake.share(folder.join("results"));
    fake.log_runs_to(folder.join("log"));
    for name in ["base", "shared", "goal"] {
        fake.set(name, |behaviour| behaviour.takes = takes);
    }
    let solver = Solver {
        index: Arc::new(SqliteIndex::open(&folder.join("cache.db")).unwrap()),
        remote: None,
        flights: Arc::new(Flights::new(&folder.join("flights"))),
        ..solver(&fake)
    };
    (solver, fake)
}

/// Not a test of its own: what a child does.
#[tokio::test]
async fn child() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let takes = Duration::from_millis(std::env::var(TAKES).unwrap().parse().unwrap());
    let (solver, _) = shared_solver(Path::new(&folder), takes);
    solver.solve(&chain(&["base", "shared", "goal"]), FakeSession::new()).await.unwrap();
}

fn start_child(folder: &Path, takes: Duration) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["child", "--exact"]).env(FOLDER, folder).env(TAKES, takes.as_millis().to_string());
    command.stdout(Stdio::null()).spawn().unwrap()
}

/// The names of what ran, in all processes.
fn log(folder: &Path) -> Vec<String> {
    std::fs::read_to_string(folder.join("log")).unwrap_or_default().lines().map(str::to_owned).collect()
}

async fn wait_for(what: impl Fn() -> bool) {
    let begin = Instant::now();
    while !what() {
        assert!(begin.elapsed() < Duration::from_secs(60), "it takes too long");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn l01_equal_steps_of_several_processes_run_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut children: Vec<Child> = (0..8).map(|_| start_child(folder.path(), Duration::from_millis(100))).collect();
    for child in &mut children {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(log(folder.path()), ["base", "shared", "goal"]);
    let left = std::fs::read_dir(folder.path().join("flights")).unwrap().count();
    assert_eq!(left, 0, "lock files stay behind");
}

#[tokio::test]
async fn a_build_takes_over_from_a_killed_process() {
    let folder = tempfile::tempdir().unwrap();
    // The owner finishes nothing: its first step takes an hour.
    let mut owner = start_child(folder.path(), Duration::from_secs(3600));
    wait_for(|| log(folder.path()) == ["base"]).await;
    let (solver, fake) = shared_solver(folder.path(), Duration::from_millis(1));
    let graph = chain(&["base", "shared", "goal"]);
    let build = tokio::spawn(async move { solver.solve(&graph, FakeSession::new()).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!build.is_finished() && fake.ran().is_empty(), "it waits for the owner");
    owner.kill().unwrap();
    owner.wait().unwrap();
    let begin = Instant::now();
    build.await.unwrap().unwrap();
    assert!(begin.elapsed() < Duration::from_secs(5));
    assert_eq!(log(folder.path()), ["base", "base", "shared", "goal"]);
}

#[tokio::test]
async fn waiting_for_another_process_can_be_cancelled() {
    let folder = tempfile::tempdir().unwrap();
    let mut owner = start_child(folder.path(), Duration::from_secs(3600));
    wait_for(|| log(folder.path()) == ["base"]).await;
    let (solver, _) = shared_solver(folder.path(), Duration::from_millis(1));
    let session = FakeSession::new();
    let token = forge_session::Session::cancellation(&*session).clone();
    let graph = chain(&["base", "goal"]);
    let stop = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        token.cancel();
    };
    let begin = Instant::now();
    let (solved, ()) = tokio::join!(solver.solve(&graph, session.clone()), stop);
    assert!(matches!(solved, Err(forge_solver::SolveError::Cancelled)));
    assert!(begin.elapsed() < Duration::from_secs(5));
    owner.kill().unwrap();
    owner.wait().unwrap();
}
