//! `rackstep verify`.

use std::collections::BTreeSet;

use clap::Args;
use serde::Serialize;

use super::host::{HostArguments, NOTHING_CHANGED, name_of};
use super::interrupt::on_stop;
use super::progress::Terminal;
use super::{Failure, Kind, print_json, print_line};
use crate::docker::Docker;
use crate::docker::records::RecordFault;
use crate::host::records::{CheckedOut, RecordPlaces};
use crate::host::verify::{
    BadPath, FilesReport, MendedFiles, PinnedDeployment, StoppedServices, VerifyHostError, bad_image_files,
    bad_layers, pinned_deployments, repair_files, repair_mounts, repair_records, stop_docker, stop_services,
    verify_files, verify_records,
};
use crate::model::deployment::Role;
use crate::model::{Digest, ObjectKind};
use crate::ostree::repo::check::Condition;
use crate::ostree::sysroot::Sysroot;

/// Read every file of every deployment, container images among them, and compare Docker's records with what they should be.
///
/// Files are compared with the digests that the releases' commits name. That is gigabytes: minutes on a disk. Ends with exit
/// code 3 if something is missing or damaged and was not mended.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  rackstep verify                             what is wrong, if anything
  rackstep verify --repair                    and mend it
  rackstep verify --repair --stop-services    also Docker's records: services are down meanwhile")]
pub struct Arguments {
    /// Mend what is missing or damaged: files out of other copies on this host, else from the repo that it follows; mounts
    /// and Docker's records out of the files.
    #[arg(long)]
    repair: bool,
    /// With --repair: stop kubelet, the services and Docker while records are written, and start them again.
    #[arg(long, requires = "repair")]
    stop_services: bool,
    /// Print the outcome as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    host: HostArguments,
}

const STOP_DOCKER: &str = "records are written while docker is down: --stop-services stops it, and the services, and starts \
                           them again; or `systemctl stop kubelet cri-dockerd docker.socket docker`, \
                           `rackstep boot --records`, `systemctl start docker cri-dockerd kubelet`";

/// `--json`, format 2.
#[derive(Debug, Serialize)]
struct Answer {
    format: u32,
    objects: usize,
    bytes: u64,
    bad_files: Vec<BadFile>,
    releases: Vec<Release>,
    bad_records: Vec<BadRecord>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mended: Option<Mended>,
}

#[derive(Debug, Serialize)]
struct BadFile {
    path: String,
    object: String,
    problem: String,
}

#[derive(Debug, Serialize)]
struct Release {
    release: String,
    images: usize,
    /// Names in the pin set.
    bad_images: Vec<String>,
}

#[derive(Debug, Serialize)]
struct BadRecord {
    image: String,
    problem: String,
}

#[derive(Debug, Default, Serialize)]
struct Mended {
    files_from_this_host: usize,
    files_fetched: usize,
    files_linked: usize,
    layers_mounted: usize,
    records_written: usize,
}

impl Mended {
    fn add(&mut self, files: &MendedFiles) {
        self.files_from_this_host += files.from_files;
        self.files_fetched += files.fetched;
        self.files_linked += files.put_back;
    }
}

/// Runs the verb. Exit code 3 when something is bad and was not mended.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let host = &arguments.host;
    let sysroot = if arguments.repair { host.open_sysroot_alone()? } else { host.open_sysroot()? };
    let progress = Terminal::default();
    let work = Work { arguments, sysroot: &sysroot, progress: &progress };
    let mut mended = Mended::default();
    // Files first: mounts and records are made of them.
    let (files, mended_layers, no_network) = work.files(&mut mended)?;
    let explain = |failure| with_reason(failure, no_network.as_deref());
    let records = work.records(&files, &mended_layers, &mut mended).map_err(explain)?;
    let pinned = pinned_deployments(&sysroot).map_err(|error| explain(work.failed(error)))?;
    let releases: Vec<Release> = pinned.iter().map(|pinned| judge(pinned, &records)).collect();
    work.tell(|| print_releases(&releases));
    if arguments.json {
        print_json(&answer(&files, releases, &records, arguments.repair.then_some(mended)))?;
    }
    let files = files.faults();
    if files + records.len() == 0 {
        return Ok(());
    }
    let mut error = format!("{files} files are not as they are pinned");
    if !records.is_empty() {
        error.push_str(&format!("; {} faults in mounts and docker's records", records.len()));
    }
    let failure = Failure::new(Kind::Refused, error, NOTHING_CHANGED);
    Err(match no_network {
        None => failure.hint("`rackstep verify --repair` mends them"),
        why => with_reason(failure, why.as_deref()),
    })
}

