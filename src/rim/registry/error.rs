//! What can go wrong between us and a registry.

use std::io;
use std::path::PathBuf;

use crate::formats::image::spec::SpecError;
use crate::model::{Digest, ImageRef};
use crate::rim::command::CommandError;
use crate::rim::fetch::FetchError;

/// Why an image could not be had from a registry.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The connection, or an answer that is an error.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// There is no such manifest or blob.
    #[error("{what} of {image} is not in the registry")]
    NotFound {
        /// Manifest or blob, with its digest.
        what: String,
        /// The image.
        image: Box<ImageRef>,
    },
    /// The registry wants to know who we are, or does not like who we are.
    #[error("{host} does not let us pull {repository}: {}", if *.known { "the credentials of the docker config are refused" } else { "the docker config has no credentials for it" })]
    Denied {
        /// The registry.
        host: String,
        /// The repository.
        repository: String,
        /// Whether we had credentials.
        known: bool,
    },
    /// It wants to be convinced in a way that we do not know.
    #[error("{host} asks for a login that is not Basic or Bearer: {got:?}")]
    Challenge {
        /// The registry.
        host: String,
        /// Its challenges.
        got: Vec<String>,
    },
    /// The server of tokens may not have our password.
    #[error("{host} sends us for a token to {realm}, which is not https")]
    Realm {
        /// The registry.
        host: String,
        /// As it says.
        realm: String,
    },
    /// The server of tokens gave none.
    #[error("{url} answers with no token")]
    Token {
        /// Where we asked.
        url: String,
    },
    /// The docker config is broken.
    #[error("{path}: {why}")]
    Config {
        /// `config.json`.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A file of ours cannot be read.
    #[error("reading {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A credential helper failed.
    #[error("asking for the credentials of {host}")]
    Helper {
        /// The registry.
        host: String,
        /// Why.
        #[source]
        source: CommandError,
    },
    /// A credential helper's answer makes no sense.
    #[error("{program} answers for {host} with {why}")]
    HelperAnswer {
        /// The helper.
        program: String,
        /// The registry.
        host: String,
        /// What is wrong.
        why: String,
    },
    /// A manifest or config is not what its digest says.
    #[error("{what} of {image} has digest {got}, expected {expected}")]
    Digest {
        /// Manifest or config.
        what: &'static str,
        /// The image.
        image: Box<ImageRef>,
        /// As named.
        expected: Digest,
        /// As it came.
        got: Digest,
    },
    /// A description is broken or not for us.
    #[error("{what} of {image}")]
    Spec {
        /// Manifest, index or config.
        what: &'static str,
        /// The image.
        image: Box<ImageRef>,
        /// What is wrong.
        #[source]
        source: SpecError,
    },
    /// The oldest form of manifest.
    #[error(
        "{image} has a schema 1 manifest, which does not say what its layers must be; push it again with a Docker of 1.10 or later"
    )]
    Schema1 {
        /// The image.
        image: Box<ImageRef>,
    },
    /// What the registry calls a manifest is none.
    #[error("{image} is no container image: {why}")]
    NoImage {
        /// The image.
        image: Box<ImageRef>,
        /// What it is.
        why: String,
    },
    /// An index without our platform.
    #[error("{image} is not for linux/amd64, only for {found:?}")]
    Platform {
        /// The image.
        image: Box<ImageRef>,
        /// Platforms that there are.
        found: Vec<String>,
    },
    /// Manifest and config disagree.
    #[error("manifest of {image} lists {manifest} layers, but its config {config}")]
    LayerCount {
        /// The image.
        image: Box<ImageRef>,
        /// Layers in the manifest.
        manifest: usize,
        /// Layers in the config.
        config: usize,
    },
    /// A layer's blob cannot be read.
    #[error("layer blob {digest} of {image}")]
    Layer {
        /// The blob.
        digest: Digest,
        /// The image.
        image: Box<ImageRef>,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The registry goes on elsewhere than where it was asked to.
    #[error("{url}: asked to go on at byte {at}, the server answered {got:?}")]
    Range {
        /// What was asked for.
        url: String,
        /// Where we wanted to go on.
        at: u64,
        /// Its `Content-Range`.
        got: String,
    },
}

impl RegistryError {
    /// Whether another attempt may help.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Fetch(error) if error.is_passing())
    }
}
