use super::Bench;
use crate::Test;
use crate::tree_text::trimmed;
use forge_llb::{BlobSource, GitForm, GitMtime, GitSource, GitUrl, SourceOp};
use forge_registry::RegistryOptions;
use forge_solver::WorkerError;
use forge_testkit::{GitServer, RawServer, TestRegistry, TestSession};
use std::io::{BufRead, BufReader};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

pub const TESTS: &[Test] = &[
    ("privileged_a_commit_becomes_a_tree_with_plain_modes", a_commit_becomes_a_tree),
    ("privileged_references_of_every_kind_are_found", references),
    ("privileged_a_commit_is_known_without_asking", commits_are_keys),
    ("privileged_a_folder_of_a_repository_is_the_root", folders),
    ("privileged_submodules_are_part_of_the_tree", submodules),
    ("privileged_a_kept_git_folder_is_a_repository_and_the_same_twice", kept_git_folder),
    ("privileged_files_may_have_the_commits_time", commit_times),
    ("privileged_tokens_reach_their_server_only", tokens),
    ("privileged_a_repository_is_fetched_once", fetched_once),
    ("privileged_offline_and_missing_repositories_are_errors", unreachable),
    ("privileged_ssh_needs_an_agent_and_is_run_in_the_sandbox", ssh),
    ("privileged_a_cancelled_fetch_ends", cancelled),
    ("privileged_a102_no_credential_of_a_repository_is_shown_or_kept", a102_credentials),
    ("privileged_a106_options_in_addresses_and_references_run_nothing", a106_options),
    ("privileged_a107_folders_stay_in_the_checkout", a107_folders),
    ("privileged_a108_no_hook_filter_or_configuration_of_a_repository_runs", a108_hooks),
    ("privileged_a108_submodules_are_fetched_over_http_and_ssh_only", a108_submodules),
    ("privileged_a109_git_sees_nothing_else_of_the_machine", a109_canary),
    ("privileged_a110_hostile_trees_are_refused", a110_trees),
    ("privileged_a111_a_branch_that_moves_does_not_change_the_build", a111_moving),
    ("privileged_a111_checksums_are_verified", a111_checksums),
    ("privileged_a112_redirects_of_repositories_are_judged", a112_redirects),
    ("privileged_a_bundle_holds_a_commit_and_gives_it_back", bundles),
];

fn source(url: &str) -> SourceOp {
    SourceOp::Git(GitUrl::parse(url).unwrap().unwrap().source())
}

fn git(url: &str) -> GitSource {
    GitUrl::parse(url).unwrap().unwrap().source()
}

/// Without times: those of a checkout are now.
fn names(tree: &str) -> String {
    tree.replace(" @now", "")
}

fn a_commit_becomes_a_tree() {
    let server = GitServer::start();
    let repository = server.repository("r.git");
    repository.write("a.txt", "hello").write("d/run.sh", "x");
    std::os::unix::fs::symlink("a.txt", repository.path().join("link")).unwrap();
    repository.git(&["update-index", "--add", "--chmod=+x", "d/run.sh"]);
    // Whatever the modes of the author's machine: git knows two.
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(repository.path().join("a.txt"), PermissionsExt::from_mode(0o666)).unwrap();
    std::fs::set_permissions(repository.path().join("d/run.sh"), PermissionsExt::from_mode(0o777)).unwrap();
    repository.commit();
    let tree = Bench::new().tree(&source(&server.url("r.git")));
    assert_eq!(names(&tree), trimmed("a.txt =hello\n d/\n d/run.sh =x 0755\n link -> a.txt"));
}

fn references() {
    let server = GitServer::start();
    let repository = server.repository("r.git");
    let first = repository.write("f", "1").commit();
    repository.git(&["tag", "light"]);
    repository.write("f", "2").commit();
    repository.git(&["tag", "--annotate", "--message", "x", "v2"]);
    repository.git(&["branch", "release/2"]);
    repository.git(&["update-ref", "refs/pull/7/head", "HEAD"]);
    let tag = repository.git(&["rev-parse", "v2"]);
    repository.write("f", "3").commit();
    let bench = Bench::new();
    for (reference, expected) in [
        ("", "3"),
        ("#main", "3"),
        ("#refs/heads/main", "3"),
        ("#light", "1"),
        ("#v2", "2"),
        ("#refs/tags/v2", "2"),
        ("?tag=v2", "2"),
        ("?branch=release/2", "2"),
        ("#pull/7/head", "2"),
        (&format!("#{first}"), "1"),
        (&format!("#{tag}"), "2"),
        (&format!("?fetch-by-commit&checksum={first}#main"), "1"),
    ] {
        let tree = bench.tree(&source(&format!("{}{reference}", server.url("r.git"))));
        assert_eq!(names(&tree), trimmed(&format!("f ={expected}")), "{reference}");
    }
    let url = server.url("r.git");
    let missing = bench.tree(&source(&format!("{url}#nowhere")));
    assert_eq!(missing, format!("UserInput: repository does not contain ref nowhere: {url}\n"));
}

