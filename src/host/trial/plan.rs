//! What this boot is to the release that runs, and what its probes may therefore decide. Pure.
//!
//! | runs | next boot | GRUB's count | stage |
//! | --- | --- | --- | --- |
//! | confirmed | itself | none, or left over | confirmed |
//! | any | another, counted | gone past its boots | returned: the other is denied, what runs becomes the next boot |
//! | confirmed | another | not begun | confirmed: a rollback or a person at the menu |
//! | not confirmed | itself | any | trial, if there is a way back that is not denied; else first |
//! | not confirmed | another | not begun | uncounted: a person chose it |

use crate::model::deployment::Deployment;
use crate::model::trial::{DenyList, Ladder, StageName, TRIAL_BOOTS};
use crate::model::{Commit, DeploymentId};

/// What is known at a boot.
#[derive(Debug, Clone, Copy)]
pub struct Observed<'a> {
    /// What runs.
    pub runs: &'a Deployment,
    /// Every deployment, in boot order.
    pub deployments: &'a [Deployment],
    /// What GRUB's environment says; none: there is none.
    pub ladder: Option<&'a Ladder>,
    /// Releases that are not taken.
    pub denied: &'a DenyList,
}

/// What this boot is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    /// The release was confirmed before. `left_over`: GRUB's environment still counts something.
    Confirmed {
        /// Is there a count to take away?
        left_over: bool,
    },
    /// The release is not confirmed, and there is no way back: its probes confirm it, or nothing.
    First,
    /// The release has to prove itself.
    Trial {
        /// Where the host goes if it does not.
        way_back: DeploymentId,
        /// It was found bad before: the host was cut off on its way back.
        known_bad: bool,
    },
    /// GRUB came back here from a release that never came up.
    Returned {
        /// That release.
        from: Commit,
        /// Boots that it had.
        boots: u32,
    },
    /// Nothing is counted here, or a person chose this entry: its probes decide nothing.
    Uncounted,
}

impl Stage {
    /// Its name.
    pub fn name(&self) -> StageName {
        match self {
            Self::Confirmed { .. } => StageName::Confirmed,
            Self::First => StageName::First,
            Self::Trial { .. } => StageName::Trial,
            Self::Returned { .. } => StageName::Returned,
            Self::Uncounted => StageName::Uncounted,
        }
    }
}

/// Decides what this boot is.
pub fn plan_stage(observed: Observed<'_>) -> Stage {
    let Observed { runs, deployments, ladder, denied } = observed;
    let Some(ladder) = ladder else { return Stage::Uncounted };
    let commit = runs.id.commit;
    let next = deployments.iter().find(|deployment| deployment.next_boot);
    let other = next.map(|next| next.id.commit).filter(|next| *next != commit);
    if let Some(from) = other {
        let given_up = ladder.trial == Some(from) && ladder.tries > TRIAL_BOOTS;
        return match (given_up, ladder.confirmed == Some(commit)) {
            (true, _) => Stage::Returned { from, boots: TRIAL_BOOTS },
            (false, true) => Stage::Confirmed { left_over: false },
            (false, false) => Stage::Uncounted,
        };
    }
    if ladder.confirmed == Some(commit) {
        return Stage::Confirmed { left_over: ladder.trial.is_some() || ladder.tries > 0 };
    }
    match way_back(runs, deployments, ladder, denied) {
        Some(way_back) => {
            Stage::Trial { way_back: way_back.id.clone(), known_bad: denied.find(commit).is_some() }
        }
        None => Stage::First,
    }
}

