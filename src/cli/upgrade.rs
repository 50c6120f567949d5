//! `rackstep upgrade`.

use std::path::Path;

use clap::Args;
use serde::Serialize;

use super::host::{NOTHING_CHANGED, PlanArguments, state_line, upgrade_failure};
use super::progress::Terminal;
use super::time::date;
use super::{Failure, Kind, NO_KEY, print_json, print_line};
use crate::host::denied::read_denied;
use crate::host::history::who;
use crate::host::newest::read_newest;
use crate::host::revision::{Refs, RevisionError, fetch_refs, require_bound, resolve};
use crate::host::trial::on_trial;
use crate::host::upgrade::plan::{Plan, Reason, Target, UpgradeRequest, plan_upgrade};
use crate::host::upgrade::{Host, UpgradeError, run as run_plan, trusted_keys};
use crate::model::deployment::{Role, name_release};
use crate::model::{Commit, Deployment, HostConfig};
use crate::ostree::repo::{CommitInfo, Repo};
use crate::ostree::sysroot::Sysroot;
use crate::release::pull::{By, PullReport, observe_remote};
use crate::rim::versioned::VersionedError;

/// Fetch and verify a release; with --commit also make it the next boot.
///
/// Without --commit the next boot is untouched: the release is pulled, checked out beside what runs, and every object of it
/// is read. With --commit it then becomes the next boot, OS and services together. Docker is not touched.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Make the release the next boot.
    #[arg(long)]
    commit: bool,
    /// A commit, an unambiguous beginning of one, a version or a ref [default: the newest release of the host's ref].
    #[arg(value_name = "REV")]
    revision: Option<String>,
    /// Restart the host afterwards; needs --commit.
    #[arg(long, requires = "commit")]
    reboot: bool,
    #[command(flatten)]
    plan: PlanArguments,
}

/// `--json`, format 2.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    format: u32,
    plan: &'a Plan,
    bytes_pulled: Option<u64>,
    pulled_by: Option<String>,
    state: String,
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let sysroot = arguments.plan.open_sysroot()?;
    let fail = |error| upgrade_failure(error, &sysroot);
    let deployments = sysroot.deployments().map_err(|error| fail(error.into()))?;
    let config = arguments.plan.host.read_config(&arguments.plan.host.config_path(&sysroot, &deployments))?;
    if config.trusted_keys.is_empty() && !arguments.plan.json {
        eprintln!("warning: {NO_KEY}");
    }
    let name = arguments.revision.as_deref();
    let commit = resolve_here_or_there(&config, name, &deployments)?;
    // On a sysroot that nothing runs from, what the next boot takes stands for it.
    let runs = deployments
        .iter()
        .find(|deployment| deployment.role == Role::Booted)
        .or_else(|| deployments.iter().find(|deployment| deployment.next_boot));
    let info = observe(&config, commit, &sysroot)?;
    // The repo's summary is signed by nobody: what the commit says of itself is.
    require_bound(&config.repo, name, &config.follows, &info)
        .map_err(|error| Failure::new(Kind::Refused, error, NOTHING_CHANGED))?;
    let created = Some(info.timestamp);
    let target = Target { commit, created, repo: config.repo.clone() };
    let places = arguments.plan.host.places(&sysroot, &deployments);
    let memory = places.newest();
    let unread =
        |error: Box<dyn std::error::Error + Send + Sync>| Failure::new(Kind::Failed, error, NOTHING_CHANGED);
    let denied = read_denied(&places.denied()).map_err(|error| unread(error.into()))?;
    let on_trial = on_trial(&sysroot, &places).map_err(|error| unread(error.into()))?;
    let request = UpgradeRequest {
        commit: arguments.commit,
        reboot: arguments.reboot,
        by_name: arguments.revision.is_some(),
        on_trial,
        denied: &denied,
    };
    let newest = read_newest(&memory).map_err(|error| damaged_memory(error, &memory))?;
    let newest = newest.refs.get(config.follows.as_str());
    let runs_since = runs.and_then(|runs| sysroot.created(runs.id.commit));
    let plan = plan_upgrade(&deployments, runs_since, newest, &target, request);
    if arguments.plan.dry_run || plan.steps.is_empty() {
        let state = state_line(&sysroot);
        if arguments.plan.json {
            print_json(&Answer { format: 2, plan: &plan, bytes_pulled: None, pulled_by: None, state })?;
        } else if !is_refused(&plan) {
            if !plan.steps.is_empty() {
                let name = name_release(info.version.as_deref(), commit);
                print_line(&format!("found {name}, made {}", date(info.timestamp)));
            }
            print_plan(&plan);
            print_line(&format!("state: {state}"));
        }
        return refuse(&plan);
    }
    let progress = Terminal::default();
    let host = Host {
        sysroot: &sysroot,
        config: &config,
        newest: &memory,
        history: &places.history(),
        who: &who(),
        progress: &progress,
    };
    let done = run_plan(&host, &plan, None).map_err(fail)?;
    let state = match (arguments.commit, done.next_boot) {
        (true, _) => state_line(&sysroot),
        (false, _) => format!("release {} prepared; {}", commit.short(), state_line(&sysroot)),
    };
    if arguments.plan.json {
        return print_json(&Answer {
            format: 2,
            plan: &plan,
            bytes_pulled: done.pulled.as_ref().map(|report| report.bytes),
            pulled_by: done.pulled.as_ref().map(|report| report.by.to_string()),
            state,
        });
    }
    if let Some(report) = &done.pulled {
        print_line(&tell_pull(report));
    }
    print_line(&format!("state: {state}"));
    Ok(())
}

