//! Pure planners: what was observed goes in, what will be done and why comes out. No I/O, no clock.

pub mod arguments;
pub mod boot;
pub mod changes;
pub mod cluster;
pub mod compose;
pub mod disk_image;
pub mod imaging;
pub mod prune;
pub mod reap;
pub mod rollout;
pub mod upgrade;