/// The confirmed deployment, or the one after what runs; never one that was found bad: a host comes back once.
fn way_back<'a>(
    runs: &Deployment,
    deployments: &'a [Deployment],
    ladder: &Ladder,
    denied: &DenyList,
) -> Option<&'a Deployment> {
    use crate::model::deployment::Role;
    let bootable = |deployment: &&Deployment| {
        deployment.id.commit != runs.id.commit
            && !matches!(deployment.role, Role::Staged | Role::StagedLocked)
            && denied.find(deployment.id.commit).is_none()
    };
    let mut others = deployments.iter().filter(bootable);
    let confirmed = others.clone().find(|deployment| ladder.confirmed == Some(deployment.id.commit));
    confirmed.or_else(|| others.next())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::deployment::Role;
    use crate::model::trial::{BadReason, Denied};

    fn commit(letter: char) -> Commit {
        letter.to_string().repeat(64).parse().unwrap()
    }

    /// `order` in boot order, `runs` one of them.
    fn deployments(order: &str, runs: char) -> Vec<Deployment> {
        let one = |(place, letter): (usize, char)| Deployment {
            id: DeploymentId { stateroot: "rackstep".into(), commit: commit(letter), serial: 0 },
            role: if letter == runs { Role::Booted } else { Role::Rollback },
            next_boot: place == 0,
            version: None,
            path: String::new(),
        };
        order.chars().enumerate().map(one).collect()
    }

    fn stage(order: &str, runs: char, ladder: (Option<char>, Option<char>, u32), denied: &str) -> Stage {
        let deployments = deployments(order, runs);
        let ladder = Ladder { confirmed: ladder.0.map(commit), trial: ladder.1.map(commit), tries: ladder.2 };
        let reason = BadReason::DidNotComeUp { boots: 3 };
        let deny = |letter| Denied { commit: commit(letter), version: None, reason: reason.clone(), at: 0 };
        let denied = DenyList { releases: denied.chars().map(deny).collect(), ..DenyList::default() };
        let runs = deployments.iter().find(|deployment| deployment.role == Role::Booted).unwrap();
        plan_stage(Observed { runs, deployments: &deployments, ladder: Some(&ladder), denied: &denied })
    }

    fn trial(back: char, known_bad: bool) -> Stage {
        let way_back = DeploymentId { stateroot: "rackstep".into(), commit: commit(back), serial: 0 };
        Stage::Trial { way_back, known_bad }
    }

    #[test]
    fn every_boot_has_a_stage() {
        let confirmed = |left_over| Stage::Confirmed { left_over };
        let returned = |from| Stage::Returned { from: commit(from), boots: 3 };
        for (name, order, runs, ladder, denied, expected) in [
            ("the first boot of a host", "a", 'a', (None, None, 0), "", Stage::First),
            ("an ordinary boot", "ba", 'b', (Some('b'), None, 0), "", confirmed(false)),
            (
                "after a cut between confirm and the rest",
                "ba",
                'b',
                (Some('b'), Some('b'), 2),
                "",
                confirmed(true),
            ),
            ("a new release", "ba", 'b', (Some('a'), Some('b'), 1), "", trial('a', false)),
            ("its third boot", "ba", 'b', (Some('a'), Some('b'), 3), "", trial('a', false)),
            ("nothing was ever confirmed", "ba", 'b', (None, Some('b'), 1), "", trial('a', false)),
            ("the confirmed one stands last", "bca", 'b', (Some('a'), Some('b'), 1), "", trial('a', false)),
            ("cut off on the way back", "ba", 'b', (Some('a'), Some('b'), 2), "b", trial('a', true)),
            ("came back by the count", "ba", 'a', (Some('a'), Some('b'), 4), "", returned('b')),
            ("came back by the count, unconfirmed", "ba", 'a', (None, Some('b'), 4), "", returned('b')),
            ("both were bad: nowhere to go", "ab", 'a', (None, None, 0), "b", Stage::First),
            ("a rollback waits", "ba", 'a', (Some('a'), None, 0), "", confirmed(false)),
            ("chosen at the menu", "ba", 'a', (Some('b'), None, 0), "", Stage::Uncounted),
            (
                "chosen at the menu during a trial",
                "bac",
                'c',
                (Some('a'), Some('b'), 1),
                "",
                Stage::Uncounted,
            ),
        ] {
            assert_eq!(stage(order, runs, ladder, denied), expected, "{name}");
        }
    }

    #[test]
    fn a_host_comes_back_once() {
        // Whatever a return leads to, what was left is denied: no stage of it is a trial with that as its way back.
        for confirmed in [None, Some('a'), Some('b')] {
            let stage = stage("ab", 'a', (confirmed, None, 0), "b");
            assert!(!matches!(stage, Stage::Trial { .. }), "{stage:?}");
        }
    }
}
