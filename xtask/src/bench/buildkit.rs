use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// BuildKit's daemon with a store of its own, where `buildkitd` and `buildctl` are on the search path.
pub struct BuildKit {
    daemon: Child,
    folder: PathBuf,
}

impl BuildKit {
    /// Whether this machine has it.
    pub fn is_here() -> bool {
        let folders = std::env::var_os("PATH").unwrap_or_default();
        let has = |program: &str| std::env::split_paths(&folders).any(|folder| folder.join(program).is_file());
        has("buildkitd") && has("buildctl")
    }

    /// Starts it and waits until it answers.
    pub fn start(folder: PathBuf) -> Result<Self> {
        fs::create_dir_all(&folder)?;
        let log = File::create(folder.join("log"))?;
        let mut daemon = Command::new("buildkitd");
        daemon.arg("--root").arg(folder.join("root")).arg("--addr").arg(address(&folder));
        daemon.args(["--containerd-worker=false", "--oci-worker-snapshotter=overlayfs"]);
        daemon.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let buildkit = Self { daemon: daemon.spawn().context("cannot run buildkitd")?, folder };
        for _ in 0..200 {
            let asked = buildkit.ask("debug workers").stdout(Stdio::null()).stderr(Stdio::null()).status()?;
            if asked.success() {
                return Ok(buildkit);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        bail!("buildkitd does not answer; its log is {}", buildkit.folder.join("log").display())
    }

    /// Builds a Dockerfile without keeping the result.
    pub fn build(&self, context: &Path) -> Command {
        let context = context.display();
        self.ask(&format!(
            "build --progress=plain --frontend=dockerfile.v0 --local context={context} --local dockerfile={context}"
        ))
    }

    fn ask(&self, line: &str) -> Command {
        let mut buildctl = Command::new("buildctl");
        buildctl.arg("--addr").arg(address(&self.folder)).args(line.split_whitespace());
        buildctl
    }
}

impl Drop for BuildKit {
    fn drop(&mut self) {
        // It may have ended by itself; there is nothing to do about it then.
        let id = rustix::process::Pid::from_child(&self.daemon);
        let _ = rustix::process::kill_process(id, rustix::process::Signal::TERM);
        let _ = self.daemon.wait();
    }
}

fn address(folder: &Path) -> String {
    format!("unix://{}", folder.join("socket").display())
}
