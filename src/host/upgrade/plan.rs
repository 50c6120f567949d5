//! Upgrade and rollback: which steps lead from what is observed to the wanted next boot.
//!
//! prepare (pull, stage locked) → verify → flip. The flip is one step, comes last, and is only there when it was
//! asked for. A plan that does nothing says why.

use std::fmt;

use serde::Serialize;

use crate::model::deployment::{Deployment, Role, name_release, rollback_target};
use crate::model::history::ActVerb;
use crate::model::newest::KnownRelease;
use crate::model::trial::{Denied, DenyList};
use crate::model::{Commit, DeploymentId};

/// One effect, safe to repeat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum Step {
    /// Fetch what the repo lacks of the commit; signature and every checksum are checked.
    Pull {
        /// The commit.
        commit: Commit,
        /// Base URL of the repo.
        from: String,
    },
    /// Check it out beside the running deployment, locked.
    Stage {
        /// The commit.
        commit: Commit,
    },
    /// Prove that every object of the release is there and is what its name says.
    Verify {
        /// The commit.
        commit: Commit,
    },
    /// Make it the next boot.
    Flip {
        /// The commit.
        commit: Commit,
    },
    /// Restart the host.
    Reboot,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pull { commit, from } => write!(f, "pull release {} from {from}", commit.short()),
            Self::Stage { commit } => write!(f, "check out release {}, locked", commit.short()),
            Self::Verify { commit } => write!(f, "verify every object of release {}", commit.short()),
            Self::Flip { commit } => write!(f, "make release {} the next boot", commit.short()),
            Self::Reboot => f.write_str("reboot"),
        }
    }
}

/// Why a plan does what it does, or no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "because", rename_all = "kebab-case")]
pub enum Reason {
    /// A new release, made the next boot.
    Upgrade,
    /// A new release, prepared; the next boot stays as it is.
    PrepareOnly,
    /// A release that this host has already, the one that it went back from among them.
    Again {
        /// Is it made the next boot?
        commit: bool,
    },
    /// It runs already, and is the next boot.
    AlreadyBooted,
    /// It is the next boot already.
    AlreadyNextBoot,
    /// Another upgrade waits for the reboot; preparing this one would call that one off.
    AnotherWaits,
    /// It is older than what runs, and nobody asked for it by name.
    Older {
        /// `created` of what runs, seconds since 1970.
        booted: u64,
        /// `created` of what was found.
        found: u64,
    },
    /// It is older than one that this host has accepted of the ref, and nobody asked for it by name.
    SetBack {
        /// The newest that was accepted.
        known: KnownRelease,
        /// `created` of what was found.
        found: u64,
    },
    /// A release is on trial, whose way back this one would take away.
    OnTrial {
        /// The release on trial.
        release: Commit,
    },
    /// This host came back from it.
    Denied {
        /// When and why.
        denied: Denied,
    },
    /// What runs on trial is not good.
    NotGood,
    /// The boot loader came back to what runs.
    CameBack,
    /// The way back.
    Rollback,
    /// An upgrade waits for the reboot; it is called off.
    CallOff,
    /// The next boot is newer than what runs, which was chosen at the boot loader; what runs stays.
    BootedByHand,
    /// There is no other release to go back to.
    NoRollback,
}

