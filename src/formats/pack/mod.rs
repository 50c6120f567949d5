//! Packs: a release on the wire. The format is in `docs/formats.md`, "Packs".
//!
//! 1. A shard is one zstd frame over a sequence of [`record`]s, each an ostree object in its canonical form: the very
//!    bytes whose sha256 is its name;
//! 2. an object may instead come as a [`patch`]: what is new in it against an older one, found by [`matching`]; what we compressed
//!    ourselves is taken apart for it, by [`repack`];
//! 3. an [`index`] names a pack's shards by digest, and is signed; the list beside it names a commit's packs.
//!
//! Only formats live here: no file, no network. Everything read is taken as hostile: lengths have limits, and whoever
//! takes a record out checks its digest.

pub mod index;
pub mod matching;
pub mod patch;
pub mod record;
pub mod repack;

pub use index::{Index, IndexError, List, ListedPack, Shard};
pub use record::{Record, RecordKind, RecordReader, RecordWriter};
