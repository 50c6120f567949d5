//! Runs plans against engines.

pub mod boot;
pub mod budget;
pub mod call_home;
pub mod cluster;
pub mod compose;
pub mod config;
pub mod disk_image;
pub mod files;
pub mod gc;
pub mod identity;
pub mod install;
pub mod journal;
pub mod lock;
pub mod pack;
pub mod phases;
pub mod places;
pub mod pods;
pub mod prepare;
pub mod pull;
pub mod readiness;
pub mod revision;
pub mod secrets;
pub mod status;
pub mod tree;
pub mod upgrade;
pub mod verify;
