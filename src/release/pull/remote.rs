//! The repo on the server and its commit objects.

use crate::model::{Commit, Digest, ObjectName};
use crate::ostree::repo::{CommitInfo, Mode, Repo, write_atomically};
use crate::ostree::signature::{PublicKey, verify_commit};
use crate::rim::fetch::{Fetch, FetchError};

use super::PullError;

/// Commit objects and their detached metadata are small: a few kilobytes.
const COMMIT_LIMIT: u64 = 1 << 20;
/// A repo behind HTTP.
pub struct Remote {
    /// The client.
    pub fetch: Fetch,
    /// The repo's URL, without a slash at its end.
    pub url: String,
}

/// A commit object that is what it should be.
pub struct FetchedCommit {
    /// What it says of itself.
    pub info: CommitInfo,
    bytes: Vec<u8>,
    detached: Option<Vec<u8>>,
}

impl Remote {
    pub fn new(url: &str) -> Result<Self, PullError> {
        let url = url.trim_end_matches('/').to_owned();
        let fetch = Fetch::new().map_err(|source| PullError::Fetch { url: url.clone(), source })?;
        Ok(Self { fetch, url })
    }

    /// The URL of a path below the repo.
    pub fn at(&self, path: &str) -> String {
        format!("{}/{path}", self.url)
    }

    /// The URL of an object.
    pub fn object_url(&self, object: &ObjectName) -> String {
        self.at(&Repo::object_path_of(Mode::Archive, object))
    }

    /// A small file below the repo; nothing if it is not there.
    pub fn small(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>, PullError> {
        match self.fetch.get_whole(&self.at(path), limit) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(FetchError::NotFound { .. }) => Ok(None),
            Err(source) => Err(PullError::Fetch { url: self.url.clone(), source }),
        }
    }

    /// Fetches a commit object and checks digest and signature before parsing it.
    pub fn fetch_commit(&self, commit: Commit, keys: &[PublicKey]) -> Result<FetchedCommit, PullError> {
        let path = Repo::object_path_of(Mode::Archive, &ObjectName::of_commit(commit));
        let no_commit = || PullError::NoCommit { url: self.url.clone(), commit };
        let bytes = self.small(&path, COMMIT_LIMIT)?.ok_or_else(no_commit)?;
        let got = Digest::of(&bytes);
        if got.as_bytes() != commit.as_bytes() {
            return Err(PullError::Damaged {
                url: self.url.clone(),
                object: ObjectName::of_commit(commit).to_string(),
                expected: commit.hex(),
                got: got.hex(),
            });
        }
        let detached = self.small(&format!("{path}meta"), COMMIT_LIMIT)?;
        verify_commit(commit, &bytes, detached.as_deref(), keys).map_err(PullError::Signature)?;
        Ok(FetchedCommit { info: CommitInfo::parse(commit, &bytes)?, bytes, detached })
    }
}

impl FetchedCommit {
    /// Bytes that came.
    pub fn received(&self) -> u64 {
        self.bytes.len() as u64 + self.detached.as_ref().map_or(0, |detached| detached.len() as u64)
    }

    /// Writes commit and signature into the repo.
    pub fn write(&self, repo: &Repo) -> Result<(), PullError> {
        self.write_signature(repo)?;
        let path = repo.object_path(&ObjectName::of_commit(self.info.commit));
        Ok(write_atomically(&path, &self.bytes)?)
    }

    /// Writes the signature into the repo.
    pub fn write_signature(&self, repo: &Repo) -> Result<(), PullError> {
        if let Some(detached) = &self.detached {
            repo.write_detached(self.info.commit, detached)?;
        }
        Ok(())
    }
}
