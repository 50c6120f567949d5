//! `rackstep confirm`, `rackstep abandon`, `rackstep release allow`, and `rackstep boot --trial`.

use clap::Args;

use super::host::{HostArguments, NOTHING_CHANGED, state_line};
use super::progress::Terminal;
use super::{Failure, Kind, print_line};
use crate::docker::Docker;
use crate::host::abandon::{Abandoned, abandon as abandon_prepared};
use crate::host::denied::read_denied;
use crate::host::history::who;
use crate::host::places::Places;
use crate::host::trial::{
    Ended, TrialError, TrialHost, allow_release, confirm as confirm_release, run_trial,
};
use crate::model::trial::Denied;
use crate::ostree::sysroot::Sysroot;

/// End the trial of the release that runs: it is good, and stays.
///
/// Hosts do this by themselves once every required probe succeeds, unless their profile leaves it to a person. Phases that
/// remove what the previous release needed run afterwards.
#[derive(Debug, Args)]
pub struct ConfirmArguments {
    #[command(flatten)]
    host: HostArguments,
}

/// Give up a release that is prepared or waits for the reboot; what runs stays.
#[derive(Debug, Args)]
pub struct AbandonArguments {
    #[command(flatten)]
    host: HostArguments,
}

/// Take a release again that this host came back from.
#[derive(Debug, Args)]
pub struct AllowArguments {
    /// A commit, an unambiguous beginning of one, or a version, as `rackstep why` shows it.
    #[arg(value_name = "REV")]
    revision: String,
    #[command(flatten)]
    host: HostArguments,
}

/// Runs `confirm`.
pub fn confirm(arguments: &ConfirmArguments) -> Result<(), Failure> {
    let sysroot = arguments.host.open_sysroot_alone()?;
    with_host(&arguments.host, &sysroot, |host| {
        let done = confirm_release(host, &who()).map_err(|error| trial_failure(error, &sysroot))?;
        for phase in &done.ran {
            print_line(&format!("phase {phase} ran"));
        }
        print_line(&format!("state: confirmed; {}", state_line(&sysroot)));
        Ok(())
    })
}

/// Runs `abandon`.
pub fn abandon(arguments: &AbandonArguments) -> Result<(), Failure> {
    let sysroot = arguments.host.open_sysroot_alone()?;
    let places = places(&arguments.host, &sysroot)?;
    let abandoned = abandon_prepared(&sysroot, &places, &who())
        .map_err(|error| Failure::new(Kind::Failed, error, state_line(&sysroot)))?;
    match abandoned {
        Abandoned::Nothing => print_line("nothing is prepared and nothing waits for the reboot"),
        Abandoned::Release(commit) => print_line(&format!("release {} is given up", commit.short())),
    }
    print_line(&format!("state: {}", state_line(&sysroot)));
    Ok(())
}

/// Runs `release allow`.
pub fn allow(arguments: &AllowArguments) -> Result<(), Failure> {
    let sysroot = arguments.host.open_sysroot_alone()?;
    let places = places(&arguments.host, &sysroot)?;
    let failed = |error: TrialError| Failure::new(Kind::Failed, error, NOTHING_CHANGED);
    let list = read_denied(&places.denied()).map_err(|error| failed(error.into()))?;
    let asked = arguments.revision.as_str();
    let meant = |denied: &&Denied| {
        denied.version.as_deref() == Some(asked)
            || (asked.len() >= 4 && denied.commit.hex().starts_with(asked))
    };
    let found: Vec<&Denied> = list.releases.iter().filter(meant).collect();
    let commit = match found.as_slice() {
        [one] => one.commit,
        [] => {
            let told = format!("no release called {asked:?} is denied on this host");
            return Err(Failure::new(Kind::BadInput, told, NOTHING_CHANGED));
        }
        several => {
            let names: Vec<String> = several.iter().map(|denied| denied.commit.short()).collect();
            let told = format!("{asked:?} may mean any of {}", names.join(", "));
            return Err(Failure::new(Kind::BadInput, told, NOTHING_CHANGED));
        }
    };
    allow_release(&sysroot, &places, commit, &who()).map_err(failed)?;
    print_line(&format!("state: release {} may be taken again; {}", commit.short(), state_line(&sysroot)));
    Ok(())
}

/// Runs `boot --trial`.
pub(super) fn judge(host: &HostArguments, sysroot: &Sysroot) -> Result<(), Failure> {
    with_host(host, sysroot, |trial| {
        let ended = run_trial(trial).map_err(|error| trial_failure(error, sysroot))?;
        let told = match &ended {
            Ended::Confirmed { .. } => "the release is healthy, and confirmed".to_owned(),
            Ended::ByHand => "the release is healthy; `rackstep confirm` ends its trial".to_owned(),
            Ended::Healthy => "the release is healthy".to_owned(),
            Ended::Stays { reason } => {
                return Err(Failure::new(
                    Kind::Failed,
                    format!("the release that runs is {reason}"),
                    format!("the host stays as it is, and goes nowhere by itself; {}", state_line(sysroot)),
                )
                .hint("`rackstep why` tells what may be done"));
            }
            Ended::GoesBack { to, reason } => {
                format!("the release is {reason}; the host goes back to {}", to.commit.short())
            }
        };
        print_line(&told);
        print_line(&format!("state: {}", state_line(sysroot)));
        if let Ended::Confirmed { phases } = &ended {
            phases.ran.iter().for_each(|phase| print_line(&format!("phase {phase} ran")));
        }
        Ok(())
    })
}

fn trial_failure(error: TrialError, sysroot: &Sysroot) -> Failure {
    let state = state_line(sysroot);
    Failure::new(Kind::Failed, error, state)
}

/// Where the host keeps things: of what runs, or in a scratch system of what would run next.
pub(super) fn places(host: &HostArguments, sysroot: &Sysroot) -> Result<Places, Failure> {
    let deployments =
        sysroot.deployments().map_err(|error| Failure::new(Kind::Failed, error, NOTHING_CHANGED))?;
    Ok(host.places(sysroot, &deployments))
}

fn with_host(
    host: &HostArguments,
    sysroot: &Sysroot,
    act: impl FnOnce(&TrialHost<'_>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let deployments =
        sysroot.deployments().map_err(|error| Failure::new(Kind::Failed, error, NOTHING_CHANGED))?;
    let places = host.places(sysroot, &deployments);
    let config = host.read_config(&host.config_path(sysroot, &deployments))?;
    let docker = || Docker::connect(host.docker_host.as_deref());
    let progress = Terminal::default();
    let docker_root = &host.docker_root;
    let host = TrialHost {
        sysroot,
        docker: &docker,
        docker_root,
        config: &config,
        places: &places,
        progress: &progress,
    };
    act(&host)
}
