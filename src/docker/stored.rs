//! What both stores have in common when they are read back.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::model::{Digest, PinnedImage, PinnedLayer, Progress};

use super::DockerError;

/// What reading a layer back showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum LayerVerdict {
    /// Its content has this digest.
    Content(Digest),
    /// It cannot be put together.
    Broken(String),
}

/// A store whose files we can read ourselves.
pub(super) trait ReadBack: Sync {
    /// What is wrong with the image's descriptions: all of it that is no layer.
    fn problem_of(&self, image: &PinnedImage) -> Result<Option<String>, DockerError>;

    /// Reads the layer that makes `chain`.
    fn read_layer(
        &self,
        layer: &PinnedLayer,
        chain: Digest,
        progress: &dyn Progress,
    ) -> Result<LayerVerdict, DockerError>;
}

/// Opens `name` below `directory`; symlinks on the way stay inside, and the last one is not followed.
pub(super) fn open_inside(directory: &File, name: &[u8], flags: OFlags) -> io::Result<File> {
    // A FIFO must not keep us; a mere look at a path takes no such flag.
    let block = if flags.contains(OFlags::PATH) { OFlags::empty() } else { OFlags::NONBLOCK };
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW | block;
    Ok(rustix::fs::openat2(directory, name, flags, Mode::empty(), ResolveFlags::IN_ROOT)?.into())
}

/// Divides what an I/O error says of the layer from what keeps us from looking.
pub(super) fn tell(path: &Path, error: io::Error) -> Result<LayerVerdict, DockerError> {
    use io::ErrorKind::{InvalidData, InvalidInput, IsADirectory, NotADirectory, NotFound, UnexpectedEof};
    let says_bad = matches!(
        error.kind(),
        NotFound | UnexpectedEof | InvalidData | InvalidInput | IsADirectory | NotADirectory
    ) || matches!(
        rustix::io::Errno::from_io_error(&error),
        Some(rustix::io::Errno::IO | rustix::io::Errno::LOOP | rustix::io::Errno::NXIO)
    );
    if says_bad {
        Ok(LayerVerdict::Broken(format!("{}: {error}", path.display())))
    } else {
        Err(DockerError::Store { path: path.to_owned(), source: error })
    }
}
