//! What an ordinary user can do. Root makes one for each test: an account and its subordinate ids, which only a mount
//! namespace of the test's own sees.

use crate::fixture::{self, Forge, Outcome, base_image, state};
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

const UID: u32 = 4242;
/// First of the subordinate ids, and their number.
const SUBORDINATE: (u32, u32) = (7_000_000, 65_536);

/// The folder is `/mnt` for the user, since the target folder may be in somebody's closed home.
const ENTER: &str = "set -e; mount --bind \"$FOLDER\" /mnt; mount --bind \"$BINARY\" /mnt/forge; \
    for file in subuid subgid passwd; do mount --bind /mnt/$file /etc/$file; done; cd /mnt; \
    [ ! -e /dev/net/tun ] || { [ -e tun ] || mknod -m 666 tun c 10 200; mount --bind tun /dev/net/tun; }; \
    setpriv --reuid=4242 --regid=4242 --clear-groups env -i PATH=\"$HELPERS\" HOME=/mnt/home $EXTRA \"$@\"";

/// An ordinary user with an empty home.
pub struct User {
    folder: TempDir,
}

impl User {
    /// A user with subordinate ids, or nothing after saying that the test is skipped.
    pub fn new(test: &str) -> Option<Self> {
        if !fixture::may_run(test) || !fixture::have(test, &["newuidmap", "newgidmap", "setpriv", "unshare"]) {
            return None;
        }
        let folder = tempfile::Builder::new().prefix("user-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let user = Self { folder };
        fs::create_dir(user.path("home")).unwrap();
        std::os::unix::fs::chown(user.path("home"), Some(UID), Some(UID)).unwrap();
        let passwd = fs::read_to_string("/etc/passwd").unwrap();
        user.write("passwd", &format!("{passwd}tester:x:{UID}:{UID}::/mnt/home:/bin/sh\n"));
        user.write("forge", "");
        user.give(&format!("tester:{}:{}\n", SUBORDINATE.0, SUBORDINATE.1));
        fs::copy(base_image(), user.path("busybox.tar")).unwrap();
        fs::set_permissions(user.path("busybox.tar"), fs::Permissions::from_mode(0o644)).unwrap();
        Some(user)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), text).unwrap();
    }

    /// Replaces the lines of `/etc/subuid` and `/etc/subgid`.
    fn give(&self, lines: &str) {
        self.write("subuid", lines);
        self.write("subgid", lines);
    }

    /// forge as this user, who sees the folder as `/mnt`.
    pub fn command(&self, words: &[&str], helpers: &str, extra: &str) -> Command {
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", ENTER, "sh", "/mnt/forge"]).args(words).stdin(Stdio::null());
        command.env("FOLDER", self.folder.path()).env("BINARY", fixture::binary());
        command.env("HELPERS", helpers).env("EXTRA", extra);
        command
    }

    fn run_with(&self, words: &[&str], helpers: &str, extra: &str) -> Outcome {
        fixture::run(&mut self.command(words, helpers, extra), b"")
    }

    pub fn forge(&self, words: &[&str]) -> Outcome {
        self.run_with(words, "/usr/bin:/bin", "SOURCE_DATE_EPOCH=1700000000")
    }

    #[track_caller]
    pub fn ok(&self, words: &[&str]) -> Outcome {
        let outcome = self.forge(words);
        assert_eq!(outcome.code, 0, "forge {}\n{}{}", words.join(" "), outcome.stdout, outcome.stderr);
        outcome
    }

    #[track_caller]
    pub fn fails(&self, code: i32, words: &[&str]) -> String {
        let outcome = self.forge(words);
        assert_eq!(outcome.code, code, "forge {}\n{}{}", words.join(" "), outcome.stdout, outcome.stderr);
        outcome.stderr
    }

    pub fn load(&self) {
        self.ok(&["load", "-q", "-i", "/mnt/busybox.tar"]);
    }

    pub fn context(&self, files: &[(&str, &str)]) {
        files.iter().for_each(|(name, text)| self.write(&format!("context/{name}"), text));
    }
}

