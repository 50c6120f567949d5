//! `rackstep rollback`.

use clap::Args;
use serde::Serialize;

use super::host::{NOTHING_CHANGED, PlanArguments, state_line, upgrade_failure};
use super::progress::Terminal;
use super::upgrade::print_plan;
use super::{Failure, Kind, print_json, print_line};
use crate::host::denied::read_denied;
use crate::host::history::who;
use crate::host::upgrade::plan::{Plan, Reason, plan_rollback};
use crate::host::upgrade::{Host, run as run_plan};

/// Make the previous release the next boot: OS and services as one, without network.
///
/// Databases and other state stay as they are. An upgrade that waits for the reboot is called off instead. Every
/// object of the release is read first; its container images run from them.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Restart the host afterwards.
    #[arg(long)]
    reboot: bool,
    #[command(flatten)]
    plan: PlanArguments,
}

/// `--json`, format 2.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    format: u32,
    plan: &'a Plan,
    state: String,
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let sysroot = arguments.plan.open_sysroot()?;
    let fail = |error| upgrade_failure(error, &sysroot);
    let deployments = sysroot.deployments().map_err(|error| fail(error.into()))?;
    let places = arguments.plan.host.places(&sysroot, &deployments);
    let denied =
        read_denied(&places.denied()).map_err(|error| Failure::new(Kind::Failed, error, NOTHING_CHANGED))?;
    let age = |commit| sysroot.created(commit);
    let (plan, way_back) = plan_rollback(&deployments, age, &denied, arguments.reboot);
    if matches!(plan.reason, Reason::NoRollback | Reason::Denied { .. }) {
        return Err(Failure::new(Kind::Refused, plan.reason.to_string(), NOTHING_CHANGED));
    }
    if !arguments.plan.dry_run && !plan.steps.is_empty() {
        let config =
            arguments.plan.host.read_config(&arguments.plan.host.config_path(&sysroot, &deployments))?;
        let progress = Terminal::default();
        let newest = places.newest();
        let host = Host {
            sysroot: &sysroot,
            config: &config,
            newest: &newest,
            history: &places.history(),
            who: &who(),
            progress: &progress,
        };
        run_plan(&host, &plan, way_back).map_err(fail)?;
    }
    let state = state_line(&sysroot);
    if arguments.plan.json {
        return print_json(&Answer { format: 2, plan: &plan, state });
    }
    print_plan(&plan);
    print_line(&format!("state: {state}"));
    Ok(())
}