fn commits_are_keys() {
    let server = GitServer::start();
    let repository = server.repository("r.git");
    let commit = repository.write("f", "1").commit();
    let bench = Bench::new();
    let pin = |url: &str| bench.build().pin(&source(url)).unwrap();
    let by_commit = pin(&server.url(&format!("r.git#{commit}")));
    assert_eq!(server.heads().len(), 0);
    assert_eq!(pin(&server.url("r.git#main")), by_commit);
    assert_ne!(pin(&server.url("r.git#main:d")), by_commit);
    assert_ne!(pin(&server.url("r.git?submodules=0#main")), by_commit);
    assert_ne!(pin(&server.url("r.git?mtime=commit#main")), by_commit);
    assert_ne!(pin(&server.url("r.git?keep-git-dir=1#main")), by_commit);
}

fn folders() {
    let server = GitServer::start();
    let repository = server.repository("r.git");
    repository.write("a/b/f", "1").write("other", "2").commit();
    let bench = Bench::new();
    assert_eq!(names(&bench.tree(&source(&server.url("r.git#main:a/b")))), trimmed("f =1"));
    let url = server.url("r.git");
    assert_eq!(bench.tree(&source(&server.url("r.git#:c"))), format!("UserInput: {url} has no folder \"c\"\n"));
    assert_eq!(bench.tree(&source(&server.url("r.git#:other"))), format!("UserInput: {url} has no folder \"other\"\n"));
}

fn submodules() {
    let server = GitServer::start();
    let (inner, middle, outer) =
        (server.repository("inner.git"), server.repository("middle.git"), server.repository("outer.git"));
    inner.write("deep", "1").commit();
    let (inner_url, middle_url) = (server.url("inner.git"), server.url("middle.git"));
    middle.write("mid", "2").git(&["submodule", "--quiet", "add", "../inner.git", "lib/inner"]);
    middle.commit();
    outer.write("top", "3").git(&["submodule", "--quiet", "add", &middle_url, "m"]);
    outer.git(&["submodule", "--quiet", "add", &inner_url, "unused"]);
    outer.git(&["config", "-f", ".gitmodules", "submodule.unused.update", "none"]);
    outer.commit();
    let bench = Bench::new();
    let tree = names(&bench.tree(&source(&server.url("outer.git"))));
    let lines: Vec<&str> =
        tree.lines().filter(|line| !line.starts_with(".gitmodules") && !line.contains("/.gitmodules")).collect();
    assert_eq!(lines, ["m/", "m/lib/", "m/lib/inner/", "m/lib/inner/deep =1", "m/mid =2", "top =3", "unused/"]);
    let without = names(&bench.tree(&source(&server.url("outer.git?submodules=false"))));
    assert!(!without.contains("mid") && without.contains("top =3"), "{without}");
}

fn kept_git_folder() {
    let server = GitServer::start();
    let repository = server.repository("r.git");
    repository.write("f", "1").commit();
    repository.write("f", "2").commit();
    repository.git(&["tag", "--annotate", "--message", "x", "v2"]);
    for reference in ["main", "v2"] {
        let url = format!("http://u:hunter2@{}/r.git?keep-git-dir=1&mtime=commit#{reference}", server.authority());
        let (one, other) = (Bench::new(), Bench::new());
        let build = one.build();
        build.pin(&source(&url)).unwrap();
        let layers = build.snapshot(&source(&url)).unwrap();
        let tree = one.store.layers().lower_dirs(layers.layers()).unwrap()[0].clone();
        let ask = |args: &[&str]| {
            let mut command = std::process::Command::new("git");
            command.args(["-c", "safe.directory=*", "-C"]).arg(&tree).args(args).env("GIT_CONFIG_NOSYSTEM", "1");
            let output = command.env("GIT_CONFIG_GLOBAL", "/dev/null").output().unwrap();
            assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
        };
        assert_eq!(ask(&["rev-parse", "HEAD"]), repository.git(&["rev-parse", "main"]));
        assert_eq!(ask(&["rev-parse", reference]), repository.git(&["rev-parse", reference]));
        assert_eq!(ask(&["config", "remote.origin.url"]), server.url("r.git"));
        assert_eq!(ask(&["log", "--format=%s"]), "test", "one commit");
        ask(&["fsck", "--strict"]);
        let text = build.print(&layers.layers()[0]);
        assert!(!text.contains("hunter2") && !text.contains(".git/logs") && !text.contains("alternates"), "{text}");
        assert_eq!(other.tree(&source(&url)), text, "the same bytes in another store");
        assert_eq!(ask(&["status", "--porcelain"]), "");
    }
}

