//! Plans a rollout: a release that travels over the machines of a cluster in waves. Pure.
//!
//! 1. One machine goes first: a release that does not come up takes down no more than that; 2. the others follow, all at
//!    once or so many at a time; 3. a wave begins only when the one before it is healthy ([`judge`]).

use std::fmt;

use serde::Serialize;

use crate::model::Commit;
use crate::model::deployment::{Role, name_release, rollback_target};
use crate::model::status::Status;

/// Where a rollout leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "act", rename_all = "kebab-case")]
pub enum Act {
    /// To the release that each machine's own `upgrade` finds, which must be the same one.
    Upgrade {
        /// As given; none: the newest of the ref that the machine follows.
        revision: Option<String>,
    },
    /// Back to a release that each machine still has.
    Rollback {
        /// The release.
        commit: Commit,
        /// As people call it.
        version: Option<String>,
    },
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Upgrade { revision: Some(revision) } => write!(f, "upgrade to {revision}"),
            Self::Upgrade { revision: None } => f.write_str("upgrade to the newest release"),
            Self::Rollback { commit, version } => {
                write!(f, "go back to release {}", name_release(version.as_deref(), *commit))
            }
        }
    }
}

/// A rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RolloutPlan {
    /// Where it leads.
    #[serde(flatten)]
    pub act: Act,
    /// Machines that go together, by name.
    pub waves: Vec<Vec<String>>,
}

impl RolloutPlan {
    /// Plans it for `machines`, in order; waves after the first have `wave` machines, or all that are left.
    pub fn new(act: Act, machines: &[String], wave: Option<usize>) -> Self {
        let waves = match machines {
            [] => Vec::new(),
            [first, others @ ..] => {
                let size = wave.unwrap_or(others.len()).max(1);
                std::iter::once(vec![first.clone()])
                    .chain(others.chunks(size).map(<[String]>::to_vec))
                    .collect()
            }
        };
        Self { act, waves }
    }

    /// The waves as lines for people.
    pub fn lines(&self) -> Vec<String> {
        self.waves.iter().map(|wave| format!("{}: {}", wave.join(", "), self.act)).collect()
    }
}

/// Why a cluster cannot go back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoWayBack {
    /// A machine has no other release.
    #[error("{machine} has no release to go back to, and does not run one that the others could")]
    None {
        /// The machine.
        machine: String,
    },
    /// Not all machines have one release that is another one's way back.
    #[error("the machines have no release in common to go back to: {machines}")]
    Apart {
        /// What each runs and could go back to.
        machines: String,
    },
    /// The machines run each other's way back, and nothing tells which is the older one.
    #[error("some machines run {one} and some {other}, and each could go back to the other")]
    Crossed {
        /// One release.
        one: String,
        /// The other.
        other: String,
    },
}

/// The release that a cluster goes back to: every machine runs it or has it as its way back.
///
/// A rollback that stopped half way goes on to the same release: on a machine that is there already, another `rollback`
/// would lead forward again.
pub fn plan_way_back(machines: &[(String, Status)]) -> Result<Act, NoWayBack> {
    let mut candidates: Vec<(Commit, Option<String>)> = Vec::new();
    for (_, status) in machines {
        let deployments: Vec<_> = status.deployments.iter().map(|entry| entry.deployment.clone()).collect();
        if let Some(target) = rollback_target(&deployments)
            && candidates.iter().all(|(commit, _)| *commit != target.id.commit)
        {
            candidates.push((target.id.commit, target.version.clone()));
        }
    }
    let has = |status: &Status, commit: Commit| {
        let kept = |entry: &&crate::model::status::DeploymentStatus| {
            entry.deployment.id.commit == commit
                && matches!(entry.deployment.role, Role::Booted | Role::Rollback)
        };
        status.deployments.iter().any(|entry| kept(&entry))
    };
    let everywhere = |commit: Commit| machines.iter().all(|(_, status)| has(status, commit));
    candidates.retain(|(commit, _)| everywhere(*commit));
    let act = |(commit, version): (Commit, Option<String>)| Act::Rollback { commit, version };
    match <[_; 2]>::try_from(candidates) {
        Ok([one, other]) => match older(&one, &other) {
            Some(first) => Ok(act(if first { one } else { other })),
            None => Err(NoWayBack::Crossed {
                one: name_release(one.1.as_deref(), one.0),
                other: name_release(other.1.as_deref(), other.0),
            }),
        },
        Err(mut candidates) => match (candidates.pop(), machines) {
            (Some(only), _) if candidates.is_empty() => Ok(act(only)),
            (_, [(machine, _)]) => Err(NoWayBack::None { machine: machine.clone() }),
            _ => Err(NoWayBack::Apart { machines: tell_releases(machines) }),
        },
    }
}

