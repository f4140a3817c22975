//! Steps that run processes, on a base of Debian's busybox.

use crate::Test;
use crate::site::{Site, vertex};
use crate::tree_text;
use forge_cache::ResultRef;
use forge_llb::{CdiDevice, ExecOp, ExtraHost, NetworkMode, Op};
use forge_session::{Event, LogStream, Session};
use forge_solver::{ExecuteRequest, Worker, WorkerError};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub const TESTS: &[Test] = &[
    ("privileged_a_failing_step_says_how_and_its_last_lines", failing),
    ("privileged_a_program_that_is_not_there", not_there),
    ("privileged_output_becomes_events", output_events),
    ("privileged_cancelling_kills_everything", cancelling),
    ("privileged_cancelling_stops_file_operations", cancelling_files),
    ("privileged_daemons_end_with_the_step", daemons),
    ("privileged_a16_a17_users_and_groups", users),
    ("privileged_environment_and_folder", environment),
    ("privileged_network_none", network_none),
    ("privileged_hosts", hosts),
    ("privileged_what_a_step_changes_is_a_layer", changes),
    ("privileged_devices_are_granted_by_their_specifications", devices),
];

const APPLETS: &str =
    "cat echo env false hostname id ip kill ln ls mkdir mv pwd rm rmdir seq setsid sh sleep stat touch true wc yes";

/// A file system with a shell, two users and a file that a group owns.
pub fn with_busybox() -> Site {
    let mut site = Site::new();
    let passwd =
        "root:x:0:0::/root:/bin/sh\\napp:x:1000:1001::/home/app:/bin/sh\\nneg:x:4294967295:4294967295::/:/bin/sh\\n";
    let group = "root:x:0:\\napp:x:1001:\\nstaff:x:50:app\\nneg:x:4294967295:app\\n";
    site.base = site.with_layer(&site.base, |upper| {
        let folders = "bin/\n dev/\n etc/\n home/app/\n home/\n proc/\n root/ 0700\n sys/\n tmp/ 1777\n";
        let files = format!("etc/passwd ={passwd}\n etc/group ={group}\n staff 0070 0:50 =for\\sstaff");
        std::fs::create_dir(upper.join("bin")).unwrap();
        std::fs::copy("/bin/busybox", upper.join("bin/busybox")).expect("Debian's busybox-static");
        for applet in APPLETS.split(' ') {
            std::os::unix::fs::symlink("busybox", upper.join("bin").join(applet)).unwrap();
        }
        tree_text::write(upper, &format!("{folders}{files}"));
    });
    site
}

pub fn shell(script: &str) -> ExecOp {
    ExecOp {
        cwd: String::new(),
        network: NetworkMode::Host,
        ..ExecOp::new(["/bin/sh", "-c", script].map(str::to_owned).to_vec())
    }
}

pub fn logged(site: &Site, stream: LogStream) -> String {
    let bytes: Vec<u8> = site
        .session
        .events_so_far()
        .into_iter()
        .filter_map(|event| match event {
            Event::Log { stream: from, data, .. } if from == stream => Some(data),
            _ => None,
        })
        .flatten()
        .collect();
    String::from_utf8(bytes).unwrap()
}

/// What a step wrote to its standard output.
pub fn output(site: &Site, op: ExecOp) -> String {
    let before = logged(site, LogStream::Stdout).len();
    if let Err(error) = site.run(Op::Exec(op)) {
        panic!("{error}: {}", logged(site, LogStream::Stderr));
    }
    logged(site, LogStream::Stdout)[before..].to_owned()
}

