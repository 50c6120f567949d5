//! Bytes only: container images as files and back ([`image`]), releases on the wire ([`pack`]).
//!
//! Nothing here talks to Docker, a registry or the network.

pub mod image;
pub mod pack;
