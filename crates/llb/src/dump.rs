//! The text form of a graph: one vertex a paragraph, numbered in order, for tests and `forge debug llb`.

use crate::*;
use std::collections::HashMap;
use std::fmt::{self, Write as _};

impl fmt::Display for Graph {
    /// Prints every vertex as `#N op …`, its inputs as `#M` or `#M.output`, and the goal last.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers: HashMap<&VertexDigest, usize> =
            self.named().enumerate().map(|(number, (digest, _))| (digest, number)).collect();
        let edge = |edge: &Edge| match edge.output {
            0 => format!("#{}", numbers[&edge.vertex]),
            output => format!("#{}.{output}", numbers[&edge.vertex]),
        };
        for (number, vertex) in self.vertices().iter().enumerate() {
            let inputs: Vec<String> = vertex.inputs.iter().map(edge).collect();
            write!(f, "#{number}")?;
            if let Some(platform) = &vertex.platform {
                write!(f, " {platform}")?;
            }
            writeln!(f, " {:?}{}", vertex.metadata.name, if vertex.metadata.ignore_cache { " no-cache" } else { "" })?;
            f.write_str(&indented(&dump_op(&vertex.op, &inputs)))?;
        }
        match self.goal() {
            Some(goal) => writeln!(f, "goal {}", edge(goal)),
            None => writeln!(f, "goal scratch"),
        }
    }
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}

fn dump_op(op: &Op, inputs: &[String]) -> String {
    match op {
        Op::Source(source) => dump_source(source),
        Op::Exec(exec) => dump_exec(exec, inputs),
        Op::File(file) => file.actions.iter().map(|action| dump_action(action, inputs)).collect(),
        Op::Merge => format!("merge {}", inputs.join(" ")),
        Op::Passthrough(passthrough) => {
            format!("passthrough {} {:?} of {}", passthrough.id, passthrough.outputs, inputs.join(" "))
        }
        Op::Diff(DiffOp { lower, upper }) => {
            let side = |index: &Option<usize>| index.map_or("scratch".to_owned(), |index| inputs[index].clone());
            format!("diff {} to {}", side(lower), side(upper))
        }
    }
}

fn dump_source(source: &SourceOp) -> String {
    match source {
        SourceOp::Image(image) => {
            let pinned = image.pinned.as_ref().map(|digest| format!(" pinned {digest}")).unwrap_or_default();
            let pull = if image.resolve == ResolveMode::ForcePull { " pull" } else { "" };
            let checksum = image.checksum.as_ref().map(|digest| format!(" checksum {digest}")).unwrap_or_default();
            let limit = image.layer_limit.map(|limit| format!(" layers {limit}")).unwrap_or_default();
            format!("image {}{pinned}{pull}{checksum}{limit}", image.reference)
        }
        SourceOp::Local(local) => {
            let mut text = format!("local {}", local.name);
            for (what, patterns) in [("include", &local.include), ("exclude", &local.exclude)] {
                if !patterns.is_empty() {
                    _ = write!(text, " {what} {patterns:?}");
                }
            }
            text
        }
        SourceOp::Git(git) => dump_git(git),
        SourceOp::Http(http) => dump_http(http),
        SourceOp::Blob(blob) => {
            let layout = blob.layout.as_ref().map(|layout| format!(" layout {layout}")).unwrap_or_default();
            let name = blob.filename.as_ref().map(|name| format!(" name {name}")).unwrap_or_default();
            format!("blob {}{layout}{name}", blob.reference)
        }
        SourceOp::OciLayout(layout) => format!(
            "oci-layout {} tag {:?} digest {:?}",
            layout.name,
            layout.tag,
            layout.digest.as_ref().map(ToString::to_string)
        ),
    }
}

fn dump_git(git: &GitSource) -> String {
    let mut text = format!("git {}", git.remote);
    let named = [("ref", &git.reference), ("checksum", &git.checksum), ("ssh", &git.ssh)];
    for (name, value) in named.into_iter().filter_map(|(name, value)| Some((name, value.as_ref()?))) {
        _ = write!(text, " {name} {value}");
    }
    if !git.subdir.is_empty() {
        _ = write!(text, " subdir {}", git.subdir);
    }
    let flags = [
        ("keep-git-dir", git.keep_git_dir),
        ("skip-submodules", git.skip_submodules),
        ("commit-times", git.mtime == GitMtime::Commit),
        ("fetch-by-commit", git.fetch_by_commit),
        ("from-bundle", git.bundle.is_some()),
        ("as-bundle", git.form == GitForm::Bundle),
    ];
    flags.iter().filter(|(_, on)| *on).for_each(|(name, _)| _ = write!(text, " {name}"));
    text
}

fn dump_http(http: &HttpSource) -> String {
    let mut text = format!("http {}", http.url);
    let checksum = http.checksum.as_ref().map(ToString::to_string);
    let mode = http.mode.map(|mode| format!("{mode:04o}"));
    let owner = http.owner.map(|(uid, gid)| format!("{uid}:{gid}"));
    let named = [("checksum", checksum), ("name", http.filename.clone()), ("mode", mode), ("owner", owner)];
    for (name, value) in named.into_iter().filter_map(|(name, value)| Some((name, value?))) {
        _ = write!(text, " {name} {value}");
    }
    for (name, value) in &http.headers {
        _ = write!(text, " {name} {value:?}");
    }
    text
}