/// What a release says of itself; of one that is not here yet under its signature, so that nobody can pass an old release
/// off as a new one.
fn observe(config: &HostConfig, commit: Commit, sysroot: &Sysroot) -> Result<CommitInfo, Failure> {
    if sysroot.created(commit).is_some() {
        let path = sysroot.repo_path();
        let info = Repo::open(&path).and_then(|repo| repo.commit_info(commit));
        return info.map_err(|source| upgrade_failure(UpgradeError::Repo { path, source }, sysroot));
    }
    let keys = trusted_keys(config).map_err(|error| upgrade_failure(error, sysroot))?;
    observe_remote(&config.repo, commit, &keys)
        .map_err(|source| upgrade_failure(UpgradeError::Pull { commit, source: Box::new(source) }, sysroot))
}

/// The commit that is meant. A release that is named may be on the host already, so then the repo need not answer.
fn resolve_here_or_there(
    config: &HostConfig,
    name: Option<&str>,
    deployments: &[Deployment],
) -> Result<Commit, Failure> {
    let among = |refs: &Refs| resolve(&config.repo, name, &config.follows, refs, deployments);
    match fetch_refs(&config.repo) {
        Ok(refs) => among(&refs).map_err(no_release),
        Err(error) if name.is_some() => {
            tracing::warn!(%error, "the repo does not answer; looking among what the host has");
            among(&Refs::new()).map_err(|here| match here {
                // Perhaps the repo would have known it.
                RevisionError::Unknown { .. } => no_release(error),
                other => no_release(other),
            })
        }
        Err(error) => Err(no_release(error)),
    }
}

fn no_release(error: RevisionError) -> Failure {
    let kind = match &error {
        RevisionError::Unknown { .. } | RevisionError::Ambiguous { .. } => Kind::BadInput,
        RevisionError::Fetch { .. } | RevisionError::Damaged { .. } => Kind::Failed,
    };
    Failure::new(kind, error, NOTHING_CHANGED)
}

fn damaged_memory(error: VersionedError, path: &Path) -> Failure {
    let hint = format!("without {} the host takes whatever release the repo calls newest", path.display());
    Failure::new(Kind::Failed, error, NOTHING_CHANGED).hint(hint)
}

fn is_refused(plan: &Plan) -> bool {
    matches!(
        plan.reason,
        Reason::Older { .. }
            | Reason::SetBack { .. }
            | Reason::AnotherWaits
            | Reason::OnTrial { .. }
            | Reason::Denied { .. }
    )
}

fn refuse(plan: &Plan) -> Result<(), Failure> {
    if is_refused(plan) {
        return Err(Failure::new(Kind::Refused, plan.reason.to_string(), NOTHING_CHANGED));
    }
    Ok(())
}

/// What a pull brought, in words.
fn tell_pull(report: &PullReport) -> String {
    if report.by == By::Nothing {
        return "nothing was pulled: every object was here".to_owned();
    }
    format!("pulled {} bytes ({} objects) by {}", report.bytes, report.objects, report.by)
}

/// Prints a plan as a numbered list under its reason.
pub fn print_plan(plan: &Plan) {
    print_line(&plan.reason.to_string());
    for (index, step) in plan.steps.iter().enumerate() {
        print_line(&format!("{:>3}. {step}", index + 1));
    }
}