fn failing() {
    let site = with_busybox();
    let script = "seq 1 30; echo last >&2; exit 3";
    let Err(WorkerError::Process { exit, message, last_lines }) = site.run(Op::Exec(shell(script))) else { panic!() };
    assert_eq!(exit, 3);
    let process = format!("process \"/bin/sh -c {script}\" did not complete successfully: exit code: 3");
    assert_eq!(message, process);
    assert_eq!(last_lines.len(), 20);
    assert!(last_lines.contains(&"30".to_owned()) && last_lines.contains(&"last".to_owned()), "{last_lines:?}");
    // Of a shell's child: nothing inside can kill the first process of a sandbox (pid_namespaces(7)).
    let killed = site.run(Op::Exec(shell("sh -c 'kill -9 $$'; exit $?")));
    let Err(WorkerError::Process { exit: 137, message, .. }) = killed else { panic!("{killed:?}") };
    assert!(message.ends_with("exit code: 137"), "{message}");
}

/// fuse is none of the devices that every step has: without its specification it stays shut. What is granted leaves no
/// trace in the layer. Seen to fail with every device opened instead of those granted.
fn devices() {
    let site = with_busybox();
    let specifications = site.path("cdi");
    std::fs::create_dir(&specifications).unwrap();
    let node = |path: &str, host: &str| format!(r#"{{"path": "{path}", "hostPath": "{host}", "permissions": "r"}}"#);
    let text = format!(
        r#"{{"cdiVersion": "0.6.0", "kind": "acme.com/x", "devices": [{{"name": "a", "containerEdits": {{
            "env": ["ACME=yes"], "deviceNodes": [{}, {}], "mounts": [{{"hostPath": "{}", "containerPath": "/acme"}}]}}}}]}}"#,
        node("/dev/acme", "/dev/zero"),
        node("/dev/acme-fuse", "/dev/fuse"),
        specifications.display()
    );
    std::fs::write(specifications.join("acme.json"), text).unwrap();
    if !std::path::Path::new("/dev/fuse").exists() {
        return;
    }
    let script = "echo $ACME; ls /acme; sh -c ': </dev/acme' && echo zero; sh -c ': </dev/acme-fuse' && echo fuse; \
                  [ -c /dev/acme-fuse ] && sh -c ': >>/dev/acme-fuse' && echo written; true";
    let asked = |optional| {
        let device = CdiDevice { name: "acme.com/x=a".to_owned(), optional };
        ExecOp { devices: vec![device], ..shell(script) }
    };
    let worker = site.build().0.with_devices(&[specifications]);
    let result = site.run_by(&worker, Op::Exec(asked(false)), site.inputs()).unwrap();
    // An ordinary user may open what the host's permissions let them open.
    let fuse = if crate::rootless::is_asked_for() && std::fs::File::open("/dev/fuse").is_err() { "" } else { "fuse\n" };
    let seen = logged(&site, LogStream::Stdout);
    assert_eq!(seen, format!("yes\nacme.json\nzero\n{fuse}"), "{}", logged(&site, LogStream::Stderr));
    assert_eq!(site.print(last(&result)), "");
    // A worker that knows no specifications.
    let refused = site.run(Op::Exec(asked(false))).unwrap_err();
    assert_eq!(refused.to_string(), "required device \"acme.com/x=a\" is not registered");
    assert_eq!(output(&site, asked(true)), "\n");
}

fn not_there() {
    let site = with_busybox();
    let mut op = shell("");
    op.args = vec!["/none".to_owned(), "x".to_owned()];
    let Err(WorkerError::Process { exit, message, .. }) = site.run(Op::Exec(op.clone())) else { panic!() };
    assert_eq!(exit, 127);
    let expected = "process \"/none x\" did not complete successfully: exit code: 127: ";
    assert!(message.starts_with(expected), "{message}");
    op.args = vec!["/etc/passwd".to_owned()];
    let Err(WorkerError::Process { exit, .. }) = site.run(Op::Exec(op)) else { panic!() };
    assert_eq!(exit, 126);
}

