//! What steps see besides their root: trees, caches, memory, secrets, agents.

use crate::Test;
use crate::exec::{last, logged, output, shell, with_busybox};
use crate::site::{Site, vertex};
use forge_llb::{
    CacheSharing, CdiDevice, ExecMount, ExecOp, MountKind, Op, SecretEnv, SecretMount, SecurityMode, Ulimit,
};
use forge_session::{Event, LogStream, Session};
use forge_solver::{CacheMap, ExecuteRequest, Worker, WorkerError};
use forge_store::ContentDigest;
use forge_testkit::TestSession;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub const TESTS: &[Test] = &[
    ("privileged_binds_show_stages", binds_show_stages),
    ("privileged_binds_show_what_the_context_shows", binds_show_what_the_context_shows),
    ("privileged_changes_of_binds_are_thrown_away_or_kept", changes_of_binds),
    ("privileged_a31_selected_paths_stay_inside", a31_selected_paths_stay_inside),
    ("privileged_keys_are_what_mounts_show", keys_are_what_mounts_show),
    ("privileged_caches_stay", caches_stay),
    ("privileged_caches_begin_with_something", caches_begin_with_something),
    ("privileged_a24_ids_of_caches_are_no_paths", a24_ids_are_no_paths),
    ("privileged_locked_caches_wait", locked_caches_wait),
    ("privileged_private_caches_are_apart", private_caches_are_apart),
    ("privileged_waiting_for_a_cache_can_be_cancelled", waiting_can_be_cancelled),
    ("privileged_memory_has_a_size", memory_has_a_size),
    ("privileged_secrets_are_files_and_variables", secrets_are_files_and_variables),
    ("privileged_absent_secrets", absent_secrets),
    ("privileged_a97_mounts_give_no_privileges", a97_mounts_give_no_privileges),
    ("privileged_a98_secrets_are_nowhere", a98_secrets_are_nowhere),
    ("privileged_a99_mount_points_leave_no_trace", a99_mount_points_leave_no_trace),
    ("privileged_a100_secrets_are_no_oracle", a100_secrets_are_no_oracle),
    ("privileged_a101_agents_are_filtered_and_end", a101_agents_are_filtered_and_end),
    ("privileged_a121_nothing_is_made_writable", a121_nothing_is_made_writable),
    ("privileged_a122_caches_are_told_apart", a122_caches_are_told_apart),
    ("privileged_insecure_steps_may_everything", insecure_steps_may_everything),
    ("privileged_exit_codes_limits_and_devices", exit_codes_limits_and_devices),
];

const STAGE: usize = 2;
const CONTEXT: usize = 1;

fn mount(target: &str, kind: MountKind) -> ExecMount {
    ExecMount { target: target.to_owned(), input: None, selector: "/".into(), output: None, readonly: false, kind }
}

fn bind(target: &str, input: usize, selector: &str) -> ExecMount {
    let selector = selector.to_owned();
    ExecMount { input: Some(input), selector, readonly: true, ..mount(target, MountKind::Bind) }
}

fn writable(mount: ExecMount) -> ExecMount {
    ExecMount { readonly: false, ..mount }
}

fn cache(target: &str, id: &str, sharing: CacheSharing) -> ExecMount {
    mount(target, MountKind::Cache { id: id.to_owned(), sharing })
}

fn shared(target: &str, id: &str) -> ExecMount {
    cache(target, id, CacheSharing::Shared)
}

fn secret(id: &str, mode: u32, optional: bool) -> SecretMount {
    SecretMount { id: id.to_owned(), uid: 1000, gid: 1001, mode, optional }
}

fn with(mounts: impl IntoIterator<Item = ExecMount>, script: &str) -> ExecOp {
    let mounts = std::iter::once(ExecMount::root()).chain(mounts).collect();
    ExecOp { mounts, remove_mount_stubs: true, ..shell(script) }
}

fn with_session(change: impl FnOnce(TestSession) -> TestSession) -> Site {
    let mut site = with_busybox();
    let context = site.session.context("context").unwrap();
    site.session = Arc::new(change(TestSession::new().with_context("context", context)));
    site
}

/// The lines that steps were told.
fn told(site: &Site) -> Vec<String> {
    let events = site.session.events_so_far().into_iter();
    let line = |event| match event {
        Event::Status(status) if status.completed.is_some() => Some(status.name),
        _ => None,
    };
    events.filter_map(line).collect()
}

