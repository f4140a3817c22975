//! What flights promise within one process; `forge-solver` tests several.

use forge_cache::{CacheError, CacheKey, Flights, OpKey};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

fn key(text: &str) -> CacheKey {
    CacheKey::definition(&OpKey::new(text.as_bytes()), &[])
}

/// Two `Flights` on one folder stand for two processes: `flock` locks belong to the open file.
#[tokio::test]
async fn one_flight_a_key_wherever_it_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let (here, there) =
        (Flights::new(&folder.path().join("new/locks")), Flights::new(&folder.path().join("new/locks")));
    let token = CancellationToken::new();
    let a = key("a");
    let guard = here.acquire(&a, &token).await.unwrap();
    here.acquire(&key("b"), &token).await.unwrap();
    for flights in [&here, &there] {
        let waiting = flights.acquire(&a, &token);
        assert!(tokio::time::timeout(Duration::from_millis(50), waiting).await.is_err());
    }
    drop(guard);
    let guard = there.acquire(&key("a"), &token).await.unwrap();
    drop(guard);
    here.acquire(&key("a"), &token).await.unwrap();
    assert_eq!(std::fs::read_dir(folder.path().join("new/locks")).unwrap().count(), 0);
}

#[tokio::test]
async fn waiting_ends_when_it_is_cancelled() {
    let folder = tempfile::tempdir().unwrap();
    let (here, there) = (Flights::new(folder.path()), Flights::new(folder.path()));
    let _guard = here.acquire(&key("a"), &CancellationToken::new()).await.unwrap();
    for flights in [&here, &there] {
        let (a, token) = (key("a"), CancellationToken::new());
        let cancel = async { token.cancel() };
        let (result, ()) = tokio::join!(flights.acquire(&a, &token), cancel);
        assert!(matches!(result, Err(CacheError::Cancelled)));
    }
}

/// The file of a flight is removed while others wait for it: at no time may two of them hold the lock.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn removal_of_the_lock_file_lets_no_two_in() {
    let folder = tempfile::tempdir().unwrap();
    let inside = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let (flights, inside) = (Flights::new(folder.path()), inside.clone());
            tokio::spawn(async move {
                for _ in 0..50 {
                    let _guard = flights.acquire(&key("a"), &CancellationToken::new()).await.unwrap();
                    assert_eq!(inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
                    tokio::task::yield_now().await;
                    inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                }
            })
        })
        .collect();
    for task in tasks {
        tokio::time::timeout(Duration::from_secs(60), task).await.unwrap().unwrap();
    }
}

/// Fails when files that are locked go too: both would then run the step.
#[tokio::test]
async fn a_sweep_removes_what_nobody_holds() {
    let folder = tempfile::tempdir().unwrap();
    let (here, there) = (Flights::new(folder.path()), Flights::new(folder.path()));
    std::fs::write(folder.path().join(key("left").to_string()), "").unwrap();
    let guard = here.acquire(&key("held"), &CancellationToken::new()).await.unwrap();
    there.sweep().unwrap();
    let names =
        || std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
    assert_eq!(names(), [key("held").to_string().as_str()]);
    drop(guard);
    assert!(names().is_empty());
    Flights::new(&folder.path().join("none")).sweep().unwrap();
}

#[tokio::test]
async fn a_folder_that_cannot_be_used_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "").unwrap();
    let flights = Flights::new(&folder.path().join("file"));
    let result = flights.acquire(&key("a"), &CancellationToken::new()).await;
    assert!(matches!(result, Err(CacheError::Lock { .. })));
}
