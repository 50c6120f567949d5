//! The proof that a flip takes: every pinned image of one release was just read back from Docker.
//!
//! [`VerifiedPins`] has private fields and one maker, and the maker does the check itself. It names the commit *and* the
//! digest of the `pins.json` that was checked; [`VerifiedPins::require_for`] compares both with what is about to be flipped,
//! so that a proof of one release cannot flip another. (bootc stages first and pulls the images afterwards, bootc#2013.)

use crate::model::{Commit, Digest, PinnedImage, Progress, ReleasePins};

use super::{Docker, DockerError, Verdict};

/// Every pinned image of this release is in Docker, by Id and by content.
#[derive(Debug)]
#[must_use = "a proof is there to be taken by a flip"]
pub struct VerifiedPins {
    commit: Commit,
    pins: Digest,
}

/// One pinned image that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Its name in the pin set.
    pub name: String,
    /// As asked for when the release was locked.
    pub reference: String,
    /// Its config digest.
    pub config: Digest,
    /// What is wrong.
    pub verdict: Verdict,
}

/// Why there is no proof.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// Images are missing or damaged.
    #[error("release {commit}: {}", list(findings))]
    Bad {
        /// The release.
        commit: Commit,
        /// All of them.
        findings: Vec<Finding>,
    },
    /// Docker could not be looked at.
    #[error("verifying the container images of release {commit}")]
    Look {
        /// The release.
        commit: Commit,
        /// Why.
        #[source]
        source: DockerError,
    },
}

/// A proof of another release.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WrongRelease {
    /// Another commit.
    #[error("the images of release {proven} were verified, not those of {wanted}")]
    Commit {
        /// What the proof is of.
        proven: Commit,
        /// What was about to be flipped.
        wanted: Commit,
    },
    /// The same commit, but its pin set is not the one that was checked.
    #[error("release {commit}: the pin set {proven} was verified, but pins.json on the disk is {found}")]
    Pins {
        /// The release.
        commit: Commit,
        /// What the proof is of.
        proven: Digest,
        /// What is on the disk.
        found: Digest,
    },
}

impl VerifiedPins {
    /// The release that it is a proof of.
    pub const fn commit(&self) -> Commit {
        self.commit
    }

    /// Digest of the `pins.json` that was checked.
    pub const fn pins_digest(&self) -> Digest {
        self.pins
    }

    /// Refuses unless this proves `commit` with the `pins.json` whose bytes are given.
    pub fn require_for(&self, commit: Commit, pins_json: &[u8]) -> Result<(), WrongRelease> {
        if self.commit != commit {
            return Err(WrongRelease::Commit { proven: self.commit, wanted: commit });
        }
        let found = Digest::of(pins_json);
        if self.pins != found {
            return Err(WrongRelease::Pins { commit, proven: self.pins, found });
        }
        Ok(())
    }
}

impl Docker {
    /// Reads every pinned image of `release` back, and proves it.
    pub fn verify_release(
        &self,
        release: &ReleasePins,
        progress: &dyn Progress,
    ) -> Result<VerifiedPins, VerifyError> {
        let commit = release.commit();
        let findings =
            self.findings(release, progress).map_err(|source| VerifyError::Look { commit, source })?;
        if !findings.is_empty() {
            return Err(VerifyError::Bad { commit, findings });
        }
        Ok(VerifiedPins { commit, pins: release.digest() })
    }

    /// Every pinned image of `release` that is not good.
    pub fn findings(
        &self,
        release: &ReleasePins,
        progress: &dyn Progress,
    ) -> Result<Vec<Finding>, DockerError> {
        let images: Vec<&PinnedImage> = release.images().map(|(_, image)| image).collect();
        let verdicts = self.verify_all(&images, progress)?;
        Ok(release
            .images()
            .zip(verdicts)
            .filter(|(_, verdict)| !verdict.is_good())
            .map(|((name, image), verdict)| Finding {
                name: name.to_owned(),
                reference: image.reference.clone(),
                config: image.config,
                verdict,
            })
            .collect())
    }
}

fn list(findings: &[Finding]) -> String {
    let texts: Vec<String> = findings
        .iter()
        .map(|finding| {
            let Finding { name, reference, config, verdict } = finding;
            format!("container image {name} ({reference}, {config}) is {verdict}")
        })
        .collect();
    texts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_is_of_one_commit_and_one_pin_set() {
        let commit = |digit: &str| digit.repeat(64).parse::<Commit>().unwrap();
        let proof = VerifiedPins { commit: commit("a"), pins: Digest::of(b"pins") };
        assert_eq!(proof.require_for(commit("a"), b"pins"), Ok(()));
        let wrong = WrongRelease::Commit { proven: commit("a"), wanted: commit("b") };
        assert_eq!(proof.require_for(commit("b"), b"pins"), Err(wrong));
        assert!(matches!(proof.require_for(commit("a"), b"other"), Err(WrongRelease::Pins { .. })));
    }
}
