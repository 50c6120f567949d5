//! The rim: one module per neighbour. Engines know the model (and container images as files), and nothing above.

pub mod command;
pub mod disk;
pub mod dnsmasq;
pub mod docker;
pub mod fetch;
pub mod firmware;
pub mod grub;
pub mod machine;
pub mod packages;
pub mod process;
pub mod qemu_img;
pub mod registry;
pub mod repo;
pub mod signature;
pub mod sysroot;
pub mod tls;
pub mod vagrant;
