//! Which commit is meant: nothing named, a ref, a version, a commit or the beginning of one.
//!
//! 1. What the host already has is looked at first, so that a name works without network;
//! 2. the repo says what it knows by that name (`exec::pull::resolve_remote`);
//! 3. exactly one commit must be meant. The answer is a name only: signature and content are checked by the pull.

use crate::exec::pull::{PullError, resolve_remote};
use crate::model::{Commit, Deployment, Ref};

/// Shortest beginning of a commit that is taken for one.
const SHORTEST_PREFIX: usize = 4;

/// Why no single commit is meant.
#[derive(Debug, thiserror::Error)]
pub enum RevisionError {
    /// The repo did not answer, or has nothing by that name.
    #[error("looking for release {name:?} at {url}")]
    Remote {
        /// What was asked for.
        name: String,
        /// The repo.
        url: String,
        /// Why.
        #[source]
        source: PullError,
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

/// The commit that `name` means on the host or in the repo at `url`; no name: the newest of `follows`.
pub fn resolve(
    url: &str,
    name: Option<&str>,
    follows: &Ref,
    deployments: &[Deployment],
) -> Result<Commit, RevisionError> {
    let ask = |name: &str| {
        resolve_remote(url, name).map_err(|source| RevisionError::Remote {
            name: name.to_owned(),
            url: url.to_owned(),
            source,
        })
    };
    let Some(name) = name else { return ask(follows.as_str()) };
    if let Ok(commit) = name.parse::<Commit>() {
        return Ok(commit);
    }
    let here = named_here(name, deployments);
    match (here.as_slice(), ask(name)) {
        ([], there) => there,
        // The repo may be out of reach, or have pruned what the host still has.
        ([commit], Err(_)) => Ok(*commit),
        ([commit], Ok(there)) if *commit == there => Ok(there),
        (_, there) => {
            let mut commits = here;
            commits.extend(there.ok());
            commits.sort_unstable();
            commits.dedup();
            Err(RevisionError::Ambiguous { name: name.to_owned(), commits })
        }
    }
}

/// Commits on the host of that version, or that begin so.
fn named_here(name: &str, deployments: &[Deployment]) -> Vec<Commit> {
    let is_prefix = name.len() >= SHORTEST_PREFIX && name.bytes().all(|b| b.is_ascii_hexdigit());
    let mut commits: Vec<Commit> = deployments
        .iter()
        .filter(|deployment| {
            deployment.version.as_deref() == Some(name)
                || is_prefix && deployment.id.commit.hex().starts_with(name)
        })
        .map(|deployment| deployment.id.commit)
        .collect();
    commits.sort_unstable();
    commits.dedup();
    commits
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::DeploymentId;
    use crate::model::deployment::Role;

    /// Nothing listens on the discard port of loopback.
    const NOBODY: &str = "http://127.0.0.1:9/repo";

    fn deployment(start: &str, version: &str) -> Deployment {
        let commit = format!("{start:0<64}").parse().unwrap();
        Deployment {
            id: DeploymentId { stateroot: "rackstep".into(), commit, serial: 0 },
            role: Role::Rollback,
            next_boot: false,
            version: Some(version.into()),
            path: String::new(),
        }
    }

    #[test]
    fn a_name_works_without_network_when_the_host_has_the_release() {
        let follows: Ref = "rackstep/x86_64/host".parse().unwrap();
        let here = [deployment("abc1", "1.0.0"), deployment("abc2", "2.0.0")];
        for (name, expected) in [("1.0.0", Some(0)), ("abc2", Some(1)), ("abc", None), ("9.9", None)] {
            let found = resolve(NOBODY, Some(name), &follows, &here).ok();
            assert_eq!(found, expected.map(|index: usize| here[index].id.commit), "{name}");
        }
    }

    #[test]
    fn an_ambiguous_beginning_names_all_that_match() {
        let follows: Ref = "x".parse().unwrap();
        let here = [deployment("abc10", "1"), deployment("abc11", "2")];
        let error = resolve(NOBODY, Some("abc1"), &follows, &here).unwrap_err();
        assert_eq!(error.to_string(), "\"abc1\" may mean any of abc1000000, abc1100000");
    }
}
