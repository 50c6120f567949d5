//! What people write: treefiles, service definitions, rack files, and the lock that compose makes of them.
//!
//! 1. a *fragment* is one file as written; 2. fragments are *merged* (lists append, scalars override);
//! 3. the result is *validated*. Everything parses from `&str`; an error names file, line and thing.

pub mod image;
pub mod lock;
pub mod pod;
pub mod read;
pub mod references;
pub mod service;
pub mod treefile;

pub use crate::model::place::{InputError, Place, SourceText};
pub use image::{ImageSource, Origin};
pub use lock::{Lock, LockedBinary, LockedImage, LockedLayer};
pub use service::Service;
pub use treefile::Treefile;
