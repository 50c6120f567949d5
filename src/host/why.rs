//! `rackstep why`: what this host waits for, since when, what comes next, and what a person can do. Pure.

use serde::Serialize;

use crate::model::Deployment;
use crate::model::deployment::{Role, name_release};
use crate::model::history::{Act, History, Outcome};
use crate::model::trial::{Confirm, DenyList, Ladder, StageName, TrialState, Verdict};

/// One thing that a host waits for, or does not do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Why {
    /// What it is, in one sentence.
    pub what: String,
    /// Since when, in seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
    /// What comes next by itself, in one sentence.
    pub next: String,
    /// What a person can do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub you_can: Option<String>,
}

/// What is known of the host.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// Every deployment, in boot order.
    pub deployments: &'a [Deployment],
    /// What GRUB counts.
    pub ladder: Option<&'a Ladder>,
    /// The trial of this boot.
    pub trial: Option<&'a TrialState>,
    /// Who ends trials that go well.
    pub confirm: Confirm,
    /// What is not taken.
    pub denied: &'a DenyList,
    /// What was done.
    pub history: &'a History,
}

/// Everything that the host waits for; none: nothing.
pub fn plan_why(known: Known<'_>) -> Vec<Why> {
    let mut reasons: Vec<Why> = Vec::new();
    let newest = known.history.acts.last();
    reasons.extend(newest.and_then(of_act));
    reasons.extend(known.deployments.iter().filter_map(of_deployment));
    reasons.extend(known.trial.and_then(|trial| of_trial(trial, known.confirm, known.deployments)));
    if known.ladder.is_none() {
        reasons.push(Why {
            what: "GRUB keeps no environment on this host, so the boots of a new release are not counted"
                .to_owned(),
            since: None,
            next: "a release that does not come up is brought back by people".to_owned(),
            you_can: Some("image the host anew".to_owned()),
        });
    }
    reasons.extend(known.denied.releases.iter().map(|denied| Why {
        what: format!("this host came back from release {denied}"),
        since: Some(denied.at),
        next: "`upgrade` does not take it".to_owned(),
        you_can: Some(format!("`rackstep release allow {}`", denied.commit.short())),
    }));
    reasons
}

fn name(deployment: &Deployment) -> String {
    name_release(deployment.version.as_deref(), deployment.id.commit)
}

fn of_act(act: &Act) -> Option<Why> {
    let about = act.release.map(|commit| name_release(act.version.as_deref(), commit)).unwrap_or_default();
    let verb = act.verb.name();
    let why = |what: String, next: &str, you_can: Option<&str>| Why {
        what,
        since: Some(act.began),
        next: next.to_owned(),
        you_can: you_can.map(str::to_owned),
    };
    match act.outcome {
        Outcome::Running => {
            Some(why(format!("{verb} of {about} is at work (act {})", act.id), "it ends by itself", None))
        }
        Outcome::Interrupted => Some(why(
            format!("{verb} of {about} was cut off (act {})", act.id),
            "nothing goes on by itself; nothing is half done",
            Some("the same command again, which goes on from there, or `rackstep abandon`"),
        )),
        Outcome::Done | Outcome::Failed => None,
    }
}

fn of_deployment(deployment: &Deployment) -> Option<Why> {
    let why = |what: String, next: &str, you_can: &str| Why {
        what,
        since: None,
        next: next.to_owned(),
        you_can: Some(you_can.to_owned()),
    };
    match deployment.role {
        Role::StagedLocked => Some(why(
            format!("release {} is prepared", name(deployment)),
            "the next boot stays as it is",
            "`rackstep upgrade --commit --reboot`, or `rackstep abandon`",
        )),
        Role::Staged | Role::Pending => Some(why(
            format!("release {} waits for the reboot", name(deployment)),
            "the next boot takes it",
            "`systemctl reboot`, or `rackstep rollback`, which calls it off",
        )),
        Role::Booted | Role::Rollback => None,
    }
}

