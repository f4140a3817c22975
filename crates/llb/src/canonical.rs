//! Canonical bytes: what a vertex's digest is the hash of.
//!
//! Layout: a tag byte for each kind, numbers as 8 bytes little endian, texts and lists behind their length, an
//! option behind a byte 0 or 1, fields in the order in which this file writes them. Changing anything here
//! changes every vertex digest; [`VERSION`] is then raised, and the golden tests show it.

use crate::*;
use forge_image::Platform;

/// The version of the encoding.
const VERSION: u64 = 2;

/// Writes values of fixed shape.
#[derive(Default)]
struct Encoder(Vec<u8>);

impl Encoder {
    fn tag(&mut self, tag: u8) {
        self.0.push(tag);
    }
    fn number(&mut self, value: u64) {
        self.0.extend(value.to_le_bytes());
    }
    fn bytes(&mut self, value: &[u8]) {
        self.number(value.len() as u64);
        self.0.extend(value);
    }
    fn text(&mut self, value: &str) {
        self.bytes(value.as_bytes());
    }
    fn flag(&mut self, value: bool) {
        self.tag(u8::from(value));
    }
    fn texts(&mut self, values: &[String]) {
        self.list(values, |encoder, value| encoder.text(value));
    }
    fn list<T>(&mut self, values: &[T], mut write: impl FnMut(&mut Self, &T)) {
        self.number(values.len() as u64);
        values.iter().for_each(|value| write(self, value));
    }
    fn option<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) {
        self.flag(value.is_some());
        if let Some(value) = value {
            write(self, value);
        }
    }
}

impl Vertex {
    /// The bytes that identify the vertex: op, platform and inputs, without [`Metadata`].
    pub fn canonical_bytes(&self) -> Vec<u8> {
        let mut encoder = Encoder::default();
        encoder.number(VERSION);
        encode_op(&mut encoder, &self.op);
        encoder.option(self.platform.as_ref(), encode_platform);
        encoder.list(&self.inputs, |encoder, edge| {
            encoder.text(edge.vertex.digest().as_str());
            encoder.number(edge.output as u64);
        });
        encoder.0
    }
}

impl Op {
    /// The op alone, without platform and inputs: the part of a cache key that the op contributes.
    pub fn canonical_bytes(&self) -> Vec<u8> {
        let mut encoder = Encoder::default();
        encoder.number(VERSION);
        encode_op(&mut encoder, self);
        encoder.0
    }
}

fn encode_platform(encoder: &mut Encoder, platform: &Platform) {
    encoder.text(&platform.to_string());
    encoder.option(platform.os_version.as_deref(), Encoder::text);
    encoder.texts(&platform.os_features);
}

fn encode_op(encoder: &mut Encoder, op: &Op) {
    match op {
        Op::Source(source) => encode_source(encoder, source),
        Op::Exec(exec) => encode_exec(encoder, exec),
        Op::File(file) => {
            encoder.tag(b'F');
            encoder.list(&file.actions, encode_action);
        }
        Op::Merge => encoder.tag(b'M'),
        Op::Passthrough(PassthroughOp { id, outputs }) => {
            encoder.tag(b'P');
            encoder.text(id);
            encoder.list(outputs, |encoder, index| encoder.number(*index as u64));
        }
        Op::Diff(DiffOp { lower, upper }) => {
            encoder.tag(b'D');
            encoder.option(*lower, |encoder, index| encoder.number(index as u64));
            encoder.option(*upper, |encoder, index| encoder.number(index as u64));
        }
    }
}

