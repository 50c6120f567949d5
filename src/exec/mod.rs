//! Runs plans against engines.

pub mod boot;
pub mod config;
pub mod files;
pub mod journal;
pub mod phases;
pub mod places;
pub mod pods;
pub mod prepare;
pub mod readiness;
pub mod revision;
pub mod secrets;
