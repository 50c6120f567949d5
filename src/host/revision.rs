//! Which commit is meant: nothing named, a ref, a version, a commit or the beginning of one.
//!
//! 1. The repo's summary tells every ref and its commit. A release is there twice: under its moving ref, and under
//!    `releases/<name>/<version>`.
//! 2. What the host already has counts as well, so that a name works without network.
//! 3. Exactly one commit must be meant. The answer is a name only: signature and content are checked by the pull.
//!
//! Form of the summary: libostree's `OSTREE_SUMMARY_GVARIANT_FORMAT`, `(a(s(taya{sv}))a{sv})`.

use std::collections::BTreeMap;

use crate::model::commit::version_in_ref;
use crate::model::{Commit, Deployment, Ref};
use crate::ostree::repo::CommitInfo;
use crate::rim::fetch::{Fetch, FetchError};

/// Shortest beginning of a commit that is taken for one.
const SHORTEST_PREFIX: usize = 4;

/// The largest summary: 100 bytes a release, so that half a million releases fit.
const SUMMARY_LIMIT: u64 = 64 << 20;

/// Why no single commit is meant.
#[derive(Debug, thiserror::Error)]
pub enum RevisionError {
    /// The repo did not give its summary.
    #[error("asking {url} for its releases")]
    Fetch {
        /// The summary's address.
        url: String,
        /// Why.
        #[source]
        source: FetchError,
    },
    /// The summary is not one.
    #[error("the summary of {url} is damaged")]
    Damaged {
        /// The summary's address.
        url: String,
    },
    /// Nothing is called so.
    #[error("{url} has no release called {name:?}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// The repo.
        url: String,
    },
    /// Several releases could be meant.
    #[error("{name:?} may mean any of {}", list(.commits))]
    Ambiguous {
        /// What was asked for.
        name: String,
        /// All that match.
        commits: Vec<Commit>,
    },
}

/// A signed release stands under a name that is not its own.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{url} gives release {} for {asked}, but what was signed is {signed}", commit.short())]
pub struct NotBound {
    /// The repo.
    pub url: String,
    /// What was asked for.
    pub asked: String,
    /// The commit that the server named.
    pub commit: Commit,
    /// Version and refs that the commit says of itself.
    pub signed: String,
}

/// Requires that the commit says of itself what was asked for: the summary, which names it, is signed by nobody.
///
/// Without a name the commit must be bound to the ref that the host follows, with a ref to that ref, with a version it must
/// be of that version. Who names a commit by its own digits has named exactly this one.
pub fn require_bound(
    url: &str,
    name: Option<&str>,
    follows: &Ref,
    info: &CommitInfo,
) -> Result<(), NotBound> {
    let is_bound = |name: &str| info.refs.iter().any(|bound| bound == name);
    let version = info.version.as_deref();
    let bound = match name {
        None => is_bound(follows.as_str()),
        Some(name) => {
            let of_version = |name| version == Some(name);
            let by_digits = name.len() >= SHORTEST_PREFIX && info.commit.hex().starts_with(name);
            is_bound(name) || of_version(name) || version_in_ref(name).is_some_and(of_version) || by_digits
        }
    };
    if bound {
        return Ok(());
    }
    let asked = name.map_or_else(|| format!("the newest of {follows}"), |name| format!("{name:?}"));
    let signed = format!("version {} of {}", version.unwrap_or("none"), info.refs.join(", "));
    Err(NotBound { url: url.to_owned(), asked, commit: info.commit, signed })
}

fn list(commits: &[Commit]) -> String {
    commits.iter().map(Commit::short).collect::<Vec<_>>().join(", ")
}

/// Refs of a repo and the commits that they name.
pub type Refs = BTreeMap<String, Commit>;

/// Fetches the refs of the repo at `url`.
pub fn fetch_refs(url: &str) -> Result<Refs, RevisionError> {
    let address = format!("{}/summary", url.trim_end_matches('/'));
    let fetched = Fetch::new().and_then(|fetch| fetch.get_whole(&address, SUMMARY_LIMIT));
    let bytes = fetched.map_err(|source| RevisionError::Fetch { url: address.clone(), source })?;
    parse_summary(&bytes).ok_or(RevisionError::Damaged { url: address })
}

fn parse_summary(bytes: &[u8]) -> Option<Refs> {
    let form = glib::VariantTy::new("(a(s(taya{sv}))a{sv})").ok()?;
    let summary = glib::Variant::from_bytes_with_type(&glib::Bytes::from(bytes), form).normal_form();
    let mut refs = Refs::new();
    for entry in summary.child_value(0).iter() {
        let name = entry.child_value(0).str()?.to_owned();
        let checksum = entry.child_value(1).child_value(1);
        let commit = hex::encode(checksum.fixed_array::<u8>().ok()?).parse().ok()?;
        refs.insert(name, commit);
    }
    Some(refs)
}

