//! How a release comes onto the disk of a blank machine.
//!
//! 1. [`plan`] decides, on the server, whether a machine is imaged and which disk; 2. [`install`] carries it out.

pub mod install;
pub mod plan;