fn commit_times() {
    let server = GitServer::start();
    let repository = server.repository("r.git");
    repository.write("d/f", "1").commit();
    let bench = Bench::new();
    let tree = bench.tree(&source(&server.url("r.git?mtime=commit")));
    assert_eq!(tree, trimmed("d/ @784111777\n d/f =1 @784111777"));
    assert_eq!(git(&server.url("r.git?mtime=commit")).mtime, GitMtime::Commit);
    assert!(bench.tree(&source(&server.url("r.git"))).contains("@now"));
    assert_eq!(Bench::new().build().time(&source(&server.url("r.git"))), Some(784_111_777));
}

/// Lets in whoever sends the right header.
fn guarded(expected: &str) -> GitServer {
    let expected = format!("authorization: {expected}").to_lowercase();
    GitServer::start_with(move |head| {
        let allowed = head.to_lowercase().lines().any(|line| line == expected);
        (!allowed).then(|| ("401 Unauthorized".to_owned(), "WWW-Authenticate: Basic realm=\"x\"\r\n".to_owned()))
    })
}

fn tokens() {
    // x-access-token:abc
    let server = guarded("Basic eC1hY2Nlc3MtdG9rZW46YWJj");
    server.repository("r.git").write("f", "1").commit();
    let url = server.url("r.git");
    let with =
        |id: &str, value: &str| names(&Bench::with(TestSession::new().with_secret(id, value)).tree(&source(&url)));
    assert_eq!(with("GIT_AUTH_TOKEN", "abc\n"), "f =1\n");
    assert_eq!(with("GIT_AUTH_TOKEN.127.0.0.1", "abc"), "f =1\n");
    assert_eq!(with("GIT_AUTH_HEADER", "Basic eC1hY2Nlc3MtdG9rZW46YWJj"), "f =1\n");
    assert_eq!(with("GIT_AUTH_HEADER.127.0.0.1", "Basic eC1hY2Nlc3MtdG9rZW46YWJj"), "f =1\n");
    let userinfo = format!("http://x-access-token:abc@{}/r.git", server.authority());
    assert_eq!(names(&Bench::new().tree(&source(&userinfo))), "f =1\n");
    let refused = with("GIT_AUTH_TOKEN", "wrong-token");
    assert!(refused.starts_with("Remote: git failed to list the references of"), "{refused}");
    // A submodule at a host that the user did not name gets no token for any host.
    let outer = GitServer::start();
    let repository = outer.repository("outer.git");
    let commit = "a".repeat(40);
    repository.write(".gitmodules", &format!("[submodule \"m\"]\n path = m\n url = {url}\n"));
    repository.git(&["add", ".gitmodules"]);
    repository.git(&["update-index", "--add", "--cacheinfo", &format!("160000,{commit},m")]);
    repository.git(&["commit", "--quiet", "--message", "x"]);
    let bench = Bench::with(TestSession::new().with_secret("GIT_AUTH_TOKEN", "abc"));
    let before = server.heads().len();
    bench.tree(&source(&outer.url("outer.git")));
    let heads = server.heads()[before..].concat().to_lowercase();
    assert!(!heads.is_empty() && !heads.contains("authorization"), "{heads}");
}

fn fetched_once() {
    let server = GitServer::start();
    let repository = server.repository("r.git");
    let commit = repository.write("f", "1").commit();
    let bench = Bench::new();
    assert_eq!(names(&bench.tree(&source(&server.url("r.git")))), "f =1\n");
    let before = server.heads().len();
    let again = git(&server.url(&format!("r.git#{commit}:")));
    assert_eq!(names(&bench.tree(&SourceOp::Git(again))), "f =1\n");
    let posts = server.heads()[before..].iter().filter(|head| head.starts_with("POST")).count();
    assert_eq!(posts, 0, "the commit is there");
    let mounts = bench.store.cache_mounts().list().unwrap();
    assert_eq!(mounts.len(), 1);
    assert_eq!(mounts[0].0.origin, server.url("r.git"));
}

