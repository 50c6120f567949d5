//! Which commit is meant: nothing named, a ref, a version, a commit or the beginning of one.
//!
//! 1. The repo's summary tells every ref and its commit. A release is there twice: under its moving ref, and under
//!    `releases/<name>/<version>`.
//! 2. What the host already has counts as well, so that a name works without network.
//! 3. Exactly one commit must be meant. The answer is a name only: signature and content are checked by the pull.
//!
//! Form of the summary: libostree's `OSTREE_SUMMARY_GVARIANT_FORMAT`, `(a(s(taya{sv}))a{sv})`.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::model::commit::version_in_ref;
use crate::model::{Commit, Deployment, Ref};

/// Shortest beginning of a commit that is taken for one.
const SHORTEST_PREFIX: usize = 4;

/// How long the repo may take to answer for its summary.
const TIMEOUT: Duration = Duration::from_secs(60);

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
        source: reqwest::Error,
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

fn list(commits: &[Commit]) -> String {
    commits.iter().map(Commit::short).collect::<Vec<_>>().join(", ")
}

/// Refs of a repo and the commits that they name.
pub type Refs = BTreeMap<String, Commit>;

/// Fetches the refs of the repo at `url`.
pub fn fetch_refs(url: &str) -> Result<Refs, RevisionError> {
    let address = format!("{}/summary", url.trim_end_matches('/'));
    let fetch = || -> Result<_, reqwest::Error> {
        let client = crate::rim::tls::blocking_client().timeout(TIMEOUT).build()?;
        client.get(&address).send()?.error_for_status()?.bytes()
    };
    let bytes = fetch().map_err(|source| RevisionError::Fetch { url: address.clone(), source })?;
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