fn binds_show_stages() {
    let site = with_busybox()
        .stage("d/\n d/f =old\n d/gone =x\n d/own 0640 5:6 =o")
        .stage("d/f =new\n d/gone char 0:0\n e =E");
    let script = "cat /mnt/f; ls /mnt; stat -c %a:%u:%g /mnt/own; touch /mnt/g 2>/dev/null || echo refused";
    assert_eq!(output(&site, with([bind("/mnt", STAGE, "/d")], script)), "newf\nown\n640:5:6\nrefused\n");
    assert_eq!(output(&site, with([bind("/srv/x/e", STAGE, "e")], "cat /srv/x/e; ls /srv/x")), "Ee\n");
    assert_eq!(output(&site, with([bind("/mnt", STAGE, "/")], "ls /mnt")), "d\ne\n");
    // Nothing is shown of nothing.
    let nothing = ExecMount { input: None, ..bind("/mnt", 0, "/") };
    assert_eq!(
        output(&site, with([nothing.clone()], "ls -A /mnt | wc -l; touch /mnt/x || echo refused")),
        "0\nrefused\n"
    );
    assert_eq!(output(&site, with([writable(nothing)], "touch /mnt/x; ls /mnt")), "x\n");
    let missing = site.run(Op::Exec(with([bind("/mnt", STAGE, "/none")], "true"))).unwrap_err();
    assert!(missing.to_string().contains("/none"), "{missing}");
}

fn binds_show_what_the_context_shows() {
    let site = with_busybox()
        .ignore(&["**/*.log"])
        .context("src/a =A\n src/a.log =L\n src/b 0755 =B\n src/l -> a\n src/\n top =T");
    std::os::unix::fs::chown(site.path("context/src/a"), Some(77), Some(77)).unwrap();
    let script = "cd /mnt; ls; stat -c %n:%a:%u a b; cat l";
    assert_eq!(output(&site, with([bind("/mnt", CONTEXT, "src")], script)), "a\nb\nl\na:644:0\nb:755:0\nA");
    assert_eq!(output(&site, with([bind("/mnt/t", CONTEXT, "/top")], "cat /mnt/t")), "T");
    assert_eq!(
        output(&site, with([writable(bind("/mnt", CONTEXT, "/"))], "echo new >/mnt/top; cat /mnt/top")),
        "new\n"
    );
    assert_eq!(std::fs::read_to_string(site.path("context/top")).unwrap(), "T");
    // The same content is copied once.
    let layers = || site.store.usage().unwrap().layers.count;
    output(&site, with([bind("/mnt", CONTEXT, "src")], "true"));
    let before = layers();
    output(&site, with([bind("/mnt", CONTEXT, "src")], "true"));
    assert_eq!(layers(), before + 1, "the step's own layer");
    std::fs::write(site.path("context/src/a"), "changed").unwrap();
    assert_eq!(output(&site, with([bind("/mnt", CONTEXT, "src")], "cat /mnt/a")), "changed");
}

fn changes_of_binds() {
    let site = with_busybox().stage("d/\n d/f =F\n other =O");
    let stage = writable(bind("/mnt", STAGE, "/d"));
    let script = "echo more >>/mnt/f; echo n >/mnt/n; cat /mnt/f";
    assert_eq!(output(&site, with([stage.clone()], script)), "Fmore\n");
    assert_eq!(output(&site, with([stage.clone()], "cat /mnt/f; ls /mnt")), "Ff\n");
    let op = with([ExecMount { output: Some(1), ..stage }], script);
    let vertex = vertex(Op::Exec(op));
    let request = ExecuteRequest { digest: vertex.digest(), vertex: Arc::new(vertex), inputs: site.inputs() };
    let session: Arc<dyn Session> = site.session.clone();
    let outputs = site.runtime.block_on(site.worker.execute(request, &session)).unwrap().outputs;
    assert_eq!(outputs.len(), 2);
    assert_eq!(site.print(last(&outputs[0])), "");
    assert_eq!(site.print(last(&outputs[1])), "d/ @now\nd/f =Fmore\\n @now\nd/n =n\\n @now\n");
}

/// Seen to fail with the selected path joined to the layer's folder and bound by name: the host followed the links.
fn a31_selected_paths_stay_inside() {
    let canary = Site::new().path("canary/flag").display().to_string();
    let links = format!("out -> {canary}\n up -> ../../../../../../../../etc/hostname\n abs -> /d/f\n d/\n d/f =F");
    let site = with_busybox().stage(&links).context("link -> ../canary/flag");
    assert_eq!(output(&site, with([bind("/mnt", STAGE, "/abs")], "cat /mnt")), "F");
    for selector in ["/out", "/up", "../../../../etc/hostname"] {
        let failed = site.run(Op::Exec(with([bind("/mnt/x", STAGE, selector)], "cat /mnt/x")));
        assert!(failed.is_err(), "{selector}: {}", logged(&site, LogStream::Stdout));
    }
    for selector in ["link", "../canary/flag"] {
        let failed = site.run(Op::Exec(with([bind("/mnt/x", CONTEXT, selector)], "cat /mnt/x")));
        assert!(failed.is_err(), "{selector}");
    }
    site.check_canary();
}

