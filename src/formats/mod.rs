//! Bytes only: container images as files and back ([`image`]), releases on the wire ([`pack`]),
//! files that are written wholly or not at all ([`atomic`]).
//!
//! Nothing here talks to Docker, a registry or the network.

pub mod atomic;
pub mod image;
pub mod pack;