impl Reason {
    /// What a plan with this reason is, in the history.
    pub fn verb(&self) -> ActVerb {
        match self {
            Self::Rollback | Self::CallOff | Self::BootedByHand | Self::NoRollback => ActVerb::Rollback,
            Self::NotGood | Self::CameBack => ActVerb::Return,
            _ => ActVerb::Upgrade,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SetBack { known, .. } => {
                let known = name_release(known.version.as_deref(), known.commit);
                return write!(
                    f,
                    "the repo's newest release is older than {known}, which this host has accepted before; name it to get it all the same"
                );
            }
            Self::OnTrial { release } => {
                return write!(
                    f,
                    "release {} is on trial, and another one would take its way back away: `rackstep confirm` or `rackstep rollback` ends the trial",
                    release.short()
                );
            }
            Self::Denied { denied } => {
                return write!(
                    f,
                    "this host came back from release {denied}; `rackstep release allow {}` takes it again",
                    denied.commit.short()
                );
            }
            Self::NotGood => "the release on trial is not good: back to the previous release",
            Self::CameBack => "the boot loader came back: what runs becomes the next boot again",
            Self::Upgrade => "a new release was found",
            Self::PrepareOnly => "a new release was found; without --commit the next boot stays as it is",
            Self::Again { commit: true } => "the release is on this host already; nothing newer was found",
            Self::Again { commit: false } => {
                "the release is on this host already; without --commit the next boot stays as it is"
            }
            Self::AlreadyBooted => "this release runs already",
            Self::AlreadyNextBoot => "this release is the next boot already",
            Self::AnotherWaits => {
                "another release waits for the reboot; preparing this one would change the next boot: reboot or roll back first, or say --commit"
            }
            Self::Older { .. } => {
                "the repo's newest release is older than what runs; name it to get it all the same"
            }
            Self::Rollback => "back to the previous release",
            Self::CallOff => {
                "the upgrade that waits for a reboot is called off: what runs becomes the next boot again"
            }
            Self::BootedByHand => "the older release was booted by hand: it becomes the next boot again",
            Self::NoRollback => "there is no previous release on this host",
        })
    }
}

/// Decided: the steps in their order, and why these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// What it is about.
    pub target: Option<Commit>,
    /// Why.
    pub reason: Reason,
    /// What will be done.
    pub steps: Vec<Step>,
}

impl Plan {
    fn nothing(target: Option<Commit>, reason: Reason) -> Self {
        Self { target, reason, steps: Vec::new() }
    }
}

/// What `upgrade` was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UpgradeRequest<'a> {
    /// Make it the next boot?
    pub commit: bool,
    /// Restart afterwards?
    pub reboot: bool,
    /// Was the release named by the person?
    pub by_name: bool,
    /// The release that runs on trial, if one does.
    pub on_trial: Option<Commit>,
    /// Releases that this host came back from.
    pub denied: &'a DenyList,
}

/// What is known of the release that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The commit.
    pub commit: Commit,
    /// When it was made, in seconds since 1970, if known yet.
    pub created: Option<u64>,
    /// Base URL of the repo that has it.
    pub repo: String,
}

/// Plans `upgrade`. `booted_created` is the age of what runs, in seconds since 1970, `newest` what was accepted of the ref.
pub fn plan_upgrade(
    deployments: &[Deployment],
    booted_created: Option<u64>,
    newest: Option<&KnownRelease>,
    target: &Target,
    request: UpgradeRequest<'_>,
) -> Plan {
    let commit = target.commit;
    let next = deployments.iter().find(|deployment| deployment.next_boot);
    let booted = deployments.iter().find(|deployment| deployment.role == Role::Booted);
    let reboot = (request.commit && request.reboot).then_some(Step::Reboot);
    if next.is_some_and(|next| next.id.commit == commit) {
        return if booted.is_some_and(|booted| booted.id.commit == commit) {
            Plan::nothing(Some(commit), Reason::AlreadyBooted)
        } else {
            Plan {
                target: Some(commit),
                reason: Reason::AlreadyNextBoot,
                steps: reboot.into_iter().collect(),
            }
        };
    }
    if let (Some(booted), Some(found), false) = (booted_created, target.created, request.by_name)
        && found < booted
    {
        return Plan::nothing(Some(commit), Reason::Older { booted, found });
    }
    if let (Some(known), Some(found), false) = (newest, target.created, request.by_name)
        && found < known.created
    {
        return Plan::nothing(Some(commit), Reason::SetBack { known: known.clone(), found });
    }
    if let Some(denied) = request.denied.find(commit) {
        return Plan::nothing(Some(commit), Reason::Denied { denied: denied.clone() });
    }
    if let (Some(release), true) = (request.on_trial, request.commit) {
        return Plan::nothing(Some(commit), Reason::OnTrial { release });
    }
    if !request.commit && deployments.iter().any(|deployment| deployment.role == Role::Staged) {
        return Plan::nothing(Some(commit), Reason::AnotherWaits);
    }
    let mut steps = vec![
        Step::Pull { commit, from: target.repo.clone() },
        Step::Stage { commit },
        Step::Verify { commit },
    ];
    if request.commit {
        steps.push(Step::Flip { commit });
    }
    steps.extend(reboot);
    let is_here = deployments.iter().any(|deployment| deployment.id.commit == commit);
    let reason = match request.commit {
        commit if is_here => Reason::Again { commit },
        true => Reason::Upgrade,
        false => Reason::PrepareOnly,
    };
    Plan { target: Some(commit), reason, steps }
}