fn cache_map(site: &Site, op: ExecOp) -> CacheMap {
    let session: Arc<dyn Session> = site.session.clone();
    site.runtime.block_on(site.worker.cache_map(&vertex(Op::Exec(op)), &session)).unwrap()
}

fn key(site: &Site, op: &ExecOp, input: usize) -> ContentDigest {
    let map = cache_map(site, op.clone());
    let forge_solver::InputKey::Content(selector) = &map.inputs[input] else { panic!("inputs count by their content") };
    site.digest(&site.inputs()[input], selector).unwrap()
}

fn keys_are_what_mounts_show() {
    let site = || with_busybox().context("src/a =A\n src/\n other =1").stage("d/f =F\n d/\n other =1");
    let (one, two) = (site(), site());
    std::fs::write(two.path("context/other"), "2").unwrap();
    let two = two.stage("other =2");
    let src = with([bind("/mnt", CONTEXT, "src"), bind("/stage", STAGE, "/d")], "true");
    assert_eq!((key(&one, &src, CONTEXT), key(&one, &src, STAGE)), (key(&two, &src, CONTEXT), key(&two, &src, STAGE)));
    let all = with([bind("/mnt", CONTEXT, "/"), bind("/stage", STAGE, "/")], "true");
    assert_ne!(key(&one, &all, CONTEXT), key(&two, &all, CONTEXT));
    assert_ne!(key(&one, &all, STAGE), key(&two, &all, STAGE));
    // What is not selected can reach a result by way of an output.
    let mut kept = with([writable(bind("/stage", STAGE, "/d"))], "true");
    kept.mounts[1].output = Some(1);
    assert_ne!(key(&one, &kept, STAGE), key(&two, &kept, STAGE));
    std::fs::write(two.path("context/src/a"), "B").unwrap();
    assert_ne!(key(&one, &src, CONTEXT), key(&two, &src, CONTEXT));
}

fn caches_stay() {
    let site = with_busybox();
    let op = |script| with([shared("/var/cache/x", "go")], script);
    let result = site.run(Op::Exec(op("stat -c %a:%u /var/cache/x; echo 12345 >/var/cache/x/f"))).unwrap();
    assert_eq!(site.print(last(&result)), "", "neither the folder nor its mount point is in the layer");
    assert_eq!(output(&site, op("cat /var/cache/x/f")), "12345\n");
    let lines = told(&site);
    assert!(lines[0].starts_with("cache mount go: new, 0B, "), "{lines:?}");
    assert!(lines[1].starts_with("cache mount go: reused, 6B, ") && lines[1].ends_with("began as empty"), "{lines:?}");
    let part = ExecMount { readonly: true, ..shared("/c", "go") };
    assert_eq!(output(&site, with([part], "cat /c/f; touch /c/g || echo refused")), "12345\nrefused\n");
    // Two mounts of one id in one step are one folder, also when it is locked.
    let twice = [cache("/a", "t", CacheSharing::Locked), cache("/b", "t", CacheSharing::Locked)];
    assert_eq!(output(&site, with(twice, "echo x >/a/f; cat /b/f")), "x\n");
    // A step that fails leaves what it wrote.
    site.run(Op::Exec(op("echo kept >/var/cache/x/k; false"))).unwrap_err();
    assert_eq!(output(&site, op("cat /var/cache/x/k")), "kept\n");
}

fn caches_begin_with_something() {
    let site = with_busybox().stage("d/ 0750 7:8\n d/f =F\n other =O").context("c/g =G\n c/");
    let seeded = |input, selector: &str| ExecMount {
        input: Some(input),
        selector: selector.to_owned(),
        ..shared("/c", "seeded")
    };
    let op = |script| with([seeded(STAGE, "/d")], script);
    assert_eq!(output(&site, op("stat -c %a:%u:%g /c; ls /c; echo more >>/c/f")), "750:7:8\nf\n");
    assert_eq!(output(&site, op("cat /c/f")), "Fmore\n");
    assert_eq!(output(&site, with([bind("/mnt", STAGE, "/d")], "cat /mnt/f")), "F");
    // Another first content is another cache; the context's is one too.
    assert_eq!(output(&site, with([shared("/c", "seeded")], "ls -A /c | wc -l")), "0\n");
    assert_eq!(output(&site, with([seeded(CONTEXT, "c")], "cat /c/g")), "G");
    let lines = told(&site);
    assert!(lines[0].ends_with("began as /d of an image or stage"), "{lines:?}");
}

