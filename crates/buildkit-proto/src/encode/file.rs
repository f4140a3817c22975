use super::{EncodeError, Encoded};
use crate::{capabilities as cap, pb};
use forge_llb::{CopyAction, FileAction, FileInput, FileKind, FileOp, ModeChange, Owner, Vertex};
use pb::file_action::Action;
use std::collections::BTreeSet;

/// Actions of a file op. A copy of several sources becomes one action for each, so positions differ.
struct Writer<'a> {
    vertex: &'a Vertex,
    actions: Vec<pb::FileAction>,
    /// At which position the last part of each of the op's own actions stands.
    positions: Vec<usize>,
    /// The input that each of the op's own actions changes in the end, for owners by name.
    roots: Vec<i64>,
    needs: BTreeSet<&'static str>,
}

pub fn encode(file: &FileOp, vertex: &Vertex) -> Result<Encoded, EncodeError> {
    let needs = [cap::FILE_BASE].into();
    let mut writer = Writer { vertex, actions: vec![], positions: vec![], roots: vec![], needs };
    for action in &file.actions {
        writer.action(action)?;
    }
    if let Some(last) = writer.actions.last_mut() {
        last.output = 0;
    }
    Ok(Encoded { op: pb::op::Op::File(pb::FileOp { actions: writer.actions }), needs: writer.needs })
}

impl Writer<'_> {
    fn action(&mut self, action: &FileAction) -> Result<(), EncodeError> {
        let base = self.index(action.base);
        let root = match action.base {
            FileInput::Action(earlier) => self.roots[earlier],
            _ => base,
        };
        match &action.kind {
            FileKind::Copy(copy) => self.copy(copy, base, root)?,
            FileKind::Mkdir(mkdir) => {
                let encoded = pb::FileActionMkDir {
                    path: mkdir.path.clone(),
                    mode: mkdir.mode.cast_signed(),
                    make_parents: mkdir.make_parents,
                    owner: encode_owner(mkdir.owner.as_ref(), root),
                    timestamp: self.nanoseconds(mkdir.timestamp)?,
                };
                self.push(base, -1, Action::Mkdir(encoded));
            }
            FileKind::Mkfile(mkfile) => {
                let encoded = pb::FileActionMkFile {
                    path: mkfile.path.clone(),
                    mode: mkfile.mode.cast_signed(),
                    data: mkfile.data.clone(),
                    owner: encode_owner(mkfile.owner.as_ref(), root),
                    timestamp: self.nanoseconds(mkfile.timestamp)?,
                };
                self.push(base, -1, Action::Mkfile(encoded));
            }
            FileKind::Rm(rm) => {
                let (path, allow_not_found, allow_wildcard) = (rm.path.clone(), rm.allow_not_found, rm.allow_wildcard);
                self.need(cap::FILE_RM_WILDCARD, allow_wildcard);
                self.push(base, -1, Action::Rm(pb::FileActionRm { path, allow_not_found, allow_wildcard }));
            }
            FileKind::Symlink(link) => {
                let encoded = pb::FileActionSymlink {
                    oldpath: link.target.clone(),
                    newpath: link.path.clone(),
                    owner: encode_owner(link.owner.as_ref(), root),
                    timestamp: self.nanoseconds(link.timestamp)?,
                };
                self.need(cap::FILE_SYMLINK, true);
                self.push(base, -1, Action::Symlink(encoded));
            }
        }
        self.positions.push(self.actions.len() - 1);
        self.roots.push(root);
        Ok(())
    }

    fn copy(&mut self, copy: &CopyAction, base: i64, root: i64) -> Result<(), EncodeError> {
        self.need(cap::FILE_COPY_PATTERNS, !copy.include.is_empty() || !copy.exclude.is_empty());
        self.need(cap::FILE_COPY_REQUIRED, !copy.required.is_empty());
        self.need(cap::FILE_COPY_REPLACE, copy.replace);
        // Not FILE_COPY_MODE_TEXT: BuildKit has modes as text but forgot to list the capability, and would refuse it.
        let from = self.index(copy.from);
        let timestamp = self.nanoseconds(copy.timestamp)?;
        if copy.sources.is_empty() {
            return Err(EncodeError::NoSource { vertex: self.vertex.metadata.name.clone() });
        }
        let mut base = base;
        for source in &copy.sources {
            let encoded = encode_copy(copy, source, encode_owner(copy.owner.as_ref(), root), timestamp);
            self.push(base, from, Action::Copy(encoded));
            base = (self.vertex.inputs.len() + self.actions.len() - 1) as i64;
        }
        Ok(())
    }

    fn need(&mut self, need: &'static str, needed: bool) {
        if needed {
            self.needs.insert(need);
        }
    }

    fn push(&mut self, input: i64, secondary_input: i64, action: Action) {
        self.actions.push(pb::FileAction { input, secondary_input, output: -1, action: Some(action) });
    }

    /// Inputs come first, then actions.
    fn index(&self, input: FileInput) -> i64 {
        match input {
            FileInput::Scratch => -1,
            FileInput::Input(index) => index as i64,
            FileInput::Action(earlier) => (self.vertex.inputs.len() + self.positions[earlier]) as i64,
        }
    }

    fn nanoseconds(&self, seconds: Option<i64>) -> Result<i64, EncodeError> {
        let Some(seconds) = seconds else { return Ok(-1) };
        let failed = || EncodeError::Time { vertex: self.vertex.metadata.name.clone(), seconds };
        seconds.checked_mul(1_000_000_000).ok_or_else(failed)
    }
}

fn encode_copy(copy: &CopyAction, source: &str, owner: Option<pb::ChownOpt>, timestamp: i64) -> pb::FileActionCopy {
    let (mode, mode_str) = match &copy.mode {
        None => (-1, String::new()),
        Some(ModeChange::Octal(bits)) => (bits.cast_signed(), String::new()),
        Some(ModeChange::Symbolic(change)) => (0, change.clone()),
    };
    let mut dest = copy.destination.clone();
    if copy.sources.len() > 1 && !dest.ends_with('/') {
        // Several sources go into a folder, which one alone would not.
        dest.push('/');
    }
    pb::FileActionCopy {
        src: source.to_owned(),
        dest,
        owner,
        mode,
        follow_symlink: copy.follow_links,
        dir_copy_contents: copy.contents_only,
        attempt_unpack_docker_compatibility: copy.unpack_archives,
        create_dest_path: copy.make_parents,
        allow_wildcard: copy.allow_wildcard,
        allow_empty_wildcard: copy.allow_empty_wildcard,
        timestamp,
        include_patterns: copy.include.clone(),
        exclude_patterns: copy.exclude.clone(),
        always_replace_existing_dest_paths: copy.replace,
        mode_str,
        // Below the source here, below the root there.
        required_paths: copy.required.iter().map(|path| below(source, path)).collect(),
    }
}

fn below(source: &str, path: &str) -> String {
    format!("{}/{}", source.trim_end_matches('/'), path.trim_start_matches('/'))
}

fn encode_owner(owner: Option<&Owner>, input: i64) -> Option<pb::ChownOpt> {
    let user = |text: &str| pb::UserOpt {
        user: Some(match text.parse() {
            Ok(id) => pb::user_opt::User::ById(id),
            Err(_) if text.is_empty() => pb::user_opt::User::ById(0),
            Err(_) => pb::user_opt::User::ByName(pb::NamedUserOpt { name: text.to_owned(), input }),
        }),
    };
    let owner = owner?;
    Some(pb::ChownOpt { user: Some(user(&owner.user)), group: owner.group.as_deref().map(user) })
}
