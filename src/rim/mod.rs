//! The rim: one module per neighbour of the program, and the small chores every room shares.
//!
//! A module here knows its neighbour and the model, and nothing of releases, hosts or racks.

pub mod budget;
pub mod cache_dir;
pub mod clock;
pub mod command;
pub mod disk;
pub mod dnsmasq;
pub mod fetch;
pub mod files;
pub mod firmware;
pub mod grub;
pub mod grub_env;
pub mod grub_script;
pub mod layers;
pub mod packages;
pub mod process;
pub mod registry;
pub mod systemd;
pub mod tls;
pub mod versioned;
pub mod wait;
