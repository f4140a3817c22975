use crate::error::Refusal;
use crate::pb;
use forge_llb::{
    CopyAction, FileAction, FileInput, FileKind, FileOp, MkdirAction, MkfileAction, ModeChange, Owner, RmAction,
    SymlinkAction,
};
use pb::file_action::Action;

/// What is known of the actions before the one that is being read.
struct Reader {
    inputs: usize,
    /// The tree that each action changes in the end, going back to an input.
    roots: Vec<FileInput>,
}

pub fn decode(file: pb::FileOp, inputs: usize) -> Result<FileOp, Refusal> {
    let last = file.actions.len().checked_sub(1);
    let mut reader = Reader { inputs, roots: Vec::new() };
    let mut actions = Vec::new();
    for (position, action) in file.actions.into_iter().enumerate() {
        match action.output {
            0 if Some(position) == last => {}
            output if output < 0 && Some(position) != last => {}
            _ => return Refusal::unsupported("a file operation whose result is not that of its last action"),
        }
        actions.push(reader.action(action)?);
    }
    match actions.is_empty() {
        true => Refusal::malformed("a file operation without actions"),
        false => Ok(FileOp { actions }),
    }
}

impl Reader {
    fn action(&mut self, action: pb::FileAction) -> Result<FileAction, Refusal> {
        let base = self.input(action.input)?;
        let root = match base {
            FileInput::Action(earlier) => self.roots[earlier],
            other => other,
        };
        let allowed = [index(root, self.inputs), index(base, self.inputs)];
        let owner = |owner| decode_owner(owner, &allowed);
        let kind = match action.action {
            Some(Action::Copy(copy)) => FileKind::Copy(self.copy(copy, action.secondary_input, &allowed)?),
            Some(Action::Mkdir(mkdir)) => FileKind::Mkdir(MkdirAction {
                path: mkdir.path,
                mode: mode(mkdir.mode)?,
                make_parents: mkdir.make_parents,
                owner: owner(mkdir.owner)?,
                timestamp: seconds(mkdir.timestamp),
            }),
            Some(Action::Mkfile(mkfile)) => FileKind::Mkfile(MkfileAction {
                path: mkfile.path,
                mode: mode(mkfile.mode)?,
                data: mkfile.data,
                owner: owner(mkfile.owner)?,
                timestamp: seconds(mkfile.timestamp),
            }),
            Some(Action::Rm(rm)) => FileKind::Rm(RmAction {
                path: rm.path,
                allow_not_found: rm.allow_not_found,
                allow_wildcard: rm.allow_wildcard,
            }),
            Some(Action::Symlink(link)) => FileKind::Symlink(SymlinkAction {
                target: link.oldpath,
                path: link.newpath,
                owner: owner(link.owner)?,
                timestamp: seconds(link.timestamp),
            }),
            None => return Refusal::unsupported("a file action of an unknown kind"),
        };
        self.roots.push(root);
        Ok(FileAction { base, kind })
    }

    fn copy(&self, copy: pb::FileActionCopy, from: i64, owners: &[i64]) -> Result<CopyAction, Refusal> {
        let required = copy.required_paths.iter().map(|path| below(&copy.src, path)).collect::<Result<_, _>>()?;
        Ok(CopyAction {
            from: self.input(from)?,
            sources: vec![copy.src],
            destination: copy.dest,
            owner: decode_owner(copy.owner, owners)?,
            mode: copy_mode(copy.mode, copy.mode_str)?,
            allow_wildcard: copy.allow_wildcard,
            unpack_archives: copy.attempt_unpack_docker_compatibility,
            include: copy.include_patterns,
            exclude: copy.exclude_patterns,
            required,
            timestamp: seconds(copy.timestamp),
            follow_links: copy.follow_symlink,
            contents_only: copy.dir_copy_contents,
            make_parents: copy.create_dest_path,
            allow_empty_wildcard: copy.allow_empty_wildcard,
            replace: copy.always_replace_existing_dest_paths,
        })
    }

    /// Inputs are counted first, then actions; -1 is an empty tree.
    fn input(&self, index: i64) -> Result<FileInput, Refusal> {
        match usize::try_from(index) {
            Ok(input) if input < self.inputs => Ok(FileInput::Input(input)),
            Ok(action) if action - self.inputs < self.roots.len() => Ok(FileInput::Action(action - self.inputs)),
            Err(_) if index == -1 => Ok(FileInput::Scratch),
            _ => {
                Refusal::malformed(format!("a file action refers to {index}, which is neither an input nor before it"))
            }
        }
    }
}

/// The part of a required path below the source: other paths are never found.
fn below(source: &str, path: &str) -> Result<String, Refusal> {
    let rest = path.strip_prefix(source.trim_end_matches('/')).and_then(|rest| rest.strip_prefix('/'));
    match rest {
        Some(rest) if !rest.is_empty() => Ok(rest.to_owned()),
        _ => Refusal::malformed(format!("the required path {path:?} is not below {source:?}")),
    }
}

fn index(input: FileInput, inputs: usize) -> i64 {
    match input {
        FileInput::Scratch => -1,
        FileInput::Input(index) => index as i64,
        FileInput::Action(earlier) => (inputs + earlier) as i64,
    }
}

/// Permission bits; those of Go's own file modes never come over the wire.
fn mode(mode: i32) -> Result<u32, Refusal> {
    match u32::try_from(mode) {
        Ok(bits) if bits <= 0o7777 => Ok(bits),
        _ => Refusal::malformed(format!("the mode {mode} is not made of permission bits")),
    }
}

fn copy_mode(number: i32, text: String) -> Result<Option<ModeChange>, Refusal> {
    match (text.is_empty(), number) {
        (true, -1) => Ok(None),
        (true, number) => mode(number).map(|bits| Some(ModeChange::Octal(bits))),
        (false, _) => match u32::from_str_radix(&text, 8) {
            Ok(bits) if bits <= 0o7777 => Ok(Some(ModeChange::Octal(bits))),
            _ => Ok(Some(ModeChange::Symbolic(text))),
        },
    }
}

/// Nanoseconds become seconds, rounded down; -1 is no time.
fn seconds(nanoseconds: i64) -> Option<i64> {
    (nanoseconds != -1).then(|| nanoseconds.div_euclid(1_000_000_000))
}

/// An owner whose names are looked up in one of those inputs: the tree that is changed, or what it was made from.
fn decode_owner(owner: Option<pb::ChownOpt>, allowed: &[i64]) -> Result<Option<Owner>, Refusal> {
    let user = |option: Option<pb::UserOpt>| match option.and_then(|option| option.user) {
        None => Ok(None),
        Some(pb::user_opt::User::ById(id)) => Ok(Some(id.to_string())),
        Some(pb::user_opt::User::ByName(named)) if allowed.contains(&named.input) => Ok(Some(named.name)),
        Some(pb::user_opt::User::ByName(named)) => {
            Refusal::unsupported(format!("an owner {:?} looked up in another tree than the changed one", named.name))
        }
    };
    let Some(owner) = owner else { return Ok(None) };
    match (user(owner.user)?, user(owner.group)?) {
        (None, None) => Ok(None),
        (user, group) => Ok(Some(Owner { user: user.unwrap_or_else(|| "0".to_owned()), group })),
    }
}