/// Is `one` the older release? None: their versions do not tell.
fn older(one: &(Commit, Option<String>), other: &(Commit, Option<String>)) -> Option<bool> {
    let version = |release: &(Commit, Option<String>)| semver::Version::parse(release.1.as_deref()?).ok();
    let (one, other) = (version(one)?, version(other)?);
    (one != other).then(|| one < other)
}

fn tell_releases(machines: &[(String, Status)]) -> String {
    let tell = |(name, status): &(String, Status)| {
        let mut text = name.clone();
        for entry in &status.deployments {
            let word = match entry.deployment.role {
                Role::Booted => "runs",
                Role::Rollback => "could go back to",
                Role::StagedLocked | Role::Staged | Role::Pending => continue,
            };
            let release = name_release(entry.deployment.version.as_deref(), entry.deployment.id.commit);
            text.push_str(&format!(" {word} {release}"));
        }
        text
    };
    machines.iter().map(tell).collect::<Vec<_>>().join("; ")
}

/// The release that a machine's next boot takes.
pub fn next_boot(status: &Status) -> Option<Commit> {
    status.deployments.iter().find(|entry| entry.deployment.next_boot).map(|entry| entry.deployment.id.commit)
}

/// How people call the release `commit` of a machine.
pub fn release_of(status: &Status, commit: Commit) -> String {
    let entry = status.deployments.iter().find(|entry| entry.deployment.id.commit == commit);
    name_release(entry.and_then(|entry| entry.deployment.version.as_deref()), commit)
}

