//! What a host does with its releases: a planner beside each executor.
//!
//! 1. [`upgrade`] prepares, verifies and flips; [`gc`] reaps; [`verify`] reads every bit;
//! 2. [`boot`] brings up the services of the booted release: [`secrets`], [`config`], [`pods`], [`phases`];
//! 3. [`status`] and [`readiness`] say what runs; [`call_home`] tells the rack server.

pub mod absent;
pub mod boot;
pub mod call_home;
pub mod config;
pub mod gc;
pub mod identity;
pub mod journal;
pub mod newest;
pub mod phases;
pub mod places;
pub mod pods;
pub mod readiness;
pub mod records;
pub mod revision;
pub mod secrets;
pub mod startable;
pub mod status;
pub mod upgrade;
pub mod verify;
