//! What machines are told while they boot from the network: texts made from values, nothing else.
//!
//! 1. [`dnsmasq`]: addresses, and which boot program; 2. [`ipxe`]: one script per machine; 3. [`kernel`]: the installer's
//!    kernel arguments.
//!
//! No file is read and no decision is made here.

pub mod dnsmasq;
pub mod ipxe;
pub mod kernel;