/// Is a machine healthy? It runs `expected` (if that is told), and every container of its release by its pin.
///
/// Err: what is missing.
pub fn judge(status: &Status, expected: Option<Commit>) -> Result<(), String> {
    let Some(booted) = status.booted else { return Err("it runs no release".to_owned()) };
    if let Some(expected) = expected.filter(|expected| *expected != booted) {
        let (runs, wanted) = (release_of(status, booted), release_of(status, expected));
        return Err(format!("it runs release {runs}, not {wanted}"));
    }
    let all = status.services.len();
    let bad =
        |told: &str, names: Vec<String>| Err(format!("{told} of {all} containers: {}", names.join(", ")));
    let name = |container: &crate::model::status::ContainerStatus| {
        format!("{}/{}", container.pod, container.container)
    };
    let others = status.services.iter().filter(|c| c.running.is_some_and(|running| running != c.expected));
    let others: Vec<String> = others.map(name).collect();
    if !others.is_empty() {
        return bad(&format!("another image runs in {}", others.len()), others);
    }
    let missing: Vec<String> = status.services.iter().filter(|c| c.running.is_none()).map(name).collect();
    if !missing.is_empty() {
        return bad(&format!("waits for {}", missing.len()), missing);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::status::{ContainerStatus, DeploymentStatus, STATUS_FORMAT};
    use crate::model::{Deployment, DeploymentId, Digest};

    fn commit(digit: char) -> Commit {
        digit.to_string().repeat(64).parse().unwrap()
    }

    /// Releases in boot order: digit of the commit, version, role.
    fn status(deployments: &[(char, &str, Role)]) -> Status {
        let deployments: Vec<DeploymentStatus> = deployments
            .iter()
            .enumerate()
            .map(|(number, &(digit, version, role))| DeploymentStatus {
                deployment: Deployment {
                    id: DeploymentId { stateroot: "rackstep".into(), commit: commit(digit), serial: 0 },
                    role,
                    next_boot: number == 0,
                    version: Some(version.to_owned()).filter(|version| !version.is_empty()),
                    path: String::new(),
                },
                images: Vec::new(),
            })
            .collect();
        let booted = deployments.iter().find(|entry| entry.deployment.role == Role::Booted);
        Status {
            format: STATUS_FORMAT,
            host: None,
            address: None,
            boot: None,
            newest: None,
            booted: booted.map(|entry| entry.deployment.id.commit),
            kernel: String::new(),
            unlocked: None,
            deployments,
            services: Vec::new(),
            waiting: Vec::new(),
        }
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn one_machine_goes_first() {
        let machines = names(&["control", "compute-1", "compute-2", "compute-3"]);
        let waves = |count: usize, wave| {
            let plan = RolloutPlan::new(Act::Upgrade { revision: None }, &machines[..count], wave);
            plan.waves.iter().map(|wave| wave.join(" ")).collect::<Vec<_>>()
        };
        assert_eq!(waves(4, None), ["control", "compute-1 compute-2 compute-3"]);
        assert_eq!(waves(4, Some(2)), ["control", "compute-1 compute-2", "compute-3"]);
        assert_eq!(waves(4, Some(0)), ["control", "compute-1", "compute-2", "compute-3"]);
        assert_eq!(waves(1, None), ["control"]);
        assert!(waves(0, None).is_empty());
        let act = Act::Upgrade { revision: Some("1.1.0".into()) };
        assert_eq!(
            RolloutPlan::new(act, &machines[..2], None).lines(),
            ["control: upgrade to 1.1.0", "compute-1: upgrade to 1.1.0"]
        );
    }

    #[test]
    fn the_way_back_is_one_release() {
        use Role::{Booted, Rollback, Staged};
        let (old, new) = (('a', "1.0.0"), ('b', "1.1.0"));
        let on_new = status(&[(new.0, new.1, Booted), (old.0, old.1, Rollback)]);
        let on_old = status(&[(old.0, old.1, Booted), (new.0, new.1, Rollback)]);
        let never = status(&[(old.0, old.1, Booted)]);
        let waiting = status(&[(new.0, new.1, Staged), (old.0, old.1, Booted)]);
        let other = status(&[('c', "9.0.0", Booted)]);
        let table: [(&str, Vec<&Status>, Result<char, &str>); 8] = [
            ("after an upgrade", vec![&on_new, &on_new], Ok('a')),
            ("after a first wave that failed", vec![&on_new, &never], Ok('a')),
            ("one has it staged", vec![&on_new, &waiting], Ok('a')),
            ("a rollback that stopped goes on", vec![&on_old, &on_new], Ok('a')),
            ("after a whole rollback", vec![&on_old, &on_old], Ok('b')),
            ("only one release ever", vec![&never], Err("m0 has no release to go back to")),
            (
                "nothing to go back to",
                vec![&never, &never],
                Err("no release in common to go back to: m0 runs 1.0.0"),
            ),
            ("strangers", vec![&on_new, &other], Err("m1 runs 9.0.0 (cccccccccc)")),
        ];
        for (what, machines, expected) in table {
            let machines: Vec<(String, Status)> = machines
                .into_iter()
                .enumerate()
                .map(|(n, status)| (format!("m{n}"), status.clone()))
                .collect();
            match (plan_way_back(&machines), expected) {
                (Ok(Act::Rollback { commit: found, .. }), Ok(digit)) => {
                    assert_eq!(found, commit(digit), "{what}")
                }
                (Err(error), Err(told)) => assert!(error.to_string().contains(told), "{what}: {error}"),
                (found, _) => panic!("{what}: {found:?}"),
            }
        }
        let nameless = |one, other| status(&[(one, "", Booted), (other, "", Rollback)]);
        let crossed = [("m0".to_owned(), nameless('a', 'b')), ("m1".to_owned(), nameless('b', 'a'))];
        assert!(matches!(plan_way_back(&crossed), Err(NoWayBack::Crossed { .. })));
    }

    #[test]
    fn health_is_the_release_and_every_container_of_it() {
        let container = |name: &str, running: Option<&[u8]>| ContainerStatus {
            pod: name.to_owned(),
            container: name.to_owned(),
            image: name.to_owned(),
            expected: Digest::of(b"pinned"),
            running: running.map(Digest::of),
        };
        let mut status = status(&[('a', "1.0.0", Role::Booted)]);
        assert_eq!(judge(&status, None), Ok(()));
        assert_eq!(judge(&status, Some(commit('a'))), Ok(()));
        assert_eq!(
            judge(&status, Some(commit('b'))).unwrap_err(),
            "it runs release 1.0.0 (aaaaaaaaaa), not bbbbbbbbbb"
        );
        status.services = vec![container("db", Some(b"pinned")), container("api", None)];
        assert_eq!(judge(&status, None).unwrap_err(), "waits for 1 of 2 containers: api/api");
        status.services[1] = container("api", Some(b"old"));
        assert_eq!(judge(&status, None).unwrap_err(), "another image runs in 1 of 2 containers: api/api");
        status.services[1] = container("api", Some(b"pinned"));
        assert_eq!(judge(&status, None), Ok(()));
        status.booted = None;
        assert!(judge(&status, None).is_err());
    }
}
