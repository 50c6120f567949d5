//! Docker: the images that it holds, and what we ask of it.
//!
//! 1. [`Docker::observe`] looks: images, containers, how and where it stores them;
//! 2. [`Docker::import`] streams what is missing out of a release's files and syncs it to the disk;
//! 3. [`Docker::protect`] lets no `docker image prune` take a pinned image away; [`Docker::reap`] is the only way out;
//! 4. [`Docker::verify`] reads every byte back; [`Docker::verify_release`] makes the proof that a flip takes;
//! 5. [`Docker::repair`] replaces images whose content went bad; [`orphans`] finds what killed loads left behind;
//! 6. [`Docker::run_once`] runs a one-shot step of a service to its end;
//! 7. [`Docker::save`] takes an image out, for a release that is made of it;
//! 8. [`records`] tells a daemon that does not run yet of images whose layers are mounted.
//!
//! Images go by their config digests here, whichever of its two stores Docker keeps them in (`store`).
//!
//! Every call blocks: libostree does too, and cannot cross threads. Called from async code it belongs into `spawn_blocking`.
//! It pulls nothing, ever: images come from the release's own files.

mod containerd;
mod error;
mod export;
mod import;
mod layerdb;
mod observe;
pub mod orphans;
mod proof;
mod protect;
mod queue;
pub mod records;
mod repair;
mod run;
mod save;
mod stop;
mod store;
mod stored;
mod sync;
mod verify;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use tokio::runtime::Runtime;

pub use error::DockerError;
pub use import::{ArchiveError, ImageArchive, Imported};
pub use observe::{Observed, ObservedContainer, ObservedImage, Storage, StoreKind};
pub use proof::{Finding, VerifiedPins, VerifyError, WrongRelease};
pub use protect::{HOLD_LABEL, RELEASE_LABEL, is_our_tag, tag_of};
pub use repair::Repaired;
pub use run::{Bind, Outcome, RunOnce};
use store::Store;
pub use verify::Verdict;

use crate::model::Digest;

/// Where Docker listens unless told otherwise.
pub const DEFAULT_URL: &str = "unix:///var/run/docker.sock";

/// How long Docker may take to begin an answer. It answers a load only when the last byte is on the disk, and gigabytes
/// on a slow disk take long; bollard's own default of two minutes cut such loads off.
const TIMEOUT: Duration = Duration::from_secs(2 * 3600);

/// A connection to one Docker daemon.
#[derive(Debug)]
pub struct Docker {
    client: bollard::Docker,
    runtime: Runtime,
    url: String,
    store: OnceLock<Store>,
    /// Config digests of images in the containerd store, by Id.
    configs: Mutex<BTreeMap<Digest, Digest>>,
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
        Ok(Self { client, runtime, url, store: OnceLock::new(), configs: Mutex::default() })
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