fn output_events() {
    let site = with_busybox();
    let op = shell("echo out; echo err >&2; yes | head -c 200000");
    let expected = vertex(Op::Exec(op.clone())).digest();
    // `head` is not there, so `yes` ends by itself: a broken pipe is not forge's business.
    let _ = site.run(Op::Exec(op));
    assert!(logged(&site, LogStream::Stdout).starts_with("out\n"));
    assert!(logged(&site, LogStream::Stderr).starts_with("err\n"));
    for event in site.session.events_so_far() {
        let Event::Log { vertex, .. } = event else { continue };
        assert_eq!(&vertex, expected.digest());
    }
    // Much output neither blocks nor gets lost, nor does output without an end of line.
    let site = with_busybox();
    let text = output(&site, shell("seq 1 20000; echo -n end"));
    assert_eq!(text.lines().count(), 20_001);
    assert!(text.ends_with("20000\nend"));
}

/// Cancels when the step has said that it is ready; how long it took to end.
fn cancelled_after_ready(site: &Site, op: ExecOp) -> Duration {
    let vertex = vertex(Op::Exec(op));
    let request = ExecuteRequest { digest: vertex.digest(), vertex: Arc::new(vertex), inputs: site.inputs() };
    let session: Arc<dyn Session> = site.session.clone();
    std::thread::scope(|scope| {
        let run = scope.spawn(|| site.runtime.block_on(site.worker.execute(request, &session)));
        let begin = Instant::now();
        while !logged(site, LogStream::Stdout).contains("ready") {
            assert!(begin.elapsed() < Duration::from_secs(20) && !run.is_finished());
            std::thread::sleep(Duration::from_millis(5));
        }
        let begin = Instant::now();
        site.session.cancel();
        let ended = run.join().unwrap();
        assert!(matches!(ended, Err(WorkerError::Cancelled)), "{ended:?}");
        begin.elapsed()
    })
}

/// Processes of this machine with that text among their arguments.
fn running(mark: &str) -> usize {
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let command = |path: std::path::PathBuf| std::fs::read(path.join("cmdline")).unwrap_or_default();
    processes.filter(|entry| String::from_utf8_lossy(&command(entry.path())).contains(mark)).count()
}

fn cancelling() {
    // The marks are lengths of sleep that nobody else uses.
    let stubborn = "trap '' TERM INT HUP; echo ready; while :; do sleep 73501; done";
    let daemon = "(setsid sh -c 'trap \"\" TERM HUP; sleep 73502' &); echo ready; sleep 73502";
    for (script, mark) in [(stubborn, "73501"), (daemon, "73502")] {
        let took = cancelled_after_ready(&with_busybox(), shell(script));
        assert!(took < Duration::from_secs(3), "{took:?}");
        assert_eq!(running(mark), 0, "{script}");
    }
}

fn cancelling_files() {
    // Written once to be sparse: copying takes long in the kernel or out of it, reading no less.
    let site = Site::new();
    let file = std::fs::File::create(site.path("context/large")).unwrap();
    file.set_len(64 << 30).unwrap();
    let session = site.session.clone();
    let begin = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            session.cancel();
        });
        assert!(matches!(site.execute("COPY large /"), Err(WorkerError::Cancelled)));
        assert!(site.keys("COPY large /").unwrap_err().contains("cancelled"));
    });
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
}

fn daemons() {
    let site = with_busybox();
    let begin = Instant::now();
    let text = output(&site, shell("(setsid sh -c 'trap \"\" HUP TERM; sleep 73503; echo x >/late' &); echo done"));
    assert_eq!(text, "done\n");
    assert!(begin.elapsed() < Duration::from_secs(10));
    assert_eq!(running("73503"), 0);
}

