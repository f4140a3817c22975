use crate::gate::installed;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Debian's `docker-registry` on a loopback port with storage of its own. Stopped when dropped.
pub struct DockerRegistry {
    process: Child,
    authority: String,
    _folder: TempDir,
}

impl DockerRegistry {
    /// Starts it for a test; `None`, with a printed line, where the program is not installed.
    ///
    /// # Panics
    /// It does not start; or it is not installed and `FORGE_REQUIRE_PRIVILEGED=1`.
    pub fn start(test: &str) -> Option<Self> {
        installed("docker-registry", test).then(Self::run)
    }

    fn run() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        // A port that was free a moment ago may be taken when the program gets to it.
        for _ in 0..5 {
            let authority = free_authority();
            let mut process = spawn(&folder, &authority);
            if answers(&mut process, &authority) {
                return Self { process, authority, _folder: folder };
            }
            stop(&mut process);
        }
        panic!("docker-registry does not start");
    }

    /// `127.0.0.1:port`.
    pub fn authority(&self) -> &str {
        &self.authority
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        stop(&mut self.process);
    }
}

fn free_authority() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port");
    listener.local_addr().expect("the listener is bound").to_string()
}

fn spawn(folder: &TempDir, authority: &str) -> Child {
    let storage = folder.path().join("storage");
    let config = folder.path().join("config.yml");
    let text = format!(
        "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\n  delete:\n    enabled: true\nhttp:\n  addr: {authority}\n",
        storage.display()
    );
    fs::write(&config, text).expect("a writable folder");
    Command::new("docker-registry")
        .arg("serve")
        .arg(&config)
        .env_remove("OTEL_TRACES_EXPORTER")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("docker-registry is installed")
}

fn answers(process: &mut Child, authority: &str) -> bool {
    let deadline = Instant::now() + Duration::from_secs(20);
    while Instant::now() < deadline && process.try_wait().is_ok_and(|status| status.is_none()) {
        if is_registry(authority).unwrap_or(false) {
            return true;
        }
        thread::sleep(Duration::from_millis(20));
    }
    false
}

fn is_registry(authority: &str) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(authority)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET /v2/ HTTP/1.0\r\nHost: {authority}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.contains(" 200 ") && answer.to_lowercase().contains("docker-distribution-api-version"))
}

fn stop(process: &mut Child) {
    // It keeps nothing that a signal could spoil, and may have ended by itself.
    let _ = process.kill();
    let _ = process.wait();
}
