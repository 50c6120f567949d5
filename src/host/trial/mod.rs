//! Ends the trial of a release: confirms it when it proves healthy, or brings the host back, once.
//!
//! 1. Look: what GRUB's environment says, what runs, what was found bad before; [`plan`] says what this boot is;
//! 2. tidy up what an act that was cut off left, and finish the return of a host that GRUB brought back;
//! 3. try the probes until all required ones succeed or time is over ([`health`]);
//! 4. good: GRUB's environment says so, then contract phases run. Bad: the release is denied, the way back proven and made the
//!    next boot, and the host restarts.
//!
//! A host comes back once: what it came back from is denied and never a way back, and a release that was confirmed decides
//! nothing any more. A return that cannot be made leaves the host up.

pub mod health;
pub mod plan;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::docker::{Docker, DockerError};
use crate::host::boot::plan::Decision;
use crate::host::boot::{BootError, Release, boot_phases};
use crate::host::denied::{deny, read_denied};
use crate::host::history::{ITSELF, begin};
use crate::host::phases::PhasesDone;
use crate::host::places::Places;
use crate::host::upgrade::plan::{Reason, plan_return};
use crate::host::upgrade::{Host, UpgradeError, run as run_plan};
use crate::model::causes::in_one_line;
use crate::model::deployment::Role;
use crate::model::history::{ActVerb, Outcome};
use crate::model::trial::{
    BadReason, Confirm, Denied, Ladder, POLICY_FORMAT, STATE_FORMAT, TRIAL_BOOTS, TrialPolicy, TrialState,
    Verdict,
};
use crate::model::{Commit, Deployment, DeploymentId, HostConfig, Progress};
use crate::ostree::sysroot::{Sysroot, SysrootError};
use crate::rim::clock::now;
use crate::rim::files::Durability;
use crate::rim::grub_env::{self, GrubEnv, GrubEnvError};
use crate::rim::versioned::{Versioned, VersionedError, read_versioned, write_versioned};
use crate::rim::wait::poll;
use health::{Look, look, read_probes};
use plan::{Observed, Stage, plan_stage};

/// Pause between two looks at all probes.
const PAUSE: Duration = Duration::from_secs(2);
/// How long another program may hold the sysroot before a return is given up: a pull of a whole release.
const OTHERS: Duration = Duration::from_secs(30 * 60);

impl Versioned for TrialPolicy {
    const WHAT: &'static str = "the trial's policy";
    const FORMAT: u32 = POLICY_FORMAT;
}

impl Versioned for TrialState {
    const WHAT: &'static str = "the trial's state";
    const FORMAT: u32 = STATE_FORMAT;
}

/// The host whose boot is judged.
pub struct TrialHost<'a> {
    /// Deployments and repo.
    pub sysroot: &'a Sysroot,
    /// Connects to Docker.
    pub docker: &'a dyn Fn() -> Result<Docker, DockerError>,
    /// Docker's data root.
    pub docker_root: &'a Path,
    /// Who this host is.
    pub config: &'a HostConfig,
    /// Where it keeps things.
    pub places: &'a Places,
    /// Who listens.
    pub progress: &'a dyn Progress,
}

impl std::fmt::Debug for TrialHost<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TrialHost").field("places", self.places).finish_non_exhaustive()
    }
}

