//! What a host does with its releases: a planner beside each executor.
//!
//! 1. [`upgrade`] prepares, verifies and flips; [`gc`] reaps; [`verify`] reads every bit;
//! 2. [`boot`] brings up the services of the booted release: [`secrets`], [`config`], [`pods`], [`phases`];
//! 3. [`trial`] confirms a release that proves healthy, and brings the host back from one that does not;
//! 4. [`status`] and [`readiness`] say what runs; [`call_home`] tells the rack server.

pub mod abandon;
pub mod absent;
pub mod boot;
pub mod call_home;
pub mod config;
pub mod denied;
pub mod gc;
pub mod history;
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
pub mod trial;
pub mod upgrade;
pub mod verify;
pub mod why;
