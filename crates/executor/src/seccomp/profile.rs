//! A policy in full, as runtimes and docker's files write it.

use serde::{Deserialize, Serialize};

/// What becomes of each system call, by its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeccompProfile {
    /// What becomes of calls that no rule names.
    pub default: SeccompAction,
    /// Whether 32-bit programs may run at all.
    pub narrow: bool,
    /// For each call the first rule that names it and whose conditions hold decides.
    pub rules: Vec<SeccompRule>,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeccompRule {
    /// The calls. Names that the kernel's table lacks are passed over.
    pub names: Vec<String>,
    /// What becomes of them.
    pub action: SeccompAction,
    /// All of these have to hold.
    pub conditions: Vec<SeccompCondition>,
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SeccompAction {
    /// It is made.
    Allow,
    /// It is made and noted in the kernel's log.
    Log,
    /// It fails with this error number.
    Errno(u16),
    /// SIGSYS.
    Trap,
    /// The thread ends.
    KillThread,
    /// The process ends.
    KillProcess,
}

/// What an argument is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeccompCondition {
    /// Which argument, from 0 to 5.
    pub argument: u8,
    /// How.
    pub comparison: SeccompComparison,
}

/// Comparisons of 64-bit numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // the argument stands on the left
pub enum SeccompComparison {
    NotEqual(u64),
    Less(u64),
    LessOrEqual(u64),
    Equal(u64),
    GreaterOrEqual(u64),
    Greater(u64),
    /// The bits of the mask are these.
    MaskedEqual {
        mask: u64,
        value: u64,
    },
}

impl SeccompCondition {
    pub(crate) fn new(argument: u8, comparison: SeccompComparison) -> Self {
        Self { argument, comparison }
    }
}
