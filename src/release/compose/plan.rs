//! Plans a compose: is there anything to do, and which earlier work still counts?
//!
//! 1. [`Inputs`] is everything that decides a release, as digests; 2. its digest is compared with the one in the head
//!    commit of the ref: equal means that the release exists already; 3. each stage has a key made of what that stage
//!    alone depends on, so that a changed service does not rebuild the host.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::model::{Commit, Digest, Package};

/// Everything that decides the content of a release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Inputs {
    /// Version, ref, name: what the commit says of itself.
    pub identity: BTreeMap<String, String>,
    /// The lock's time.
    pub created: u64,
    /// Exact packages.
    pub packages: Vec<Package>,
    /// Codes and options of the stages that unpack packages.
    pub bootstrap: String,
    /// Pinned binaries and the program itself: path in the tree → digest.
    pub programs: BTreeMap<String, Digest>,
    /// Files of the host tree and scripts: name → digest of the tree.
    pub host_files: BTreeMap<String, Digest>,
    /// Units, initramfs, kernel arguments: what the treefile sets besides files.
    pub settings: String,
    /// Service definitions: directory name → digest of the tree.
    pub services: BTreeMap<String, Digest>,
    /// Container images: name → config digest.
    pub images: BTreeMap<String, Digest>,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ComposePlan {
    /// Digest of all inputs, kept in the commit.
    pub inputs: Digest,
    /// Key of the tree right after its packages are unpacked.
    pub packages_key: Digest,
    /// Key of the whole host tree, without services.
    pub host_key: Digest,
}

/// What the planner found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The head of the ref was made from these very inputs.
    Unchanged(Commit),
    /// There is something to do.
    Compose(ComposePlan),
}

/// The head commit of a ref and the inputs it was made from, if it tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The commit.
    pub commit: Commit,
    /// Its `rackstep.inputs`.
    pub inputs: Option<String>,
}

/// Decides.
pub fn plan_compose(inputs: &Inputs, head: Option<&Head>) -> Verdict {
    let digest = digest_of(inputs);
    if let Some(head) = head
        && head.inputs.as_deref() == Some(digest.hex().as_str())
    {
        return Verdict::Unchanged(head.commit);
    }
    let packages_key = digest_of(&(&inputs.packages, inputs.created, &inputs.bootstrap));
    let host_key = digest_of(&(&packages_key, &inputs.programs, &inputs.host_files, &inputs.settings));
    Verdict::Compose(ComposePlan { inputs: digest, packages_key, host_key })
}

/// Maps are sorted and there is no float: equal values give equal text.
fn digest_of(value: &impl Serialize) -> Digest {
    Digest::of(serde_json::to_string(value).unwrap_or_default().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs() -> Inputs {
        Inputs {
            identity: BTreeMap::from([("version".into(), "1".into())]),
            created: 1,
            packages: vec![],
            bootstrap: "1".into(),
            programs: BTreeMap::from([("/usr/bin/rackstep".into(), Digest::of(b"r"))]),
            host_files: BTreeMap::new(),
            settings: "s".into(),
            services: BTreeMap::new(),
            images: BTreeMap::new(),
        }
    }

    fn plan(inputs: &Inputs) -> ComposePlan {
        match plan_compose(inputs, None) {
            Verdict::Compose(plan) => plan,
            Verdict::Unchanged(commit) => panic!("unchanged {commit}"),
        }
    }

    #[test]
    fn unchanged_only_with_the_same_inputs() {
        let commit: Commit = "a".repeat(64).parse().unwrap();
        let same = Head { commit, inputs: Some(plan(&inputs()).inputs.hex()) };
        assert_eq!(plan_compose(&inputs(), Some(&same)), Verdict::Unchanged(commit));
        let other = Head { commit, inputs: None };
        assert!(matches!(plan_compose(&inputs(), Some(&other)), Verdict::Compose(_)));
        let changed = Inputs { settings: "t".into(), ..inputs() };
        assert!(matches!(plan_compose(&changed, Some(&same)), Verdict::Compose(_)));
    }

    #[test]
    fn keys_follow_what_a_stage_depends_on() {
        let base = plan(&inputs());
        let service = plan(&Inputs { images: BTreeMap::from([("k".into(), Digest::of(b"k"))]), ..inputs() });
        assert_ne!(service.inputs, base.inputs);
        assert_eq!((service.packages_key, service.host_key), (base.packages_key, base.host_key));
        let program = plan(&Inputs { programs: BTreeMap::new(), ..inputs() });
        assert_eq!(program.packages_key, base.packages_key);
        assert_ne!(program.host_key, base.host_key);
        let packages = plan(&Inputs { bootstrap: "2".into(), ..inputs() });
        assert_ne!(packages.packages_key, base.packages_key);
        assert_ne!(packages.host_key, base.host_key);
    }
}
