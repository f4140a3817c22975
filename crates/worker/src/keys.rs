//! What vertices are worth as keys.

use forge_cache::{OpKey, SelectedPath, Selector};
use forge_image::{Digest, Platform};
use forge_llb::{CopyAction, ExecMount, ExecOp, FileInput, FileKind, FileOp, ModeChange, Op, Vertex};
use forge_session::ContextPath;
use forge_solver::{CacheMap, InputKey};

/// A process sees the whole of its root, and of other inputs what its mounts show.
pub(crate) fn of_exec(vertex: &Vertex, op: &ExecOp) -> CacheMap {
    let readable = vec![
        ("args".to_owned(), op.args.join(" ")),
        ("cwd".to_owned(), op.cwd.clone()),
        ("user".to_owned(), op.user.clone()),
    ];
    let env = op.env.iter().map(|pair| ("env".to_owned(), pair.clone()));
    CacheMap {
        op: Some(op_key(&vertex.op, vertex.platform.as_ref())),
        inputs: (0..vertex.inputs.len()).map(|index| InputKey::Content(mounted(op, index))).collect(),
        readable: readable.into_iter().chain(env).collect(),
        cacheable: true,
    }
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
        readable: op.actions.iter().map(|action| readable(&action.kind)).collect(),
        cacheable: true,
    }
}

/// Merging and comparing see the whole of every input.
pub(crate) fn of_stack(vertex: &Vertex) -> CacheMap {
    CacheMap {
        op: Some(op_key(&vertex.op, None)),
        inputs: vertex.inputs.iter().map(|_| InputKey::Content(Selector::all())).collect(),
        readable: Vec::new(),
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
        cacheable: true,
    }
}

/// A context has no key of its own: what is read from it is known by its content.
pub(crate) fn of_context(name: &str) -> CacheMap {
    let readable = vec![("context".to_owned(), name.to_owned())];
    CacheMap { op: None, inputs: Vec::new(), readable, cacheable: false }
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

fn readable(kind: &FileKind) -> (String, String) {
    match kind {
        FileKind::Copy(copy) => ("copy".to_owned(), format!("{} -> {}", copy.sources.join(" "), copy.destination)),
        FileKind::Mkdir(mkdir) => ("mkdir".to_owned(), mkdir.path.clone()),
        FileKind::Mkfile(mkfile) => ("mkfile".to_owned(), mkfile.path.clone()),
        FileKind::Rm(rm) => ("rm".to_owned(), rm.path.clone()),
        FileKind::Symlink(link) => ("symlink".to_owned(), format!("{} -> {}", link.path, link.target)),
    }
}
