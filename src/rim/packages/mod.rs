//! Distribution packages: resolved, fetched, unpacked into a tree.
//!
//! 1. [`apt`] resolves names to exact packages in a package world of our own, from the machine's mirror;
//! 2. [`download`] fetches package files into a cache by digest; 3. [`bootstrap`] unpacks exactly those with mmdebstrap;
//! 4. [`accounts`] gives users and groups ids that outlive a release; [`chroot`] runs programs in the tree, [`modules`] unpacks the kernel's modules,
//!    [`initramfs`] builds the initramfs with dracut;
//! 5. [`layout`] turns it into what ostree deploys.
//!
//! Nothing of the machine's own packages or settings leaks into the tree, besides where its mirror is.

pub mod accounts;
pub mod apt;
pub mod bootstrap;
pub mod chroot;
pub mod clean;
mod conflict;
pub mod download;
pub mod initramfs;
pub mod layout;
pub mod modules;

use std::io;
use std::path::{Path, PathBuf};

use super::command::CommandError;
use crate::model::Digest;

/// Why packages could not be turned into a tree.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// The machine's apt has no archive for a suite.
    #[error("apt knows no archive for suite {suite} here: run apt-get update, or name one with --mirror")]
    NoMirror {
        /// The suite.
        suite: String,
    },
    /// Packages that no suite has.
    #[error("package {} is in none of the suites {}", .packages.join(", "), .suites.join(", "))]
    Unknown {
        /// The packages.
        packages: Vec<String>,
        /// The suites.
        suites: Vec<String>,
    },
    /// A version that no suite has.
    #[error("package {request}: no suite has that version; there is {}", .there.join(", "))]
    NoVersion {
        /// The package as asked for.
        request: String,
        /// Versions that there are.
        there: Vec<String>,
    },
    /// Packages that exclude each other, or miss a dependency.
    #[error("{} cannot be installed: {told}", if .packages.is_empty() { "the packages".to_owned() } else { .packages.join(", ") })]
    Conflict {
        /// The requests that apt's reasons are about.
        packages: Vec<String>,
        /// What apt said.
        told: String,
    },
    /// Something of apt's that was not understood.
    #[error("apt's answer was not understood: {0}")]
    Answer(String),
    /// A package file that the mirror no longer has.
    #[error("package {name} {version} is no longer to be had ({status})")]
    Gone {
        /// The package.
        name: String,
        /// Its version.
        version: String,
        /// The mirror's answer.
        status: String,
    },
    /// A package file that is not what the lock says.
    #[error("package {name} {version}: expected {expected}, got {got}")]
    Digest {
        /// The package.
        name: String,
        /// Its version.
        version: String,
        /// The lock's digest.
        expected: Digest,
        /// What came.
        got: Digest,
    },
    /// A transfer that broke.
    #[error("downloading package {name} {version}")]
    Transfer {
        /// The package.
        name: String,
        /// Its version.
        version: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// mmdebstrap installed something else than the lock says.
    #[error("the tree's packages are not the lock's: {0}")]
    Mismatch(String),
    /// An account whose id another set of packages would change.
    #[error(
        "{kind} {name} has the id {id}, which the treefile does not fix: add {name}: {id} under {kind}s, or the id that an earlier release gave it"
    )]
    UnfixedId {
        /// `user` or `group`.
        kind: &'static str,
        /// The account.
        name: String,
        /// The id that it got by chance.
        id: u32,
    },
    /// Two accounts of one id.
    #[error("{kind}s {} would both have the id {id}", names.join(" and "))]
    SharedId {
        /// `user` or `group`.
        kind: &'static str,
        /// The accounts.
        names: [String; 2],
        /// Their id.
        id: u32,
    },
    /// A directory of the tree could not be listed.
    #[error("walking the tree")]
    Walk(#[from] walkdir::Error),
    /// The tree is not what a host needs.
    #[error("tree: {0}")]
    Tree(String),
    /// A program of the tree failed.
    #[error("{what}")]
    Inside {
        /// What was being done.
        what: String,
        /// How it failed.
        #[source]
        source: CommandError,
    },
    /// Nothing can be fetched at all.
    #[error(transparent)]
    Fetch(#[from] super::fetch::FetchError),
    /// A program failed.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// A file could not be read or written.
    #[error("{path}")]
    Io {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Names the path in an I/O error.
pub(crate) fn at(path: &Path) -> impl FnOnce(io::Error) -> PackageError + '_ {
    move |source| PackageError::Io { path: path.to_owned(), source }
}

/// Removes a file or a whole directory; one that is not there is fine.
pub(crate) fn remove(path: &Path) -> Result<(), PackageError> {
    let removed = match path.symlink_metadata() {
        Err(_) => return Ok(()),
        Ok(found) if found.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
    };
    removed.map_err(at(path))
}