fn unreachable() {
    let server = GitServer::start();
    let mut bench = Bench::new();
    let tree = bench.tree(&source(&server.url("missing.git")));
    assert!(tree.starts_with("Remote: git failed to list the references of"), "{tree}");
    bench.options = RegistryOptions { offline: true, ..bench.options };
    let url = server.url("r.git");
    assert_eq!(bench.tree(&source(&url)), format!("UserInput: cannot reach {url}: offline\n"));
}

/// As far as the first line of the protocol: there is no SSH server here.
fn ssh() {
    if !forge_testkit::installed("ssh", "ssh_needs_an_agent_and_is_run_in_the_sandbox") {
        return;
    }
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let url = format!("ssh://git@{}/r.git", listener.local_addr().unwrap());
    let without = Bench::new();
    let error = without.build().pin(&source(&url)).unwrap_err();
    assert_eq!(error.to_string(), "no SSH key \"default\" forwarded from the client");
    assert!(matches!(error, WorkerError::Other { hint: Some(hint), .. } if hint == "pass --ssh default"));
    let folder = tempfile::tempdir().unwrap();
    let _agent = std::os::unix::net::UnixListener::bind(folder.path().join("agent")).unwrap();
    let bench = Bench::with(TestSession::new().with_agent("default", folder.path().join("agent")));
    let greeted = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        line
    });
    let tree = bench.tree(&source(&url));
    assert!(tree.starts_with("Remote: git failed to list the references of"), "{tree}");
    let greeting = greeted.join().unwrap();
    assert!(greeting.starts_with("SSH-2.0-"), "{greeting}");
}

