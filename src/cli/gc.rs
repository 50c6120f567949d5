//! `rackstep gc`.

use clap::Args;
use serde::Serialize;

use super::host::{NOTHING_CHANGED, PlanArguments};
use super::{Failure, Kind, print_json, print_line};
use crate::host::gc;
use crate::host::gc::plan::{Plan, plan_reap};
use crate::model::Digest;

/// Remove the releases and container images that no deployment of this host needs.
///
/// What runs, what waits for the reboot and the way back stay whole, OS and services alike. Images that rackstep did not
/// bring to Docker are not touched.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    plan: PlanArguments,
}

/// `--json`, format 1.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    format: u32,
    plan: &'a Plan,
    removed: &'a [Digest],
    in_use: &'a [Digest],
    bytes_freed: u64,
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let sysroot = arguments.plan.open_sysroot()?;
    let docker = arguments.plan.host.connect_docker()?;
    let found =
        gc::observe(&sysroot, &docker).map_err(|error| Failure::new(Kind::Failed, error, NOTHING_CHANGED))?;
    let plan = plan_reap(&found);
    let mut reaped = gc::Reaped::default();
    if !arguments.plan.dry_run {
        reaped =
            gc::run(&sysroot, &docker, &arguments.plan.host.layers(&sysroot), &plan).map_err(|error| {
                let state = "every deployment and its images are as they were; more may be left to remove";
                Failure::new(Kind::Failed, error, state)
            })?;
    }
    if arguments.plan.json {
        let gc::Reaped { images, in_use, freed, .. } = &reaped;
        let answer = Answer { format: 1, plan: &plan, removed: images, in_use, bytes_freed: *freed };
        return print_json(&answer);
    }
    print_line(&format!("{} container images stay: deployments pin them", plan.kept));
    for (index, step) in plan.steps.iter().enumerate() {
        print_line(&format!("{:>3}. {step}", index + 1));
    }
    for image in &reaped.in_use {
        print_line(&format!("container image {} stays: a container uses it", &image.hex()[..12]));
    }
    for commit in &reaped.kept {
        print_line(&format!("release {} stays: docker still has layers of it", commit.short()));
    }
    if reaped.unmounted > 0 {
        print_line(&format!("{} layers unmounted", reaped.unmounted));
    }
    let (images, freed) = (reaped.images.len(), reaped.freed);
    print_line(&if arguments.plan.dry_run {
        format!("state: {NOTHING_CHANGED}")
    } else {
        format!("state: {images} container images removed, {freed} bytes freed in the repo")
    });
    Ok(())
}
