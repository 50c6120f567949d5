//! What several tests share.
// Each test binary uses its own part; outside functions marked #[test] clippy does not know that this is a test.
#![allow(dead_code, clippy::unwrap_used, clippy::print_stdout)]

pub mod libvirt;
pub mod story;
pub mod vagrant;