fn cancelled() {
    let reached = Arc::new(AtomicBool::new(false));
    let seen = reached.clone();
    let server = RawServer::start(move |stream, head| match head.contains("Git-Protocol") {
        // The second request is git's own.
        true => {
            seen.store(true, Ordering::SeqCst);
            std::thread::sleep(std::time::Duration::from_secs(20));
        }
        false => RawServer::respond(stream, "200 OK", "", b""),
    });
    let bench = Bench::new();
    let session = bench.session.clone();
    let began = std::time::Instant::now();
    std::thread::spawn(move || {
        while !reached.load(Ordering::SeqCst) && began.elapsed().as_secs() < 10 {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        session.cancel();
    });
    let tree = bench.tree(&source(&format!("http://{}/r.git", server.authority())));
    assert!(tree.starts_with("Cancelled: "), "{tree}");
    assert!(began.elapsed().as_secs() < 10);
}

// Seen to fail with `failed` that redacts nothing.
fn a102_credentials() {
    // Git shows what a server says in plain text: here, everything that it was sent.
    let server = RawServer::start(|stream, head| {
        RawServer::respond(stream, "403 No", "Content-Type: text/plain\r\n", head.as_bytes());
    });
    let session = TestSession::new().with_secret("GIT_AUTH_HEADER", "Basic hunter2-header");
    let bench = Bench::with(session);
    let url = format!("http://user:hunter2@{}/r.git#main", server.authority());
    let shown = format!("{} {:?}", bench.tree(&source(&url)), bench.session.events_so_far());
    assert!(shown.contains("Remote: ") && !shown.contains("hunter2"), "{shown}");
    let open = GitServer::start();
    open.repository("r.git").write("f", "1").commit();
    let url = format!("http://user:hunter2@{}/r.git?keep-git-dir=1", open.authority());
    let tree = bench.tree(&source(&url));
    let pinned = format!("{:?}", bench.build().pin(&source(&url)));
    assert!(!tree.contains("hunter2") && !pinned.contains("hunter2"));
    for (record, _) in bench.store.cache_mounts().list().unwrap() {
        assert!(!format!("{record:?}").contains("hunter2"));
        let found =
            std::process::Command::new("grep").args(["-rl", "hunter2"]).arg(bench.store.root()).output().unwrap();
        assert_eq!(String::from_utf8(found.stdout).unwrap(), "");
    }
}

// Seen to fail with `check_git_reference` in `pin` left out: git then looks for a reference of that name.
fn a106_options() {
    let server = GitServer::start();
    server.repository("r.git").write("f", "1").commit();
    let bench = Bench::new();
    let with = |change: &dyn Fn(&mut GitSource)| {
        let mut source = git(&server.url("r.git"));
        change(&mut source);
        bench.tree(&SourceOp::Git(source))
    };
    for remote in [
        "ext::sh -c touch% /tmp/x",
        "--upload-pack=touch /tmp/x",
        "file:///etc",
        "/etc",
        "ssh://-oProxyCommand=x/r",
        "fd::0",
    ] {
        let tree = with(&|source| source.remote = remote.to_owned());
        assert!(tree.starts_with("UserInput: invalid Git address"), "{remote}: {tree}");
    }
    for reference in ["--upload-pack=touch x", "-x", "a..b", "+a:b", "a b", "@{1}", "a\n"] {
        let tree = with(&|source| source.reference = Some(reference.to_owned()));
        assert!(tree.starts_with("UserInput: invalid Git reference"), "{reference}: {tree}");
    }
    assert!(with(&|source| source.checksum = Some("--output=x".to_owned())).starts_with("UserInput: invalid checksum"));
    assert!(with(&|source| source.subdir = "a\0b".to_owned()).starts_with("UserInput: invalid folder"));
    // A server that names its default branch like an option: the name is never used.
    let hostile = server.repository("h.git");
    hostile.write("f", "1").commit();
    std::fs::write(hostile.path().join(".git/refs/heads/--output=x"), hostile.git(&["rev-parse", "HEAD"]) + "\n")
        .unwrap();
    std::fs::write(hostile.path().join(".git/HEAD"), "ref: refs/heads/--output=x\n").unwrap();
    let tree = names(&bench.tree(&source(&server.url("h.git"))));
    assert!(tree == "f =1\n" || tree.starts_with("Remote: ") || tree.starts_with("UserInput: "), "{tree}");
}

// Seen to fail with `openat2` without IN_ROOT.
fn a107_folders() {
    let server = GitServer::start();
    let repository = server.repository("r.git");
    repository.write("real/f", "1").write("f", "2");
    for (link, target) in
        [("up", "../../../../../.."), ("etc", "/etc"), ("real2", "real"), ("abs", "/real"), ("loop", "loop")]
    {
        std::os::unix::fs::symlink(target, repository.path().join(link)).unwrap();
    }
    repository.commit();
    let bench = Bench::new();
    let tree = |subdir: &str| names(&bench.tree(&source(&server.url(&format!("r.git#main:{subdir}")))));
    assert_eq!(tree("../../real"), "f =1\n");
    assert_eq!(tree("real2"), "f =1\n", "within the checkout links are followed");
    assert_eq!(tree("abs"), "f =1\n", "its root is the checkout");
    assert!(tree("up").contains("real/f =1"), "above the root is the root");
    assert!(tree("etc").starts_with("UserInput: "), "{}", tree("etc"));
    assert!(tree("up/etc").starts_with("UserInput: "));
    assert!(tree("loop").starts_with("UserInput: "));
    let mut wire = git(&server.url("r.git"));
    wire.subdir = "../../../etc".to_owned();
    assert!(bench.tree(&SourceOp::Git(wire)).starts_with("UserInput: "));
}

/// Everything by which a repository could make git run something, and one of the machine's files that it would tell.
// Seen to fail with a post-checkout hook in the shared repository and `core.hooksPath` left out.
fn a108_hooks() {
    let server = GitServer::start();
    let repository = server.repository("r.git");
    let script = "#!/bin/sh\ntouch /checkout/RAN /repository/RAN\n";
    repository.write(".gitattributes", "* filter=evil diff=evil merge=evil working-tree-encoding=UTF-8 ident\n");
    repository
        .write(".gitconfig", "[filter \"evil\"]\n smudge = touch /checkout/RAN\n process = touch /checkout/RAN\n");
    repository.write("hooks/post-checkout", script).write(".githooks/post-checkout", script);
    repository.write("config", "[core]\n fsmonitor = touch /checkout/RAN\n hooksPath = /checkout/hooks\n");
    repository.write("HEAD", "ref: refs/heads/main\n").write("objects/x", "").write("refs/x", "");
    repository.commit();
    let bench = Bench::new();
    let first = names(&bench.tree(&source(&server.url("r.git"))));
    assert!(first.contains("hooks/post-checkout =") && !first.contains("\nRAN"), "{first}");
    // Hooks in the shared repository itself, as an earlier attack might have left them.
    let shared = shared_repository(&bench);
    for hook in ["post-checkout", "post-index-change", "reference-transaction", "pre-auto-gc"] {
        let path = shared.join("hooks").join(hook);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    repository.write("more", "2").commit();
    let second = names(&bench.tree(&source(&server.url("r.git"))));
    assert!(second.contains("more =2") && !second.contains("\nRAN"), "{second}");
    assert!(!shared.join("RAN").exists());
}

fn shared_repository(bench: &Bench) -> std::path::PathBuf {
    let record = bench.store.cache_mounts().list().unwrap().remove(0).0;
    bench.store.root().join("cache-mounts").join(record.name).join("tree")
}

// Seen to fail without the check of the transport.
fn a108_submodules() {
    let server = GitServer::start();
    let canary = tempfile::tempdir().unwrap();
    let bench = Bench::new();
    let target = server.repository("target.git");
    let commit = target.write("f", "1").commit();
    let attempt = |name: &str, path: &str, url: &str| {
        let repository = server.repository(name);
        repository.write(".gitmodules", &format!("[submodule \"{name}\"]\n\tpath = {path}\n\turl = {url}\n"));
        repository.git(&["add", ".gitmodules"]);
        repository.git(&["update-index", "--add", "--cacheinfo", &format!("160000,{commit},m")]);
        repository.git(&["commit", "--quiet", "--message", "x"]);
        names(&bench.tree(&source(&server.url(name))))
    };
    let local = target.path().display().to_string();
    for (number, url) in [
        local.as_str(),
        &format!("file://{local}"),
        &format!("ext::sh -c touch% {}/x", canary.path().display()),
        "-u./payload",
        "--upload-pack=touch x",
        "ssh://-oProxyCommand=touch/x",
        "git://127.0.0.1/x",
        "../../../../x",
    ]
    .iter()
    .enumerate()
    {
        let tree = attempt(&format!("u{number}.git"), "m", url);
        let refused = tree.contains("has an address") || tree.contains("disallowed submodule");
        assert!(tree.starts_with("Remote: ") && refused, "{url}: {tree}");
    }
    assert!(attempt("good.git", "m", "../target.git").contains("m/f =1"));
    // A path other than that of the tree, in whatever writing, describes nothing.
    for (number, path) in ["m\\r", "\"m\\r\"", "../m", "a/../m", ".git/modules/x"].iter().enumerate() {
        let tree = attempt(&format!("p{number}.git"), path, "../target.git");
        assert!(tree.contains("does not describe") || tree.starts_with("Remote: "), "{path}: {tree}");
    }
    // Names have no meaning: nothing is ever stored under them.
    let repository = server.repository("names.git");
    repository.write(".gitmodules", "[submodule \"../../hooks\"]\n\tpath = m\n\turl = ../target.git\n");
    repository.git(&["add", ".gitmodules"]);
    repository.git(&["update-index", "--add", "--cacheinfo", &format!("160000,{commit},m")]);
    repository.git(&["commit", "--quiet", "--message", "x"]);
    let tree = names(&bench.tree(&source(&server.url("names.git"))));
    assert!(tree.contains("m/f =1") || tree.starts_with("Remote: "), "{tree}");
    // A link where the submodule is to go: such a tree cannot be made by git, and is refused when one makes it.
    let repository = server.repository("link.git");
    let (link, modules) =
        (repository.blob("/etc"), repository.blob("[submodule \"m\"]\n\tpath = m\n\turl = ../target.git\n"));
    repository.commit_tree(&[("100644", ".gitmodules", &modules), ("120000", "m", &link), ("160000", "m", &commit)]);
    assert!(bench.tree(&source(&server.url("link.git"))).starts_with("Remote: "));
    assert_eq!(std::fs::read_dir(canary.path()).unwrap().count(), 0);
}

// Seen to fail with the machine's /tmp in the sandbox.
fn a109_canary() {
    // A repository of the machine's, as a build context may hold it, with a commit that no server has.
    let machine = GitServer::start();
    let private = machine.repository("private.git");
    let secret = private.write("secret", "d5a1f8c1e3").commit();
    let server = GitServer::start();
    let repository = server.repository("r.git");
    repository.write("f", "1").commit();
    let bench = Bench::new();
    bench.tree(&source(&server.url("r.git")));
    // What an attacker would want of a shared repository: objects of the machine's, and files of its.
    let shared = shared_repository(&bench);
    let objects = private.path().join(".git/objects");
    std::fs::write(shared.join("objects/info/alternates"), format!("{}\n", objects.display())).unwrap();
    let config = format!("\n[include]\n\tpath = {}/secret\n", private.path().display());
    let file = shared.join("config");
    std::fs::write(&file, std::fs::read_to_string(&file).unwrap() + &config).unwrap();
    let tree = bench.tree(&source(&server.url(&format!("r.git#{secret}"))));
    assert!(tree.starts_with("Remote: ") && !tree.contains("d5a1f8c1e3"), "{tree}");
    repository.write("f", "2").commit();
    let tree = names(&bench.tree(&source(&server.url("r.git"))));
    assert_eq!(tree, "f =2\n", "what does not exist is not included, and lends nothing");
}

/// Modes, names and objects of a tree.
type Entries = Vec<(&'static str, &'static str, String)>;

// Seen to fail with `entries` not asked and `transfer.fsckObjects` off.
fn a110_trees() {
    let server = GitServer::start();
    let bench = Bench::new();
    let attempt = |name: &str, entries: &dyn Fn(&str, &str) -> Entries| {
        let repository = server.repository(name);
        let blob = repository.blob("content");
        let tree = repository.git_with(&["mktree"], format!("100644 blob {blob}\tx\n").as_bytes());
        let entries = entries(&blob, &tree);
        let entries: Vec<(&str, &str, &str)> =
            entries.iter().map(|(mode, name, object)| (*mode, *name, object.as_str())).collect();
        repository.commit_tree(&entries);
        bench.tree(&source(&server.url(name)))
    };
    for (number, name) in [".git", ".GIT", "git~1", ".git ", "..", ".", ".g\u{200c}it"].into_iter().enumerate() {
        let file = attempt(&format!("f{number}.git"), &|blob, _| vec![("100644", name, blob.to_owned())]);
        assert!(file.starts_with("Remote: "), "{name:?}: {file}");
        let folder = attempt(&format!("d{number}.git"), &|_, tree| vec![("40000", name, tree.to_owned())]);
        assert!(folder.starts_with("Remote: "), "{name:?}: {folder}");
    }
    let twice =
        attempt("twice.git", &|blob, tree| vec![("120000", "a", blob.to_owned()), ("40000", "a", tree.to_owned())]);
    assert!(twice.starts_with("Remote: "), "{twice}");
    let slash = attempt("slash.git", &|blob, _| vec![("100644", "a/b", blob.to_owned())]);
    assert!(slash.starts_with("Remote: "), "{slash}");
    // Modes of other systems become the two that there are, or are refused; none is world-writable or set-id.
    for (number, mode) in ["100664", "100777", "104755", "100666"].into_iter().enumerate() {
        let tree = attempt(&format!("m{number}.git"), &|blob, _| vec![(mode, "a", blob.to_owned())]);
        let tree = names(&tree);
        assert!(
            tree == "a =content\n" || tree == "a =content 0755\n" || tree.starts_with("Remote: "),
            "{mode}: {tree}"
        );
    }
}

// Seen to fail with `ask` that asks each time and `fetch` that takes what the reference leads to.
fn a111_moving() {
    let server = GitServer::start();
    let repository = server.repository("r.git");
    repository.write("f", "1").commit();
    let bench = Bench::new();
    let (build, source) = (bench.build(), source(&server.url("r.git#main")));
    let key = build.pin(&source).unwrap();
    // Between the question and the fetch the branch moves, and its old commit is gone from every branch.
    repository.write("f", "2").git(&["commit", "--quiet", "--all", "--amend", "--message", "y"]);
    assert_eq!(build.pin(&source).unwrap(), key);
    assert_eq!(names(&build.tree(&source)), "f =1\n", "the commit that was pinned");
    // Nor is another commit taken when that one is not to be had.
    let other = server.repository("o.git");
    let commit = other.write("f", "1").commit();
    let gone = server.url(&format!("o.git#{}", commit.replace(|c: char| c != '0', "1")));
    assert!(bench.tree(&super::git::source(&gone)).starts_with("Remote: "));
}

// Seen to fail with a `Pinned::is` that is always true.
fn a111_checksums() {
    let server = GitServer::start();
    let repository = server.repository("r.git");
    let commit = repository.write("f", "1").commit();
    let bench = Bench::new();
    let tree = |query: &str| names(&bench.tree(&source(&server.url(&format!("r.git?{query}")))));
    assert_eq!(tree(&format!("checksum={}#main", &commit[..7])), "f =1\n");
    assert_eq!(tree(&format!("checksum={commit}#{commit}")), "f =1\n");
    let (url, wrong) = (server.url("r.git"), "0".repeat(40));
    let message = format!("UserInput: {url}: expected checksum to match {wrong}, got {commit}\n");
    assert_eq!(tree(&format!("checksum={wrong}#main")), message);
    assert_eq!(tree(&format!("checksum={wrong}#{commit}")), message);
    assert!(tree(&format!("fetch-by-commit&checksum={wrong}#main")).starts_with("Remote: "));
}

// Seen to fail with `address` left as it is and `http.followRedirects` true.
fn a112_redirects() {
    let end = GitServer::start();
    end.repository("r.git").write("f", "1").commit();
    let bench = Bench::new();
    let redirect = |to: String| {
        GitServer::start_with(move |head| {
            let path = head.split(' ').nth(1).unwrap_or_default();
            Some(("302 Found".to_owned(), format!("Location: {to}{path}\r\n")))
        })
    };
    let moved = redirect(format!("http://{}", end.authority()));
    let secret = TestSession::new().with_secret("GIT_AUTH_TOKEN", "hunter2");
    assert_eq!(names(&Bench::with(secret).tree(&source(&moved.url("r.git")))), "f =1\n");
    let heads = end.heads().concat().to_lowercase();
    assert!(!heads.contains("authorization"), "{heads}");
    for target in ["file:///etc", "gopher://127.0.0.1", "http://169.254.169.254"] {
        let tree = bench.tree(&source(&redirect(target.to_owned()).url("r.git")));
        assert!(tree.starts_with("Remote: ") && tree.contains("directs forge to"), "{target}: {tree}");
    }
    // Only what answers git's first question may lead elsewhere, and not git's later ones.
    let asked = Arc::new(Mutex::new(0));
    let count = asked.clone();
    let (inner, other) = (end.authority().to_owned(), asked);
    let late = GitServer::start_with(move |_| {
        *count.lock().unwrap() += 1;
        let first = *other.lock().unwrap() == 1;
        (!first).then(|| ("302 Found".to_owned(), format!("Location: http://{inner}/r.git/info/refs\r\n")))
    });
    late.repository("r.git").write("f", "other").commit();
    let before = end.heads().len();
    assert!(bench.tree(&source(&late.url("r.git"))).starts_with("Remote: "));
    assert_eq!(end.heads().len(), before, "git follows nothing by itself");
}

fn bundles() {
    let server = GitServer::start();
    let repository = server.repository("r.git");
    repository.write("f", "1").commit();
    repository.write("f", "2").commit();
    let commit = repository.git(&["rev-parse", "main"]);
    let bench = Bench::new();
    // What is there already is shallow.
    bench.tree(&source(&server.url("r.git#main")));
    let build = bench.build();
    let written = GitSource { form: GitForm::Bundle, ..git(&server.url("r.git#main")) };
    let layers = build.snapshot(&SourceOp::Git(written)).unwrap();
    let tree = bench.store.layers().lower_dirs(layers.layers()).unwrap()[0].clone();
    assert_eq!(std::fs::read_dir(&tree).unwrap().count(), 1);
    let bytes = std::fs::read(tree.join("bundle")).unwrap();
    // It stands for the repository, which is nowhere.
    let registry = TestRegistry::start();
    let digest = registry.put_blob("a/b", bytes);
    let of = |reference: Option<&str>, commit: &str| {
        let blob = BlobSource {
            reference: format!("{}/a/b@{digest}", registry.authority()).parse().unwrap(),
            digest: digest.clone(),
            layout: None,
            filename: None,
            mode: None,
            owner: None,
        };
        SourceOp::Git(GitSource {
            checksum: Some(commit.to_owned()),
            reference: reference.map(str::to_owned),
            bundle: Some(Box::new(blob)),
            ..GitSource::new("https://nowhere.invalid/r.git")
        })
    };
    for reference in [None, Some("main"), Some(commit.as_str())] {
        assert_eq!(names(&Bench::new().tree(&of(reference, &commit))), trimmed("f =2"), "{reference:?}");
    }
    let other = "0".repeat(40);
    for wrong in [of(Some("main"), &other), of(None, &other), of(Some("none"), &commit)] {
        let shown = Bench::new().tree(&wrong);
        assert!(shown.starts_with("UserInput: ") || shown.starts_with("Remote: "), "{shown}");
    }
}
