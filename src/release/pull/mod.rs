//! Pulling a release into a repo: all of it, verified, or nothing that counts.
//!
//! 1. The commit object first: its digest is the wanted commit, and a trusted key signed it, before it is parsed;
//! 2. it is written and marked partial, as libostree does, so that nothing takes it for complete;
//! 3. the pack with the fewest bytes that fits what is here, shard by shard (`shards`);
//! 4. whatever is missing then, object by object (`objects`): that walk is also the proof that nothing is;
//! 5. publish, drop the mark, move the ref.
//!
//! A pack that is missing, broken or lying costs time, never content: every object is checked against its own name.
//! After a cut, what came stays; the next pull goes on from there. After a full disk, what came is removed: a host
//! with a full disk is worse off than one that fetches twice.

mod error;
mod objects;
mod records;
mod remote;
mod shards;

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;

use crate::model::{Commit, ObjectName, Progress};
use crate::ostree::repo::{CommitInfo, DEFAULT_DEFLATE_LEVEL, Repo, RepoError, Staging, write_atomically};
use crate::ostree::signature::{PublicKey, verify_in_repo};

pub use error::PullError;
use remote::Remote;
pub use shards::{ShardError, take_shard};

/// What to pull, and from where.
#[derive(Debug, Clone)]
pub struct PullRequest {
    /// URL of the repo, `http://host:port/repo`.
    pub repo_url: String,
    /// The commit.
    pub commit: Commit,
    /// Keys one of which must have signed it; none: unsigned releases are taken.
    pub keys: Vec<PublicKey>,
    /// The ref (`name` or `remote:name`) that is set last, if any.
    pub reference: Option<String>,
}

/// How the objects came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// Everything was here.
    Nothing,
    /// By pack; what a pack lacked came by itself.
    Pack,
    /// Object by object.
    Objects,
}

impl std::fmt::Display for By {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Nothing => "nothing: all of it was here",
            Self::Pack => "pack",
            Self::Objects => "objects",
        })
    }
}

/// What a pull took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullReport {
    /// What the commit says of itself.
    pub info: CommitInfo,
    /// How the objects came.
    pub by: By,
    /// Bytes received.
    pub bytes: u64,
    /// Objects written.
    pub objects: u64,
    /// Shards fetched.
    pub shards: u64,
    /// Shards that an earlier, cut pull had fetched.
    pub shards_kept: u64,
    /// Objects that were made from older ones and a difference.
    pub differences: u64,
    /// Differences that did not give their object, which then came by itself.
    pub differences_failed: u64,
    /// The pack was against this commit.
    pub from: Option<Commit>,
    /// Why a pack was not used, or not to its end.
    pub pack_refused: Option<String>,
}

/// Pulls a release. Blocking: call it from a plain thread or `spawn_blocking`.
pub fn pull(request: &PullRequest, repo: &Repo, progress: &dyn Progress) -> Result<PullReport, PullError> {
    let commit = request.commit;
    let partial = partial_mark(repo, commit);
    let complete = repo.has(&ObjectName::of_commit(commit)) && !partial.exists();
    if complete && verify_in_repo(repo, commit, &request.keys).is_ok() {
        let report = PullReport::nothing(repo.commit_info(commit)?);
        return finish(request, repo, report);
    }
    let remote = Remote::new(&request.repo_url)?;
    let head = remote.fetch_commit(commit, &request.keys)?;
    let mut report = PullReport::nothing(head.info.clone());
    report.bytes = head.received();
    if complete {
        // It is all here but lacked a trusted signature, which has just come.
        head.write_signature(repo)?;
        return finish(request, repo, report);
    }
    let staging = Staging::open(repo, DEFAULT_DEFLATE_LEVEL)?;
    if !partial.exists() {
        write_atomically(&partial, b"")?;
    }
    head.write(repo)?;
    let transferred = shards::pull_pack(&remote, request, &staging, progress, &mut report).and_then(|()| {
        objects::pull_objects(&remote, commit, &HashSet::new(), &staging, progress, &mut report)
    });
    match transferred {
        Ok(()) => staging.publish()?,
        Err(error) => {
            let kept = if error.is_disk_full() {
                // Space that a failed pull holds would be missed by everything else on the host.
                staging.discard().map(|()| 0)
            } else {
                staging.publish()
            };
            if let Err(error) = kept {
                tracing::warn!(%error, "keeping what was pulled");
            }
            return Err(error);
        }
    };
    fs::remove_file(&partial).map_err(|source| RepoError::io("removing", &partial, source))?;
    shards::forget(repo, commit)?;
    finish(request, repo, report)
}

/// Fetches objects of a release once more, whatever the repo has under their names; those of other releases are passed over.
pub fn pull_again(
    request: &PullRequest,
    repo: &Repo,
    objects: &HashSet<ObjectName>,
    progress: &dyn Progress,
) -> Result<(), PullError> {
    let remote = Remote::new(&request.repo_url)?;
    let head = remote.fetch_commit(request.commit, &request.keys)?;
    let staging = Staging::open(repo, DEFAULT_DEFLATE_LEVEL)?;
    // What a killed process finished is whole, and goes before batches of the same name.
    staging.publish()?;
    head.write(repo)?;
    let mut report = PullReport::nothing(head.info.clone());
    let pulled = objects::pull_objects(&remote, request.commit, objects, &staging, progress, &mut report);
    // Objects that came are right, whatever stopped the rest.
    staging.publish()?;
    pulled
}

/// What a commit on the server says of itself, after its signature was checked; nothing is written.
pub fn observe_remote(repo_url: &str, commit: Commit, keys: &[PublicKey]) -> Result<CommitInfo, PullError> {
    Ok(Remote::new(repo_url)?.fetch_commit(commit, keys)?.info)
}

/// Whether all objects of the commit were pulled into the repo.
pub fn is_complete(repo: &Repo, commit: Commit) -> bool {
    repo.has(&ObjectName::of_commit(commit)) && !partial_mark(repo, commit).exists()
}

fn finish(request: &PullRequest, repo: &Repo, report: PullReport) -> Result<PullReport, PullError> {
    if let Some(reference) = &request.reference {
        repo.set_ref(reference, request.commit)?;
    }
    Ok(report)
}

impl PullReport {
    fn nothing(info: CommitInfo) -> Self {
        Self {
            info,
            by: By::Nothing,
            bytes: 0,
            objects: 0,
            shards: 0,
            shards_kept: 0,
            differences: 0,
            differences_failed: 0,
            from: None,
            pack_refused: None,
        }
    }
}

/// libostree's own mark of a commit whose objects are not all there.
fn partial_mark(repo: &Repo, commit: Commit) -> PathBuf {
    repo.path().join(format!("state/{commit}.commitpartial"))
}
