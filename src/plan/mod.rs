//! Pure planners: they decide, nothing else. No file, no clock, no network.

pub mod compose;
