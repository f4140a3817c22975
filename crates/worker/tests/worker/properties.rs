//! P17: whatever decides about a result makes another key, and nothing else does. Ops are made at random, and one field of
//! them is changed at a time.
#![allow(clippy::print_stdout, reason = "the seed of a failure is for whoever runs the test")]

use crate::Test;
use crate::exec::shell;
use crate::site::{Site, copy_action, owner, vertex};
use forge_cache::{CacheKey, InputPart, OpKey};
use forge_llb::*;
use forge_session::Session;
use forge_solver::{CacheMap, Worker};
use std::collections::HashMap;
use std::sync::Arc;

pub const TESTS: &[Test] = &[
    ("privileged_p17_every_field_that_matters_changes_the_key", every_field),
    ("privileged_p17_keys_frame_their_parts", framing),
    ("privileged_golden_keys_are_those_of_the_text_file", golden),
];

const SEEDS: u64 = 200;

/// xorshift64*, so that a seed means the same for ever.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    }

    fn word(&mut self) -> String {
        let length = 1 + self.below(4);
        (0..length).map(|_| ['a', 'b', '=', ' ', '/', '\u{e4}'][self.below(6)]).collect()
    }

    fn words(&mut self) -> Vec<String> {
        (0..self.below(3)).map(|_| self.word()).collect()
    }
}

fn map(site: &Site, vertex: &Vertex) -> CacheMap {
    let session: Arc<dyn Session> = site.session.clone();
    site.runtime.block_on(site.worker.cache_map(vertex, &session)).unwrap()
}

/// What takes part in keys of a process, and what does not.
type Change<T> = (&'static str, bool, fn(&mut T, &mut Random));

fn other(text: &mut String, random: &mut Random) {
    text.push_str(&random.word());
}

fn exec_changes() -> Vec<Change<ExecOp>> {
    vec![
        ("args", true, |op, random| op.args.push(random.word())),
        ("an argument", true, |op, random| other(&mut op.args[0], random)),
        ("env", true, |op, random| op.env.push(format!("A={}", random.word()))),
        ("cwd", true, |op, random| other(&mut op.cwd, random)),
        ("user", true, |op, random| other(&mut op.user, random)),
        ("network", true, |op, _| op.network = NetworkMode::None),
        ("security", true, |op, _| op.security = SecurityMode::Insecure),
        ("hostname", true, |op, random| other(&mut op.hostname, random)),
        ("host", true, |op, random| op.extra_hosts.push(ExtraHost { host: random.word(), address: "1.2.3.4".into() })),
        ("secret", true, |op, random| {
            op.secret_env.push(SecretEnv { id: random.word(), name: "S".into(), optional: false });
        }),
        ("ulimit", true, |op, random| op.ulimits.push(Ulimit { name: random.word(), soft: 1, hard: 1 })),
        ("device", true, |op, random| op.devices.push(CdiDevice { name: random.word(), optional: false })),
        ("exit codes", true, |op, random| op.valid_exit_codes.push(random.below(200) as i32)),
        ("stubs", true, |op, _| op.remove_mount_stubs ^= true),
        ("a mount", true, |op, random| {
            let target = format!("/{}", random.word());
            op.mounts.push(ExecMount {
                target,
                input: None,
                output: None,
                kind: MountKind::Tmpfs { size: None },
                ..ExecMount::root()
            });
        }),
        ("what the root is", true, |op, _| op.mounts[0].readonly ^= true),
        // What goes through is no part of what comes out.
        ("proxies", false, |op, random| op.proxy_env.push(format!("http_proxy={}", random.word()))),
        ("cgroup", false, |op, random| other(&mut op.cgroup_parent, random)),
    ]
}

fn copy_changes() -> Vec<Change<CopyAction>> {
    vec![
        ("sources", true, |copy, random| copy.sources.push(random.word())),
        ("a source", true, |copy, random| other(&mut copy.sources[0], random)),
        ("destination", true, |copy, random| other(&mut copy.destination, random)),
        ("owner", true, |copy, random| copy.owner = Some(owner(&(1 + random.below(99)).to_string()))),
        ("mode", true, |copy, random| copy.mode = Some(ModeChange::Octal(1 + random.below(0o777) as u32))),
        ("symbolic mode", true, |copy, _| copy.mode = Some(ModeChange::Symbolic("u=rwX".into()))),
        ("wildcard", true, |copy, _| copy.allow_wildcard ^= true),
        ("archives", true, |copy, _| copy.unpack_archives ^= true),
        ("include", true, |copy, random| copy.include.push(random.word())),
        ("exclude", true, |copy, random| copy.exclude.push(random.word())),
        ("required", true, |copy, random| copy.required.push(random.word())),
        ("timestamp", true, |copy, random| copy.timestamp = Some(random.below(9999) as i64)),
        ("links", true, |copy, _| copy.follow_links ^= true),
        ("contents", true, |copy, _| copy.contents_only ^= true),
        ("parents", true, |copy, _| copy.make_parents ^= true),
        ("empty", true, |copy, _| copy.allow_empty_wildcard ^= true),
        ("replace", true, |copy, _| copy.replace ^= true),
    ]
}

fn random_exec(random: &mut Random) -> ExecOp {
    let mut op = shell(&random.word());
    op.env = random.words();
    op.cwd = random.word();
    op.user = random.word();
    op
}

fn random_copy(random: &mut Random) -> CopyAction {
    let mut copy = copy_action("COPY a /d/");
    copy.sources.extend(random.words());
    copy.destination = random.word();
    copy.exclude = random.words();
    copy
}

fn of_copy(copy: &CopyAction) -> Op {
    Op::File(FileOp { actions: vec![FileAction { base: FileInput::Input(0), kind: FileKind::Copy(copy.clone()) }] })
}

/// Each field changed by itself makes a key that no other has; what people call the step is none of the key's.
fn every_field() {
    let site = Site::new();
    for seed in 0..SEEDS {
        let random = &mut Random::new(seed);
        let mut seen: HashMap<OpKey, String> = HashMap::new();
        let mut note = |what: &str, matters: bool, before: Option<OpKey>, key: OpKey| match matters {
            true => {
                let clash = seen.insert(key, what.to_owned());
                assert_eq!(clash, None, "{what} and {clash:?} have one key, seed {seed}");
            }
            false => assert_eq!(Some(key), before, "{what} is in the key, seed {seed}"),
        };
        let exec = random_exec(random);
        let key = |op: Op| map(&site, &vertex(op)).op.unwrap();
        let plain = key(Op::Exec(exec.clone()));
        note("nothing", true, None, plain);
        for (what, matters, change) in exec_changes() {
            let mut changed = exec.clone();
            change(&mut changed, random);
            note(what, matters, Some(plain), key(Op::Exec(changed)));
        }
        let copy = random_copy(random);
        let plain = key(of_copy(&copy));
        note("a plain copy", true, None, plain);
        for (what, matters, change) in copy_changes() {
            let mut changed = copy.clone();
            change(&mut changed, random);
            note(&format!("copy {what}"), matters, Some(plain), key(of_copy(&changed)));
        }
        let mut named = vertex(Op::Exec(exec.clone()));
        let span = InstructionSpan { file: random.word(), first_line: 9, last_line: 9, text: random.word() };
        named.metadata = Metadata { name: random.word(), ignore_cache: true, span: Some(span), ..Metadata::default() };
        assert_eq!(map(&site, &named).op, map(&site, &vertex(Op::Exec(exec.clone()))).op, "seed {seed}");
        named.platform = Some("linux/s390x".parse().unwrap());
        assert_ne!(map(&site, &named).op, map(&site, &vertex(Op::Exec(exec))).op, "seed {seed}");
    }
}

/// Words that say the same when they are strung together are not the same.
fn framing() {
    let site = Site::new();
    let key = |args: &[&str], env: &[&str]| {
        let mut op = shell("x");
        op.args = args.iter().map(ToString::to_string).collect();
        op.env = env.iter().map(ToString::to_string).collect();
        map(&site, &vertex(Op::Exec(op))).op.unwrap()
    };
    let cases: [(&[&str], &[&str]); 6] = [
        (&["ab", "c"], &[]),
        (&["a", "bc"], &[]),
        (&["abc"], &[]),
        (&["ab"], &["c"]),
        (&["ab", "c", ""], &[]),
        (&[], &["ab", "c"]),
    ];
    let mut keys: Vec<String> = cases.iter().map(|(args, env)| key(args, env).to_string()).collect();
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), cases.len());
    // A key continued is not the key of something longer.
    let op = OpKey::new(b"op");
    let content = |text: &[u8]| InputPart::Content(blake3::hash(text).into());
    let short = CacheKey::definition(&op, &[content(b"a")]);
    assert_ne!(CacheKey::definition(&op, &[content(b"a"), content(b"b")]), short);
    assert_ne!(CacheKey::definition(&OpKey::new(short.as_bytes()), &[content(b"b")]), short);
}

