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
    let packages_key = digest_of(&(&inputs.packages, &inputs.bootstrap));
    let host_key =
        digest_of(&(&packages_key, inputs.created, &inputs.programs, &inputs.host_files, &inputs.settings));
    Verdict::Compose(ComposePlan { inputs: digest, packages_key, host_key })
}

/// Maps are sorted and there is no float: equal values give equal text.
fn digest_of(value: &impl Serialize) -> Digest {
    Digest::of(serde_json::to_string(value).unwrap_or_default().as_bytes())
}

/// What a repo has published under the names of a new release.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Published {
    /// The newest release of the ref.
    pub head: Option<PublishedHead>,
    /// The release that the version names now.
    pub version: Option<Commit>,
}

/// The newest release of a ref.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedHead {
    /// Its commit.
    pub commit: Commit,
    /// Its lock's time, in seconds since 1970.
    pub created: u64,
    /// Whether it carries a signature.
    pub signed: bool,
}

/// What a person consents to that is refused otherwise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Consent {
    /// A version may name another release than before, and a ref an older one.
    pub replace: bool,
    /// An unsigned release may follow a signed one.
    pub unsigned: bool,
}

/// Why a release is not published.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The version is a release's already.
    #[error("version {version} is release {} already: give the new contents a new version, or --replace the release", commit.short())]
    VersionTaken {
        /// The version.
        version: String,
        /// The release.
        commit: Commit,
    },
    /// The ref's newest release was locked later.
    #[error("the newest release of {follows}, {}, was locked after this one, which would take the ref back: lock again, or say --replace", commit.short())]
    GoesBack {
        /// The ref.
        follows: String,
        /// Its newest release.
        commit: Commit,
    },
    /// Hosts that trust a key would refuse it.
    #[error("the newest release of {follows}, {}, is signed, and hosts that trust its key refuse an unsigned one: --sign-key, or say --unsigned", commit.short())]
    Unsigned {
        /// The ref.
        follows: String,
        /// Its newest release.
        commit: Commit,
    },
}

/// Decides whether a new release may take its names: a version keeps its meaning, and a ref goes forward.
pub fn require_publishable(
    published: &Published,
    (follows, version): (&str, &str),
    created: u64,
    signed: bool,
    consent: Consent,
) -> Result<(), Refusal> {
    if let Some(commit) = published.version.filter(|_| !consent.replace) {
        return Err(Refusal::VersionTaken { version: version.to_owned(), commit });
    }
    let Some(head) = &published.head else { return Ok(()) };
    let (follows, commit) = (follows.to_owned(), head.commit);
    if head.created > created && !consent.replace {
        return Err(Refusal::GoesBack { follows, commit });
    }
    if head.signed && !signed && !consent.unsigned {
        return Err(Refusal::Unsigned { follows, commit });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_keeps_its_meaning_and_a_ref_goes_forward() {
        let commit: Commit = "a".repeat(64).parse().unwrap();
        let head = |created, signed| Some(PublishedHead { commit, created, signed });
        let empty = Published::default();
        let taken = Published { head: head(5, false), version: Some(commit) };
        let newer = Published { head: head(9, false), version: None };
        let signed = Published { head: head(5, true), version: None };
        let (replace, unsigned) =
            (Consent { replace: true, unsigned: false }, Consent { replace: false, unsigned: true });
        let none = Consent::default();
        for (published, signs, consent, refused) in [
            (&empty, false, none, None),
            (&taken, false, none, Some("version 1.1.0 is release aaaaaaaaaa already")),
            (&taken, false, replace, None),
            (&newer, false, none, Some("the newest release of a/b, aaaaaaaaaa, was locked after this one")),
            (&newer, false, replace, None),
            (&signed, false, none, Some("the newest release of a/b, aaaaaaaaaa, is signed")),
            (&signed, false, replace, Some("the newest release of a/b, aaaaaaaaaa, is signed")),
            (&signed, false, unsigned, None),
            (&signed, true, none, None),
        ] {
            let told = require_publishable(published, ("a/b", "1.1.0"), 7, signs, consent).err();
            let told = told.map(|refusal| refusal.to_string());
            assert_eq!(told.is_some(), refused.is_some(), "{told:?}");
            assert!(told.unwrap_or_default().starts_with(refused.unwrap_or_default()), "{refused:?}");
        }
    }

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
        let relocked = plan(&Inputs { created: 2, ..inputs() });
        assert_eq!(relocked.packages_key, base.packages_key, "a new lock of unchanged packages");
        assert_ne!(relocked.host_key, base.host_key);
        let packages = plan(&Inputs { bootstrap: "2".into(), ..inputs() });
        assert_ne!(packages.packages_key, base.packages_key);
        assert_ne!(packages.host_key, base.host_key);
    }
}