fn dump_exec(exec: &ExecOp, inputs: &[String]) -> String {
    let mut text = format!("exec {:?}\n", exec.args);
    let mut line = |name: &str, shown: bool, value: String| {
        if shown {
            _ = writeln!(text, "{name} {value}");
        }
    };
    line("env", !exec.env.is_empty(), format!("{:?}", exec.env));
    line("cwd", exec.cwd != "/", exec.cwd.clone());
    line("user", !exec.user.is_empty(), exec.user.clone());
    line("network", exec.network != NetworkMode::Default, format!("{:?}", exec.network));
    line("security", exec.security != SecurityMode::Sandbox, format!("{:?}", exec.security));
    line("hostname", !exec.hostname.is_empty(), exec.hostname.clone());
    line("extra-hosts", !exec.extra_hosts.is_empty(), format!("{:?}", exec.extra_hosts));
    line("secret-env", !exec.secret_env.is_empty(), format!("{:?}", exec.secret_env));
    line("ulimits", !exec.ulimits.is_empty(), format!("{:?}", exec.ulimits));
    line("cgroup-parent", !exec.cgroup_parent.is_empty(), exec.cgroup_parent.clone());
    line("devices", !exec.devices.is_empty(), format!("{:?}", exec.devices));
    line("valid-exit-codes", !exec.valid_exit_codes.is_empty(), format!("{:?}", exec.valid_exit_codes));
    line("remove-mount-stubs", exec.remove_mount_stubs, String::new());
    for mount in &exec.mounts {
        let from = mount.input.map_or("scratch".to_owned(), |input| inputs[input].clone());
        let kind = match &mount.kind {
            MountKind::Bind => String::new(),
            MountKind::Tmpfs { size } => format!(" tmpfs {size:?}"),
            MountKind::Cache { id, sharing } => format!(" cache {id:?} {sharing:?}"),
            MountKind::Secret(secret) => format!(" secret{}", dump_secret(secret)),
            MountKind::Ssh(agent) => format!(" ssh{}", dump_secret(agent)),
        };
        let output = mount.output.map(|output| format!(" -> {output}")).unwrap_or_default();
        let readonly = if mount.readonly { " ro" } else { "" };
        line("mount", true, format!("{} from {from}{}{kind}{readonly}{output}", mount.target, mount.selector));
    }
    text
}

fn dump_secret(secret: &SecretMount) -> String {
    let optional = if secret.optional { " optional" } else { "" };
    format!(" {:?} {}:{} mode {:04o}{optional}", secret.id, secret.uid, secret.gid, secret.mode)
}

fn dump_input(input: FileInput, inputs: &[String]) -> String {
    match input {
        FileInput::Scratch => "scratch".to_owned(),
        FileInput::Input(index) => inputs[index].clone(),
        FileInput::Action(index) => format!("action {index}"),
    }
}

fn dump_action(action: &FileAction, inputs: &[String]) -> String {
    let base = dump_input(action.base, inputs);
    match &action.kind {
        FileKind::Copy(copy) => dump_copy(copy, &base, inputs),
        FileKind::Mkdir(mkdir) => format!(
            "mkdir on {base}: {} mode {:04o}{}{}\n",
            mkdir.path,
            mkdir.mode,
            if mkdir.make_parents { " parents" } else { "" },
            dump_owner(mkdir.owner.as_ref())
        ),
        FileKind::Mkfile(mkfile) => format!(
            "mkfile on {base}: {} mode {:04o}{} {:?}\n",
            mkfile.path,
            mkfile.mode,
            dump_owner(mkfile.owner.as_ref()),
            String::from_utf8_lossy(&mkfile.data)
        ),
        FileKind::Rm(rm) => format!(
            "rm on {base}: {}{}{}\n",
            rm.path,
            if rm.allow_wildcard { " wildcard" } else { "" },
            if rm.allow_not_found { " maybe" } else { "" }
        ),
        FileKind::Symlink(link) => {
            format!("symlink on {base}: {} -> {:?}{}\n", link.path, link.target, dump_owner(link.owner.as_ref()))
        }
    }
}

fn dump_copy(copy: &CopyAction, base: &str, inputs: &[String]) -> String {
    let mut text = format!(
        "copy on {base}: {} {:?} -> {:?}{}",
        dump_input(copy.from, inputs),
        copy.sources,
        copy.destination,
        dump_owner(copy.owner.as_ref())
    );
    match &copy.mode {
        Some(ModeChange::Octal(bits)) => _ = write!(text, " mode {bits:04o}"),
        Some(ModeChange::Symbolic(change)) => _ = write!(text, " mode {change}"),
        None => {}
    }
    if copy.allow_wildcard {
        text += " wildcard";
    }
    if copy.unpack_archives {
        text += " unpack";
    }
    for (what, list) in [("include", &copy.include), ("exclude", &copy.exclude), ("required", &copy.required)] {
        if !list.is_empty() {
            _ = write!(text, " {what} {list:?}");
        }
    }
    let unusual = [
        ("link-itself", !copy.follow_links),
        ("folder-itself", !copy.contents_only),
        ("no-parents", !copy.make_parents),
        ("some-match", copy.allow_wildcard && !copy.allow_empty_wildcard),
        ("replace", copy.replace),
    ];
    unusual.iter().filter(|(_, on)| *on).for_each(|(name, _)| _ = write!(text, " {name}"));
    if let Some(timestamp) = copy.timestamp {
        _ = write!(text, " time {timestamp}");
    }
    text + "\n"
}

fn dump_owner(owner: Option<&Owner>) -> String {
    match owner {
        Some(Owner { user, group: Some(group) }) => format!(" owner {user}:{group}"),
        Some(Owner { user, group: None }) => format!(" owner {user}"),
        None => String::new(),
    }
}