/// Why a trial could not be ended.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// The deployments.
    #[error("looking at the deployments")]
    Sysroot(#[from] SysrootError),
    /// Nothing runs from this sysroot.
    #[error("nothing of this sysroot is booted")]
    NotBooted,
    /// GRUB's environment.
    #[error(transparent)]
    Environment(#[from] GrubEnvError),
    /// There is no environment of GRUB.
    #[error("{} is not there: an older rackstep imaged this host, and GRUB counts nothing", .0.display())]
    NoEnvironment(PathBuf),
    /// A file of ours.
    #[error(transparent)]
    File(#[from] VersionedError),
    /// The release.
    #[error("reading the release that runs")]
    Release(#[source] Box<BootError>),
    /// The way back could not be taken.
    #[error("going back to release {}", to.short())]
    Return {
        /// The way back.
        to: Commit,
        /// Why not.
        #[source]
        source: Box<UpgradeError>,
    },
    /// Docker is needed for phases, and does not answer.
    #[error("asking docker")]
    Docker(#[from] DockerError),
    /// Phases that wait for the confirm failed.
    #[error("the release is confirmed; running the phases that waited for it")]
    Contract(#[source] Box<BootError>),
}

/// How a boot's trial ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// The release was confirmed now.
    Confirmed {
        /// Phases that waited for it.
        phases: PhasesDone,
    },
    /// It is healthy, and a person is to confirm it.
    ByHand,
    /// It was confirmed before, and is healthy.
    Healthy,
    /// It is not healthy, and the host stays: there is nothing to go back to, or it came back already.
    Stays {
        /// Why it is not good.
        reason: BadReason,
    },
    /// The host goes back.
    GoesBack {
        /// Where to.
        to: DeploymentId,
        /// Why.
        reason: BadReason,
    },
}

/// Where GRUB's environment is, on hosts that have one.
fn env_path(sysroot: &Sysroot) -> PathBuf {
    sysroot.path().join("boot").join(grub_env::PLACE)
}

/// What GRUB's environment says; none: there is none.
pub fn read_ladder(sysroot: &Sysroot) -> Result<Option<Ladder>, GrubEnvError> {
    let env = GrubEnv::read(&env_path(sysroot))?;
    Ok(env.map(|env| Ladder::parse(Ladder::NAMES.map(|name| env.get(name)))))
}

/// The release that runs on trial, if one does.
pub fn on_trial(sysroot: &Sysroot, places: &Places) -> Result<Option<Commit>, TrialError> {
    let stage = observe(sysroot, places)?;
    let runs = what_runs(&sysroot.deployments()?)?.id.commit;
    Ok(matches!(stage, Stage::Trial { .. }).then_some(runs))
}

/// The state that the trial of this boot wrote.
pub fn read_state(places: &Places) -> Result<Option<TrialState>, VersionedError> {
    read_versioned(&places.trial_state())
}

/// What this boot is.
pub fn observe(sysroot: &Sysroot, places: &Places) -> Result<Stage, TrialError> {
    let deployments = sysroot.deployments()?;
    let denied = read_denied(&places.denied())?;
    let ladder = read_ladder(sysroot)?;
    let runs = what_runs(&deployments)?;
    Ok(plan_stage(Observed { runs, deployments: &deployments, ladder: ladder.as_ref(), denied: &denied }))
}

/// What runs; in a sysroot that nothing runs from, what would run next.
pub fn what_runs(deployments: &[Deployment]) -> Result<&Deployment, TrialError> {
    let booted = deployments.iter().find(|deployment| deployment.role == Role::Booted);
    booted.or_else(|| deployments.iter().find(|deployment| deployment.next_boot)).ok_or(TrialError::NotBooted)
}

/// Judges this boot to its end.
pub fn run_trial(host: &TrialHost<'_>) -> Result<Ended, TrialError> {
    let deployments = host.sysroot.deployments()?;
    let runs = what_runs(&deployments)?;
    let stage = observe(host.sysroot, host.places)?;
    match &stage {
        Stage::Confirmed { left_over: true } => write_ladder(host.sysroot, None)?,
        Stage::Returned { from, boots } => finish_return(host, runs, *from, *boots)?,
        Stage::Trial { way_back, known_bad: true } => {
            let denied = read_denied(&host.places.denied())?;
            if let Some(denied) = denied.find(runs.id.commit) {
                return go_back(host, runs, way_back, denied.reason.clone());
            }
        }
        _ => {}
    }
    let release = Release::read(&host.places.release, runs.id.commit)
        .map_err(|source| TrialError::Release(Box::new(source)))?;
    let verdict = judge(host, &release, &stage)?;
    match (verdict, &stage) {
        (Verdict::Bad { reason }, Stage::Trial { way_back, .. }) => go_back(host, runs, way_back, reason),
        (Verdict::Bad { reason }, _) => Ok(Ended::Stays { reason }),
        (_, Stage::Trial { .. } | Stage::First) => match read_policy(host.places)?.confirm {
            Confirm::Automatic => confirm(host, ITSELF).map(|phases| Ended::Confirmed { phases }),
            Confirm::ByHand => Ok(Ended::ByHand),
        },
        _ => Ok(Ended::Healthy),
    }
}

/// Ends the trial of what runs: GRUB counts it no more. Then the phases run that waited for this.
pub fn confirm(host: &TrialHost<'_>, who: &str) -> Result<PhasesDone, TrialError> {
    let deployments = host.sysroot.deployments()?;
    let runs = what_runs(&deployments)?;
    let commit = runs.id.commit;
    let release = Release::read(&host.places.release, commit)
        .map_err(|source| TrialError::Release(Box::new(source)))?;
    let named = Some((commit, runs.version.clone()));
    let act = begin(&host.places.history(), ActVerb::Confirm, named, who, None)?;
    write_ladder(host.sysroot, Some(commit))?;
    let contracted = contract(host, &release);
    let (outcome, reason) = match &contracted {
        Ok(done) if done.ran.is_empty() => (Outcome::Done, None),
        Ok(done) => (Outcome::Done, Some(format!("phases {} ran", done.ran.join(", ")))),
        Err(error) => (Outcome::Failed, Some(in_one_line(error))),
    };
    act.end(outcome, reason)?;
    contracted
}

/// Phases that wait for the confirm.
fn contract(host: &TrialHost<'_>, release: &Release) -> Result<PhasesDone, TrialError> {
    let failed = |source| TrialError::Contract(Box::new(source));
    let plan = release.plan(host.places, true).map_err(failed)?;
    if !plan.phases.iter().any(|planned| planned.decision == Decision::Run) {
        return Ok(PhasesDone::default());
    }
    let docker = (host.docker)()?;
    boot_phases(&docker, host.docker_root, release, host.places, true, host.progress).map_err(failed)
}

/// How a trial ends: by the host's own word, or else the release's.
pub fn read_policy(places: &Places) -> Result<TrialPolicy, VersionedError> {
    for path in places.trial_policies() {
        if let Some(policy) = read_versioned(&path)? {
            return Ok(policy);
        }
    }
    Ok(TrialPolicy::default())
}

/// Tries the probes until they are good or time is over; each change is told in the state's file.
fn judge(host: &TrialHost<'_>, release: &Release, stage: &Stage) -> Result<Verdict, TrialError> {
    let policy = read_policy(host.places)?;
    let limit = Duration::from_secs(policy.deadline);
    let (probes, unread) = read_probes(host.places, host.sysroot.is_booted());
    let (began, since) = (Instant::now(), now());
    let mut state = TrialState {
        format: STATE_FORMAT,
        release: release.pins.commit(),
        stage: stage.name(),
        since,
        until: since.saturating_add(policy.deadline),
        verdict: Verdict::Waiting { reasons: Vec::new() },
        warnings: Vec::new(),
    };
    let confirmed = matches!(stage, Stage::Confirmed { .. } | Stage::Returned { .. });
    loop {
        let docker = (host.docker)().ok();
        let Look { mut required, mut wanted } =
            look(&probes, docker.as_ref(), release, host.places, confirmed);
        required.extend(unread.required.iter().cloned());
        wanted.extend(unread.wanted.iter().cloned());
        let verdict = match (required.is_empty(), began.elapsed() >= limit) {
            (true, _) => Verdict::Good,
            (false, false) => Verdict::Waiting { reasons: required },
            (false, true) => {
                let reason = BadReason::Unhealthy { probes: required, seconds: policy.deadline };
                Verdict::Bad { reason }
            }
        };
        tell(host.places, &mut state, &verdict, wanted)?;
        if !matches!(verdict, Verdict::Waiting { .. }) {
            return Ok(verdict);
        }
        std::thread::sleep(PAUSE.min(limit.saturating_sub(began.elapsed())));
    }
}

fn tell(
    places: &Places,
    state: &mut TrialState,
    verdict: &Verdict,
    warnings: Vec<String>,
) -> Result<(), VersionedError> {
    for warning in warnings.iter().filter(|warning| !state.warnings.contains(warning)) {
        tracing::warn!("{warning}");
    }
    state.warnings = warnings;
    state.verdict = verdict.clone();
    write_versioned(&places.trial_state(), state, Durability::Volatile)
}

/// Writes GRUB's environment: nothing is counted any more, and what is given is confirmed.
pub fn write_ladder(sysroot: &Sysroot, confirmed: Option<Commit>) -> Result<(), TrialError> {
    change_env(sysroot, |env| {
        if let Some(commit) = confirmed {
            env.set("confirmed", &commit.hex());
        }
        env.unset("trial");
        env.unset("tries");
    })
}

fn change_env(sysroot: &Sysroot, change: impl FnOnce(&mut GrubEnv)) -> Result<(), TrialError> {
    let path = env_path(sysroot);
    let Some(mut env) = GrubEnv::read(&path)? else { return Err(TrialError::NoEnvironment(path)) };
    change(&mut env);
    Ok(env.write(&path)?)
}

/// GRUB came back: the other release is denied, what runs becomes the next boot, and the count goes.
fn finish_return(
    host: &TrialHost<'_>,
    runs: &Deployment,
    from: Commit,
    boots: u32,
) -> Result<(), TrialError> {
    // What runs came up: should the rest fail, GRUB comes back here again and again.
    change_env(host.sysroot, |env| env.set("tries", &TRIAL_BOOTS.to_string()))?;
    let denied = Denied {
        commit: from,
        version: host.sysroot.version_of(from),
        reason: BadReason::DidNotComeUp { boots },
        at: now(),
    };
    deny(&host.places.denied(), denied)?;
    if let Err(error) = flip(host, runs, Reason::CameBack, false) {
        // It runs all the same, and GRUB goes on choosing it.
        tracing::warn!("{}", in_one_line(&error));
        return Ok(());
    }
    write_ladder(host.sysroot, None)
}

/// The release is bad: it is denied first, so that a cut from here on leads to the same end.
fn go_back(
    host: &TrialHost<'_>,
    runs: &Deployment,
    way_back: &DeploymentId,
    reason: BadReason,
) -> Result<Ended, TrialError> {
    let denied =
        Denied { commit: runs.id.commit, version: runs.version.clone(), reason: reason.clone(), at: now() };
    deny(&host.places.denied(), denied)?;
    let deployments = host.sysroot.deployments()?;
    let to = deployments
        .iter()
        .find(|deployment| deployment.id == *way_back)
        .ok_or_else(|| SysrootError::NoDeployment(way_back.clone()))?;
    flip(host, to, Reason::NotGood, true)?;
    Ok(Ended::GoesBack { to: way_back.clone(), reason })
}

/// Proves a deployment that is there and makes it the next boot.
fn flip(host: &TrialHost<'_>, to: &Deployment, reason: Reason, reboot: bool) -> Result<(), TrialError> {
    let locked = poll(OTHERS, || match host.sysroot.lock() {
        Ok(()) => Ok(Some(())),
        Err(SysrootError::Busy { .. }) => Ok(None),
        Err(error) => Err(error),
    })?;
    if locked.is_none() {
        return Err(SysrootError::Busy { path: host.sysroot.path().to_owned() }.into());
    }
    let newest = host.places.newest();
    let history = host.places.history();
    let engines = Host {
        sysroot: host.sysroot,
        config: host.config,
        newest: &newest,
        history: &history,
        who: ITSELF,
        progress: host.progress,
    };
    let plan = plan_return(to, reason, reboot);
    run_plan(&engines, &plan, Some(to.id.clone()))
        .map(drop)
        .map_err(|source| TrialError::Return { to: to.id.commit, source: Box::new(source) })
}

/// Takes a release off the deny list, and away from GRUB's count.
pub fn allow_release(
    sysroot: &Sysroot,
    places: &Places,
    commit: Commit,
    who: &str,
) -> Result<Option<Denied>, TrialError> {
    if read_ladder(sysroot)?.is_some_and(|ladder| ladder.trial == Some(commit)) {
        write_ladder(sysroot, None)?;
    }
    let act =
        begin(&places.history(), ActVerb::Allow, Some((commit, sysroot.version_of(commit))), who, None)?;
    let allowed = crate::host::denied::allow(&places.denied(), commit)?;
    act.end(Outcome::Done, allowed.as_ref().map(|denied| denied.reason.to_string()))?;
    Ok(allowed)
}