/// Owners on the host of everything below a folder.
fn owners(folder: &Path) -> BTreeSet<u32> {
    let mut all = BTreeSet::new();
    let mut pending = vec![folder.to_owned()];
    while let Some(path) = pending.pop() {
        let data = fs::symlink_metadata(&path).unwrap();
        all.extend([data.uid(), data.gid()]);
        if data.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    all
}

const STAGES: &str = "FROM busybox AS first\n\
    RUN mkdir -p /d/e && echo hi >/d/e/f && chown -R 100:101 /d && chmod 4755 /d/e/f && ln /d/e/f /d/g && ln -s g /d/h\n\
    RUN rm /bin/vi && mv /usr /moved && mkdir /usr && echo new >/usr/n\n\
    FROM nodes\n\
    COPY --chown=1000:65536 file /file\n\
    COPY --from=first /d /d\n\
    COPY --from=first /moved /moved\n\
    COPY --from=nodes /nodes /copied\n\
    COPY --from=nodes --chown=7:8 /bin/vi /nodes/disk /bin/\n\
    COPY file /over\n\
    COPY --from=nodes /bin/vi /over\n\
    ADD nodes.tar /added/\n\
    COPY file /added/nodes/null\n\
    RUN --mount=type=cache,target=/c --mount=type=tmpfs,target=/t touch /c/x /t/x && rm -r /home && mkdir /home && touch /home/y\n\
    USER 1000\n\
    RUN test $(id -u) = 1000 && touch /tmp/mine\n\
    CMD [\"cat\", \"/file\"]\n";

/// A tar with a character device, a further name of it, and a block device, none of which this process need be able to make.
fn nodes() -> Vec<u8> {
    let entry = |name: &str, kind: u8, target: &str| {
        let mut block = [0; 512];
        block[..name.len()].copy_from_slice(name.as_bytes());
        let mut put = |at: usize, text: &str| block[at..at + text.len()].copy_from_slice(text.as_bytes());
        let fields = [(100, "0000660"), (108, "0000000"), (116, "0000005"), (124, "00000000000"), (136, "14524750000")];
        fields.iter().for_each(|(at, text)| put(*at, text));
        [(148, "        "), (157, target), (257, "ustar\x0000"), (329, "0000001"), (337, "0000003")]
            .iter()
            .for_each(|(at, text)| put(*at, text));
        block[156] = kind;
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    };
    let entries = [
        entry("nodes/null", b'3', ""),
        entry("nodes/same", b'1', "nodes/null"),
        entry("nodes/disk", b'4', ""),
        entry("bin/vi", b'3', ""), // over a program
        [0; 512],
        [0; 512],
    ];
    entries.concat()
}

/// Gives the user an image with devices, which root makes in another store than this one, and root the same.
fn load_nodes(user: &User, other: &Forge) {
    let Some(root) = Forge::privileged("load_nodes") else { return };
    let context = root.context("nodes", &[("Dockerfile", "FROM busybox\nADD nodes.tar /\n")]);
    fs::write(Path::new(&context).join("nodes.tar"), nodes()).unwrap();
    root.ok(&["build", "-q", "-t", "nodes", &context]);
    root.ok(&["save", "-o", root.path("nodes.out").to_str().unwrap(), "nodes"]);
    fs::copy(root.path("nodes.out"), user.path("nodes.out")).unwrap();
    fs::set_permissions(user.path("nodes.out"), fs::Permissions::from_mode(0o644)).unwrap();
    user.ok(&["load", "-q", "-i", "/mnt/nodes.out"]);
    other.ok(&["load", "-q", "-i", root.path("nodes.out").to_str().unwrap()]);
}

/// Also shows that what a user builds does not depend on what their namespace cannot hold: devices are copied and added too.
///
/// Seen to fail (the user's image had no copied devices) while only the index of a layer knew of them.
#[test]
fn rootless_images_are_roots_to_the_byte() {
    let Some(user) = User::new("rootless_images_are_roots") else { return };
    let Some(root) = Forge::privileged("rootless_images_are_roots") else { return };
    user.load();
    load_nodes(&user, &root);
    user.context(&[("Dockerfile", STAGES), ("file", "data\n")]);
    fs::write(user.path("context/nodes.tar"), nodes()).unwrap();
    let build = |output: &str| ["build", "--progress", "plain", "-t", "t", "-o", output].map(str::to_owned);
    let words = [build("type=oci,dest=/mnt/home/image.tar").to_vec(), vec!["/mnt/context".to_owned()]].concat();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let built = user.ok(&words);
    assert_eq!(state(&built.steps(), "touch /tmp/mine"), fixture::Step::Ran);
    let again = user.ok(&words);
    for step in ["touch /tmp/mine", "COPY --from=first /d", "rm -r /home"] {
        assert_eq!(state(&again.steps(), step), fixture::Step::Cached, "{}", again.stderr);
    }
    let (archive, context) = (root.path("image.tar"), user.path("context"));
    let words = [build(&format!("type=oci,dest={}", archive.display())).to_vec()].concat();
    let words: Vec<&str> = words.iter().map(String::as_str).chain([context.to_str().unwrap()]).collect();
    let outcome = root.with_env(&words, "SOURCE_DATE_EPOCH", "1700000000");
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    assert!(fs::read(user.path("home/image.tar")).unwrap() == fs::read(&archive).unwrap(), "the images differ");
}

/// Several chunks for each compression, so that their order could be another one.
#[test]
fn rootless_the_bytes_are_roots_at_any_number_of_cores() {
    let test = "rootless_the_bytes_are_roots_at_any_number_of_cores";
    let Some(user) = User::new(test) else { return };
    let Some(root) = Forge::privileged(test) else { return };
    let Some(single) = Forge::privileged(test) else { return };
    if !fixture::have(test, &["taskset"]) {
        return;
    }
    user.load();
    let text = (0..900_000).map(|number| format!("{number:x}\n")).collect::<String>();
    let dockerfile =
        "FROM busybox\nCOPY . /data\nRUN for n in 1 2 3; do cat /data/big /data/small > /big$n; done; rm /bin/vi\n";
    user.context(&[("Dockerfile", dockerfile), ("big", &text), ("small", "small\n")]);
    let context = user.path("context").to_str().unwrap().to_owned();
    for compression in ["gzip", "zstd", "estargz", "uncompressed"] {
        let words = |dest: &str| {
            let output = format!("type=oci,dest={dest},compression={compression}");
            ["build", "-q", "-t", "t", "-o"].map(str::to_owned).into_iter().chain([output]).collect::<Vec<_>>()
        };
        let archive = format!("{compression}.tar");
        let own = words(&format!("/mnt/home/{archive}"));
        user.ok(&own.iter().map(String::as_str).chain(["/mnt/context"]).collect::<Vec<_>>());
        let expect = fs::read(user.path("home").join(&archive)).unwrap();
        let words = words(&archive);
        let words: Vec<&str> = words.iter().map(String::as_str).chain([context.as_str()]).collect();
        let built = root.with_env(&words, "SOURCE_DATE_EPOCH", "1700000000");
        assert_eq!(built.code, 0, "{}", built.stderr);
        assert!(fs::read(root.path(&archive)).unwrap() == expect, "{compression}: root and rootless differ");
        let plain = single.command(&words);
        let mut command = Command::new("taskset");
        command.args(["-c", "0"]).arg(plain.get_program()).args(plain.get_args()).env_clear();
        command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.current_dir(plain.get_current_dir().unwrap()).env("SOURCE_DATE_EPOCH", "1700000000");
        let built = fixture::run(command.stdin(Stdio::null()), b"");
        assert_eq!(built.code, 0, "{}", built.stderr);
        assert!(fs::read(single.path(&archive)).unwrap() == expect, "{compression}: one core and several differ");
    }
}

#[test]
fn rootless_containers_run_and_leave_files_of_own_ids_only() {
    let Some(user) = User::new("rootless_containers_run") else { return };
    let Some(root) = Forge::privileged("rootless_containers_run") else { return };
    user.load();
    load_nodes(&user, &root);
    user.context(&[("Dockerfile", STAGES), ("file", "data\n")]);
    fs::write(user.path("context/nodes.tar"), nodes()).unwrap();
    user.ok(&["build", "-q", "-t", "t", "/mnt/context"]);
    assert_eq!(user.ok(&["run", "--rm", "t"]).stdout, "data\n");
    let script = "id -u; stat -c %u:%g /file /d/g; ls -A /nodes /copied /added/nodes; rmdir /nodes /copied; ls /bin | grep -xE 'vi|disk'; ls /over 2>/dev/null; ls /sys >/dev/null && echo x >/dev/null && \
                  head -c 2 /dev/zero | wc -c; mknod /tmp/n c 1 3 2>/dev/null || echo no nodes; \
                  echo 0 >/proc/self/setgroups || echo no setgroups";
    let seen = user.ok(&["run", "--rm", "--user", "0", "--network", "none", "t", "sh", "-c", script]).stdout;
    assert_eq!(seen, "0\n1000:65536\n100:101\n/added/nodes:\nnull\n\n/copied:\n\n/nodes:\n2\nno nodes\nno setgroups\n");
    // A95: the owners on the host are the user's own ids, whatever a step made of them.
    let (first, count) = SUBORDINATE;
    let found = owners(&user.path("home"));
    let foreign: Vec<_> = found.iter().filter(|id| **id != UID && !(first..first + count).contains(id)).collect();
    assert!(foreign.is_empty(), "{foreign:?}");
    assert!(found.contains(&(first + 999)) && found.contains(&(first + count - 1)), "{found:?}");
    user.fails(7, &["run", "--rm", "t", "sh", "-c", "exit 7"]);
    user.ok(&["rmi", "t", "nodes", "busybox"]);
    user.ok(&["prune", "--all", "--force"]);
    // What a folder cannot hold is not lost in silence.
    let archive = user.command(&["build", "-q", "-"], "/usr/bin:/bin", "");
    let refused = fixture::run(&mut { archive }, &nodes());
    assert!(
        refused.code == 1 && refused.stderr.contains("is a device node, which nobody can make"),
        "{}",
        refused.stderr
    );
    // Root's own store and a user's are two.
    let store = user.path("home/.local/share/forge");
    let mixed = fixture::run(Command::new(fixture::binary()).args(["images", "--root"]).arg(&store), b"");
    assert!(mixed.code != 0 && mixed.stderr.contains("each user keeps a store of their own"), "{}", mixed.stderr);
}

#[test]
fn rootless_without_subordinate_ids_there_is_one() {
    let Some(user) = User::new("rootless_single_id") else { return };
    user.give("bob:100000:65536\n");
    let loaded = user.ok(&["load", "-q", "-i", "/mnt/busybox.tar"]);
    let note = "forge: only your own user id is mapped (/etc/subuid has no line for tester)";
    assert!(loaded.stderr.starts_with(note), "{}", loaded.stderr);
    assert_eq!(user.ok(&["images", "-q"]).stderr, "", "it concerns no list");
    let Some(root) = Forge::privileged("rootless_single_id") else { return };
    load_nodes(&user, &root); // they belong to another group
    let dockerfile = "FROM nodes\nCOPY file /\nRUN rm /bin/cp && touch /x\n";
    user.context(&[("Dockerfile", dockerfile), ("file", "data\n")]);
    user.ok(&["build", "-q", "-t", "t", "/mnt/context"]);
    assert_eq!(user.ok(&["run", "--rm", "t", "sh", "-c", "id -u; cat /file"]).stdout, "0\ndata\n");
    let refused = user.fails(125, &["run", "--rm", "--user", "5", "t", "true"]);
    assert!(refused.contains("user 5, which is not mapped"), "{refused}");
    user.write("context/Dockerfile", "FROM busybox\nCOPY --chown=5 file /\n");
    let refused = user.fails(1, &["build", "-q", "/mnt/context"]);
    assert!(refused.contains("without root, owners are those of the subordinate ids"), "{refused}");
    assert_eq!(owners(&user.path("home")), BTreeSet::from([UID]));
    // A store is of one kind: files of it would have other owners now.
    user.give(&format!("tester:{}:{}\n", SUBORDINATE.0, SUBORDINATE.1));
    assert!(user.fails(1, &["images"]).contains("id maps"));
    // Without the helpers it is the same.
    let alone = user.run_with(&["run", "--rm", "t", "echo", "alone"], "/nowhere", "");
    assert!(alone.stderr.contains("newuidmap failed: it is not installed"), "{}", alone.stderr);
    assert_eq!(alone.stdout, "alone\n");
}

/// Seen to fail with `check_own` and the look at others' ranges taken out.
#[test]
fn rootless_a95_ranges_of_others_are_refused() {
    let Some(user) = User::new("rootless_a95") else { return };
    for (lines, reason) in [
        ("tester:100000:65536\nbob:165535:65536\n", "gives ids 100000 to 165535 to bob too"),
        ("tester:100000:65536\ntester:100000:1\n", "overlap"),
        ("tester:0:65536\n", "with root among them"),
        ("tester:4000:1000\n", "with the user's own id 4242 among them"),
        ("tester:100000:4294967295\n", "beyond the last id"),
    ] {
        user.give(lines);
        let error = user.fails(125, &["images"]);
        assert!(
            error.contains("the subordinate ids of /etc/subuid cannot be used") && error.contains(reason),
            "{error}"
        );
    }
    user.write("subuid", "tester:100000:65536\n");
    user.write("subgid", "tester:0:65536\n");
    assert!(user.fails(125, &["images"]).contains("/etc/subgid"));
    assert!(!user.path("home/.local").exists());
}

/// In a namespace of the test's own, whose settings are nobody else's.
#[test]
fn rootless_the_setting_that_forbids_namespaces_is_named() {
    if !fixture::may_run("rootless_forbidden") {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let script = "echo 0 >/proc/sys/user/max_user_namespaces && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["-U", "--map-user=1000", "--map-group=1000", "--keep-caps", "sh", "-c", script, "sh"]);
    command.arg(fixture::binary()).arg("images").env("HOME", home.path());
    let outcome = fixture::run(&mut command, b"");
    assert_eq!(outcome.code, 125, "{}", outcome.stderr);
    let reason = "gets none: the setting user.max_user_namespaces=0 forbids it";
    assert!(outcome.stderr.contains(reason), "{}", outcome.stderr);
    command.args(["--help"]);
    assert_eq!(fixture::run(&mut command, b"").code, 0, "what needs no namespace works");
}

/// What a container listens on is reached at the host's ports, connections as packets.
///
/// Meant to fail (nobody answered) with the address of the container instead of a socket of its network.
#[test]
fn rootless_ports_are_published() {
    let test = "rootless_ports_are_published";
    let Some(user) = User::new(test) else { return };
    if !fixture::have(test, &["perl"]) || !Path::new("/dev/net/tun").exists() {
        return;
    }
    if ["pasta", "slirp4netns"].iter().all(|program| fixture::find(program).is_none()) {
        return println!("SKIPPED (needs pasta or slirp4netns): {test}");
    }
    user.load();
    // No program of busybox's answers packets; perl is on every Debian.
    // It ends when it is told to, and after a minute: a signal that it does not expect means nothing to a first process.
    let script = "$SIG{ALRM} = sub { exit }; alarm 60; socket(U, PF_INET, SOCK_DGRAM, 0); bind(U, sockaddr_in(7, INADDR_ANY)); \
                  socket(T, PF_INET, SOCK_STREAM, 0); bind(T, sockaddr_in(8, INADDR_ANY)); listen(T, 5); \
                  unless (fork) { while (accept(C, T)) { my $line = <C>; syswrite(C, uc $line); close C } } \
                  while (1) { my $from = recv(U, my $text, 99, 0); exit if $text eq 'end'; send(U, uc $text, 0, $from) }";
    let mut words =
        vec!["run", "--rm", "-p", "127.0.0.1::7/udp", "-p", "127.0.0.1::8", "-v", "/usr:/usr:ro", "-v", "/lib:/lib:ro"];
    if Path::new("/lib64").exists() {
        words.extend(["-v", "/lib64:/lib64:ro"]);
    }
    words.extend(["busybox", "/usr/bin/perl", "-MSocket", "-e", script]);
    let mut child = user.command(&words, "/usr/bin:/bin", "").stderr(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let told: Vec<String> = lines.filter(|line| line.contains("is published on")).take(2).collect();
    let port = |kind: &str| -> u16 {
        let line = told.iter().find(|line| line.contains(&format!("port {kind} is published on 127.0.0.1:")));
        line.and_then(|line| line.rsplit(':').next()?.parse().ok()).unwrap_or_else(|| panic!("{told:?}"))
    };
    let ended = std::panic::catch_unwind(|| {
        assert_eq!(answer_to_packet(port("7/udp")).as_deref(), Some(&b"PACKET"[..]));
        assert_eq!(answer_to_line(port("8/tcp")), "LINE\n");
    });
    UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"end", ("127.0.0.1", port("7/udp"))).unwrap();
    child.wait().unwrap();
    ended.unwrap();
}

fn answer_to_packet(port: u16) -> Option<Vec<u8>> {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    (0..20).find_map(|_| {
        socket.send_to(b"packet", ("127.0.0.1", port)).unwrap();
        let mut answer = [0; 16];
        socket.recv(&mut answer).ok().map(|length| answer[..length].to_vec())
    })
}

fn answer_to_line(port: u16) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(b"line\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn rootless_oci_runtimes_build_and_run() {
    let test = "rootless_oci_runtimes_build_and_run";
    let Some(user) = User::new(test) else { return };
    user.load();
    user.context(&[(
        "Dockerfile",
        "FROM busybox\nRUN --network=none id -u >/id && chown 5:6 /id\nUSER 7\nRUN id -u >/tmp/id\n",
    )]);
    for name in ["runc", "crun"].into_iter().filter(|name| fixture::find(name).is_some()) {
        user.ok(&["build", "-q", "--no-cache", "--oci-runtime", name, "-t", "t", "/mnt/context"]);
        let run = |words: &[&str]| user.forge(&[&["run", "--rm", "--oci-runtime", name, "t"], words].concat());
        let seen = run(&["sh", "-c", "cat /id /tmp/id; stat -c %u:%g /id; exit 42"]);
        assert_eq!((seen.stdout.as_str(), seen.code), ("0\n7\n5:6\n", 42), "{name} {}", seen.stderr);
        assert_eq!((run(&["nosuch"]).code, run(&["/etc/passwd"]).code), (127, 126), "{name}");
    }
}

/// Nodes of the host are bound, so that the host's permissions decide. What a user cannot make is said and not faked.
#[test]
fn rootless_devices_are_the_host_s() {
    let Some(user) = User::new("rootless_devices") else { return };
    let Some(root) = Forge::privileged("rootless_devices") else { return };
    user.load();
    load_nodes(&user, &root);
    let with = |flags: &[&str], script: &str| {
        user.forge(&[&["run", "--rm", "-q", "--network", "none"], flags, &["busybox", "sh", "-c", script]].concat())
    };
    let read =
        with(&["--device", "/dev/zero:/dev/given"], "head -c 2 /dev/given | wc -c; echo x >/dev/given && echo written");
    assert_eq!(read.stdout, "2\nwritten\n", "{}", read.stderr);
    // Only root of the machine may open it.
    let closed = with(&["--device", "/dev/kmsg:/dev/given"], "ls /dev/given; head -c 1 /dev/given");
    assert!(closed.stdout == "/dev/given\n" && closed.stderr.contains("ermi"), "{}", closed.stderr);
    let wrong = with(&["--device", "/etc/passwd"], "true");
    assert!(wrong.code == 125 && wrong.stderr.contains("not a device node"), "{}", wrong.stderr);
    assert_eq!(with(&["--device-cgroup-rule", "c 1:11 rwm"], "mknod /tmp/k c 1 11 || echo none").stdout, "none\n");
    // What is copied from an image with nodes has none, and that is said.
    user.context(&[(
        "Dockerfile",
        "FROM busybox\nCOPY --from=nodes /nodes /copied\nRUN ls -A /copied | wc -l >/count\n",
    )]);
    user.ok(&["build", "-q", "-t", "t", "/mnt/context"]);
    assert_eq!(user.ok(&["run", "--rm", "t", "cat", "/count"]).stdout, "0\n");
}
