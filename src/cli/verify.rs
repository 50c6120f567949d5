//! `rackstep verify`.

use clap::Args;

use super::host::{HostArguments, NOTHING_CHANGED, name_of};
use super::progress::Terminal;
use super::{Failure, Kind, print_line};
use crate::exec::verify::{Verified, pinned_deployments, repair_host, verify_host};

/// Read every pinned container image of every deployment back from Docker.
///
/// Ends with exit code 3 if one is missing or damaged and was not mended.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Mend what is missing or damaged, out of the deployments' own files; no network.
    #[arg(long)]
    repair: bool,
    #[command(flatten)]
    host: HostArguments,
}

/// Runs the verb. Exit code 3 when something is bad and was not mended.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let failed = |error| Failure::new(Kind::Failed, error, NOTHING_CHANGED);
    let sysroot = arguments.host.open_sysroot()?;
    let docker = arguments.host.connect_docker()?;
    let progress = Terminal::default();
    let deployments = pinned_deployments(&sysroot).map_err(failed)?;
    let mut verified = verify_host(&docker, &deployments, &progress).map_err(failed)?;
    if arguments.repair && bad(&verified) > 0 {
        print_all(&verified);
        let repaired = repair_host(&docker, &deployments, &progress).map_err(|error| {
            Failure::new(
                Kind::Failed,
                error,
                "images may be missing; `rackstep verify --repair` goes on from there",
            )
        })?;
        let (replaced, loaded) = (repaired.replaced.len(), repaired.loaded.len());
        print_line(&format!("mended: {replaced} replaced, {loaded} loaded"));
        verified = verify_host(&docker, &deployments, &progress).map_err(failed)?;
    }
    print_all(&verified);
    match bad(&verified) {
        0 => Ok(()),
        bad => {
            let error = format!("{bad} container images are not as they are pinned");
            Err(Failure::new(Kind::Refused, error, NOTHING_CHANGED)
                .hint("`rackstep verify --repair` mends them out of the deployments' own files"))
        }
    }
}

fn bad(verified: &[Verified]) -> usize {
    verified.iter().map(|verified| verified.findings.len()).sum()
}

fn print_all(verified: &[Verified]) {
    for Verified { deployment, images, findings } in verified {
        let name = name_of(deployment);
        print_line(&format!("release {name}: {} of {images} container images good", images - findings.len()));
        for finding in findings {
            print_line(&format!("  {} ({}): {}", finding.name, finding.config, finding.verdict));
        }
    }
}
