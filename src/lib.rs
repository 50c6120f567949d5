//! rackstep: one ostree commit carries a host's operating system and the OpenStack services that
//! run on it.
//!
//! The rooms, from the ground up. A room may use the rooms above it in this list, and none below:
//! `docs/architecture.md` has the table, and `tests/layering.rs` holds the code against it.
//!
//! 1. [`model`]: nouns, protocol types, typed reasons. [`formats`]: container images and packs, bytes only.
//! 2. [`rim`]: one module per neighbour (disks, GRUB, packages, registries, HTTP). [`docker`] and [`ostree`]
//!    are neighbours with rooms of their own.
//! 3. [`release`]: what people write, lock, compose, pack, pull, diff, prune.
//! 4. [`host`]: what a host does with a release. [`imaging`]: how a release comes onto a blank disk.
//! 5. [`rack`]: the server that images racks. [`lab`]: machines and clusters for developers and tests.
//! 6. [`cli`]: parses the command line, calls, prints.

pub mod cli;
pub mod docker;
pub mod formats;
pub mod host;
pub mod imaging;
pub mod lab;
pub mod model;
pub mod ostree;
pub mod rack;
pub mod release;
pub mod rim;