fn of_trial(trial: &TrialState, confirm: Confirm, deployments: &[Deployment]) -> Option<Why> {
    let release = deployments
        .iter()
        .find(|deployment| deployment.id.commit == trial.release)
        .map_or_else(|| trial.release.short(), name);
    let goes_back = trial.stage == StageName::Trial;
    let why = |what: String, next: &str, you_can: &str| {
        Some(Why { what, since: Some(trial.since), next: next.to_owned(), you_can: Some(you_can.to_owned()) })
    };
    let asks = matches!(trial.stage, StageName::Trial | StageName::First) && confirm == Confirm::ByHand;
    match &trial.verdict {
        Verdict::Good if asks => why(
            format!("release {release} is healthy, and its profile leaves the confirm to a person"),
            "the boots of the host are counted on",
            "`rackstep confirm`, or `rackstep rollback --reboot`",
        ),
        Verdict::Good => None,
        Verdict::Waiting { reasons } if goes_back => why(
            format!("release {release} is on trial and waits for {}", reasons.join("; ")),
            "the host goes back to the previous release when its time is over",
            "`rackstep confirm`, or `rackstep rollback --reboot`",
        ),
        Verdict::Waiting { reasons } => why(
            format!("release {release} waits for {}", reasons.join("; ")),
            "the host stays as it is",
            "look at what is named",
        ),
        Verdict::Bad { reason } if goes_back => why(
            format!("release {release} is {reason}"),
            "the host goes back to the previous release",
            "if it does not: `rackstep rollback --reboot`",
        ),
        Verdict::Bad { reason } => why(
            format!("release {release} is {reason}"),
            "the host stays up and tries nothing more",
            "mend what is named; `rackstep upgrade --commit --reboot` to another release",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::trial::{BadReason, Denied, STATE_FORMAT};
    use crate::model::{Commit, DeploymentId};

    fn commit(letter: char) -> Commit {
        letter.to_string().repeat(64).parse().unwrap()
    }

    fn deployment(letter: char, role: Role) -> Deployment {
        Deployment {
            id: DeploymentId { stateroot: "rackstep".into(), commit: commit(letter), serial: 0 },
            role,
            next_boot: false,
            version: Some("2.0.0".to_owned()),
            path: String::new(),
        }
    }

    fn trial(stage: StageName, verdict: Verdict) -> TrialState {
        let format = STATE_FORMAT;
        TrialState { format, release: commit('b'), stage, since: 1, until: 2, verdict, warnings: vec![] }
    }

    fn told(deployments: &[Deployment], trial: Option<&TrialState>, confirm: Confirm) -> Vec<String> {
        let ladder = Ladder::default();
        let (denied, history) = (DenyList::default(), History::default());
        let ladder = Some(&ladder);
        plan_why(Known { deployments, ladder, trial, confirm, denied: &denied, history: &history })
            .into_iter()
            .map(|why| format!("{} / {}", why.what, why.next))
            .collect()
    }

    #[test]
    fn a_host_that_waits_for_nothing_says_nothing() {
        let good = trial(StageName::Trial, Verdict::Good);
        assert_eq!(told(&[deployment('b', Role::Booted)], Some(&good), Confirm::Automatic), [""; 0]);
    }

    #[test]
    fn what_waits_is_told_with_what_comes_next() {
        let pods = || vec!["pods: pod keystone: container api does not run".to_owned()];
        let waiting = trial(StageName::Trial, Verdict::Waiting { reasons: pods() });
        let reason = BadReason::Unhealthy { probes: pods(), seconds: 5 };
        let stays = trial(StageName::Returned, Verdict::Bad { reason });
        let good = trial(StageName::Trial, Verdict::Good);
        let b = deployment('b', Role::Booted);
        for (state, confirm, what, next) in [
            (&waiting, Confirm::Automatic, "is on trial and waits for pods: pod keystone", "goes back"),
            (&stays, Confirm::Automatic, "is not healthy after 5 s: pods", "tries nothing more"),
            (&good, Confirm::ByHand, "leaves the confirm to a person", "counted"),
        ] {
            let told = told(std::slice::from_ref(&b), Some(state), confirm);
            assert!(told.len() == 1 && told[0].contains(what) && told[0].contains(next), "{told:?}");
        }
        let prepared = told(&[deployment('c', Role::StagedLocked)], None, Confirm::Automatic);
        assert_eq!(prepared, ["release 2.0.0 (cccccccccc) is prepared / the next boot stays as it is"]);
    }

    #[test]
    fn a_denied_release_and_a_host_that_counts_nothing() {
        let reason = BadReason::DidNotComeUp { boots: 3 };
        let denied = Denied { commit: commit('d'), version: None, reason, at: 9 };
        let denied = DenyList { releases: vec![denied], ..DenyList::default() };
        let history = History::default();
        let known = Known {
            deployments: &[],
            ladder: None,
            trial: None,
            confirm: Confirm::Automatic,
            denied: &denied,
            history: &history,
        };
        let told = plan_why(known);
        assert!(told[0].what.contains("not counted"), "{told:?}");
        assert_eq!(told[1].what, "this host came back from release dddddddddd: did not come up in 3 boots");
        assert_eq!(told[1].you_can.as_deref(), Some("`rackstep release allow dddddddddd`"));
    }
}
