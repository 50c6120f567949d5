//! `rackstep verify`.

use std::collections::BTreeSet;

use clap::Args;
use serde::Serialize;

use super::host::{HostArguments, NOTHING_CHANGED, name_of};
use super::interrupt::on_stop;
use super::progress::Terminal;
use super::{Failure, Kind, print_json, print_line};
use crate::docker::records::RecordFault;
use crate::docker::{Docker, StoreKind};
use crate::host::records::{CheckedOut, RecordPlaces};
use crate::host::verify::{
    BadPath, FilesReport, MendedFiles, PinnedDeployment, StoppedServices, Verified, VerifyHostError,
    bad_layers, pinned_deployments, repair_files, repair_host, repair_mounts, repair_records, stop_docker,
    stop_services, verify_files, verify_host, verify_records,
};
use crate::model::deployment::Role;
use crate::model::{Digest, ObjectKind};
use crate::ostree::repo::check::Condition;
use crate::ostree::sysroot::Sysroot;

/// Read every file of every deployment and every pinned container image back.
///
/// Files are compared with the digests that the releases' commits name, images are read from Docker's own store. That is
/// gigabytes: minutes on a disk. Ends with exit code 3 if something is missing or damaged and was not mended.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  rackstep verify                             what is wrong, if anything
  rackstep verify --repair                    and mend it
  rackstep verify --repair --stop-services    also images that services run from: they are down meanwhile")]
pub struct Arguments {
    /// Mend what is missing or damaged: images out of the deployments' files, files of images out of Docker, no network
    /// for either; other files from the repo that this host follows.
    #[arg(long)]
    repair: bool,
    /// With --repair: stop kubelet and the services while damaged images are replaced, and start them again.
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

/// `--json`, format 1.
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
    bad_images: Vec<BadImage>,
}

#[derive(Debug, Serialize)]
struct BadRecord {
    image: String,
    problem: String,
}

#[derive(Debug, Serialize)]
struct BadImage {
    name: String,
    image: String,
    problem: String,
}

#[derive(Debug, Default, Serialize)]
struct Mended {
    files_from_this_host: usize,
    files_from_docker: usize,
    files_fetched: usize,
    files_linked: usize,
    images_replaced: usize,
    images_loaded: usize,
    layers_mounted: usize,
    records_written: usize,
}

impl Mended {
    fn add(&mut self, files: &MendedFiles) {
        self.files_from_this_host += files.from_files;
        self.files_from_docker += files.from_docker;
        self.files_fetched += files.fetched;
        self.files_linked += files.put_back;
    }
}

