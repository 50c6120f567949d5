//! What may go: container images and refs that no deployment needs.
//!
//! Roots are the pin sets of all deployments, what waits and the way back among them. Only what carries our own tag
//! goes; an image that somebody else brought to Docker is never touched. What is not known to be free stays.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;

use crate::model::{Commit, Digest};

/// Refs that libostree keeps for its deployments.
const OSTREE_REFS: &str = "ostree/";

/// What was found on the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Every deployment's commit, with the config digests that it pins.
    pub roots: BTreeMap<Commit, BTreeSet<Digest>>,
    /// Images in Docker that are ours, by our tag: Id → tag.
    pub images: BTreeMap<Digest, String>,
    /// Refs of the host's repo.
    pub refs: Vec<(String, Commit)>,
}

/// One effect, safe to repeat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum Step {
    /// Remove a container image that no deployment pins.
    RemoveImage {
        /// Its Id.
        image: Digest,
        /// What people call it.
        name: String,
    },
    /// Drop a ref that keeps a commit which is no deployment.
    DropRef {
        /// The ref.
        name: String,
        /// The commit that it names.
        commit: Commit,
    },
    /// Remove the checkouts and objects that nothing needs.
    CleanUp,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RemoveImage { image, name } => {
                write!(f, "remove container image {name} ({}): no deployment pins it", &image.hex()[..12])
            }
            Self::DropRef { name, commit } => {
                write!(f, "drop ref {name}: its release {} is no deployment", commit.short())
            }
            Self::CleanUp => f.write_str("remove checkouts and objects that nothing needs"),
        }
    }
}

/// Decided: the steps in their order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// Our images that stay, because a deployment pins them.
    pub kept: usize,
    /// What will be done.
    pub steps: Vec<Step>,
}

/// Plans `gc`. Looking for checkouts and objects is the cleanup's own business, so that step is always there.
pub fn plan_reap(found: &Found) -> Plan {
    let pinned: BTreeSet<Digest> = found.roots.values().flatten().copied().collect();
    let is_free = |commit: &Commit| !found.roots.contains_key(commit);
    let free = found.images.iter().filter(|(image, _)| !pinned.contains(image));
    let mut steps: Vec<Step> =
        free.map(|(&image, name)| Step::RemoveImage { image, name: name.clone() }).collect();
    let refs = found.refs.iter().filter(|(name, commit)| is_free(commit) && !name.starts_with(OSTREE_REFS));
    steps.extend(refs.map(|(name, commit)| Step::DropRef { name: name.clone(), commit: *commit }));
    steps.push(Step::CleanUp);
    Plan { kept: found.images.keys().filter(|image| pinned.contains(image)).count(), steps }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit(letter: char) -> Commit {
        letter.to_string().repeat(64).parse().unwrap()
    }

    fn digest(name: &str) -> Digest {
        Digest::of(name.as_bytes())
    }

    #[test]
    fn what_a_deployment_pins_stays_and_the_rest_of_ours_goes() {
        let found = Found {
            roots: [
                (commit('b'), [digest("base"), digest("new")].into()),
                (commit('a'), [digest("base"), digest("old")].into()),
            ]
            .into(),
            images: ["base", "new", "old", "gone"].map(|name| (digest(name), name.to_owned())).into(),
            refs: vec![
                ("ostree/0/1/0".into(), commit('c')),
                ("rackstep/prepared".into(), commit('b')),
                ("rackstep:main".into(), commit('c')),
            ],
        };
        let plan = plan_reap(&found);
        assert_eq!(plan.kept, 3);
        assert_eq!(
            plan.steps,
            [
                Step::RemoveImage { image: digest("gone"), name: "gone".into() },
                Step::DropRef { name: "rackstep:main".into(), commit: commit('c') },
                Step::CleanUp,
            ]
        );
    }

    #[test]
    fn an_image_that_two_releases_share_stays_with_either() {
        let found = Found {
            roots: [(commit('a'), [digest("base")].into())].into(),
            images: [(digest("base"), "base".to_owned())].into(),
            refs: vec![],
        };
        assert_eq!(plan_reap(&found).steps, [Step::CleanUp]);
    }
}
