//! Definitions as text for people and scripts, in the shapes of `buildctl debug dump-llb`.

use crate::DecodeError;
use crate::pb::{self, file_action::Action, op::Op, user_opt::User};
use crate::resources;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as STANDARD;
use forge_image::Digest;
use prost::Message;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// One line of JSON for each op: `{"Op": …, "Digest": …, "OpMetadata": …}`, with the names and the order of fields
/// that Go's encoder gives them. Symbolic links, which BuildKit's own printer forgets, are shown.
///
/// # Errors
/// An entry is not an op.
pub fn json_lines(definition: &pb::Definition) -> Result<String, DecodeError> {
    let mut text = String::new();
    for (op, digest) in ops(definition)? {
        let metadata = definition.metadata.get(digest.as_str()).map(metadata).unwrap_or_else(|| json!({}));
        let line = json!({ "Op": op_fields(&op), "Digest": digest.as_str(), "OpMetadata": metadata });
        text += &html_safe(&line.to_string());
        text.push('\n');
    }
    Ok(text)
}

/// The ops of a definition as provenance lists them: numbered, each behind its inputs.
#[derive(Clone, Debug, Default)]
pub struct StepList {
    /// `{"id": "step0", "op": …, "inputs": ["step1:0"]}`.
    pub steps: Vec<Value>,
    /// The digest of each.
    pub digests: Vec<Digest>,
}

/// Numbers the ops that the last one needs, itself included. What belongs to the session of one build is left out.
///
/// # Errors
/// An entry is not an op, or names an input that is not there.
pub fn step_list(definition: &pb::Definition) -> Result<StepList, DecodeError> {
    let ops = ops(definition)?;
    let Some((_, last)) = ops.last() else { return Ok(StepList::default()) };
    let by_digest: BTreeMap<&str, &pb::Op> = ops.iter().map(|(op, digest)| (digest.as_str(), op)).collect();
    let (mut numbers, mut order) = (BTreeMap::new(), Vec::new());
    // Not recursive: a chain of ops may be longer than a stack is deep.
    let mut todo = vec![(last.as_str(), false)];
    while let Some((digest, is_done)) = todo.pop() {
        if numbers.contains_key(digest) {
            continue;
        }
        let Some(op) = by_digest.get(digest) else {
            return Err(DecodeError::NotProtobuf { what: format!("the input {digest}"), source: None });
        };
        if is_done {
            numbers.insert(digest, order.len());
            order.push((digest, *op));
        } else {
            todo.push((digest, true));
            todo.extend(op.inputs.iter().rev().map(|input| (input.digest.as_str(), false)));
        }
    }
    let step = |(number, (_, op)): (usize, &(&str, &pb::Op))| {
        let inputs: Vec<String> =
            op.inputs.iter().map(|input| format!("step{}:{}", numbers[input.digest.as_str()], input.index)).collect();
        let mut alone = pb::Op { inputs: Vec::new(), ..(*op).clone() };
        if let Some(Op::Source(source)) = &mut alone.op {
            source.attrs.retain(|name, _| !matches!(name.as_str(), "local.session" | "local.unique"));
        }
        let step = Fields::default().always("id", format!("step{number}")).always("op", op_fields(&alone));
        step.texts("inputs", &inputs).value()
    };
    let steps = order.iter().enumerate().map(step).collect();
    let digests = ops.iter().map(|(_, digest)| (digest.as_str(), digest)).collect::<BTreeMap<_, _>>();
    let digests = order.iter().map(|(digest, _)| digests[digest].clone()).collect();
    Ok(StepList { steps, digests })
}

/// The definition in Graphviz's language.
///
/// # Errors
/// An entry is not an op.
pub fn dot(definition: &pb::Definition) -> Result<String, DecodeError> {
    let mut text = "digraph {\n".to_owned();
    let ops = ops(definition)?;
    for (op, digest) in &ops {
        let (label, shape) = label(op, digest);
        _ = writeln!(text, "  {:?} [label={label:?} shape={shape:?}];", digest.as_str());
    }
    for (op, digest) in &ops {
        for (index, input) in op.inputs.iter().enumerate() {
            let target = mount_target(op, index).unwrap_or_default();
            _ = writeln!(text, "  {:?} -> {:?} [label={target:?}];", input.digest, digest.as_str());
        }
    }
    Ok(text + "}\n")
}

fn ops(definition: &pb::Definition) -> Result<Vec<(pb::Op, Digest)>, DecodeError> {
    let entries = definition.def.iter().enumerate();
    entries
        .map(|(number, bytes)| {
            let failed = |source| DecodeError::NotProtobuf { what: format!("entry {number}"), source: Some(source) };
            Ok((pb::Op::decode(bytes.as_slice()).map_err(failed)?, Digest::sha256(bytes)))
        })
        .collect()
}

