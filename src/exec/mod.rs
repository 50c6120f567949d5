//! Runs plans against engines.

pub mod install;
pub mod revision;
