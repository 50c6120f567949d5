//! Disks: what is there, and the few ways in which the installer changes one.
//!
//! 1. [`observe`] looks at whole disks and at what is on them; it never writes;
//! 2. [`layout`] computes where the partitions go, purely;
//! 3. [`target`] reads, wipes and writes spans of one disk (or of an image file: no difference is made);
//! 4. [`loops`] and [`mounts`] make a span usable as a block device and undo that again;
//! 5. [`filesystem`] formats;
//! 6. [`mark`] says on the disk whose installation it is, and how far it came;
//! 7. [`table`] prepares the partition table elsewhere and writes it in one go, last.
//!
//! It never asks the kernel to re-read a new partition table: until the last write there is none, so that a machine
//! that loses power half-way finds nothing to boot.

use std::io;
use std::path::PathBuf;

use super::command::CommandError;

pub mod filesystem;
pub mod layout;
pub mod loops;
pub mod mark;
pub mod mounts;
pub mod observe;
pub mod signatures;
pub mod table;
pub mod target;

/// Bytes of a mebibyte: the unit of alignment, and the size of the first and of the last span.
pub const MIB: u64 = 1024 * 1024;

/// Why a disk could not be looked at or changed.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// A program of the system failed.
    #[error("{doing}")]
    Command {
        /// What it was run for.
        doing: String,
        /// Why it failed.
        #[source]
        source: CommandError,
    },
    /// A program printed something else than its format.
    #[error("reading what {program} printed")]
    Output {
        /// The program.
        program: &'static str,
        /// Where it went wrong.
        #[source]
        source: serde_json::Error,
    },
    /// A system call on a path failed.
    #[error("{doing} {}", path.display())]
    Io {
        /// The operation: `reading`, `mounting`.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The disk is too small for the partitions.
    #[error("a disk of {size} bytes is too small: {needed} bytes are needed")]
    TooSmall {
        /// Bytes there are.
        size: u64,
        /// Bytes needed.
        needed: u64,
    },
    /// What was written is not what is read back.
    #[error("{} does not read back as written, first at byte {at}", path.display())]
    ReadBack {
        /// The disk.
        path: PathBuf,
        /// Offset of the first byte that differs.
        at: u64,
    },
}

impl DiskError {
    pub(crate) fn io(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { doing, path, source }
    }

    pub(crate) fn command(doing: impl Into<String>) -> impl FnOnce(CommandError) -> Self {
        let doing = doing.into();
        move |source| Self::Command { doing, source }
    }
}
