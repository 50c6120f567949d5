//! Docker: the images that it holds, and what we ask of it.
//!
//! 1. [`Docker::observe`] looks: images, containers, how and where it stores them;
//! 2. [`Docker::reap`] removes images of ours that no release needs;
//! 3. [`Docker::run_once`] runs a one-shot step of a service to its end;
//! 4. [`Docker::save`] takes an image out of a developer's Docker, for a release that is made of it;
//! 5. [`records`] tells a daemon that does not run yet of images whose layers are mounted.
//!
//! Images go by their Ids, which on a host are their config digests: hosts keep them in Docker's classic store.
//!
//! Every call blocks: libostree does too, and cannot cross threads. Called from async code it belongs into `spawn_blocking`.
//! It pulls and loads nothing, ever: hosts' images are mounted from the release's own files.

mod error;
mod export;
mod names;
mod observe;
mod reap;
pub mod records;
mod run;
mod save;
mod stop;

use std::future::Future;
use std::time::Duration;

use tokio::runtime::Runtime;

pub use error::DockerError;
pub use names::{RELEASE_LABEL, is_our_tag, tag_of};
pub use observe::{Observed, ObservedContainer, ObservedImage, Storage, StoreKind};
pub use run::{Bind, Outcome, RunOnce};

/// Where Docker listens unless told otherwise.
pub const DEFAULT_URL: &str = "unix:///var/run/docker.sock";

/// How long Docker may take to begin an answer: it works on a save of gigabytes on a slow disk for long before its first byte.
const TIMEOUT: Duration = Duration::from_secs(2 * 3600);

/// A connection to one Docker daemon.
#[derive(Debug)]
pub struct Docker {
    client: bollard::Docker,
    runtime: Runtime,
    url: String,
}

impl Docker {
    /// Connects to the daemon at `url` (`unix://`, `tcp://`), or at [`DEFAULT_URL`], and agrees on a version with it.
    pub fn connect(url: Option<&str>) -> Result<Self, DockerError> {
        let url = url.unwrap_or(DEFAULT_URL).to_owned();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("docker")
            .enable_all()
            .build()
            .map_err(|source| DockerError::Runtime { source })?;
        let connect_error = |source| DockerError::Connect { url: url.clone(), source: Box::new(source) };
        let client = bollard::Docker::connect_with_host(&url).map_err(connect_error)?.with_timeout(TIMEOUT);
        let client = runtime.block_on(client.negotiate_version()).map_err(connect_error)?;
        Ok(Self { client, runtime, url })
    }

    /// Where it is connected to.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Waits for one answer; `operation` names it in the error.
    fn ask<T>(
        &self,
        operation: impl FnOnce() -> String,
        call: impl Future<Output = Result<T, bollard::errors::Error>>,
    ) -> Result<T, DockerError> {
        self.runtime
            .block_on(call)
            .map_err(|source| DockerError::Call { operation: operation(), source: Box::new(source) })
    }
}
