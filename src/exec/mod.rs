//! Runs plans against engines.

pub mod compose;
pub mod lock;
pub mod revision;
pub mod tree;
