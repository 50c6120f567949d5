//! A release, from what people write to what hosts pull.
//!
//! 1. [`manifest`] reads treefiles, service definitions and locks; [`lock`](mod@lock) resolves them;
//! 2. [`compose`] makes the commit, by way of [`tree`]; [`pack`] publishes it, [`pull`] fetches it;
//! 3. [`diff`] compares two releases; [`prune`] removes old ones from a server's repo.

pub mod compose;
pub mod diff;
pub mod import;
pub mod lint;
pub mod lock;
pub mod manifest;
pub mod pack;
pub mod prune;
pub mod pull;
pub mod tree;
