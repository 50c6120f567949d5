//! Has the release: asks for its commit object before anything is wiped, pulls it afterwards.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::steps::Watcher;
use crate::model::imaging::ImagingPlan;
use crate::ostree::repo::{Repo, RepoError};
use crate::ostree::signature::{PublicKey, SignatureError, verify_in_repo};
use crate::ostree::sysroot::Sysroot;
use crate::release::pull::{self, PullError, PullRequest};
use crate::rim::command::{self, CommandError};

/// Why the release could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// A key of the plan is not a key.
    #[error("{0:?} is not an ed25519 public key in base64")]
    Key(String),
    /// The repo over the network.
    #[error("release {commit} from {repo}")]
    Remote {
        /// The commit.
        commit: String,
        /// Its URL.
        repo: String,
        /// Why.
        #[source]
        source: Box<PullError>,
    },
    /// A repo on this machine.
    #[error("release {commit} from {}", repo.display())]
    Local {
        /// The commit.
        commit: String,
        /// Its path.
        repo: PathBuf,
        /// Why.
        #[source]
        source: Box<RepoError>,
    },
    /// The signature of a commit in a repo on this machine.
    #[error("release from {}", repo.display())]
    Signature {
        /// Its path.
        repo: PathBuf,
        /// Why.
        #[source]
        source: Box<SignatureError>,
    },
    /// Copying from a repo on this machine failed.
    #[error("pulling from {}", repo.display())]
    Copy {
        /// Its path.
        repo: PathBuf,
        /// Why.
        #[source]
        source: CommandError,
    },
}

/// Asks for the commit and checks its signature, so that a repo that is down or lacks the release costs nobody a disk.
pub fn require_commit(plan: &ImagingPlan) -> Result<(), ReleaseError> {
    let keys = parse_keys(plan)?;
    match local_path(&plan.repo) {
        Some(path) => {
            let repo = Repo::open(path).map_err(local(plan, path))?;
            repo.commit_info(plan.commit).map_err(local(plan, path))?;
            verify_in_repo(&repo, plan.commit, &keys)
                .map_err(|source| ReleaseError::Signature { repo: path.to_owned(), source: Box::new(source) })
        }
        None => pull::observe_remote(&plan.repo, plan.commit, &keys).map(|_info| ()).map_err(remote(plan)),
    }
}

/// Pulls the release into the sysroot's repo.
pub fn pull(plan: &ImagingPlan, sysroot: &Sysroot, watcher: &dyn Watcher) -> Result<(), ReleaseError> {
    let place = sysroot.repo_path();
    if let Some(from) = local_path(&plan.repo) {
        return copy(plan, from, &place, watcher);
    }
    let request = PullRequest {
        repo_url: plan.repo.clone(),
        commit: plan.commit,
        keys: parse_keys(plan)?,
        // The deployment holds the commit; a ref would hold it longer than that.
        reference: None,
    };
    let repo = Repo::open(&place).map_err(local(plan, &place))?;
    let report = pull::pull(&request, &repo, watcher).map_err(remote(plan))?;
    if let Some(why) = report.pack_refused {
        tracing::warn!(why, "the pack was not used to its end");
    }
    Ok(())
}

/// The kernel arguments that the pulled release brings.
pub fn kernel_arguments(plan: &ImagingPlan, sysroot: &Sysroot) -> Result<Vec<String>, ReleaseError> {
    let place = sysroot.repo_path();
    let repo = Repo::open(&place).map_err(local(plan, &place))?;
    repo.kernel_arguments(plan.commit).map_err(local(plan, &place))
}

/// libostree links or copies files between two repos on one machine better than anything that goes through HTTP.
fn copy(plan: &ImagingPlan, from: &Path, to: &Path, watcher: &dyn Watcher) -> Result<(), ReleaseError> {
    watcher.begin("copying the release", None);
    let mut ostree = Command::new("ostree");
    ostree.arg(format!("--repo={}", to.display())).arg("pull-local").arg(from).arg(plan.commit.hex());
    command::run(&mut ostree).map_err(|source| ReleaseError::Copy { repo: from.to_owned(), source })?;
    watcher.end("");
    Ok(())
}

fn parse_keys(plan: &ImagingPlan) -> Result<Vec<PublicKey>, ReleaseError> {
    let parse = |text: &String| PublicKey::parse(text).ok_or_else(|| ReleaseError::Key(text.clone()));
    plan.trusted_keys.iter().map(parse).collect()
}

fn remote(plan: &ImagingPlan) -> impl FnOnce(PullError) -> ReleaseError {
    let (commit, repo) = (plan.commit.short(), plan.repo.clone());
    move |source| ReleaseError::Remote { commit, repo, source: Box::new(source) }
}

fn local(plan: &ImagingPlan, path: &Path) -> impl FnOnce(RepoError) -> ReleaseError {
    let (commit, repo) = (plan.commit.short(), path.to_owned());
    move |source| ReleaseError::Local { commit, repo, source: Box::new(source) }
}

/// A repo on this machine, for images that are made where they are composed.
fn local_path(repo: &str) -> Option<&Path> {
    let path = repo.strip_prefix("file://").unwrap_or(repo);
    path.starts_with('/').then(|| Path::new(path))
}
