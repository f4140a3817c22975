//! Graphs with everything in them, from a seed.

use forge_image::{Digest, Platform};
use forge_llb::*;
use std::sync::Arc;

/// A small generator (xorshift): the same seed gives the same graph.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % limit
    }

    fn yes(&mut self) -> bool {
        self.below(2) == 0
    }

    fn maybe<T>(&mut self, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.yes().then(|| make(self))
    }

    fn some<T>(&mut self, make: impl Fn(&mut Self) -> T) -> Vec<T> {
        (0..self.below(3)).map(|_| make(self)).collect()
    }

    fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }

    fn word(&mut self) -> String {
        self.pick(&["a", "/x", "b c", "*.go", "ä<&>", "\n", "z"]).to_owned() + &self.below(9).to_string()
    }

    fn number(&mut self) -> u32 {
        self.below(5000) as u32
    }

    fn digest(&mut self) -> Digest {
        Digest::sha256(&[self.below(9) as u8])
    }
}

/// A graph of up to twenty vertices.
pub fn graph(seed: u64) -> Graph {
    let mut random = Random::new(seed);
    let mut graph = Graph::new();
    let mut edges: Vec<Edge> = Vec::new();
    for number in 0..1 + random.below(20) {
        let inputs: Vec<Edge> = match edges.len() {
            0 => Vec::new(),
            _ => random.some(|random| random.pick(&edges)),
        };
        let op = match random.below(6) {
            1 => Op::Exec(exec(&mut random, inputs.len())),
            2 => Op::File(file(&mut random, inputs.len())),
            3 => Op::Merge,
            4 => diff(&mut random, inputs.len()),
            _ => Op::Source(source(&mut random)),
        };
        let inputs = if matches!(op, Op::Source(_)) { Vec::new() } else { inputs };
        let outputs = op.outputs();
        let metadata = Metadata {
            name: format!("step {number}"),
            ignore_cache: random.yes(),
            span: random.maybe(span),
            resources: random.maybe(resources),
        };
        let platform =
            random.maybe(|random| random.pick(&["linux/amd64", "linux/arm/v7"]).parse::<Platform>().unwrap());
        let edge = graph.add(Vertex { op, inputs, platform, metadata }).unwrap();
        edges.extend((0..outputs).map(|output| Edge { output, ..edge.clone() }));
    }
    let goal = edges.pop();
    graph.set_goal(goal).unwrap();
    graph
}

fn resources(random: &mut Random) -> Arc<StepResources> {
    Arc::new(StepResources {
        memory: Some(1 + u64::from(random.number())),
        memory_swap: random.maybe(|random| random.pick(&[-1, 7 << 40])),
        cpu_shares: random.maybe(|random| 1 + u64::from(random.number())),
        cpu_period: random.maybe(|random| 1 + u64::from(random.number())),
        cpu_quota: random.maybe(|random| 1 + u64::from(random.number())),
        cpuset_cpus: random.maybe(|_| "0-2,5".to_owned()),
        cpuset_mems: random.maybe(|_| "0".to_owned()),
    })
}

fn span(random: &mut Random) -> InstructionSpan {
    let first_line = 1 + random.number();
    let file = random.pick(&["Dockerfile", "other"]).to_owned();
    InstructionSpan { file, first_line, last_line: first_line + 1, text: String::new() }
}

fn source(random: &mut Random) -> SourceOp {
    match random.below(5) {
        0 => SourceOp::Image(ImageSource {
            reference: random.pick(&["alpine:3", "r.test:5000/a/b:t"]).parse().unwrap(),
            pinned: random.maybe(Random::digest),
            resolve: random.pick(&[ResolveMode::PreferLocal, ResolveMode::ForcePull]),
            checksum: None,
            layer_limit: random.maybe(|random| 1 + random.number() as usize),
        }),
        5 => {
            let digest = random.digest();
            SourceOp::Blob(BlobSource {
                reference: format!("r.test:5000/a/b@{digest}").parse().unwrap(),
                digest,
                layout: random.maybe(Random::word),
                filename: random.maybe(Random::word),
                mode: random.maybe(|random| 1 + random.number()),
                owner: random.maybe(|random| (random.number(), random.number())),
            })
        }
        1 => SourceOp::Local(LocalSource {
            name: random.word(),
            include: random.some(Random::word),
            exclude: random.some(Random::word),
            follow: random.some(Random::word),
            metadata_only: random.maybe(|random| random.some(Random::word)),
            compare: random.pick(&[CompareFiles::Metadata, CompareFiles::Never]),
        }),
        2 => SourceOp::OciLayout(OciLayoutSource {
            name: random.pick(&["base", "a:b", "x@y", "d/e"]).to_owned(),
            tag: random.maybe(|_| "t".to_owned()),
            digest: random.maybe(Random::digest),
        }),
        3 => SourceOp::Git(git(random)),
        _ => SourceOp::Http(HttpSource {
            checksum: random.maybe(Random::digest),
            filename: random.maybe(Random::word),
            mode: random.maybe(|random| 1 + random.number() % 0o777),
            owner: random.maybe(|random| (random.number(), random.number())),
            auth_header_secret: random.maybe(Random::word),
            ..HttpSource::new("https://h.test/f")
        }),
    }
}

