//! What vertices are worth as keys.

use forge_cache::{OpKey, SelectedPath, Selector};
use forge_image::{Digest, Platform};
use forge_llb::{
    CopyAction, ExecMount, ExecOp, FileAction, FileInput, FileKind, FileOp, ModeChange, Op, Owner, Vertex,
};
use forge_session::ContextPath;
use forge_solver::{CacheMap, InputKey};
use forge_store::FileTimes;

/// A process sees the whole of its root, and of other inputs what its mounts show.
pub(crate) fn of_exec(vertex: &Vertex, op: &ExecOp) -> CacheMap {
    CacheMap {
        op: Some(op_key(&vertex.op, vertex.platform.as_ref())),
        inputs: (0..vertex.inputs.len()).map(|index| InputKey::Content(mounted(op, index))).collect(),
        readable: readable_exec(vertex, op),
        beneath: None,
        cacheable: true,
    }
}

/// Everything that the key of a process is made of, by name: what is not here could change without being told.
fn readable_exec(vertex: &Vertex, op: &ExecOp) -> Vec<(String, String)> {
    let pair = |name: &str, value: String| (name.to_owned(), value);
    let mut readable = vec![pair("command", command(&op.args))];
    readable.extend(op.env.iter().map(|text| {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        pair(&format!("env {name}"), value.to_owned())
    }));
    let platform = vertex.platform.as_ref().map(ToString::to_string).unwrap_or_default();
    let texts = [
        ("folder", op.cwd.clone()),
        ("user", op.user.clone()),
        ("platform", platform),
        ("network", word(&op.network)),
        ("security", word(&op.security)),
        ("hostname", op.hostname.clone()),
        ("exit codes", op.valid_exit_codes.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")),
    ];
    readable.extend(texts.into_iter().filter(|(_, text)| !text.is_empty()).map(|(name, text)| pair(name, text)));
    readable.extend(op.extra_hosts.iter().map(|host| pair("host", host.host.clone())));
    readable.extend(op.secret_env.iter().map(|secret| pair(&format!("secret {}", secret.name), secret.id.clone())));
    readable
        .extend(op.ulimits.iter().map(|limit| pair("ulimit", format!("{}={}:{}", limit.name, limit.soft, limit.hard))));
    readable.extend(op.devices.iter().map(|device| pair("device", device.name.clone())));
    let mounts = op.mounts.iter().filter(|mount| mount.target != "/");
    readable.extend(mounts.map(|mount| pair(&format!("mount {}", mount.target), mounted_as(mount))));
    readable
}

/// A shell's command without the shell.
fn command(args: &[String]) -> String {
    match args {
        [shell, option, command] if shell == "/bin/sh" && option == "-c" => command.clone(),
        args => args.join(" "),
    }
}

fn mounted_as(mount: &ExecMount) -> String {
    let from = mount.input.map(|input| format!(" of input {input}")).unwrap_or_default();
    let access = if mount.readonly { ", read-only" } else { "" };
    format!("{}{from}{access}: {}", mount.selector, word(&mount.kind))
}

fn word(value: &impl std::fmt::Debug) -> String {
    format!("{value:?}").to_lowercase()
}

/// What of an input the process can see, and what of it can become part of a result.
fn mounted(op: &ExecOp, index: usize) -> Selector {
    let whole = |mount: &ExecMount| {
        let is_all = ContextPath::clean(&mount.selector).is_root();
        mount.target == "/" || is_all || mount.output.is_some()
    };
    let mounts: Vec<&ExecMount> = op.mounts.iter().filter(|mount| mount.input == Some(index)).collect();
    if mounts.is_empty() || mounts.iter().any(|mount| whole(mount)) {
        return Selector::all();
    }
    Selector { paths: mounts.iter().map(|mount| SelectedPath::new(&mount.selector)).collect(), ..Selector::all() }
}

/// A file operation sees the whole of the tree that it changes, and of others what it copies.
pub(crate) fn of_file(vertex: &Vertex, op: &FileOp) -> CacheMap {
    let selectors = (0..vertex.inputs.len()).map(|index| InputKey::Content(selector(op, index)));
    CacheMap {
        op: Some(op_key(&vertex.op, None)),
        inputs: selectors.collect(),
        readable: op.actions.iter().flat_map(|action| readable_action(&action.kind)).collect(),
        beneath: beneath(op),
        cacheable: true,
    }
}

/// What one COPY is laid on. Where the destination's parents are as they were, and nothing is in the way, it adds the layer
/// that it added to another base.
fn beneath(op: &FileOp) -> Option<usize> {
    match &op.actions[..] {
        [FileAction { base: FileInput::Input(base), kind: FileKind::Copy(_) }] => Some(*base),
        _ => None,
    }
}

/// Which modification times of what a file operation makes are content: those that it was told, those that are in what
/// it unpacks, and those of files of other steps, which say themselves what they are. The time of the operation is not,
/// nor are those of a context.
pub(crate) fn file_times(op: &FileOp, is_context: impl Fn(usize) -> bool) -> FileTimes {
    let is_told = |kind: &FileKind| match kind {
        FileKind::Copy(copy) => {
            let from_step = matches!(copy.from, FileInput::Input(index) if !is_context(index));
            copy.timestamp.is_some() || copy.unpack_archives || from_step
        }
        FileKind::Mkdir(mkdir) => mkdir.timestamp.is_some(),
        FileKind::Mkfile(mkfile) => mkfile.timestamp.is_some(),
        FileKind::Symlink(link) => link.timestamp.is_some(),
        FileKind::Rm(_) => false,
    };
    match op.actions.iter().any(|action| is_told(&action.kind)) {
        true => FileTimes::Content,
        false => FileTimes::Ignored,
    }
}

/// Merging and comparing see the whole of every input.
pub(crate) fn of_stack(vertex: &Vertex) -> CacheMap {
    CacheMap {
        op: Some(op_key(&vertex.op, None)),
        inputs: vertex.inputs.iter().map(|_| InputKey::Content(Selector::all())).collect(),
        readable: Vec::new(),
        beneath: None,
        cacheable: true,
    }
}

/// An image is its manifest, whatever name it was found by.
pub(crate) fn of_image(manifest: &Digest, platform: Option<&Platform>, name: &str) -> CacheMap {
    let platform = platform.map(ToString::to_string).unwrap_or_default();
    CacheMap {
        op: Some(OpKey::new(format!("image {manifest} {platform}").as_bytes())),
        inputs: Vec::new(),
        readable: vec![("image".to_owned(), name.to_owned()), ("digest".to_owned(), manifest.to_string())],
        beneath: None,
        cacheable: true,
    }
}

/// The same for no more than the lowest layers of an image.
pub(crate) fn of_lowest_layers(mut whole: CacheMap, limit: usize) -> CacheMap {
    whole.op = whole.op.map(|key| OpKey::new(format!("{limit} layers of {key:?}").as_bytes()));
    whole.readable.push(("layers".to_owned(), limit.to_string()));
    whole
}

/// A context has no key of its own: what is read from it is known by its content.
pub(crate) fn of_context(name: &str) -> CacheMap {
    let readable = vec![("context".to_owned(), name.to_owned())];
    CacheMap { op: None, inputs: Vec::new(), readable, beneath: None, cacheable: false }
}

fn op_key(op: &Op, platform: Option<&Platform>) -> OpKey {
    let mut bytes = op.canonical_bytes();
    bytes.extend(platform.map(ToString::to_string).unwrap_or_default().as_bytes());
    OpKey::new(&bytes)
}

/// What of an input the operation can see.
fn selector(op: &FileOp, index: usize) -> Selector {
    let is_base = op.actions.iter().any(|action| action.base == FileInput::Input(index));
    let copies: Vec<&CopyAction> = op
        .actions
        .iter()
        .filter_map(|action| match &action.kind {
            FileKind::Copy(copy) if copy.from == FileInput::Input(index) => Some(copy),
            _ => None,
        })
        .collect();
    if is_base || copies.is_empty() {
        return Selector::all();
    }
    Selector {
        paths: copies.iter().flat_map(|copy| selected_paths(copy)).collect(),
        ignore_owner: copies.iter().all(|copy| copy.owner.is_some()),
        ignore_mode: copies.iter().all(|copy| matches!(copy.mode, Some(ModeChange::Octal(_)))),
    }
}

/// What a copy reads.
pub(crate) fn selected_paths(copy: &CopyAction) -> Vec<SelectedPath> {
    let path = |path: &String| SelectedPath {
        path: path.clone(),
        wildcard: copy.allow_wildcard,
        follow: copy.follow_links,
        include: copy.include.clone(),
        exclude: copy.exclude.clone(),
        required: copy.required.clone(),
    };
    copy.sources.iter().map(path).collect()
}

fn readable_action(kind: &FileKind) -> Vec<(String, String)> {
    let pair = |name: &str, value: String| (name.to_owned(), value);
    let owner = |owner: &Option<Owner>| owner.as_ref().map(|owner| pair("owner", word(owner)));
    let time = |time: &Option<i64>| time.map(|time| pair("time", time.to_string()));
    match kind {
        FileKind::Copy(copy) => {
            let mut readable = vec![pair("copy", format!("{} to {}", copy.sources.join(" "), copy.destination))];
            readable.extend(owner(&copy.owner));
            readable.extend(copy.mode.as_ref().map(|mode| pair("mode", word(mode))));
            for (name, patterns) in [("include", &copy.include), ("exclude", &copy.exclude)] {
                readable.extend((!patterns.is_empty()).then(|| pair(name, patterns.join(" "))));
            }
            let is_default = copy.contents_only && copy.make_parents && copy.follow_links && !copy.replace;
            let others = (copy.contents_only, copy.make_parents, copy.follow_links, copy.replace);
            readable.extend((!is_default).then(|| pair("options", word(&others))));
            readable.extend(copy.unpack_archives.then(|| pair("unpack", "archives".to_owned())));
            readable.extend(time(&copy.timestamp));
            readable
        }
        FileKind::Mkdir(mkdir) => {
            let made = pair("mkdir", format!("{} {:04o}", mkdir.path, mkdir.mode));
            [Some(made), owner(&mkdir.owner), time(&mkdir.timestamp)].into_iter().flatten().collect()
        }
        FileKind::Mkfile(mkfile) => {
            let made = pair("mkfile", format!("{} {:04o}", mkfile.path, mkfile.mode));
            let bytes = pair("bytes", blake3::hash(&mkfile.data).to_hex()[..16].to_owned());
            [Some(made), Some(bytes), owner(&mkfile.owner), time(&mkfile.timestamp)].into_iter().flatten().collect()
        }
        FileKind::Rm(rm) => vec![pair("rm", rm.path.clone())],
        FileKind::Symlink(link) => vec![pair("symlink", format!("{} to {}", link.path, link.target))],
    }
}
