//! Runs plans against engines.

pub mod compose;
pub mod install;
pub mod lock;
pub mod revision;
pub mod tree;