fn git(random: &mut Random) -> GitSource {
    let remote = random.pick(&["https://h.test:1/o/r.git", "git@h.test:o/r", "ssh://u@h.test/r", "git://h.test/r"]);
    GitSource {
        reference: random.maybe(|_| "v1".to_owned()),
        subdir: random.pick(&["", "a/b"]).to_owned(),
        checksum: Some("0".repeat(40)),
        keep_git_dir: random.yes(),
        skip_submodules: random.yes(),
        mtime: random.pick(&[GitMtime::Checkout, GitMtime::Commit]),
        fetch_by_commit: random.yes(),
        auth_token_secret: random.maybe(Random::word),
        auth_header_secret: random.maybe(|_| "GIT_AUTH_HEADER".to_owned()),
        ssh: random.maybe(Random::word),
        known_hosts: random.maybe(Random::word),
        ..GitSource::new(remote)
    }
}

fn diff(random: &mut Random, inputs: usize) -> Op {
    let side = |random: &mut Random| (inputs > 0 && random.yes()).then(|| random.below(inputs));
    Op::Diff(DiffOp { lower: side(random), upper: side(random) })
}

fn exec(random: &mut Random, inputs: usize) -> ExecOp {
    let mut mounts = vec![ExecMount { input: (inputs > 0).then_some(0), ..ExecMount::root() }];
    for number in 0..random.below(4) {
        mounts.push(mount(random, inputs, number + 1));
    }
    ExecOp {
        env: random.some(Random::word),
        user: random.maybe(Random::word).unwrap_or_default(),
        network: random.pick(&[NetworkMode::Default, NetworkMode::Host, NetworkMode::None]),
        security: random.pick(&[SecurityMode::Sandbox, SecurityMode::Insecure]),
        hostname: random.maybe(Random::word).unwrap_or_default(),
        extra_hosts: random.some(|random| ExtraHost { host: random.word(), address: "::1".to_owned() }),
        proxy_env: random.some(|random| format!("http_proxy={}", random.word())),
        secret_env: random.some(|random| SecretEnv { id: random.word(), name: random.word(), optional: random.yes() }),
        ulimits: random.some(|random| Ulimit { name: random.word(), soft: -1, hard: random.number().into() }),
        cgroup_parent: random.maybe(Random::word).unwrap_or_default(),
        devices: random.some(|random| CdiDevice { name: random.word(), optional: random.yes() }),
        valid_exit_codes: random.some(|random| random.number() as i32),
        remove_mount_stubs: random.yes(),
        mounts,
        ..ExecOp::new(vec!["sh".to_owned(), random.word()])
    }
}

fn mount(random: &mut Random, inputs: usize, number: usize) -> ExecMount {
    let secret = |random: &mut Random| SecretMount {
        id: random.word(),
        uid: random.number(),
        gid: random.number(),
        mode: random.number(),
        optional: random.yes(),
    };
    let kind = match random.below(5) {
        0 => MountKind::Tmpfs { size: random.maybe(|random| 1 + u64::from(random.number())) },
        1 => MountKind::Cache {
            id: random.word(),
            sharing: random.pick(&[CacheSharing::Shared, CacheSharing::Private, CacheSharing::Locked]),
        },
        2 => MountKind::Secret(secret(random)),
        3 => MountKind::Ssh(secret(random)),
        _ => MountKind::Bind,
    };
    ExecMount {
        target: format!("/m{number}"),
        input: (inputs > 0 && random.yes()).then(|| random.below(inputs)),
        selector: random.pick(&["/", "/sub"]).to_owned(),
        output: (kind == MountKind::Bind && random.yes()).then_some(number),
        readonly: random.yes(),
        kind,
    }
}

fn file(random: &mut Random, inputs: usize) -> FileOp {
    let count = 1 + random.below(4);
    let actions = (0..count).map(|position| {
        let base = tree(random, inputs, position);
        FileAction { base, kind: action(random, inputs, position) }
    });
    FileOp { actions: actions.collect() }
}

fn tree(random: &mut Random, inputs: usize, position: usize) -> FileInput {
    match random.below(3) {
        0 if inputs > 0 => FileInput::Input(random.below(inputs)),
        1 if position > 0 => FileInput::Action(random.below(position)),
        _ => FileInput::Scratch,
    }
}

fn owner(random: &mut Random) -> Option<Owner> {
    let user = random.pick(&["app", "0", "1000"]).to_owned();
    let group = random.maybe(|random| random.pick(&["grp", "7"]).to_owned());
    random.maybe(|_| Owner { user, group })
}

fn action(random: &mut Random, inputs: usize, position: usize) -> FileKind {
    let (path, mode, owner) = (random.word(), random.number() % 0o7777, owner(random));
    let timestamp = random.maybe(|random| i64::from(random.number()) - 2500);
    match random.below(5) {
        0 => FileKind::Mkdir(MkdirAction { path, mode, make_parents: random.yes(), owner, timestamp }),
        1 => FileKind::Mkfile(MkfileAction { path, mode, data: random.word().into_bytes(), owner, timestamp }),
        2 => FileKind::Rm(RmAction { path, allow_not_found: random.yes(), allow_wildcard: random.yes() }),
        3 => FileKind::Symlink(SymlinkAction { target: random.word(), path, owner, timestamp }),
        _ => FileKind::Copy(CopyAction {
            owner,
            timestamp,
            mode: random.maybe(|random| match random.yes() {
                true => ModeChange::Octal(mode),
                false => ModeChange::Symbolic("u=rwX".to_owned()),
            }),
            allow_wildcard: random.yes(),
            unpack_archives: random.yes(),
            include: random.some(Random::word),
            exclude: random.some(Random::word),
            required: random.some(|random| random.word().trim_start_matches('/').to_owned()),
            follow_links: random.yes(),
            contents_only: random.yes(),
            make_parents: random.yes(),
            allow_empty_wildcard: random.yes(),
            replace: random.yes(),
            ..CopyAction::new(
                tree(random, inputs, position),
                (0..1 + random.below(3)).map(|_| random.word()).collect(),
                format!("{path}/"),
            )
        }),
    }
}