/// Ids are names and never paths, and what a cache begins with is looked up inside of its stage.
///
/// Meant to fail (the canary got a file) with folders called as the id.
fn a24_ids_are_no_paths() {
    let site = with_busybox().stage("d/f =F\n d/ \n f =top\n");
    let canary = site.path("canary").display().to_string();
    let long = "x".repeat(5000);
    let ids =
        ["../../../canary", "../../canary", "../canary", "/etc", "..", ".", "a\0b", "a\nb", "․․/․․", &long, &canary];
    for (number, id) in ids.iter().enumerate() {
        let op = with([shared("/c", id)], &format!("ls -A /c; echo {number} >/c/f"));
        assert_eq!(output(&site, op), "", "{id:?}");
    }
    for (number, id) in ids.iter().enumerate() {
        assert_eq!(output(&site, with([shared("/c", id)], "cat /c/f")), format!("{number}\n"), "{id:?}");
    }
    site.check_canary();
    let names = std::fs::read_dir(site.path("store/cache-mounts")).unwrap().flatten().map(|entry| entry.file_name());
    let names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
    assert!(names.len() >= ids.len(), "{names:?}");
    let plain = |name: &String| name.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'.') && name.len() < 80;
    assert!(names.iter().all(plain), "{names:?}");
    // `..` of the root is the root.
    for selector in ["../../../../", "/..", "d/../../.."] {
        let from = ExecMount { input: Some(STAGE), selector: selector.to_owned(), ..shared("/c", selector) };
        assert_eq!(output(&site, with([from], "cat /c/f")), "top", "{selector}");
    }
}

/// Runs steps of one site at the same time.
fn at_once(site: &Site, ops: Vec<ExecOp>) -> Duration {
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for op in ops {
            scope.spawn(|| site.run(Op::Exec(op)).unwrap());
        }
    });
    begin.elapsed()
}

/// Fails if another step was in at the same time, seen by what it leaves in the cache for a while.
const ALONE: &str = "ls /c/inside 2>/dev/null && exit 7; touch /c/inside; sleep 0.2; rm /c/inside; echo x >>/c/runs";

fn locked_caches_wait() {
    let site = with_busybox();
    let op = || with([cache("/c", "l", CacheSharing::Locked)], ALONE);
    assert!(at_once(&site, vec![op(), op(), op()]) >= Duration::from_millis(600));
    assert_eq!(output(&site, with([shared("/c", "l")], "wc -l </c/runs")), "3\n");
    assert!(told(&site).contains(&"waiting for cache mount l".to_owned()), "{:?}", told(&site));
    // Two that want the same two never wait for each other.
    let two = |first: &str, second: &str| {
        let locked = |target: &str, id: &str| cache(target, id, CacheSharing::Locked);
        with([locked("/a", first), locked("/b", second)], "sleep 0.05")
    };
    let took = at_once(&site, (0..6).map(|turn| if turn % 2 == 0 { two("x", "y") } else { two("y", "x") }).collect());
    assert!(took < Duration::from_secs(20), "{took:?}");
}

fn private_caches_are_apart() {
    let site = with_busybox();
    let op = || with([cache("/c", "p", CacheSharing::Private)], ALONE);
    at_once(&site, vec![op(), op()]);
    assert_eq!(site.store.cache_mounts().list().unwrap().len(), 2);
    at_once(&site, vec![op(), op()]);
    assert_eq!(site.store.cache_mounts().list().unwrap().len(), 2, "both are used again");
}

fn waiting_can_be_cancelled() {
    let site = with_busybox();
    let mut held = None;
    output(&site, with([cache("/c", "w", CacheSharing::Locked)], "true"));
    let key = forge_store::CacheMountKey { id: "w".to_owned(), first_content: None };
    let found = site.store.cache_mounts().find(&key, forge_store::CacheMountUse::Locked).unwrap();
    if let forge_store::CacheMountFound::Folder(guard) = found {
        held = Some(guard);
    }
    assert!(held.is_some());
    let session = site.session.clone();
    let begin = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(Duration::from_millis(200));
            session.cancel();
        });
        let ended = site.run(Op::Exec(with([cache("/c", "w", CacheSharing::Locked)], "true")));
        assert!(matches!(ended, Err(WorkerError::Cancelled)), "{ended:?}");
    });
    assert!(begin.elapsed() < Duration::from_secs(5));
}

