use anyhow::{Context, Result, bail};
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Debian's `docker-registry` on loopback. `testkit` has one too, but would bring the whole of forge into this tool.
pub struct Registry {
    process: Child,
    pub authority: String,
}

impl Registry {
    /// Starts it with its files in a folder.
    pub fn start(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let authority = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let config = folder.join("config.yml");
        let storage = folder.join("storage");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: {authority}}}\n",
            storage.display()
        );
        fs::write(&config, text)?;
        let mut serve = Command::new("docker-registry");
        serve.arg("serve").arg(&config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let registry = Self { process: serve.spawn().context("cannot run docker-registry")?, authority };
        for _ in 0..100 {
            if TcpStream::connect(&registry.authority).is_ok() {
                return Ok(registry);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        bail!("docker-registry does not answer on {}", registry.authority)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It may have ended by itself; there is nothing to do about it then.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
