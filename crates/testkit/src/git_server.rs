use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use tempfile::TempDir;

/// Repositories behind Git's own smart HTTP (`git http-backend`), on 127.0.0.1.
pub struct GitServer {
    folder: TempDir,
    authority: String,
    stop: Arc<AtomicBool>,
    heads: Arc<Mutex<Vec<String>>>,
}

/// What a server answers before Git is asked: a status line's end and header lines. It is given the request's head.
type Gate = dyn Fn(&str) -> Option<(String, String)> + Send + Sync;

impl GitServer {
    /// Serves everybody.
    pub fn start() -> Self {
        Self::start_with(|_| None)
    }

    /// Serves whom `gate` answers nothing.
    pub fn start_with(gate: impl Fn(&str) -> Option<(String, String)> + Send + Sync + 'static) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a loopback port");
        let authority = listener.local_addr().expect("the listener is bound").to_string();
        let (stop, heads) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Vec<String>>>::default());
        let server = Self { folder, authority, stop: stop.clone(), heads: heads.clone() };
        let (root, gate) = (server.folder.path().to_owned(), Arc::new(gate) as Arc<Gate>);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let (Ok(stream), root, gate, heads) = (stream, root.clone(), gate.clone(), heads.clone()) else {
                    continue;
                };
                thread::spawn(move || serve(&stream, &root, &*gate, &heads));
            }
        });
        server
    }

    /// `127.0.0.1:port`.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// The address of a repository.
    pub fn url(&self, name: &str) -> String {
        format!("http://{}/{name}", self.authority)
    }

    /// The heads of all requests so far.
    pub fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }

    /// Makes a repository, `name` ends in `.git`.
    pub fn repository(&self, name: &str) -> GitRepository {
        let path = self.folder.path().join(name);
        std::fs::create_dir_all(&path).expect("a folder");
        let repository = GitRepository { path };
        repository.git(&["init", "--quiet", "--template=", "--initial-branch=main", "."]);
        repository
    }
}

impl Drop for GitServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(&self.authority);
    }
}

/// A repository with a work tree that a test fills.
pub struct GitRepository {
    path: PathBuf,
}

impl GitRepository {
    /// The work tree.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs git in it, with fixed dates and names, and returns what it printed.
    pub fn git(&self, args: &[&str]) -> String {
        self.git_with(args, b"")
    }

    /// Runs git in it with something on standard input.
    pub fn git_with(&self, args: &[&str], input: &[u8]) -> String {
        let mut child = command(&self.path)
            .args(["-c", "protocol.file.allow=always"])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("git");
        child.stdin.take().expect("piped").write_all(input).expect("git reads");
        let output = child.wait_with_output().expect("git ends");
        assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text").trim_end().to_owned()
    }

    /// Writes a file.
    pub fn write(&self, path: &str, content: &str) -> &Self {
        let path = self.path.join(path);
        std::fs::create_dir_all(path.parent().expect("it lies in the repository")).expect("a folder");
        std::fs::write(path, content).expect("a file");
        self
    }

    /// Commits everything, and returns the commit.
    pub fn commit(&self) -> String {
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "--allow-empty", "--message", "test"]);
        self.git(&["rev-parse", "HEAD"])
    }

    /// Makes a tree of lines as `git ls-tree` prints them, whatever they say, and a commit of it on `main`.
    pub fn commit_tree(&self, entries: &[(&str, &str, &str)]) -> String {
        let mut bytes = Vec::new();
        for (mode, name, object) in entries {
            bytes.extend(format!("{mode} {name}\0").as_bytes());
            let digits = object.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).expect("text"));
            bytes.extend(digits.map(|pair| u8::from_str_radix(pair, 16).expect("hexadecimal")));
        }
        let tree = self.git_with(&["hash-object", "-t", "tree", "-w", "--literally", "--stdin"], &bytes);
        let commit = self.git(&["commit-tree", "-m", "test", &tree]);
        self.git(&["update-ref", "refs/heads/main", &commit]);
        commit
    }

    /// Stores bytes, and returns their object.
    pub fn blob(&self, content: &str) -> String {
        self.git_with(&["hash-object", "-w", "--stdin"], content.as_bytes())
    }
}

fn command(folder: &Path) -> Command {
    let mut command = Command::new("git");
    command.current_dir(folder).env_clear().env("PATH", "/usr/bin:/bin:/usr/local/bin").env("HOME", "/nonexistent");
    command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null").env("LC_ALL", "C");
    for who in ["AUTHOR", "COMMITTER"] {
        command.env(format!("GIT_{who}_NAME"), "Test").env(format!("GIT_{who}_EMAIL"), "test@example.com");
        command.env(format!("GIT_{who}_DATE"), "784111777 +0000");
    }
    command
}

fn serve(stream: &TcpStream, root: &Path, gate: &Gate, heads: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while let Ok(read) = reader.read_line(&mut head) {
        if read <= 2 {
            break;
        }
    }
    heads.lock().unwrap().push(head.clone());
    let field = |name: &str| {
        let lines = head.lines().filter_map(|line| line.split_once(':'));
        lines.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim().to_owned()).next()
    };
    let length = field("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = Vec::new();
    // The client may have gone, which is what some tests want.
    let _ = reader.take(length).read_to_end(&mut body);
    let answer = match gate(&head) {
        Some((status, headers)) => {
            format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n{headers}\r\n").into()
        }
        None => backend(root, &head, &field, &body),
    };
    let _ = (&mut &*stream).write_all(&answer);
}

/// Runs `git http-backend` (RFC 3875).
fn backend(root: &Path, head: &str, field: &dyn Fn(&str) -> Option<String>, body: &[u8]) -> Vec<u8> {
    let mut words = head.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut command = command(root);
    command
        .args(["-c", "safe.directory=*", "http-backend"])
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1");
    command.env("PATH_INFO", path).env("QUERY_STRING", query).env("REQUEST_METHOD", method);
    command.env("CONTENT_TYPE", field("content-type").unwrap_or_default());
    command.env("CONTENT_LENGTH", body.len().to_string()).env("REMOTE_ADDR", "127.0.0.1");
    for (name, header) in [("HTTP_CONTENT_ENCODING", "content-encoding"), ("GIT_PROTOCOL", "git-protocol")] {
        if let Some(value) = field(header) {
            command.env(name, value);
        }
    }
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut child = child.expect("git http-backend");
    let _ = child.stdin.take().expect("piped").write_all(body);
    let output = child.wait_with_output().expect("it ends").stdout;
    let end = output.windows(4).position(|window| window == b"\r\n\r\n").unwrap_or(output.len());
    let headers = String::from_utf8_lossy(&output[..end]).into_owned();
    let (statuses, others): (Vec<&str>, Vec<&str>) = headers.lines().partition(|line| line.starts_with("Status: "));
    let status = statuses.first().map_or("200 OK", |line| &line["Status: ".len()..]);
    let mut answer = format!("HTTP/1.1 {status}\r\nConnection: close\r\n");
    others.iter().for_each(|line| _ = write!(answer, "{line}\r\n"));
    [answer.as_bytes(), b"\r\n", output.get(end + 4..).unwrap_or_default()].concat()
}