fn memory_has_a_size() {
    let site = with_busybox();
    let tmpfs = |size| mount("/mnt", MountKind::Tmpfs { size });
    let script = "stat -f -c %T /mnt; stat -c %a /mnt; busybox dd if=/dev/zero of=/mnt/f bs=64k count=64 2>/dev/null; stat -c %s /mnt/f";
    assert_eq!(output(&site, with([tmpfs(Some(1 << 20))], script)), "tmpfs\n1777\n1048576\n");
    assert_eq!(output(&site, with([tmpfs(None)], script)), "tmpfs\n1777\n4194304\n");
    let result = site.run(Op::Exec(with([tmpfs(None)], "touch /mnt/g"))).unwrap();
    assert_eq!(site.print(last(&result)), "");
}

fn variable(id: &str, name: &str, optional: bool) -> SecretEnv {
    SecretEnv { id: id.to_owned(), name: name.to_owned(), optional }
}

fn secrets_are_files_and_variables() {
    let site = with_session(|session| session.with_secret("tok", "s3cret\nline"));
    let file = |mode| mount("/run/secrets/tok", MountKind::Secret(secret("tok", mode, false)));
    let script = "stat -c %a:%u:%g:%s /run/secrets/tok; cat /run/secrets/tok; stat -f -c %T /run/secrets/tok";
    assert_eq!(output(&site, with([file(0o400)], script)), "400:1000:1001:11\ns3cret\nlinetmpfs\n");
    let result = site.run(Op::Exec(with([file(0o400)], "echo x >/run/secrets/tok 2>/dev/null || true"))).unwrap();
    assert_eq!(site.print(last(&result)), "");
    let op = ExecOp { secret_env: vec![variable("tok", "TOKEN", false)], ..with([], "echo \"$TOKEN\"") };
    assert_eq!(output(&site, op.clone()), "s3cret\nline\n");
    let given = ExecOp { env: vec!["TOKEN=public".to_owned()], ..op };
    assert_eq!(output(&site, given), "s3cret\nline\n");
    let flags = "busybox grep ' /run/secrets/tok ' /proc/self/mountinfo | busybox cut -d' ' -f6";
    let noexec = output(&site, with([file(0o440)], flags));
    assert_eq!(noexec.trim(), "ro,nosuid,nodev,noexec,relatime");
    assert!(!output(&site, with([file(0o500)], flags)).contains("noexec"));
}

fn absent_secrets() {
    let site = with_busybox();
    let absent = |optional| mount("/run/secrets/no", MountKind::Secret(secret("no", 0o400, optional)));
    assert_eq!(output(&site, with([absent(true)], "ls -d /run/secrets 2>/dev/null || echo none")), "none\n");
    let failed = site.run(Op::Exec(with([absent(false)], "true"))).unwrap_err();
    assert_eq!(failed.to_string(), "secret no: not found");
    let env = |optional| ExecOp { secret_env: vec![variable("no", "NO", optional)], ..with([], "echo ${NO-unset}") };
    assert_eq!(output(&site, env(true)), "unset\n");
    assert_eq!(site.run(Op::Exec(env(false))).unwrap_err().to_string(), "secret no: not found");
    let ssh = |optional| mount("/run/ssh", MountKind::Ssh(secret("default", 0o600, optional)));
    assert_eq!(output(&site, with([ssh(true)], "echo ${SSH_AUTH_SOCK-unset}")), "unset\n");
    let failed = site.run(Op::Exec(with([ssh(false)], "true"))).unwrap_err();
    assert_eq!(failed.to_string(), "no SSH key \"default\" forwarded from the client");
}

/// Seen to fail with `MountFlags` of all `false` for caches.
fn a97_mounts_give_no_privileges() {
    let site = with_session(|session| session.with_secret("s", "x")).stage("d/\n d/f =F").context("c =C");
    let mounts = [
        bind("/m/stage", STAGE, "/d"),
        writable(bind("/m/changed", STAGE, "/")),
        bind("/m/context", CONTEXT, "c"),
        shared("/m/cache", "c"),
        mount("/m/memory", MountKind::Tmpfs { size: None }),
        mount("/m/secret", MountKind::Secret(secret("s", 0o444, false))),
    ];
    let script = "busybox grep ' /m/' /proc/self/mountinfo | busybox cut -d' ' -f5,6";
    let shown = output(&site, with(mounts, script));
    assert_eq!(shown.lines().count(), 6, "{shown}");
    assert!(shown.lines().all(|line| line.contains("nosuid,nodev")), "{shown}");
    // A program that another step made set-user-ID in a cache gives nothing.
    let script =
        "cp() { busybox cp \"$@\"; }; cp /bin/busybox /c/busybox; busybox chmod 4755 /c/busybox; stat -c %a /c/busybox";
    assert_eq!(output(&site, with([shared("/c", "trap")], script)), "4755\n");
    let op = ExecOp { user: "app".to_owned(), ..with([shared("/c", "trap")], "/c/busybox grep Uid /proc/self/status") };
    assert_eq!(output(&site, op), "Uid:\t1000\t1000\t1000\t1000\n");
}