/// Go's encoder writes these so that its output can stand in a web page.
fn html_safe(json: &str) -> String {
    let mut safe = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => _ = write!(safe, "\\u{:04x}", u32::from(c)),
            c => safe.push(c),
        }
    }
    safe
}

fn label(op: &pb::Op, digest: &Digest) -> (String, &'static str) {
    match &op.op {
        Some(Op::Source(source)) => (source.identifier.clone(), "ellipse"),
        Some(Op::Exec(exec)) => (exec.meta.as_ref().map(|meta| meta.args.join(" ")).unwrap_or_default(), "box"),
        Some(Op::Build(_)) => ("build".to_owned(), "box3d"),
        Some(Op::Merge(_)) => ("merge".to_owned(), "invtriangle"),
        Some(Op::Diff(_)) => ("diff".to_owned(), "doublecircle"),
        Some(Op::File(file)) => (file.actions.iter().map(action_label).collect::<Vec<_>>().join(","), "note"),
        None => (digest.to_string(), "plaintext"),
    }
}

fn action_label(action: &pb::FileAction) -> String {
    match &action.action {
        Some(Action::Copy(copy)) => format!("copy{{src={}, dest={}}}", copy.src, copy.dest),
        Some(Action::Mkfile(mkfile)) => format!("mkfile{{path={}}}", mkfile.path),
        Some(Action::Mkdir(mkdir)) => format!("mkdir{{path={}}}", mkdir.path),
        Some(Action::Rm(rm)) => format!("rm{{path={}}}", rm.path),
        Some(Action::Symlink(link)) => format!("symlink{{oldpath={}, newpath={}}}", link.oldpath, link.newpath),
        None => String::new(),
    }
}

/// Where an exec shows an input besides its root.
fn mount_target(op: &pb::Op, input: usize) -> Option<&str> {
    let Some(Op::Exec(exec)) = &op.op else { return None };
    let shows = |mount: &&pb::Mount| usize::try_from(mount.input) == Ok(input) && mount.dest != "/";
    exec.mounts.iter().rev().find(shows).map(|mount| mount.dest.as_str())
}

/// A JSON object that leaves out what has its default value, as Go's `omitempty` does.
#[derive(Default)]
struct Fields(Map<String, Value>);

impl Fields {
    fn always(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.0.insert(name.to_owned(), value.into());
        self
    }

    fn filled(self, name: &str, shown: bool, value: impl Into<Value>) -> Self {
        if shown { self.always(name, value) } else { self }
    }

    fn text(self, name: &str, value: &str) -> Self {
        self.filled(name, !value.is_empty(), value)
    }

    fn number(self, name: &str, value: impl Into<i64>) -> Self {
        let value = value.into();
        self.filled(name, value != 0, value)
    }

    fn flag(self, name: &str, value: bool) -> Self {
        self.filled(name, value, value)
    }

    fn texts(self, name: &str, values: &[String]) -> Self {
        self.filled(name, !values.is_empty(), values)
    }

    fn map<T: Into<Value> + Clone>(self, name: &str, values: &BTreeMap<String, T>) -> Self {
        let entries = values.iter().map(|(key, value)| (key.clone(), value.clone().into()));
        self.filled(name, !values.is_empty(), entries.collect::<Map<_, _>>())
    }

    fn list<T>(self, name: &str, values: &[T], show: impl Fn(&T) -> Fields) -> Self {
        self.filled(name, !values.is_empty(), values.iter().map(|value| show(value).value()).collect::<Vec<_>>())
    }

    fn some<T>(self, name: &str, value: Option<&T>, show: impl Fn(&T) -> Fields) -> Self {
        match value {
            Some(value) => self.always(name, show(value).value()),
            None => self,
        }
    }

    fn value(self) -> Value {
        Value::Object(self.0)
    }
}

