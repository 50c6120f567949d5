//! rackstep: one ostree commit carries a host's operating system and the OpenStack services that run on it.
//!
//! 1. [`manifest`] reads what people write; [`image`] turns container images into files and back, [`pack`] is a
//!    release on the wire;
//! 2. [`plan`] decides, purely; [`netboot`] renders, purely;
//! 3. [`engine`] touches the world (ostree, Docker, disks, packages, network), one module per neighbour;
//! 4. [`exec`] runs plans against engines; [`daemon`] and [`cli`] wire it up.
//!
//! Arrows point one way: `model ← manifest, image, pack, plan, netboot ← exec ← daemon, cli`; `engine` knows `model`, `image`
//! and `pack` alone.

pub mod cli;
pub mod daemon;
pub mod engine;
pub mod exec;
pub mod image;
pub mod manifest;
pub mod model;
pub mod netboot;
pub mod pack;
pub mod plan;