/// Whether a file below a folder holds one of some texts.
fn find_in(folder: &Path, texts: &[Vec<u8>]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok) {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            found.extend(find_in(&entry.path(), texts));
        } else if kind.is_file() {
            let bytes = std::fs::read(entry.path()).unwrap();
            let holds = |text: &Vec<u8>| bytes.windows(text.len()).any(|window| window == text);
            if texts.iter().any(holds) {
                found.push(entry.path().display().to_string());
            }
        }
    }
    found
}

/// The arguments of every process of this machine, and the environments of forge's own.
fn process_texts() -> Vec<u8> {
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    processes.flat_map(|entry| std::fs::read(entry.path().join("cmdline")).unwrap_or_default()).collect()
}

/// Seen to fail with the secret's bytes written to a file of the layer's scratch folder.
fn a98_secrets_are_nowhere() {
    let value = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYzEXAMPLEKEY";
    let hex: String = value.bytes().map(|byte| format!("{byte:02x}")).collect();
    let base64 = "d0phbHJYVXRuRkVNSS9LN01ERU5HK2JQeFJmaUNZekVYQU1QTEVLRVk";
    let texts = [value.as_bytes().to_vec(), hex.into_bytes(), base64.as_bytes().to_vec()];
    let site = with_session(|session| session.with_secret("key", value));
    let op = |script| ExecOp {
        secret_env: vec![variable("key", "KEY", false)],
        ..with([mount("/run/secrets/key", MountKind::Secret(secret("key", 0o444, false)))], script)
    };
    // While the step runs, and after it succeeded and failed.
    let begin = Instant::now();
    std::thread::scope(|scope| {
        let run = scope.spawn(|| site.run(Op::Exec(op("test -s /run/secrets/key; echo ready; sleep 1"))));
        while !logged(&site, LogStream::Stdout).contains("ready") {
            assert!(begin.elapsed() < Duration::from_secs(20) && !run.is_finished());
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(find_in(&site.path(""), &texts), Vec::<String>::new());
        let arguments = process_texts();
        assert!(!arguments.windows(value.len()).any(|window| window == value.as_bytes()));
        run.join().unwrap().unwrap();
    });
    let failed = site.run(Op::Exec(op("exit 3"))).unwrap_err();
    assert!(!format!("{failed:?} {failed}").contains(value));
    let map = cache_map(&site, op("true"));
    assert!(!format!("{map:?}").contains(value));
    assert!(!format!("{:?}", site.session.events_so_far()).contains(value));
    assert_eq!(find_in(&site.path(""), &texts), Vec::<String>::new());
    // The oracle can fail.
    std::fs::write(site.path("store/scratch/leak"), &texts[1]).unwrap();
    assert_eq!(find_in(&site.path(""), &texts).len(), 1);
    std::fs::remove_file(site.path("store/scratch/leak")).unwrap();
}

/// Seen to fail with `Stub::remove` that does not restore the parent's time.
fn a99_mount_points_leave_no_trace() {
    let site = with_session(|session| session.with_secret("s", "x")).stage("f =F").base("run/\n old/\n old/sub/");
    let mounts = [
        mount("/new/dir/s", MountKind::Secret(secret("s", 0o400, false))),
        mount("/run/secrets/s", MountKind::Secret(secret("s", 0o400, false))),
        mount("/old/sub/memory", MountKind::Tmpfs { size: None }),
        shared("/old/sub/memory/cache", "c"),
        bind("/old/sub/memory/cache/deep/f", STAGE, "/f"),
        bind("/home/app/x/y", STAGE, "/f"),
    ];
    let op = with(mounts, "cat /new/dir/s /old/sub/memory/cache/deep/f");
    let result = site.run(Op::Exec(op.clone())).unwrap();
    assert_eq!(site.print(last(&result)), "");
    // The mount point in the cache is gone as well.
    assert_eq!(output(&site, with([shared("/c", "c")], "ls -A /c | wc -l")), "0\n");
    // What the step itself put beside a mount point stays, with the folders above.
    let op = ExecOp { args: shell("touch /new/kept; touch /run/secrets/kept").args, ..op };
    let shown = site.print(last(&site.run(Op::Exec(op)).unwrap()));
    let names: Vec<&str> = shown.lines().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(names, ["new/", "new/kept", "(run/)", "run/secrets/", "run/secrets/kept"], "{shown}");
    // Raw graphs may ask to keep the folders on the way.
    let kept = with([mount("/new/dir/s", MountKind::Secret(secret("s", 0o400, false)))], "true");
    let kept = ExecOp { remove_mount_stubs: false, ..kept };
    let shown = site.print(last(&site.run(Op::Exec(kept)).unwrap()));
    assert!(shown.starts_with("new/") && shown.contains("new/dir/") && !shown.contains("new/dir/s"), "{shown}");
}

/// Seen to fail with the digest of the secret added to the readable part of the key.
fn a100_secrets_are_no_oracle() {
    let keys = |value: &str| {
        let site = with_session(|session| session.with_secret("key", value));
        let op = ExecOp {
            secret_env: vec![variable("key", "KEY", false)],
            ..with([mount("/s", MountKind::Secret(secret("key", 0o400, false)))], "true")
        };
        (vertex(Op::Exec(op.clone())).digest(), cache_map(&site, op))
    };
    assert_eq!(keys("one"), keys("another"));
}

/// An agent of OpenSSH with one key, ended with the value.
struct Agent {
    process: Child,
    folder: tempfile::TempDir,
}

impl Agent {
    fn start() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let (socket, key) = (folder.path().join("agent"), folder.path().join("key"));
        let quiet = |program: &str| {
            let mut command = Command::new(program);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            command
        };
        let process = quiet("ssh-agent").arg("-D").arg("-a").arg(&socket).spawn().ok()?;
        let agent = Self { process, folder };
        let begin = Instant::now();
        while !socket.exists() {
            assert!(begin.elapsed() < Duration::from_secs(10));
            std::thread::sleep(Duration::from_millis(5));
        }
        let made =
            quiet("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", "test@forge", "-f"]).arg(&key).status();
        let added = quiet("ssh-add").env("SSH_AUTH_SOCK", &socket).arg(&key).status();
        assert!(made.unwrap().success() && added.unwrap().success());
        Some(agent)
    }

    fn socket(&self) -> std::path::PathBuf {
        self.folder.path().join("agent")
    }

    fn keys(&self) -> String {
        let list = Command::new("ssh-add").arg("-l").env("SSH_AUTH_SOCK", self.socket()).output().unwrap();
        String::from_utf8(list.stdout).unwrap()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// Puts programs of this machine into a layer, with the libraries that they need.
fn with_programs(mut site: Site, programs: &[&str]) -> Site {
    site.base = site.with_layer(&site.base, |upper| {
        for program in programs {
            let listed = Command::new("ldd").arg(program).output().unwrap();
            let listed = String::from_utf8(listed.stdout).unwrap();
            let libraries = listed.split_whitespace().filter(|word| word.starts_with('/'));
            for file in libraries.chain([*program]) {
                let to = upper.join(file.trim_start_matches('/'));
                std::fs::create_dir_all(to.parent().unwrap()).unwrap();
                std::fs::copy(file, to).unwrap();
            }
        }
    });
    site
}

/// Seen to fail with every message passed on. The filter itself is tested beside its code.
fn a101_agents_are_filtered_and_end() {
    let Some(agent) = Agent::start() else {
        #[expect(clippy::print_stdout, reason = "a test that is skipped says so")]
        return println!("SKIPPED (needs openssh-client): privileged_a101_agents_are_filtered_and_end");
    };
    let site = with_session(|session| session.with_agent("default", agent.socket()));
    let site = with_programs(site, &["/usr/bin/ssh-add"]);
    let ssh = || mount("/run/buildkit/ssh_agent.0", MountKind::Ssh(secret("default", 0o600, false)));
    let op = |script| with([ssh()], script);
    let listed = output(&site, op("ssh-add -l; echo $SSH_AUTH_SOCK; stat -c %a:%u:%F $SSH_AUTH_SOCK"));
    assert!(listed.contains("test@forge (ED25519)"), "{listed}");
    assert!(listed.ends_with("/run/buildkit/ssh_agent.0\n600:1000:socket\n"), "{listed}");
    // It may neither remove nor lock what the user's agent has.
    let refused =
        output(&site, op("ssh-add -D >/dev/null 2>&1 || echo no; echo pw | ssh-add -x 2>/dev/null || echo no"));
    assert_eq!(refused, "no\nno\n");
    assert!(agent.keys().contains("test@forge"));
    // Another user of the step may not, its owner may.
    let as_user = |user: &str| ExecOp { user: user.to_owned(), ..op("ssh-add -l >/dev/null 2>&1; echo $?") };
    assert_eq!((output(&site, as_user("app")), output(&site, as_user("55"))), ("0\n".into(), "2\n".into()));
    // A later step has nothing, nor does the layer; nothing lies in the store; nobody is connected any more.
    let result = site.run(Op::Exec(op("ssh-add -l"))).unwrap();
    assert_eq!(site.print(last(&result)), "");
    assert_eq!(
        output(&site, with([], "ls /run/buildkit 2>/dev/null || echo none; echo ${SSH_AUTH_SOCK-unset}")),
        "none\nunset\n"
    );
    let connections = std::fs::read_to_string("/proc/net/unix").unwrap();
    let path = agent.socket().display().to_string();
    assert_eq!(connections.lines().filter(|line| line.ends_with(&path)).count(), 1, "only the agent listens");
}

/// Seen to fail with a plain bind of the layer's folder: the step with all privileges wrote to the store.
fn a121_nothing_is_made_writable() {
    let site = with_busybox().stage("d/\n d/f =F").context("c =C");
    let attack = "for t in /mnt /ctx /etc/hosts /etc/resolv.conf; do
        busybox mount -o remount,rw,bind $t; busybox mount -o remount,rw $t
        echo overwritten >$t/f; echo overwritten >$t; done 2>/dev/null; true";
    let inside = format!("busybox unshare -Urm sh -c '{attack}'; {attack}");
    let hosts = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    for security in [SecurityMode::Sandbox, SecurityMode::Insecure] {
        let mounts = [bind("/mnt", STAGE, "/d"), bind("/ctx", CONTEXT, "c"), writable(bind("/rw", CONTEXT, "/"))];
        let op = ExecOp { security, ..with(mounts, &format!("{inside}; echo overwritten >/rw/c; cat /mnt/f /ctx")) };
        assert_eq!(output(&site, op), "FC", "{security:?}");
        assert_eq!(
            output(&site, with([bind("/mnt", STAGE, "/d"), bind("/ctx", CONTEXT, "c")], "cat /mnt/f /ctx")),
            "FC"
        );
    }
    assert_eq!(std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default(), hosts);
    assert_eq!(std::fs::read_to_string(site.path("context/c")).unwrap(), "C");
    site.check_canary();
}

/// The scope is the store, as in peers; what tells apart is the id and what the cache began with.
/// Seen to fail with keys of the id alone.
fn a122_caches_are_told_apart() {
    let site = with_busybox().stage("a/\n a/f =A\n b/\n b/f =B");
    let seeded = |selector: &str| ExecMount { input: Some(STAGE), selector: selector.to_owned(), ..shared("/c", "go") };
    assert_eq!(output(&site, with([seeded("/a")], "cat /c/f; echo trojan >/c/x")), "A");
    assert_eq!(output(&site, with([seeded("/b")], "cat /c/f; ls /c")), "Bf\n");
    assert_eq!(output(&site, with([shared("/c", "go/../go")], "ls -A /c | wc -l")), "0\n");
    let folder = site.path("store/cache-mounts");
    assert_eq!(std::fs::metadata(&folder).unwrap().mode() & 0o777, 0o700, "no other user of the machine reaches them");
}

fn insecure_steps_may_everything() {
    let site = with_busybox();
    let script = "busybox grep -E 'CapEff|Seccomp:' /proc/self/status; busybox mount -t tmpfs x /tmp && echo mounted";
    let insecure = ExecOp { security: SecurityMode::Insecure, ..shell(script) };
    let text = output(&site, insecure);
    assert!(text.contains("Seccomp:\t0") && text.contains("mounted"), "{text}");
    let confined = site.run(Op::Exec(shell("busybox mount -t tmpfs x /tmp")));
    assert!(matches!(confined, Err(WorkerError::Process { .. })), "{confined:?}");
}

fn exit_codes_limits_and_devices() {
    let site = with_busybox();
    let codes = |valid_exit_codes: &[i32], code| {
        let op = ExecOp { valid_exit_codes: valid_exit_codes.to_vec(), ..shell(&format!("exit {code}")) };
        site.run(Op::Exec(op)).is_ok()
    };
    assert!(codes(&[], 0) && !codes(&[], 3) && codes(&[3, 4], 4) && !codes(&[3], 0));
    let ulimit = |name: &str, soft, hard| ExecOp {
        ulimits: vec![Ulimit { name: name.to_owned(), soft, hard }],
        ..shell("ulimit -Sn; ulimit -Hn")
    };
    assert_eq!(output(&site, ulimit("nofile", 100, 200)), "100\n200\n");
    let failed = site.run(Op::Exec(ulimit("nofiles", 1, 1))).unwrap_err().to_string();
    assert!(failed.contains("invalid ulimit type: nofiles"), "{failed}");
    let device = |optional| ExecOp {
        devices: vec![CdiDevice { name: "vendor.test/gpu=all".to_owned(), optional }],
        ..shell("echo ran")
    };
    assert_eq!(output(&site, device(true)), "ran\n");
    let failed = site.run(Op::Exec(device(false))).unwrap_err().to_string();
    assert_eq!(failed, "required device \"vendor.test/gpu=all\" is not registered");
}
