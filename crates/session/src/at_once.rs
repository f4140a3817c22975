use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::{JoinError, block_in_place, spawn_blocking};

/// Runs blocking work that is mostly over before another thread would have begun it: a few look-ups in a database, a file of
/// a few kilobytes.
///
/// Where the runtime has several threads, that is on this one; what else waits for this thread goes on elsewhere meanwhile.
/// A runtime with a single thread would stand still, so there it is a thread that may block. Futures that are polled together
/// with this one wait for the work: what may take long belongs on a thread of its own.
///
/// # Errors
/// The work panicked on another thread.
pub async fn at_once<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::CurrentThread => spawn_blocking(work).await,
        _ => Ok(block_in_place(work)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::runtime::Builder;

    fn thread() -> std::thread::ThreadId {
        std::thread::current().id()
    }

    #[test]
    fn with_several_threads_it_is_this_one() {
        let runtime = Builder::new_multi_thread().worker_threads(1).build().unwrap();
        assert_eq!(runtime.block_on(at_once(thread)).unwrap(), thread());
        let task = async { (thread(), at_once(thread).await.unwrap()) };
        let (before, within) = runtime.block_on(async { tokio::spawn(task).await.unwrap() });
        assert_eq!(before, within);
    }

    /// Two who wait for each other: with the work on the one worker alone, the second would never begin.
    #[test]
    fn other_tasks_go_on_meanwhile() {
        for mut builder in [Builder::new_multi_thread(), Builder::new_current_thread()] {
            let runtime = builder.worker_threads(1).build().unwrap();
            let (send, receive) = std::sync::mpsc::channel();
            let waits = async move { at_once(move || receive.recv().unwrap()).await.unwrap() };
            let told = async { tokio::spawn(async move { send.send(7).unwrap() }).await.unwrap() };
            let both = async { tokio::join!(tokio::spawn(waits), told).0.unwrap() };
            assert_eq!(runtime.block_on(both), 7);
        }
    }
}
