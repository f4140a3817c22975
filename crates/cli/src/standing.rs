//! As whom forge works: root, or root of a namespace that an ordinary user can have. The one place that decides it.

use crate::args::Command;
use forge_engine::{EngineError, Footing, NamespaceIds};

/// What the user turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Root that may do everything.
    Root,
    /// Root of a container that lacks a right, and is root of this process's namespace instead.
    Contained {
        /// The right.
        lacking: String,
    },
    /// Root of a container that may not even have a namespace.
    ChangedRoot {
        /// What root lacks.
        lacking: String,
        /// Why there is no namespace.
        refused: String,
    },
    /// Somebody for whose command it does not matter.
    User,
    /// An ordinary user, who is root of this process's namespace by now.
    Namespace(NamespaceIds),
}

impl Standing {
    /// Finds out, and enters the namespace where the command needs one, which one that a daemon does not. No thread may have been
    /// started.
    ///
    /// # Errors
    /// The user can have no such namespace.
    pub fn establish(command: &Command, is_elsewhere: bool) -> Result<Self, EngineError> {
        // These use no store.
        let needs_none = matches!(command, Command::Version(_) | Command::Login(_) | Command::Logout(_));
        if needs_none || is_elsewhere {
            return Ok(if rustix::process::geteuid().is_root() { Self::Root } else { Self::User });
        }
        forge_engine::find_footing().map(|footing| match footing {
            Footing::Root => Self::Root,
            Footing::Namespace { lacking: Some(lacking), .. } => Self::Contained { lacking },
            Footing::Namespace { ids, lacking: None } => Self::Namespace(ids),
            Footing::ChangedRoot { lacking, refused } => Self::ChangedRoot { lacking, refused },
        })
    }

    /// Whether files are where they are for root.
    pub fn is_root(&self) -> bool {
        matches!(self, Self::Root | Self::Contained { .. } | Self::ChangedRoot { .. })
    }

    /// What the user should know before a command that makes or runs files of many owners.
    pub fn note(&self, command: &Command) -> Option<String> {
        let concerned = matches!(
            command,
            Command::Build(_) | Command::Plan(_) | Command::Run(_) | Command::Pull(_) | Command::Load(_)
        );
        match self {
            Self::Contained { lacking } if concerned => Some(format!(
                "forge: root here has not {lacking}: containers are made in a user namespace with the same ids"
            )),
            Self::ChangedRoot { lacking, refused } if concerned => Some(format!(
                "forge: root here has not {lacking}, and there are no user namespaces ({refused}): steps run in a changed root, with \
                 the network and the processes of this container, an empty /proc and no limits"
            )),
            Self::Namespace(NamespaceIds::Single { reason }) if concerned => Some(format!(
                "forge: only your own user id is mapped ({reason}): everything in containers belongs to root there, and \
                 nothing can be given to other users"
            )),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Cli;

    #[test]
    fn one_id_is_told_to_those_whom_it_concerns() {
        let command = |line: &str| Cli::read(line.split(' ').map(Into::into)).unwrap().command;
        let single = Standing::Namespace(NamespaceIds::Single { reason: "no helper".into() });
        assert!(single.note(&command("forge build .")).unwrap().contains("(no helper)"));
        assert_eq!(single.note(&command("forge images")), None);
        assert_eq!(Standing::Namespace(NamespaceIds::Subordinate).note(&command("forge build .")), None);
        let contained = Standing::Contained { lacking: "CAP_SYS_ADMIN".into() };
        assert!(contained.note(&command("forge build .")).unwrap().contains("has not CAP_SYS_ADMIN"));
        assert!(Standing::Root.is_root() && contained.is_root() && !single.is_root());
    }
}
