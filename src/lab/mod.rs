//! Machines and clusters for developers and for tests.
//!
//! 1. [`machine`] runs virtual machines; [`disk_image`] makes disk images and Vagrant boxes of a release;
//! 2. [`cluster`] brings clusters up, down, and from release to release;
//! 3. [`story`]: the main job, for the demonstration and for tests.

pub mod cluster;
pub mod disk_image;
pub mod machine;
pub mod manifest;
pub mod qemu_img;
pub mod story;
pub mod vagrant;
pub mod vagrantfile;
