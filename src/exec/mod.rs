//! Runs plans against engines.

pub mod compose;
pub mod install;
pub mod lock;
pub mod pack;
pub mod pull;
pub mod revision;
pub mod tree;
