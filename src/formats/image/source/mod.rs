//! Where container images come from.
//!
//! 1. [`open`] looks at a path and chooses: OCI layout or `docker save` archive, each as a directory or as a tar;
//! 2. [`ImageSource::describe`] gives the raw manifest and config, checked against the digests that name them;
//! 3. [`ImageSource::open_layer`] streams one layer's tar, decompressed; its blob is checked while it streams.
//!
//! Registries fit the same trait (`rim::registry`): describing is a few small requests, a layer is one stream. A running
//! dockerd gives an archive (`docker`).

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::Limits;
use super::spec::SpecError;
use crate::model::{Digest, ImageRef};

mod bundle;
mod compression;
mod docker_archive;
mod oci_layout;
#[cfg(test)]
mod tests;

pub use bundle::{Bundle, BundleError};
pub use compression::decompress;
pub use docker_archive::DockerArchive;
pub use oci_layout::OciLayout;

/// One image that can be read.
pub trait ImageSource: Send {
    /// What the image is. Repeatable.
    fn describe(&mut self) -> Result<SourceImage, SourceError>;

    /// The uncompressed tar of layer `index`. Whoever reads to the end knows that the blob is the one named.
    fn open_layer(&mut self, index: usize) -> Result<Box<dyn Read + Send + '_>, SourceError>;
}

/// An image's descriptions, as raw as they came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceImage {
    /// The manifest, if the source keeps one.
    pub manifest: Option<Vec<u8>>,
    /// The config.
    pub config: Vec<u8>,
    /// Digests of the uncompressed layers, lowest first.
    pub diff_ids: Vec<Digest>,
}

/// Why an image cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The files of the source cannot be read.
    #[error("reading {path}")]
    Bundle {
        /// The source.
        path: PathBuf,
        /// Why not.
        #[source]
        source: BundleError,
    },
    /// A description is broken or not for us.
    #[error("reading {file} of {path}")]
    Spec {
        /// The source.
        path: PathBuf,
        /// The description.
        file: String,
        /// What is wrong.
        #[source]
        source: SpecError,
    },
    /// A description is not what its digest says.
    #[error("{file} of {path} has digest {got}, expected {expected}")]
    Digest {
        /// The source.
        path: PathBuf,
        /// The description.
        file: String,
        /// As named.
        expected: Digest,
        /// As it is.
        got: Digest,
    },
    /// No image of that name, or several and none named.
    #[error("{path} holds {found:?}: {}", match wanted { Some(name) => format!("no image {name:?}"), None => "name one".to_owned() })]
    Choice {
        /// The source.
        path: PathBuf,
        /// The name asked for.
        wanted: Option<String>,
        /// The names that there are; `-` for an image without a name.
        found: Vec<String>,
    },
    /// No image for our platform.
    #[error("{path} has no image for linux/amd64, only for {found:?}")]
    Platform {
        /// The source.
        path: PathBuf,
        /// Platforms that there are.
        found: Vec<String>,
    },
    /// Manifest and config disagree.
    #[error("{path} lists {manifest} layers, but its config {config}")]
    LayerCount {
        /// The source.
        path: PathBuf,
        /// Layers in the manifest.
        manifest: usize,
        /// Layers in the config.
        config: usize,
    },
    /// Neither an OCI layout nor a docker archive.
    #[error("{path} is neither an OCI layout nor a docker archive")]
    Unknown {
        /// The source.
        path: PathBuf,
    },
    /// There is no such layer.
    #[error("{path} has no layer {index}")]
    NoLayer {
        /// The source.
        path: PathBuf,
        /// As asked for.
        index: usize,
    },
    /// A layer's compression cannot be started.
    #[error("decompressing layer {index} of {path}")]
    Decompress {
        /// The source.
        path: PathBuf,
        /// Which.
        index: usize,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A source that is no file: a registry.
    #[error(transparent)]
    Remote(Box<dyn std::error::Error + Send + Sync>),
}

/// Whether two names mean one image: as written, or as Docker fills them up (`alpine` is `docker.io/library/alpine:latest`).
fn same_name(one: &str, other: &str) -> bool {
    let full = |name: &str| name.parse::<ImageRef>().ok();
    one == other || full(one).is_some_and(|one| full(other) == Some(one))
}

/// Opens the image `name` (or the only one) of the layout or archive at `path`.
pub fn open(path: &Path, name: Option<&str>, limits: &Limits) -> Result<Box<dyn ImageSource>, SourceError> {
    let bundle =
        Bundle::open(path).map_err(|source| SourceError::Bundle { path: path.to_owned(), source })?;
    // `docker save` since version 25 writes both; the layout has the image's true manifest.
    if bundle.contains("index.json") && bundle.contains("oci-layout") {
        Ok(Box::new(OciLayout::new(bundle, name, limits)?))
    } else if bundle.contains("manifest.json") {
        Ok(Box::new(DockerArchive::new(bundle, name, limits)?))
    } else {
        Err(SourceError::Unknown { path: path.to_owned() })
    }
}