fn users() {
    let site = with_busybox();
    let show = |user: &str| {
        let user = user.to_owned();
        output(&site, ExecOp { user, ..shell("echo $(id -u):$(id -g) $(id -G) $HOME $(cat /staff 2>/dev/null)") })
    };
    // As docker: the groups of a name are those that list it, an explicit group leaves no others but itself.
    assert_eq!(show(""), "0:0 0 /root for staff\n");
    assert_eq!(show("root"), "0:0 0 /root for staff\n");
    assert_eq!(show("app"), "1000:1001 1001 50 /home/app for staff\n");
    assert_eq!(show("1000"), "1000:1001 1001 50 /home/app for staff\n");
    assert_eq!(show("app:staff"), "1000:50 50 /home/app for staff\n");
    assert_eq!(show("app:1001"), "1000:1001 1001 /home/app\n");
    assert_eq!(show("55"), "55:0 0 /\n");
    assert_eq!(show("55:66"), "55:66 66 /\n");
    assert_eq!(show(":0"), "0:0 0 /root for staff\n");
    let supplementary = |user: &str| {
        let user = user.to_owned();
        output(&site, ExecOp { user, ..shell("echo $(grep ^Groups /proc/self/status)") })
    };
    assert_eq!(supplementary("app:staff"), "Groups: 50\n");
    assert_eq!(supplementary("55"), "Groups: 0\n");
    for bad in
        ["nobody", "4294967296", "4294967295", "2147483648", "-1", "0x0", " 0", "1:", "neg", "0:neg", "app:nogroup"]
    {
        let failed = site.run(Op::Exec(ExecOp { user: bad.to_owned(), ..shell("id") }));
        assert!(matches!(&failed, Err(WorkerError::Other { .. })), "{bad}: {failed:?}");
    }
}

fn environment() {
    let site = with_busybox();
    let text = output(&site, ExecOp { user: "app".to_owned(), ..shell("env; pwd") });
    let mut lines: Vec<&str> = text.lines().filter(|line| !line.starts_with("SHLVL=")).collect();
    lines.sort_unstable();
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    assert_eq!(lines, ["/", "HOME=/home/app", "HOSTNAME=buildkitsandbox", path, "PWD=/"]);
    let env = ["A=1", "PATH=/bin", "HOME=/x", "EMPTY="].map(str::to_owned).to_vec();
    let op = ExecOp { env, cwd: "/home/app".to_owned(), ..shell("echo $A $PATH $HOME ${EMPTY-unset}; pwd; hostname") };
    assert_eq!(output(&site, op.clone()), "1 /bin /x\n/home/app\nbuildkitsandbox\n");
    let named =
        ExecOp { hostname: "other".to_owned(), proxy_env: vec!["A=2".to_owned(), "no_proxy=z".to_owned()], ..op };
    let op = ExecOp { args: shell("echo $A $no_proxy $HOSTNAME; hostname").args, ..named };
    assert_eq!(output(&site, op), "1 z other\nother\n");
}

fn network_none() {
    let site = with_busybox();
    let op = ExecOp { network: NetworkMode::None, ..shell("ls /sys/class/net; wc -c </etc/resolv.conf") };
    assert_eq!(output(&site, op), "lo\n0\n");
}

fn hosts() {
    let site = with_busybox();
    let extra = ExtraHost { host: "db".to_owned(), address: "10.1.2.3".to_owned() };
    let text = output(&site, ExecOp { extra_hosts: vec![extra], ..shell("cat /etc/hosts") });
    assert!(text.contains("127.0.0.1\tlocalhost") && text.contains("10.1.2.3\tdb\n"), "{text}");
    // What was mounted over is not in the layer.
    assert_eq!(site.print(last(&site.run(Op::Exec(shell("true"))).unwrap())), "");
}

pub fn last(result: &ResultRef) -> &forge_store::LayerId {
    result.layers().last().unwrap()
}

fn changes() {
    let site = with_busybox();
    let script = "rm /staff; mkdir -p /a/b; echo x >/a/b/c; ln /a/b/c /a/d; ln -s c /a/b/l; rm /home/app -r; mkdir /home/app; touch /home/app/n";
    let shown = site.print(last(&site.run(Op::Exec(shell(script))).unwrap()));
    let expected = "a/ @now\na/b/ @now\na/b/c =x\\n @now\na/b/l -> c @now\na/d == a/b/c\n\
        home/ @now\nhome/app/ opaque @now\nhome/app/n = @now\nstaff deleted\n";
    assert_eq!(shown, expected);
}