/// The commit that `name` means among `refs` and what the host has; no name: the newest of `follows`.
pub fn resolve(
    url: &str,
    name: Option<&str>,
    follows: &Ref,
    refs: &Refs,
    deployments: &[Deployment],
) -> Result<Commit, RevisionError> {
    let unknown = |name: &str| RevisionError::Unknown { name: name.to_owned(), url: url.to_owned() };
    let Some(name) = name else {
        return refs.get(follows.as_str()).copied().ok_or_else(|| unknown(follows.as_str()));
    };
    if let Ok(commit) = name.parse::<Commit>() {
        return Ok(commit);
    }
    if let Some(commit) = refs.get(name) {
        return Ok(*commit);
    }
    let here = deployments.iter().map(|deployment| (deployment.version.as_deref(), deployment.id.commit));
    let there = refs.iter().map(|(name, commit)| (version_in_ref(name), *commit));
    let is_prefix = name.len() >= SHORTEST_PREFIX && name.bytes().all(|b| b.is_ascii_hexdigit());
    let mut commits: Vec<Commit> = here
        .chain(there)
        .filter(|(version, commit)| *version == Some(name) || is_prefix && commit.hex().starts_with(name))
        .map(|(_, commit)| commit)
        .collect();
    commits.sort_unstable();
    commits.dedup();
    match commits.as_slice() {
        [] => Err(unknown(name)),
        [commit] => Ok(*commit),
        _ => Err(RevisionError::Ambiguous { name: name.to_owned(), commits }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Digest;

    fn commit(start: &str) -> Commit {
        format!("{start:0<64}").parse().unwrap()
    }

    fn refs() -> Refs {
        [
            ("rackstep/x86_64/host", "abc2"),
            ("releases/host/1.0.0", "abc1"),
            ("releases/host/2.0.0", "abc2"),
            ("releases/host/3.0.0", "def0"),
        ]
        .map(|(name, start)| (name.to_owned(), commit(start)))
        .into()
    }

    #[test]
    fn names() {
        let follows: Ref = "rackstep/x86_64/host".parse().unwrap();
        for (name, expected) in [
            (None, Some("abc2")),
            (Some("1.0.0"), Some("abc1")),
            (Some("rackstep/x86_64/host"), Some("abc2")),
            (Some("def0"), Some("def0")),
            (Some("abc2"), Some("abc2")),
            (Some("abc"), None),
            (Some("9.9"), None),
        ] {
            let found = resolve("http://repo", name, &follows, &refs(), &[]).ok();
            assert_eq!(found, expected.map(commit), "{name:?}");
        }
    }

    #[test]
    fn a_release_under_another_name_is_not_taken() {
        let follows: Ref = "rackstep/x86_64/host".parse().unwrap();
        let bound = vec!["rackstep/x86_64/host".to_owned(), "releases/host/1.0.0".to_owned()];
        let info = CommitInfo {
            commit: commit("abc1"),
            version: Some("1.0.0".to_owned()),
            timestamp: 0,
            parent: None,
            subject: String::new(),
            refs: bound,
            metadata: Vec::new(),
            root: (Digest::of(b"tree"), Digest::of(b"meta")),
        };
        let other: Ref = "rackstep/x86_64/other".parse().unwrap();
        for (name, follows, taken) in [
            (None, &follows, true),
            (None, &other, false),
            (Some("1.0.0"), &other, true),
            (Some("4.0.0"), &follows, false),
            (Some("releases/host/1.0.0"), &follows, true),
            (Some("releases/host/4.0.0"), &follows, false),
            (Some("rackstep/x86_64/host"), &other, true),
            (Some("rackstep/x86_64/other"), &follows, false),
            (Some("abc1"), &other, true),
            (Some("abc2"), &other, false),
        ] {
            let told = require_bound("http://repo", name, follows, &info);
            assert_eq!(told.is_ok(), taken, "{name:?} {told:?}");
        }
        let told = require_bound("http://repo", Some("4.0.0"), &follows, &info).unwrap_err().to_string();
        assert_eq!(
            told,
            "http://repo gives release abc1000000 for \"4.0.0\", but what was signed is version 1.0.0 of rackstep/x86_64/host, releases/host/1.0.0"
        );
    }

    #[test]
    fn an_ambiguous_beginning_names_all_that_match() {
        let mut refs = refs();
        refs.insert("x".into(), commit("abc10"));
        refs.insert("y".into(), commit("abc11"));
        let follows: Ref = "x".parse().unwrap();
        let error = resolve("http://repo", Some("abc1"), &follows, &refs, &[]).unwrap_err();
        assert_eq!(error.to_string(), "\"abc1\" may mean any of abc1000000, abc1100000");
    }

    #[test]
    fn reads_a_summary_made_by_libostree_form() {
        let checksum = commit("abc1").as_bytes().to_vec();
        let entry = ("main", (0u64, checksum, BTreeMap::<String, glib::Variant>::new()));
        let summary = glib::Variant::from((vec![entry], BTreeMap::<String, glib::Variant>::new()));
        let refs = parse_summary(&summary.data_as_bytes()).unwrap();
        assert_eq!(refs.get("main"), Some(&commit("abc1")));
    }
}
