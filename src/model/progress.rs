//! How long work tells that it moves on; the command line decides how that looks.

/// A listener for the stages of one piece of work.
pub trait Progress: Send + Sync {
    /// A stage begins; `total` is its size in bytes or items, if known.
    fn begin(&self, stage: &str, total: Option<u64>);
    /// The current stage moved on by `amount`.
    fn advance(&self, amount: u64);
    /// The current stage ended well; `summary` is worth a line (`"1 204 packages, 812 MB"`), or empty.
    fn end(&self, summary: &str);
}

/// Nobody listens.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _stage: &str, _total: Option<u64>) {}
    fn advance(&self, _amount: u64) {}
    fn end(&self, _summary: &str) {}
}
