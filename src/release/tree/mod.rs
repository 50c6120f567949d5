//! Makes the tree of a release: one file per kind of work.

pub mod binaries;
pub mod cache;
pub mod files;
pub mod host;
pub mod images;
pub mod inside;
pub mod layer_trees;
pub mod podcheck;
pub mod services;
pub mod writer;
