/// Hands on some of its inputs as they are, once all of them are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassthroughOp {
    /// What tells it from others of the same inputs.
    pub id: String,
    /// The input that each output is.
    pub outputs: Vec<usize>,
}