fn op_fields(op: &pb::Op) -> Value {
    let kind = match &op.op {
        None => Fields::default(),
        Some(Op::Exec(exec)) => Fields::default().some("exec", Some(exec), exec_fields),
        Some(Op::Source(source)) => Fields::default().some("source", Some(source), source_fields),
        Some(Op::File(file)) => {
            Fields::default().some("file", Some(file), |file| Fields::default().list("actions", &file.actions, action))
        }
        Some(Op::Build(build)) => Fields::default().some("build", Some(build), build_fields),
        Some(Op::Merge(merge)) => Fields::default().some("merge", Some(merge), |merge| {
            Fields::default().list("inputs", &merge.inputs, |input| Fields::default().number("input", input.input))
        }),
        Some(Op::Diff(diff)) => Fields::default().some("diff", Some(diff), |diff| {
            Fields::default()
                .some("lower", diff.lower.as_ref(), |lower| Fields::default().number("input", lower.input))
                .some("upper", diff.upper.as_ref(), |upper| Fields::default().number("input", upper.input))
        }),
    };
    let input = |input: &pb::Input| Fields::default().text("digest", &input.digest).number("index", input.index);
    Fields::default()
        .list("inputs", &op.inputs, input)
        .always("Op", kind.value())
        .some("platform", op.platform.as_ref(), platform_fields)
        .some("constraints", op.constraints.as_ref(), |limits| Fields::default().texts("filter", &limits.filter))
        .value()
}

fn platform_fields(platform: &pb::Platform) -> Fields {
    Fields::default()
        .text("Architecture", &platform.architecture)
        .text("OS", &platform.os)
        .text("Variant", &platform.variant)
        .text("OSVersion", &platform.os_version)
        .texts("OSFeatures", &platform.os_features)
}

fn source_fields(source: &pb::SourceOp) -> Fields {
    Fields::default().text("identifier", &source.identifier).map("attrs", &source.attrs)
}

fn build_fields(build: &pb::BuildOp) -> Fields {
    let inputs: BTreeMap<String, Value> = build
        .inputs
        .iter()
        .map(|(name, input)| (name.clone(), Fields::default().number("input", input.input).value()))
        .collect();
    Fields::default().number("builder", build.builder).map("inputs", &inputs).map("attrs", &build.attrs)
}

fn exec_fields(exec: &pb::ExecOp) -> Fields {
    let secret = |secret: &pb::SecretEnv| {
        Fields::default().text("ID", &secret.id).text("name", &secret.name).flag("optional", secret.optional)
    };
    let device =
        |device: &pb::CdiDevice| Fields::default().text("name", &device.name).flag("optional", device.optional);
    Fields::default()
        .some("meta", exec.meta.as_ref(), meta_fields)
        .list("mounts", &exec.mounts, mount_fields)
        .number("network", exec.network)
        .number("security", exec.security)
        .list("secretenv", &exec.secretenv, secret)
        .list("cdiDevices", &exec.cdi_devices, device)
}

fn meta_fields(meta: &pb::Meta) -> Fields {
    let proxies = |proxies: &pb::ProxyEnv| {
        Fields::default()
            .text("http_proxy", &proxies.http_proxy)
            .text("https_proxy", &proxies.https_proxy)
            .text("ftp_proxy", &proxies.ftp_proxy)
            .text("no_proxy", &proxies.no_proxy)
            .text("all_proxy", &proxies.all_proxy)
    };
    let host = |host: &pb::HostIp| Fields::default().text("Host", &host.host).text("IP", &host.ip);
    let limit = |limit: &pb::Ulimit| {
        Fields::default().text("Name", &limit.name).number("Soft", limit.soft).number("Hard", limit.hard)
    };
    Fields::default()
        .texts("args", &meta.args)
        .texts("env", &meta.env)
        .text("cwd", &meta.cwd)
        .text("user", &meta.user)
        .some("proxy_env", meta.proxy_env.as_ref(), proxies)
        .list("extraHosts", &meta.extra_hosts, host)
        .text("hostname", &meta.hostname)
        .list("ulimit", &meta.ulimit, limit)
        .text("cgroupParent", &meta.cgroup_parent)
        .flag("removeMountStubsRecursive", meta.remove_mount_stubs_recursive)
        .filled("validExitCodes", !meta.valid_exit_codes.is_empty(), meta.valid_exit_codes.as_slice())
}

fn mount_fields(mount: &pb::Mount) -> Fields {
    let cache = |cache: &pb::CacheOpt| Fields::default().text("ID", &cache.id).number("sharing", cache.sharing);
    let secret = |id: &str, uid: u32, gid: u32, mode: u32, optional: bool| {
        Fields::default()
            .text("ID", id)
            .number("uid", uid)
            .number("gid", gid)
            .number("mode", mode)
            .flag("optional", optional)
    };
    Fields::default()
        .number("input", mount.input)
        .text("selector", &mount.selector)
        .text("dest", &mount.dest)
        .number("output", mount.output)
        .flag("readonly", mount.readonly)
        .number("mountType", mount.mount_type)
        .some("TmpfsOpt", mount.tmpfs_opt.as_ref(), |tmpfs| Fields::default().number("size", tmpfs.size))
        .some("cacheOpt", mount.cache_opt.as_ref(), cache)
        .some("secretOpt", mount.secret_opt.as_ref(), |o| secret(&o.id, o.uid, o.gid, o.mode, o.optional))
        .some("SSHOpt", mount.ssh_opt.as_ref(), |o| secret(&o.id, o.uid, o.gid, o.mode, o.optional))
        .text("resultID", &mount.result_id)
        .number("contentCache", mount.content_cache)
}

