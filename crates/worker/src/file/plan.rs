//! Which tree each action of an operation changes, and which trees must stay as an action left them.

use forge_llb::{FileInput, FileKind, FileOp};

/// Where an action begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begin {
    /// On an empty tree.
    Scratch,
    /// On an input of the vertex.
    Input(usize),
    /// On the tree of an earlier action, which nobody else needs as it is now.
    Continue(usize),
    /// On a copy of what an earlier action left.
    Frozen(usize),
}

/// What is done about an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub begin: Begin,
    /// Whether what it leaves is needed more than once, so that it must not be changed any more.
    pub freeze: bool,
}

/// Plans the actions of an operation, in their order.
pub(super) fn plan(op: &FileOp) -> Vec<Step> {
    let freeze: Vec<bool> = (0..op.actions.len()).map(|action| needs_freezing(op, action)).collect();
    let begin = |base| match base {
        FileInput::Scratch => Begin::Scratch,
        FileInput::Input(index) => Begin::Input(index),
        FileInput::Action(before) if freeze[before] => Begin::Frozen(before),
        FileInput::Action(before) => Begin::Continue(before),
    };
    op.actions.iter().zip(&freeze).map(|(action, freeze)| Step { begin: begin(action.base), freeze: *freeze }).collect()
}

/// The same with the tree of every action left as it is, for looking at each of them.
pub(super) fn apart(op: &FileOp) -> Vec<Step> {
    let begin = |base| match base {
        FileInput::Scratch => Begin::Scratch,
        FileInput::Input(index) => Begin::Input(index),
        FileInput::Action(before) => Begin::Frozen(before),
    };
    op.actions.iter().map(|action| Step { begin: begin(action.base), freeze: true }).collect()
}

/// A tree that only one action goes on with, or that is only read, can be used as it is.
fn needs_freezing(op: &FileOp, action: usize) -> bool {
    let this = FileInput::Action(action);
    let bases = op.actions.iter().filter(|other| other.base == this).count();
    let reads = op.actions.iter().filter(|other| matches!(&other.kind, FileKind::Copy(copy) if copy.from == this));
    bases > 0 && bases + reads.count() > 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use forge_llb::{CopyAction, FileAction, RmAction};

    fn rm(base: FileInput) -> FileAction {
        let rm = RmAction { path: "/x".to_owned(), allow_not_found: true, allow_wildcard: false };
        FileAction { base, kind: FileKind::Rm(rm) }
    }

    fn copy(base: FileInput, from: FileInput) -> FileAction {
        FileAction { base, kind: FileKind::Copy(CopyAction::new(from, vec!["/".to_owned()], "/")) }
    }

    fn frozen(actions: Vec<FileAction>) -> Vec<usize> {
        let steps = plan(&FileOp { actions });
        (0..steps.len()).filter(|step| steps[*step].freeze).collect()
    }

    #[test]
    fn only_what_is_needed_again_after_a_change_is_frozen() {
        use FileInput::{Action, Input, Scratch};
        assert_eq!(frozen(vec![rm(Input(0)), rm(Action(0)), rm(Action(1))]), [0; 0]);
        assert_eq!(frozen(vec![rm(Scratch), copy(Input(0), Action(0)), copy(Action(1), Action(0))]), [0; 0]);
        assert_eq!(frozen(vec![rm(Input(0)), rm(Action(0)), rm(Action(0))]), [0]);
        assert_eq!(frozen(vec![rm(Input(0)), rm(Action(0)), copy(Action(1), Action(0))]), [0]);
        assert_eq!(frozen(vec![rm(Input(0)), copy(Action(0), Action(0))]), [0]);
    }
}
