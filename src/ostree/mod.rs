//! ostree: repos ([`repo`]), signatures ([`signature`]) and the sysroot of a host ([`sysroot`]).

pub mod repo;
pub mod signature;
pub mod sysroot;