/// Plans the way back to a deployment that is there, for a host that goes by itself.
pub fn plan_return(target: &Deployment, reason: Reason, reboot: bool) -> Plan {
    let commit = target.id.commit;
    let mut steps = vec![Step::Verify { commit }, Step::Flip { commit }];
    steps.extend(reboot.then_some(Step::Reboot));
    Plan { target: Some(commit), reason, steps }
}

/// Plans `rollback`, from what is on the host.
///
/// An upgrade that waits for the reboot is called off: what runs becomes the next boot again. A rollback that waits for
/// the reboot stays as it is, so that saying it twice is not a way forward. Where somebody booted the older entry by hand,
/// because the newer release is bad, what runs becomes the next boot: `created` tells which is newer, in seconds since 1970.
pub fn plan_rollback(
    deployments: &[Deployment],
    created: impl Fn(Commit) -> Option<u64>,
    denied: &DenyList,
    reboot: bool,
) -> (Plan, Option<DeploymentId>) {
    let reboot = reboot.then_some(Step::Reboot);
    let by_role = |role| deployments.iter().find(move |deployment| deployment.role == role);
    let back_to = |target: &Deployment, reason| {
        let commit = target.id.commit;
        let mut steps = vec![Step::Verify { commit }, Step::Flip { commit }];
        steps.extend(reboot.clone());
        (Plan { target: Some(commit), reason, steps }, Some(target.id.clone()))
    };
    match (by_role(Role::Staged), by_role(Role::Pending), by_role(Role::Booted)) {
        (Some(_), _, Some(booted)) => back_to(booted, Reason::CallOff),
        (None, Some(pending), Some(booted)) if created(pending.id.commit) > created(booted.id.commit) => {
            back_to(booted, Reason::BootedByHand)
        }
        (None, Some(pending), Some(_)) => {
            let steps = reboot.into_iter().collect();
            (Plan { target: Some(pending.id.commit), reason: Reason::AlreadyNextBoot, steps }, None)
        }
        _ => match rollback_target(deployments) {
            Some(target) => match denied.find(target.id.commit) {
                Some(denied) => {
                    let reason = Reason::Denied { denied: denied.clone() };
                    (Plan::nothing(Some(target.id.commit), reason), None)
                }
                None => back_to(target, Reason::Rollback),
            },
            None => (Plan::nothing(None, Reason::NoRollback), None),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit(letter: char) -> Commit {
        letter.to_string().repeat(64).parse().unwrap()
    }

    fn deployment(letter: char, role: Role, next_boot: bool) -> Deployment {
        Deployment {
            id: DeploymentId { stateroot: "rackstep".into(), commit: commit(letter), serial: 0 },
            role,
            next_boot,
            version: None,
            path: String::new(),
        }
    }

    fn target(letter: char, created: u64) -> Target {
        Target { commit: commit(letter), created: Some(created), repo: "http://repo".into() }
    }

    /// Later letters are younger.
    fn age(commit: Commit) -> Option<u64> {
        commit.hex().bytes().next().map(u64::from)
    }

    const NOTHING_DENIED: &DenyList = &DenyList { format: 1, releases: Vec::new() };
    const PREPARE: UpgradeRequest<'_> = UpgradeRequest {
        commit: false,
        reboot: false,
        by_name: false,
        on_trial: None,
        denied: NOTHING_DENIED,
    };
    const COMMIT: UpgradeRequest<'_> = UpgradeRequest { commit: true, reboot: true, ..PREPARE };

    #[test]
    fn a_denied_release_and_one_beside_a_trial_are_refused() {
        use crate::model::trial::BadReason;
        let now = [deployment('a', Role::Booted, true)];
        let denied = Denied {
            commit: commit('b'),
            version: None,
            reason: BadReason::DidNotComeUp { boots: 3 },
            at: 0,
        };
        let list = DenyList { releases: vec![denied.clone()], ..DenyList::default() };
        // By its name as well: a person allows it first.
        for request in [PREPARE, COMMIT, UpgradeRequest { by_name: true, ..COMMIT }] {
            let request = UpgradeRequest { denied: &list, ..request };
            let plan = plan_upgrade(&now, Some(10), None, &target('b', 20), request);
            assert_eq!((plan.reason, plan.steps), (Reason::Denied { denied: denied.clone() }, vec![]));
            assert!(!plan_upgrade(&now, Some(10), None, &target('c', 20), request).steps.is_empty());
        }
        let on_trial = UpgradeRequest { on_trial: Some(commit('a')), ..COMMIT };
        let plan = plan_upgrade(&now, Some(10), None, &target('b', 20), on_trial);
        assert_eq!((plan.reason, plan.steps), (Reason::OnTrial { release: commit('a') }, vec![]));
        let prepare = UpgradeRequest { on_trial: Some(commit('a')), ..PREPARE };
        let plan = plan_upgrade(&now, Some(10), None, &target('b', 20), prepare);
        assert_eq!(plan.reason, Reason::PrepareOnly);
    }

    #[test]
    fn the_flip_comes_after_the_check_and_only_when_asked_for() {
        let now = [deployment('a', Role::Booted, true)];
        let plan = plan_upgrade(&now, Some(10), None, &target('b', 20), PREPARE);
        assert_eq!(plan.reason, Reason::PrepareOnly);
        assert_eq!(plan.steps.last(), Some(&Step::Verify { commit: commit('b') }));

        let plan = plan_upgrade(&now, Some(10), None, &target('b', 20), COMMIT);
        let b = commit('b');
        assert_eq!(
            plan.steps,
            [
                Step::Pull { commit: b, from: "http://repo".into() },
                Step::Stage { commit: b },
                Step::Verify { commit: b },
                Step::Flip { commit: b },
                Step::Reboot
            ]
        );
    }

    #[test]
    fn explains_why_it_does_nothing() {
        let now = [deployment('a', Role::Booted, true), deployment('b', Role::Rollback, false)];
        for (found, request, reason) in [
            (target('a', 10), COMMIT, Reason::AlreadyBooted),
            (target('b', 5), COMMIT, Reason::Older { booted: 10, found: 5 }),
        ] {
            let plan = plan_upgrade(&now, Some(10), None, &found, request);
            assert_eq!(plan.reason, reason);
            assert_eq!(plan.steps, []);
        }
    }

    #[test]
    fn nothing_older_than_what_was_accepted_is_taken_unless_named() {
        let now = [deployment('a', Role::Booted, true)];
        let known = KnownRelease { commit: commit('c'), version: Some("3.0.0".into()), created: 30 };
        let named = UpgradeRequest { by_name: true, ..COMMIT };
        for (found, request, taken) in [
            (target('b', 20), COMMIT, false),
            (target('b', 20), PREPARE, false),
            (target('b', 20), named, true),
            (target('c', 30), COMMIT, true),
            (target('d', 40), COMMIT, true),
        ] {
            let plan = plan_upgrade(&now, Some(10), Some(&known), &found, request);
            assert_eq!(plan.steps.is_empty(), !taken, "{found:?} {request:?}");
            let set_back = Reason::SetBack { known: known.clone(), found: 20 };
            assert_eq!(plan.reason == set_back, !taken, "{found:?} {request:?}");
        }
        let told = Reason::SetBack { known, found: 20 }.to_string();
        assert!(told.contains("older than 3.0.0 (cccccccccc), which this host has accepted"), "{told}");
    }

    #[test]
    fn an_older_release_may_be_named() {
        let now = [deployment('a', Role::Booted, true)];
        let by_name = UpgradeRequest { by_name: true, ..COMMIT };
        assert_eq!(plan_upgrade(&now, Some(10), None, &target('b', 5), by_name).reason, Reason::Upgrade);
    }

    #[test]
    fn a_release_that_waits_locked_is_prepared_again_and_flipped() {
        let now = [deployment('b', Role::StagedLocked, false), deployment('a', Role::Booted, true)];
        let plan = plan_upgrade(&now, Some(10), None, &target('b', 20), COMMIT);
        assert!(plan.steps.contains(&Step::Flip { commit: commit('b') }));
    }

    #[test]
    fn the_release_that_was_left_is_not_a_new_one() {
        let now = [deployment('a', Role::Booted, true), deployment('b', Role::Rollback, false)];
        for (request, next_boot) in [(COMMIT, true), (PREPARE, false)] {
            let plan = plan_upgrade(&now, Some(10), None, &target('b', 20), request);
            assert_eq!(plan.reason, Reason::Again { commit: next_boot });
            assert!(plan.steps.contains(&Step::Verify { commit: commit('b') }));
        }
    }

    #[test]
    fn preparing_never_calls_off_what_waits_for_the_reboot() {
        let now = [deployment('b', Role::Staged, true), deployment('a', Role::Booted, false)];
        let plan = plan_upgrade(&now, Some(10), None, &target('c', 30), PREPARE);
        assert_eq!(plan, Plan::nothing(Some(commit('c')), Reason::AnotherWaits));
        assert_eq!(plan_upgrade(&now, Some(10), None, &target('c', 30), COMMIT).reason, Reason::Upgrade);
    }

    #[test]
    fn rollback_goes_to_what_follows_the_booted_release() {
        let now = [deployment('b', Role::Booted, true), deployment('a', Role::Rollback, false)];
        let (plan, id) = plan_rollback(&now, age, NOTHING_DENIED, false);
        assert_eq!(id.map(|id| id.commit), Some(commit('a')));
        assert_eq!(plan.steps.last(), Some(&Step::Flip { commit: commit('a') }));
    }

    #[test]
    fn rollback_calls_a_waiting_upgrade_off() {
        let now = [
            deployment('c', Role::Staged, true),
            deployment('b', Role::Booted, false),
            deployment('a', Role::Rollback, false),
        ];
        let (plan, id) = plan_rollback(&now, age, NOTHING_DENIED, false);
        assert_eq!(plan.reason, Reason::CallOff);
        assert_eq!(id.map(|id| id.commit), Some(commit('b')));
    }

    #[test]
    fn an_older_release_that_was_booted_by_hand_stays() {
        let now = [deployment('b', Role::Pending, true), deployment('a', Role::Booted, false)];
        let (plan, id) = plan_rollback(&now, age, NOTHING_DENIED, false);
        assert_eq!(plan.reason, Reason::BootedByHand);
        assert_eq!(id.map(|id| id.commit), Some(commit('a')));
        assert_eq!(plan.steps.last(), Some(&Step::Flip { commit: commit('a') }));
    }

    #[test]
    fn rollback_twice_is_told_so() {
        let now = [deployment('a', Role::Pending, true), deployment('b', Role::Booted, false)];
        assert_eq!(plan_rollback(&now, age, NOTHING_DENIED, false).0.reason, Reason::AlreadyNextBoot);
        let alone = [deployment('a', Role::Booted, true)];
        assert_eq!(
            plan_rollback(&alone, age, NOTHING_DENIED, true).0,
            Plan::nothing(None, Reason::NoRollback)
        );
    }
}