fn action(action: &pb::FileAction) -> Fields {
    let kind = match &action.action {
        None => Fields::default(),
        Some(Action::Copy(copy)) => Fields::default().some("copy", Some(copy), copy_fields),
        Some(Action::Mkfile(mkfile)) => Fields::default().some("mkfile", Some(mkfile), |mkfile| {
            let data = STANDARD.encode(&mkfile.data);
            Fields::default()
                .text("path", &mkfile.path)
                .number("mode", mkfile.mode)
                .text("data", &data)
                .some("owner", mkfile.owner.as_ref(), owner_fields)
                .number("timestamp", mkfile.timestamp)
        }),
        Some(Action::Mkdir(mkdir)) => Fields::default().some("mkdir", Some(mkdir), |mkdir| {
            Fields::default()
                .text("path", &mkdir.path)
                .number("mode", mkdir.mode)
                .flag("makeParents", mkdir.make_parents)
                .some("owner", mkdir.owner.as_ref(), owner_fields)
                .number("timestamp", mkdir.timestamp)
        }),
        Some(Action::Rm(rm)) => Fields::default().some("rm", Some(rm), |rm| {
            Fields::default()
                .text("path", &rm.path)
                .flag("allowNotFound", rm.allow_not_found)
                .flag("allowWildcard", rm.allow_wildcard)
        }),
        Some(Action::Symlink(link)) => Fields::default().some("symlink", Some(link), |link| {
            Fields::default()
                .text("oldpath", &link.oldpath)
                .text("newpath", &link.newpath)
                .some("owner", link.owner.as_ref(), owner_fields)
                .number("timestamp", link.timestamp)
        }),
    };
    Fields::default()
        .always("input", action.input)
        .always("secondaryInput", action.secondary_input)
        .always("output", action.output)
        .always("Action", kind.value())
}

fn copy_fields(copy: &pb::FileActionCopy) -> Fields {
    Fields::default()
        .text("src", &copy.src)
        .text("dest", &copy.dest)
        .some("owner", copy.owner.as_ref(), owner_fields)
        .number("mode", copy.mode)
        .flag("followSymlink", copy.follow_symlink)
        .flag("dirCopyContents", copy.dir_copy_contents)
        .flag("attemptUnpackDockerCompatibility", copy.attempt_unpack_docker_compatibility)
        .flag("createDestPath", copy.create_dest_path)
        .flag("allowWildcard", copy.allow_wildcard)
        .flag("allowEmptyWildcard", copy.allow_empty_wildcard)
        .number("timestamp", copy.timestamp)
        .texts("include_patterns", &copy.include_patterns)
        .texts("exclude_patterns", &copy.exclude_patterns)
        .flag("alwaysReplaceExistingDestPaths", copy.always_replace_existing_dest_paths)
        .text("modeStr", &copy.mode_str)
        .texts("required_paths", &copy.required_paths)
}

fn owner_fields(owner: &pb::ChownOpt) -> Fields {
    let user = |option: &pb::UserOpt| {
        let user = match &option.user {
            Some(User::ByName(named)) => Fields::default().some("byName", Some(named), |named| {
                Fields::default().text("name", &named.name).number("input", named.input)
            }),
            Some(User::ById(id)) => Fields::default().number("byId", *id),
            None => Fields::default(),
        };
        Fields::default().always("User", user.value())
    };
    Fields::default().some("user", owner.user.as_ref(), user).some("group", owner.group.as_ref(), user)
}

fn metadata(metadata: &pb::OpMetadata) -> Value {
    let (metadata, limits) = resources::shown(metadata);
    let group = |group: &pb::ProgressGroup| {
        Fields::default().text("id", &group.id).text("name", &group.name).flag("weak", group.weak)
    };
    Fields::default()
        .flag("ignore_cache", metadata.ignore_cache)
        .map("description", &metadata.description)
        .some("export_cache", metadata.export_cache.as_ref(), |cache| Fields::default().flag("Value", cache.value))
        .map("caps", &metadata.caps)
        .some("progress_group", metadata.progress_group.as_ref(), group)
        .filled("linux_resources", limits.is_some(), limits)
        .value()
}