/// Runs the verb. Exit code 3 when something is bad and was not mended.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let host = &arguments.host;
    let sysroot = if arguments.repair { host.open_sysroot_alone()? } else { host.open_sysroot()? };
    let docker = host.connect_docker()?;
    let progress = Terminal::default();
    let work = Work { arguments, sysroot: &sysroot, docker: &docker, progress: &progress };
    let mut mended = Mended::default();
    // Files first: images are mended out of them.
    let (files, mended_layers, no_network) = work.files(&mut mended)?;
    let explain = |failure| with_reason(failure, no_network.as_deref());
    let records = work.records(&files, &mended_layers, &mut mended).map_err(explain)?;
    let images = work.images(&mut mended).map_err(explain)?;
    if arguments.json {
        print_json(&answer(&files, &images, &records, arguments.repair.then_some(mended)))?;
    }
    let (files, images) = (files.faults(), bad_images(&images));
    if files + images + records.len() == 0 {
        return Ok(());
    }
    let mut error = format!("{files} files and {images} container images are not as they are pinned");
    if !records.is_empty() {
        error.push_str(&format!("; {} faults in mounts and docker's records", records.len()));
    }
    let failure = Failure::new(Kind::Refused, error, NOTHING_CHANGED);
    Err(match no_network {
        None => failure.hint("`rackstep verify --repair` mends them"),
        why => with_reason(failure, why.as_deref()),
    })
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
    docker: &'a Docker,
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
            // Pins that cannot be read are among the files that are mended.
            let pinned = pinned_deployments(self.sysroot).unwrap_or_default();
            let done =
                repair_files(self.sysroot, self.docker, &pinned, &files, config.as_ref(), self.progress)
                    .map_err(|error| self.failed(error))?;
            mended.add(&done);
            let before = files;
            files = verify_files(self.sysroot, self.progress).map_err(|error| self.failed(error))?;
            layers.extend(bad_layers(&files));
            self.tell(|| {
                print_line(&format!(
                    "mended: {} from other copies, {} from docker, {} over the network; {} put back",
                    done.from_files, done.from_docker, done.fetched, done.put_back
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
        let Some(places) = self.record_places()? else { return Ok(Vec::new()) };
        let mut deployments = self.sysroot.deployments().unwrap_or_default();
        // The booted one's names come last, and so count.
        deployments.sort_by_key(|deployment| deployment.role == Role::Booted);
        let releases: Vec<CheckedOut> =
            deployments.iter().map(|deployment| CheckedOut::of(self.sysroot, deployment)).collect();
        let look = || verify_records(&releases, &places, &pinned, files).map_err(failed);
        let mut faults = look()?;
        self.tell(|| print_records(&faults, &pinned));
        if !self.arguments.repair || (faults.is_empty() && mended_layers.is_empty()) {
            return Ok(faults);
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

    /// None where Docker keeps its images in a store that takes no records of ours.
    fn record_places(&self) -> Result<Option<RecordPlaces>, Failure> {
        let storage = self.docker.observe_storage().map_err(|error| {
            Failure::new(Kind::Failed, error, NOTHING_CHANGED).hint(super::host::DOCKER_HINT)
        })?;
        let takes = storage.kind == StoreKind::Classic && storage.driver == "overlay2";
        Ok(takes.then(|| RecordPlaces {
            repo: self.sysroot.repo_path(),
            layers: self.arguments.host.layers(self.sysroot).dir().to_owned(),
            docker_root: storage.data_root,
        }))
    }

    fn images(&self, mended: &mut Mended) -> Result<Vec<Verified>, Failure> {
        let failed = |error| self.failed(error);
        let pinned = pinned_deployments(self.sysroot).map_err(failed)?;
        let mut images = verify_host(self.docker, &pinned, self.progress).map_err(failed)?;
        self.tell(|| print_images(&images));
        // What can be mounted is not imported: what is still wrong with it is in its files, or its records.
        let mounted = self.arguments.host.layers(self.sysroot).mounted().unwrap_or_default();
        let to_import = |verified: &Verified| {
            let mountable = |config| pinned.iter().any(|pinned| pinned.is_mounted(config, &mounted));
            verified.findings.iter().any(|finding| !mountable(finding.config))
        };
        if self.arguments.repair && images.iter().any(to_import) {
            let stopped = self.stop_services(&pinned)?;
            let done = repair_host(self.docker, &pinned, self.progress).map_err(|error| {
                let in_use = error.is_in_use();
                let failure = failed(error);
                if in_use {
                    failure.hint("--stop-services stops what runs, and starts it again")
                } else {
                    failure
                }
            })?;
            drop(stopped);
            (mended.images_replaced, mended.images_loaded) = (done.replaced.len(), done.loaded.len());
            images = verify_host(self.docker, &pinned, self.progress).map_err(failed)?;
            self.tell(|| {
                print_line(&format!(
                    "mended: {} replaced, {} loaded",
                    done.replaced.len(),
                    done.loaded.len()
                ));
                print_images(&images);
            });
        }
        Ok(images)
    }

    /// Stops the services if that is wanted. A signal ends the program only after they were started again.
    fn stop_services(&self, pinned: &[PinnedDeployment]) -> Result<Option<StoppedServices>, Failure> {
        if !self.arguments.stop_services {
            return Ok(None);
        }
        on_stop(|| tracing::warn!("images are being replaced; the services come back after that"));
        stop_services(self.docker, pinned, self.progress).map(Some).map_err(|error| self.failed(error))
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

fn bad_images(images: &[Verified]) -> usize {
    images.iter().map(|verified| verified.findings.len()).sum()
}

fn print_files(files: &FilesReport) {
    let good = files.objects - files.bad.len();
    print_line(&format!("files: {good} of {} objects good", files.objects));
    for BadFile { path, object, problem } in bad_files(files) {
        print_line(&format!("  {path} ({object}): {problem}"));
    }
}

fn print_images(images: &[Verified]) {
    for Verified { deployment, images, findings } in images {
        let name = name_of(deployment);
        print_line(&format!("release {name}: {} of {images} container images good", images - findings.len()));
        for finding in findings {
            print_line(&format!("  {} ({}): {}", finding.name, finding.config, finding.verdict));
        }
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
    images: &[Verified],
    records: &[RecordFault],
    mended: Option<Mended>,
) -> Answer {
    let releases = images.iter().map(|verified| Release {
        release: name_of(&verified.deployment),
        images: verified.images,
        bad_images: verified
            .findings
            .iter()
            .map(|finding| BadImage {
                name: finding.name.clone(),
                image: finding.config.to_string(),
                problem: finding.verdict.to_string(),
            })
            .collect(),
    });
    Answer {
        format: 1,
        objects: files.objects,
        bytes: files.bytes,
        bad_files: bad_files(files),
        releases: releases.collect(),
        bad_records: records
            .iter()
            .map(|fault| BadRecord { image: fault.image.to_string(), problem: fault.to_string() })
            .collect(),
        mended,
    }
}
