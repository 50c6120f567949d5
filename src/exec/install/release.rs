//! Has the release: asks for its commit object before anything is wiped, pulls it afterwards.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use super::steps::Watcher;
use crate::engine::command::{self, CommandError};
use crate::engine::sysroot::Sysroot;
use crate::model::imaging::ImagingPlan;

/// How long the repo may take to answer for one small file.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Why the release could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// The repo did not answer.
    #[error("asking {url} for the release")]
    Ask {
        /// What was asked for.
        url: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// The repo on this machine could not be read.
    #[error("reading {}", path.display())]
    Read {
        /// The commit object.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The repo has something else under the commit's name.
    #[error("{place} is damaged: its content has the sha256 {got}")]
    Damaged {
        /// Path or URL.
        place: String,
        /// What it has.
        got: String,
    },
    /// The pull failed.
    #[error("pulling from {repo}")]
    Pull {
        /// The repo.
        repo: String,
        /// Why.
        #[source]
        source: CommandError,
    },
}

/// Fetches the commit object, so that a repo that is down or lacks the release costs nobody a disk.
pub fn require_commit(plan: &ImagingPlan) -> Result<(), ReleaseError> {
    let hex = plan.commit.hex();
    let below = format!("objects/{}/{}.commit", &hex[..2], &hex[2..]);
    let (place, bytes) = match local_path(&plan.repo) {
        Some(repo) => {
            let path = repo.join(below);
            let bytes =
                std::fs::read(&path).map_err(|source| ReleaseError::Read { path: path.clone(), source })?;
            (path.display().to_string(), bytes)
        }
        None => {
            let url = format!("{}/{below}", plan.repo.trim_end_matches('/'));
            let bytes = get(&url)
                .map_err(|source| ReleaseError::Ask { url: url.clone(), source: source.without_url() })?;
            (url, bytes)
        }
    };
    let got = hex::encode(Sha256::digest(&bytes));
    if got == hex { Ok(()) } else { Err(ReleaseError::Damaged { place, got }) }
}

fn get(url: &str) -> Result<Vec<u8>, reqwest::Error> {
    let client = reqwest::blocking::Client::builder().timeout(ANSWER_TIMEOUT).build()?;
    Ok(client.get(url).send()?.error_for_status()?.bytes()?.to_vec())
}

/// A repo on this machine, for images that are made where they are composed.
fn local_path(repo: &str) -> Option<&Path> {
    let path = repo.strip_prefix("file://").unwrap_or(repo);
    path.starts_with('/').then(|| Path::new(path))
}

/// Pulls the release into the sysroot's repo.
pub fn pull(plan: &ImagingPlan, sysroot: &Sysroot, watcher: &dyn Watcher) -> Result<(), ReleaseError> {
    watcher.begin("pulling the release", None);
    let repo = sysroot.path().join("ostree/repo");
    let failed = |source| ReleaseError::Pull { repo: plan.repo.clone(), source };
    let mut ostree = Command::new("ostree");
    ostree.arg(format!("--repo={}", repo.display()));
    match local_path(&plan.repo) {
        Some(from) => {
            ostree.arg("pull-local").arg(from).arg(plan.commit.hex());
        }
        None => {
            let mut add = Command::new("ostree");
            add.arg(format!("--repo={}", repo.display()))
                .args(["remote", "add", "--if-not-exists", "--no-gpg-verify", "rack"])
                .arg(&plan.repo);
            command::run(&mut add).map_err(failed)?;
            ostree.args(["pull", "rack"]).arg(plan.commit.hex());
        }
    }
    command::run(&mut ostree).map_err(failed)?;
    watcher.end("");
    Ok(())
}
