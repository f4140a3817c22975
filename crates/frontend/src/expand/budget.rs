use crate::Problem;
use std::cell::Cell;

/// No value of a variable, path or label comes near this (A114).
pub(crate) const MAX_VALUE: usize = 1 << 20;

/// All expansions of one Dockerfile together (A114).
const MAX_TOTAL: usize = 32 << 20;

/// Comparisons that patterns may cost altogether: a second or so.
const MAX_WORK: usize = 1 << 26;

/// What expansion may still cost. One per lowering, so that many small bombs are caught like one large one.
#[derive(Default)]
pub(crate) struct Budget {
    bytes: Cell<usize>,
    work: Cell<usize>,
}

impl Budget {
    /// Books a value.
    pub fn value(&self, length: usize) -> Result<(), Problem> {
        self.bytes.set(self.bytes.get() + length);
        match (length > MAX_VALUE, self.bytes.get() > MAX_TOTAL) {
            (true, _) => Err(Problem::TooLarge { what: "an expanded value", limit: "1 MiB" }),
            (_, true) => Err(Problem::TooLarge { what: "the sum of all expanded values", limit: "32 MiB" }),
            _ => Ok(()),
        }
    }

    /// Books comparisons.
    pub fn work(&self, steps: usize) -> Result<(), Problem> {
        self.work.set(self.work.get() + steps);
        match self.work.get() > MAX_WORK {
            true => Err(Problem::TooLarge { what: "the cost of patterns in expansions", limit: "67108864 steps" }),
            false => Ok(()),
        }
    }
}