/// How many of a release's images are good: those that no fault is told of.
fn judge(pinned: &PinnedDeployment, records: &[RecordFault]) -> Release {
    let images = pinned.pins.images();
    let bad = images.filter(|(_, image)| records.iter().any(|fault| fault.image == image.config));
    Release {
        release: name_of(&pinned.deployment),
        images: pinned.pins.pins().images.len(),
        bad_images: bad.map(|(name, _)| name.to_owned()).collect(),
    }
}

fn with_reason(failure: Failure, no_network: Option<&str>) -> Failure {
    match no_network {
        Some(why) => {
            failure.hint(format!("some files have no second copy on this host, and fetching failed: {why}"))
        }
        None => failure,
    }
}

struct Work<'a> {
    arguments: &'a Arguments,
    sysroot: &'a Sysroot,
    progress: &'a Terminal,
}

impl Work<'_> {
    /// Files as they are in the end, layers that were bad, and why the network did not help with what is still bad.
    fn files(&self, mended: &mut Mended) -> Result<(FilesReport, BTreeSet<Digest>, Option<String>), Failure> {
        let mut files = verify_files(self.sysroot, self.progress).map_err(|error| self.failed(error))?;
        let mut layers = bad_layers(&files);
        self.tell(|| print_files(&files));
        if !self.arguments.repair || files.faults() == 0 {
            return Ok((files, layers, None));
        }
        let all = self.sysroot.deployments().unwrap_or_default();
        let config =
            self.arguments.host.read_config(&self.arguments.host.config_path(self.sysroot, &all)).ok();
        // A damaged directory hides what is below it, so one round may bring faults to light for the next.
        loop {
            let done = repair_files(self.sysroot, &files, config.as_ref(), self.progress)
                .map_err(|error| self.failed(error))?;
            mended.add(&done);
            let before = files;
            files = verify_files(self.sysroot, self.progress).map_err(|error| self.failed(error))?;
            layers.extend(bad_layers(&files));
            self.tell(|| {
                print_line(&format!(
                    "mended: {} from other copies, {} over the network; {} put back",
                    done.from_files, done.fetched, done.put_back
                ));
                print_files(&files);
            });
            // A disk that does not keep what is written would go round for ever.
            if files.faults() == 0 || files == before {
                return Ok((files, layers, done.no_network));
            }
        }
    }

    /// Mounts and Docker's records, mended if that is wanted: what is wrong in the end.
    fn records(
        &self,
        files: &FilesReport,
        mended_layers: &BTreeSet<Digest>,
        mended: &mut Mended,
    ) -> Result<Vec<RecordFault>, Failure> {
        let failed = |error| self.failed(error);
        let pinned = pinned_deployments(self.sysroot).map_err(failed)?;
        let places = self.record_places();
        let mut deployments = self.sysroot.deployments().unwrap_or_default();
        // The booted one's names come last, and so count.
        deployments.sort_by_key(|deployment| deployment.role == Role::Booted);
        let releases: Vec<CheckedOut> =
            deployments.iter().map(|deployment| CheckedOut::of(self.sysroot, deployment)).collect();
        let look = || verify_records(&releases, &places).map_err(failed);
        let with_files = |mut faults: Vec<RecordFault>| {
            faults.extend(bad_image_files(&pinned, files));
            faults.sort();
            faults.dedup();
            faults
        };
        let mut faults = look()?;
        self.tell(|| print_records(&with_files(faults.clone()), &pinned));
        if !self.arguments.repair || (faults.is_empty() && mended_layers.is_empty()) {
            return Ok(with_files(faults));
        }
        let stopped = self.stop_services(&pinned)?;
        let done = repair_mounts(&releases, &places, mended_layers).map_err(failed)?;
        mended.layers_mounted += done.mounted;
        faults = look()?;
        if !faults.is_empty() {
            let docker = stopped.is_some().then(stop_docker).transpose().map_err(failed)?;
            let done = repair_records(&releases, &places).map_err(|error| {
                let running = error.is_docker_running();
                if running { failed(error).hint(STOP_DOCKER) } else { failed(error) }
            })?;
            drop(docker);
            mended.layers_mounted += done.mounted;
            mended.records_written += done.written;
            faults = look()?;
        }
        drop(stopped);
        faults = with_files(faults);
        self.tell(|| {
            print_line(&format!(
                "mended: {} layers mounted, {} records written",
                mended.layers_mounted, mended.records_written
            ));
            if !mended_layers.is_empty() && !self.arguments.stop_services {
                print_line("containers that run keep the files that they had until they are started again");
            }
            print_records(&faults, &pinned);
        });
        Ok(faults)
    }

    fn record_places(&self) -> RecordPlaces {
        RecordPlaces {
            repo: self.sysroot.repo_path(),
            layers: self.arguments.host.layers(self.sysroot).dir().to_owned(),
            docker_root: self.arguments.host.docker_root.clone(),
        }
    }

    /// Stops the services if that is wanted. A signal ends the program only after they were started again.
    fn stop_services(&self, pinned: &[PinnedDeployment]) -> Result<Option<StoppedServices>, Failure> {
        if !self.arguments.stop_services {
            return Ok(None);
        }
        let docker: Docker = self.arguments.host.connect_docker()?;
        on_stop(|| tracing::warn!("records are being written; the services come back after that"));
        stop_services(&docker, pinned, self.progress).map(Some).map_err(|error| self.failed(error))
    }

    fn tell(&self, say: impl FnOnce()) {
        if !self.arguments.json {
            say();
        }
    }

    fn failed(&self, error: VerifyHostError) -> Failure {
        let state = if self.arguments.repair {
            "something may be missing yet; `rackstep verify --repair` goes on from there"
        } else {
            NOTHING_CHANGED
        };
        Failure::new(Kind::Failed, error, state)
    }
}

