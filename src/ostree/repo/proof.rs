//! The proof that a flip takes: every object of one release was just read, and is what its name says.
//!
//! [`VerifiedRelease`] has a private field and one maker, and the maker reads. Objects that were there before count as much
//! as those that were just pulled: releases share them.

use rayon::prelude::*;

use super::check::Condition;
use super::{Repo, RepoError};
use crate::model::{Commit, ObjectName, Progress};

/// How many bad objects an error names.
const NAMED: usize = 5;

/// Every object of this release is in the host's repo, by name and by content.
#[derive(Debug)]
#[must_use = "a proof is there to be taken by a flip"]
pub struct VerifiedRelease {
    commit: Commit,
}

impl VerifiedRelease {
    /// The release that it is a proof of.
    pub const fn commit(&self) -> Commit {
        self.commit
    }
}

/// Why there is no proof.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// Objects are missing or damaged.
    #[error("release {commit}: {} of its objects are bad: {}", bad.len(), list(bad))]
    Bad {
        /// The release.
        commit: Commit,
        /// All of them, with the first path that leads to each and what is wrong.
        bad: Vec<(ObjectName, String, Condition)>,
    },
    /// The repo could not be looked at.
    #[error("reading the objects of release {commit}")]
    Look {
        /// The release.
        commit: Commit,
        /// Why.
        #[source]
        source: RepoError,
    },
}

impl Repo {
    /// Reads every object of `commit` on all cores, and proves it.
    pub fn verify_release(
        &self,
        commit: Commit,
        progress: &dyn Progress,
    ) -> Result<VerifiedRelease, ReleaseError> {
        let look = |source| ReleaseError::Look { commit, source };
        let objects: Vec<(ObjectName, String)> = self.survey(&[commit]).map_err(look)?.into_iter().collect();
        progress.begin("objects", None);
        let checked: Vec<Condition> = objects
            .par_iter()
            .map(|(object, _)| self.check(object, &|bytes| progress.advance(bytes)))
            .collect::<Result<_, _>>()
            .map_err(look)?;
        progress.end(&format!("{} read", objects.len()));
        let bad: Vec<(ObjectName, String, Condition)> = objects
            .into_iter()
            .zip(checked)
            .filter(|(_, condition)| *condition != Condition::Good)
            .map(|((object, path), condition)| (object, path, condition))
            .collect();
        if bad.is_empty() { Ok(VerifiedRelease { commit }) } else { Err(ReleaseError::Bad { commit, bad }) }
    }
}

fn list(bad: &[(ObjectName, String, Condition)]) -> String {
    let mut texts: Vec<String> = bad
        .iter()
        .take(NAMED)
        .map(|(object, path, condition)| match condition {
            Condition::Missing => format!("{path} ({object}) is missing"),
            Condition::Damaged(why) => format!("{path} ({object}) is damaged: {why}"),
            Condition::Good => format!("{path} ({object})"),
        })
        .collect();
    if bad.len() > NAMED {
        texts.push(format!("and {} more", bad.len() - NAMED));
    }
    texts.join("; ")
}
