//! Runs plans against engines.

pub mod compose;
pub mod lock;
pub mod install;
pub mod revision;
pub mod tree;
