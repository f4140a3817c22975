use forge_cache::ResultRef;

/// What there is of a step that failed, for looking into it. It is leased for the build, as results are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedStep {
    /// What it was given, in the order of what is listed in its op: of a process its mounts, of file actions the inputs.
    pub inputs: Vec<Option<ResultRef>>,
    /// What it left: of a process each mount, of file actions the tree of each; of the action that failed the tree that it was to
    /// change.
    pub left: Vec<Option<ResultRef>>,
    /// What of it failed.
    pub part: FailedPart,
}

/// The part of a step that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailedPart {
    /// The process.
    Process,
    /// A file action, by its place.
    Action(usize),
    /// An input could not be read for the step's key, by its place.
    Key(usize),
}