/// Compares with a text file; FORGE_BLESS=1 writes it. A key that changed loses every cache: it is to be seen.
fn golden() {
    let site = Site::new().context("d/ 0711\n d/f =F\n d/l -> f\n top =T").stage("d/ 0711\n d/f =F @7\n d/x =X 3:4");
    let mut shown = String::new();
    let copies = [
        "COPY d /t/",
        "COPY top /t/",
        "COPY --chmod=644 d /t/",
        "COPY --chown=1:2 d /t/",
        "COPY --exclude=l d /t/",
        "ADD top /t/",
        "COPY --from=stage d /t/",
        "COPY --from=stage --chown=1 --chmod=755 d /t/",
    ];
    for instruction in copies {
        let op = map(&site, &vertex(of_copy(&copy_action(instruction)))).op.unwrap();
        shown += &format!("{instruction}\n  op      {op}\n");
        for (input, digest) in site.keys(instruction).unwrap().into_iter().enumerate() {
            shown += &format!("  input {input} {digest}\n");
        }
    }
    let mut user = shell("make");
    (user.user, user.cwd, user.env) = ("1000".to_owned(), "/src".to_owned(), vec!["A=1".to_owned()]);
    let mut cache = shell("make");
    let kind = MountKind::Cache { id: "go".to_owned(), sharing: CacheSharing::Locked };
    cache.mounts.push(ExecMount { target: "/c".to_owned(), input: None, output: None, kind, ..ExecMount::root() });
    for (name, op) in [("RUN make", shell("make")), ("RUN make as a user", user), ("RUN make with a cache", cache)] {
        shown += &format!("{name}\n  op      {}\n", map(&site, &vertex(Op::Exec(op))).op.unwrap());
    }
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/keys/golden.txt");
    if std::env::var_os("FORGE_BLESS").is_some_and(|value| value == "1") {
        std::fs::create_dir_all(std::path::Path::new(file).parent().unwrap()).unwrap();
        std::fs::write(file, &shown).unwrap();
    }
    let known = std::fs::read_to_string(file).unwrap_or_default();
    assert_eq!(shown, known, "keys changed, and with them every cache is lost; FORGE_BLESS=1 accepts it");
}