fn encode_source(encoder: &mut Encoder, source: &SourceOp) {
    match source {
        SourceOp::Image(ImageSource { reference, pinned, resolve, checksum, layer_limit }) => {
            encoder.tag(b'I');
            encoder.text(&reference.to_string());
            encoder.option(pinned.as_ref(), |encoder, digest| encoder.text(digest.as_str()));
            encoder.flag(*resolve == ResolveMode::ForcePull);
            // Those that have neither are known as before there were any.
            if checksum.is_some() || layer_limit.is_some() {
                encoder.option(checksum.as_ref(), |encoder, digest| encoder.text(digest.as_str()));
                encoder.option(*layer_limit, |encoder, limit| encoder.number(limit as u64));
            }
        }
        SourceOp::Local(LocalSource { name, include, exclude, follow, metadata_only, compare }) => {
            encoder.tag(b'L');
            encoder.text(name);
            encoder.texts(include);
            encoder.texts(exclude);
            let is_plain = follow.is_empty() && metadata_only.is_none() && *compare == CompareFiles::Metadata;
            // Those that have none of them are known as before there were any.
            if !is_plain {
                encoder.texts(follow);
                encoder.option(metadata_only.as_ref(), |encoder, patterns| encoder.texts(patterns));
                encoder.flag(*compare == CompareFiles::Never);
            }
        }
        SourceOp::OciLayout(OciLayoutSource { name, tag, digest }) => {
            encoder.tag(b'O');
            encoder.text(name);
            encoder.option(tag.as_deref(), Encoder::text);
            encoder.option(digest.as_ref(), |encoder, digest| encoder.text(digest.as_str()));
        }
        SourceOp::Git(git) => encode_git(encoder, git),
        SourceOp::Http(http) => encode_http(encoder, http),
        SourceOp::Blob(BlobSource { reference, digest, layout, filename, mode, owner }) => {
            encoder.tag(b'B');
            encoder.text(&reference.to_string());
            encoder.text(digest.as_str());
            encoder.option(layout.as_deref(), Encoder::text);
            encoder.option(filename.as_deref(), Encoder::text);
            encoder.option(*mode, |encoder, mode| encoder.number(mode.into()));
            encoder.option(*owner, |encoder, (uid, gid)| {
                encoder.number(uid.into());
                encoder.number(gid.into());
            });
        }
    }
}

fn encode_git(encoder: &mut Encoder, git: &GitSource) {
    encoder.tag(b'G');
    encoder.text(&git.remote);
    encoder.option(git.reference.as_deref(), Encoder::text);
    encoder.text(&git.subdir);
    encoder.option(git.checksum.as_deref(), Encoder::text);
    encoder.flag(git.keep_git_dir);
    encoder.flag(git.skip_submodules);
    encoder.flag(git.mtime == GitMtime::Commit);
    encoder.flag(git.fetch_by_commit);
    encoder.option(git.auth_token_secret.as_deref(), Encoder::text);
    encoder.option(git.auth_header_secret.as_deref(), Encoder::text);
    encoder.option(git.ssh.as_deref(), Encoder::text);
    encoder.option(git.known_hosts.as_deref(), Encoder::text);
    // Written only where there is something to say, so that the others keep their digests.
    if git.bundle.is_some() || git.form != GitForm::Files {
        encoder.flag(git.form == GitForm::Bundle);
        encoder.option(git.bundle.as_deref(), |encoder, blob| {
            encoder.text(&blob.reference.to_string());
            encoder.option(blob.layout.as_deref(), Encoder::text);
        });
    }
}

fn encode_http(encoder: &mut Encoder, http: &HttpSource) {
    encoder.tag(b'H');
    encoder.text(&http.url);
    encoder.option(http.checksum.as_ref(), |encoder, digest| encoder.text(digest.as_str()));
    encoder.option(http.filename.as_deref(), Encoder::text);
    encoder.option(http.mode, |encoder, mode| encoder.number(mode.into()));
    encoder.option(http.owner, |encoder, (uid, gid)| {
        encoder.number(uid.into());
        encoder.number(gid.into());
    });
    encoder.option(http.auth_header_secret.as_deref(), Encoder::text);
    // Written only where there are some, so that the others keep their digests.
    for (name, value) in &http.headers {
        encoder.text(name);
        encoder.text(value);
    }
}

fn encode_exec(encoder: &mut Encoder, exec: &ExecOp) {
    encoder.tag(b'E');
    encoder.texts(&exec.args);
    encoder.texts(&exec.env);
    encoder.text(&exec.cwd);
    encoder.text(&exec.user);
    encoder.list(&exec.mounts, encode_mount);
    encoder.tag(match exec.network {
        NetworkMode::Default => 0,
        NetworkMode::Host => 1,
        NetworkMode::None => 2,
    });
    encoder.flag(exec.security == SecurityMode::Insecure);
    encoder.text(&exec.hostname);
    encoder.list(&exec.extra_hosts, |encoder, extra| encoder.text(&extra.host));
    encoder.list(&exec.secret_env, |encoder, secret| {
        encoder.text(&secret.id);
        encoder.text(&secret.name);
        encoder.flag(secret.optional);
    });
    encoder.list(&exec.ulimits, |encoder, limit| {
        encoder.text(&limit.name);
        encoder.number(limit.soft.cast_unsigned());
        encoder.number(limit.hard.cast_unsigned());
    });
    encoder.list(&exec.devices, |encoder, device| {
        encoder.text(&device.name);
        encoder.flag(device.optional);
    });
    encoder.list(&exec.valid_exit_codes, |encoder, code| encoder.number(i64::from(*code).cast_unsigned()));
    encoder.flag(exec.remove_mount_stubs);
}

