//! Container images as files, and back, byte for byte.
//!
//! 1. A [`source`] hands out an image's manifest, config and layers, checking every blob while it streams.
//! 2. [`layer::split`] takes a layer's tar apart: file contents become files, all else becomes a [`skeleton`].
//! 3. [`store`] keeps split layers and image descriptions below one directory, which goes into the release's commit.
//! 4. [`layer::join`] puts the same bytes together again.
//!
//! It never talks to Docker, a registry or ostree, and never guesses: what it cannot keep exactly it refuses by name.
//! The form on disk is documented in `docs/formats.md`.

pub mod crc64;
pub mod erofs;
pub mod header;
pub mod layer;
pub mod layer_image;
pub mod pax;
pub mod skeleton;
pub mod source;
pub mod spec;
pub mod store;
pub mod stream;
pub mod tree;

/// Whether split files get the owner, mode and capabilities that the tar gives them.
///
/// The skeleton has the truth either way; the files' own metadata only decides whether ostree can share them with the
/// host's tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ownership {
    /// As in the tar; needs root.
    Apply,
    /// Whoever runs, mode 0644.
    Ignore,
}

/// What a layer may cost before it is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the uncompressed tar: a decompression bomb ends here.
    pub layer_bytes: u64,
    /// Entries of one tar.
    pub entries: u64,
    /// Bytes of one extended header (PAX records or a GNU long name): these are held in memory.
    pub extension_bytes: u64,
    /// Bytes of one entry's name.
    pub name_bytes: usize,
    /// Bytes of a manifest, an index or a config: these are held in memory.
    pub description_bytes: u64,
}

impl Default for Limits {
    /// Far above what real images need, far below what fills a disk unnoticed.
    fn default() -> Self {
        Self {
            layer_bytes: 64 << 30,
            entries: 4_000_000,
            // Go's archive/tar, and so dockerd, refuses more than 1 MiB.
            extension_bytes: 1 << 20,
            // As much as its header may have: Go has no limit of its own.
            name_bytes: 1 << 20,
            // What registries accept for a manifest; Docker refuses configs above 4 MiB too.
            description_bytes: 4 << 20,
        }
    }
}
