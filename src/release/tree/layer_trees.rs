//! What hosts mount and tell Docker of a layer, made once for each layer of the cache's store.
//!
//! `tree` and `sums` follow from the layer's files and their owners, which is what its objects will be made of, so the same
//! layer gives the same bytes in every cache. A `tree` that an older writer made is made again.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::formats::atomic::{Durability, replace};
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
    replace(&path, bytes, 0o644, Durability::Volatile).map_err(|source| LayerTreeError::Io { path, source })
}
