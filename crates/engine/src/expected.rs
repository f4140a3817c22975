use crate::Network;
use forge_executor::{BegunNetwork, ExecutorError, SetUpProcess};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

/// What makes containers, being started beside everything else that a command has to do before its first one.
pub struct ExpectedContainer {
    thread: JoinHandle<Result<SetUpProcess, ExecutorError>>,
    /// Where a private network is asked for.
    network: Sender<(PathBuf, Option<BegunNetwork>)>,
}

impl ExpectedContainer {
    /// Begins, where the footing that this process has is certain. To be handed to [`crate::Engine::open_expecting`].
    pub fn begin() -> Option<Self> {
        let (network, wanted) = channel();
        let start = move || start(&wanted);
        let thread = std::thread::Builder::new().name("set-up".to_owned()).spawn(start).ok()?;
        Some(Self { thread, network })
    }

    /// Has the network made that the container will be in. `root` is the folder of the store.
    pub fn expect_network(&self, root: &Path, network: Network) {
        // The first command on a store makes this folder, and has its network made after that.
        let runtime = root.join("run").canonicalize().ok().filter(|_| network == Network::Default);
        // Where the thread has ended, there is nothing that could make one.
        let _ = runtime.map(|runtime| self.network.send((runtime, BegunNetwork::begin())));
    }

    pub(crate) fn process(self) -> Result<SetUpProcess, ExecutorError> {
        drop(self.network);
        // One that panicked is started again by hand.
        self.thread.join().unwrap_or_else(|_| SetUpProcess::start())
    }
}

fn start(wanted: &Receiver<(PathBuf, Option<BegunNetwork>)>) -> Result<SetUpProcess, ExecutorError> {
    let process = SetUpProcess::start()?;
    match wanted.recv() {
        Ok((runtime, begun)) => process.expect_network(&runtime, begun).map(|()| process),
        Err(_) => Ok(process),
    }
}
