use crate::Network;
use forge_executor::{ExecutorError, SetUpProcess};
use std::path::Path;
use std::thread::JoinHandle;

/// What makes containers, being started beside everything else that a command has to do before its first one.
pub struct ExpectedContainer(JoinHandle<Result<SetUpProcess, ExecutorError>>);

impl ExpectedContainer {
    /// Begins; to be handed to [`crate::Engine::open_expecting`]. `root` is the folder of the store.
    pub fn begin(root: &Path, network: Network) -> Option<Self> {
        // The first command on a store makes this folder, and has its network made after that.
        let runtime = root.join("run").canonicalize().ok().filter(|_| network == Network::Default);
        let start = move || {
            let process = SetUpProcess::start()?;
            match runtime {
                Some(runtime) => process.expect_network(&runtime).map(|()| process),
                None => Ok(process),
            }
        };
        std::thread::Builder::new().name("set-up".to_owned()).spawn(start).ok().map(Self)
    }

    pub(crate) fn process(self) -> Result<SetUpProcess, ExecutorError> {
        // One that panicked is started again by hand.
        self.0.join().unwrap_or_else(|_| SetUpProcess::start())
    }
}