fn print_files(files: &FilesReport) {
    let good = files.objects - files.bad.len();
    print_line(&format!("files: {good} of {} objects good", files.objects));
    for BadFile { path, object, problem } in bad_files(files) {
        print_line(&format!("  {path} ({object}): {problem}"));
    }
}

fn print_releases(releases: &[Release]) {
    for Release { release, images, bad_images } in releases {
        print_line(&format!(
            "release {release}: {} of {images} container images good",
            images - bad_images.len()
        ));
    }
}

fn print_records(faults: &[RecordFault], pinned: &[PinnedDeployment]) {
    for fault in faults {
        print_line(&format!("  image {}: {fault}", name_of_image(fault, pinned)));
    }
}

fn name_of_image(fault: &RecordFault, pinned: &[PinnedDeployment]) -> String {
    let name = pinned.iter().find_map(|pinned| pinned.name_of(fault.image));
    name.map_or_else(|| fault.image.to_string(), str::to_owned)
}

fn bad_files(files: &FilesReport) -> Vec<BadFile> {
    let objects = files.bad.iter().map(|bad| BadFile {
        path: bad.path.clone(),
        object: bad.object.to_string(),
        problem: match &bad.condition {
            Condition::Damaged(problem) => problem.clone(),
            Condition::Good | Condition::Missing => "not in the repo".to_owned(),
        },
    });
    let bad_path = |bad: &BadPath, missing: &str, other: &str| BadFile {
        path: bad.path.display().to_string(),
        object: bad.object.to_string(),
        problem: if bad.missing { missing } else { other }.to_owned(),
    };
    let checkouts = files.checkouts.iter().map(|bad| match bad.object.kind {
        ObjectKind::File => bad_path(bad, "not in the checkout", "the checkout has another file"),
        _ => bad_path(bad, "not in the checkout", "the directory has another owner, mode or xattr"),
    });
    let boot = files.boot.iter().map(|bad| bad_path(bad, "not in /boot", "the boot loader has another file"));
    objects.chain(checkouts).chain(boot).collect()
}

fn answer(
    files: &FilesReport,
    releases: Vec<Release>,
    records: &[RecordFault],
    mended: Option<Mended>,
) -> Answer {
    Answer {
        format: 2,
        objects: files.objects,
        bytes: files.bytes,
        bad_files: bad_files(files),
        releases,
        bad_records: records
            .iter()
            .map(|fault| BadRecord { image: fault.image.to_string(), problem: fault.to_string() })
            .collect(),
        mended,
    }
}
