//! Runs plans against engines.

pub mod pack;
pub mod pull;
