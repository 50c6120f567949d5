//! Long-running services: wiring only. Decisions are in [`crate::plan`], texts in [`crate::netboot`].

pub mod rack;
pub mod repo;