fn encode_mount(encoder: &mut Encoder, mount: &ExecMount) {
    encoder.text(&mount.target);
    encoder.option(mount.input, |encoder, input| encoder.number(input as u64));
    encoder.text(&mount.selector);
    encoder.option(mount.output, |encoder, output| encoder.number(output as u64));
    encoder.flag(mount.readonly);
    match &mount.kind {
        MountKind::Bind => encoder.tag(b'B'),
        MountKind::Tmpfs { size } => {
            encoder.tag(b'T');
            encoder.option(*size, Encoder::number);
        }
        MountKind::Cache { id, sharing } => {
            encoder.tag(b'C');
            encoder.text(id);
            encoder.tag(match sharing {
                CacheSharing::Shared => 0,
                CacheSharing::Private => 1,
                CacheSharing::Locked => 2,
            });
        }
        MountKind::Secret(secret) => {
            encoder.tag(b'S');
            encode_secret(encoder, secret);
        }
        MountKind::Ssh(agent) => {
            encoder.tag(b'A');
            encode_secret(encoder, agent);
        }
    }
}

fn encode_secret(encoder: &mut Encoder, secret: &SecretMount) {
    encoder.text(&secret.id);
    encoder.number(secret.uid.into());
    encoder.number(secret.gid.into());
    encoder.number(secret.mode.into());
    encoder.flag(secret.optional);
}

fn encode_input(encoder: &mut Encoder, input: FileInput) {
    match input {
        FileInput::Scratch => encoder.tag(b's'),
        FileInput::Input(index) => {
            encoder.tag(b'i');
            encoder.number(index as u64);
        }
        FileInput::Action(index) => {
            encoder.tag(b'a');
            encoder.number(index as u64);
        }
    }
}

fn encode_action(encoder: &mut Encoder, action: &FileAction) {
    encode_input(encoder, action.base);
    match &action.kind {
        FileKind::Copy(copy) => encode_copy(encoder, copy),
        FileKind::Mkdir(mkdir) => {
            encoder.tag(b'd');
            encoder.text(&mkdir.path);
            encoder.number(mkdir.mode.into());
            encoder.flag(mkdir.make_parents);
            encoder.option(mkdir.owner.as_ref(), encode_owner);
            encoder.option(mkdir.timestamp, |encoder, time| encoder.number(time.cast_unsigned()));
        }
        FileKind::Mkfile(mkfile) => {
            encoder.tag(b'f');
            encoder.text(&mkfile.path);
            encoder.number(mkfile.mode.into());
            encoder.bytes(&mkfile.data);
            encoder.option(mkfile.owner.as_ref(), encode_owner);
            encoder.option(mkfile.timestamp, |encoder, time| encoder.number(time.cast_unsigned()));
        }
        FileKind::Rm(rm) => {
            encoder.tag(b'r');
            encoder.text(&rm.path);
            encoder.flag(rm.allow_not_found);
            encoder.flag(rm.allow_wildcard);
        }
        FileKind::Symlink(link) => {
            encoder.tag(b'l');
            encoder.text(&link.target);
            encoder.text(&link.path);
            encoder.option(link.owner.as_ref(), encode_owner);
            encoder.option(link.timestamp, |encoder, time| encoder.number(time.cast_unsigned()));
        }
    }
}

fn encode_copy(encoder: &mut Encoder, copy: &CopyAction) {
    encoder.tag(b'c');
    encode_input(encoder, copy.from);
    encoder.texts(&copy.sources);
    encoder.text(&copy.destination);
    encoder.option(copy.owner.as_ref(), encode_owner);
    encoder.option(copy.mode.as_ref(), |encoder, mode| match mode {
        ModeChange::Octal(bits) => {
            encoder.tag(b'o');
            encoder.number((*bits).into());
        }
        ModeChange::Symbolic(text) => {
            encoder.tag(b'y');
            encoder.text(text);
        }
    });
    encoder.flag(copy.allow_wildcard);
    encoder.flag(copy.unpack_archives);
    encoder.texts(&copy.include);
    encoder.texts(&copy.exclude);
    encoder.texts(&copy.required);
    encoder.option(copy.timestamp, |encoder, time| encoder.number(time.cast_unsigned()));
    for choice in [copy.follow_links, copy.contents_only, copy.make_parents, copy.allow_empty_wildcard, copy.replace] {
        encoder.flag(choice);
    }
}

fn encode_owner(encoder: &mut Encoder, owner: &Owner) {
    encoder.text(&owner.user);
    encoder.option(owner.group.as_deref(), Encoder::text);
}
