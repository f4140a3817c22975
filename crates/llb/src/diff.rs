/// What turns one tree into another: the entries that are new or differ, and whiteouts for those that are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiffOp {
    /// The input that it starts from; `None` for the empty file system.
    pub lower: Option<usize>,
    /// The input that it leads to; `None` for the empty file system.
    pub upper: Option<usize>,
}
