//! What hosts mount and tell Docker of a layer, made once for each layer of the cache's store.
//!
//! `tree` and `sums` follow from the layer's files and their owners, which is what its objects will be made of, so the same
//! layer gives the same bytes in every cache. A `tree` that an older writer made is made again.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::formats::image::crc64::Crc64;
use crate::formats::image::erofs;
use crate::formats::image::layer_image::sums::Sums;
use crate::formats::image::layer_image::{ContentFacts, LayerImageError, SUMS, TREE, contents, render};
use crate::ostree::repo::{RepoError, file_object};

/// Why a layer has no tree.
#[derive(Debug, thiserror::Error)]
pub enum LayerTreeError {
    /// Its tar is none that Docker would unpack.
    #[error(transparent)]
    Image(#[from] LayerImageError),
    /// A content could not be read.
    #[error("reading a file of the layer")]
    Content(#[from] RepoError),
    /// A file of the layer.
    #[error("{path}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Makes `tree` and `sums` of the layer in `dir`, unless they are there.
pub fn ensure_layer_tree(dir: &Path) -> Result<(), LayerTreeError> {
    if dir.join(SUMS).is_file() && is_current(&dir.join(TREE)) {
        return Ok(());
    }
    let facts = contents(dir)?
        .par_iter()
        .map(|content| {
            let mut crc = Crc64::default();
            let object = file_object(&dir.join(&content.path), &mut |bytes| crc.update(bytes))?;
            Ok(ContentFacts { object, crc: crc.sum() })
        })
        .collect::<Result<Vec<_>, RepoError>>()?;
    let image = render(dir, &facts)?;
    write(dir, SUMS, &Sums::new(image.size, &facts).render())?;
    // The last one: it is what tells that both are there.
    write(dir, TREE, &image.tree)
}

fn is_current(tree: &Path) -> bool {
    let mut start = Vec::new();
    let read = File::open(tree).and_then(|file| file.take(4096).read_to_end(&mut start));
    read.is_ok() && erofs::is_current(&start)
}

fn write(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), LayerTreeError> {
    let path = dir.join(name);
    let error = |source| LayerTreeError::Io { path: path.clone(), source };
    let mut file = tempfile::Builder::new().prefix(".tmp-").tempfile_in(dir).map_err(error)?;
    file.write_all(bytes).map_err(error)?;
    file.as_file().set_permissions(fs::Permissions::from_mode(0o644)).map_err(error)?;
    file.persist(&path)
        .map_err(|persist| LayerTreeError::Io { path: path.clone(), source: persist.error })?;
    Ok(())
}
