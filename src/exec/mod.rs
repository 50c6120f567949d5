//! Runs plans against engines.

pub mod revision;
