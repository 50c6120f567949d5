//! `rackstep boot`: run by the host's own units, before kubelet and beside it.

use std::path::Path;
use std::time::{Duration, Instant};

use clap::Args;

use super::host::HostArguments;
use super::progress::Terminal;
use super::{Failure, Kind, print_line};
use crate::docker::Docker;
use crate::docker::records::Recorded;
use crate::host::absent;
use crate::host::boot::plan::{KeptOut, PlannedPod};
use crate::host::boot::{Booted, Release, boot, boot_phases, observe_services};
use crate::host::call_home::call_home;
use crate::host::phases::PhasesDone;
use crate::host::places::Places;
use crate::host::records::{CheckedOut, RecordPlaces, write_records};
use crate::host::trial::read_ladder;
use crate::model::causes::in_one_line;
use crate::model::deployment::Role;
use crate::model::imaging::{BootedReport, SECRET_NAME};
use crate::model::{Deployment, HostConfig};
use crate::ostree::sysroot::Sysroot;

/// Bring up the services of the booted release: secrets, configuration, pods.
///
/// Run by rackstep-boot.service before kubelet, with --records by rackstep-records.service before Docker, with --phases by
/// rackstep-phases.service and with --trial by rackstep-trial.service beside kubelet; may be repeated.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Run the phases that are due and start the pods that wait for them; kubelet must be running.
    #[arg(long)]
    phases: bool,
    /// Mount the layers of the container images and write Docker's records of them; Docker must be stopped.
    #[arg(long, conflicts_with = "phases")]
    records: bool,
    /// Try the release's probes and end its trial: confirm it, or go back to the previous release.
    #[arg(long, conflicts_with_all = ["phases", "records"])]
    trial: bool,
    #[command(flatten)]
    host: HostArguments,
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
        Failure::new(Kind::Failed, error, "the release's services were not started")
    };
    let host = &arguments.host;
    let sysroot = host.open_sysroot()?;
    let deployments = sysroot.deployments().map_err(|error| failed(error.into()))?;
    // In a scratch system, what would run next is taken for what runs.
    let deployment =
        booted(&deployments).ok_or_else(|| failed("nothing of this sysroot is booted".into()))?;
    let mut places = places_of(&host.sysroot, sysroot.is_booted(), deployment);
    if let Some(path) = &host.host_config {
        places.host_config.clone_from(path);
    }
    let commit = deployment.id.commit;
    if arguments.records {
        return record(host, &sysroot, &deployments, deployment, &places);
    }
    if arguments.trial {
        return super::trial::judge(host, &sysroot);
    }
    let release = Release::read(&places.release, commit).map_err(|error| failed(error.into()))?;
    let docker = host.connect_docker()?;
    let progress = Terminal::default();
    let name = format!("{} ({})", release.info.version, commit.short());
    if arguments.phases {
        // A contract phase that was cut off goes on here.
        let ladder = read_ladder(&sysroot).map_err(|error| failed(error.into()))?;
        let confirmed = ladder.is_some_and(|ladder| ladder.confirmed == Some(commit));
        let done = boot_phases(&docker, &host.docker_root, &release, &places, confirmed, &progress).map_err(
            |error| {
                let state = format!("release {name} is booted; pods that wait for phases were not started");
                Failure::new(Kind::Failed, error, state)
            },
        )?;
        print_phases(&name, &done);
        tell_rack(host, &places, &docker, &release);
        return require_all(&name, &done.kept_out);
    } else {
        let booted = boot(&docker, &host.docker_root, &release, &places).map_err(|error| {
            let state = format!("release {name} is booted; its services were not all started");
            Failure::new(Kind::Failed, error, state)
        })?;
        print_boot(&name, &booted);
    }
    Ok(())
}

/// Everything that can run does by now; what cannot makes the unit fail, so that somebody looks.
fn require_all(name: &str, kept_out: &KeptOut) -> Result<(), Failure> {
    if kept_out.is_empty() {
        return Ok(());
    }
    let waiting: Vec<&str> = kept_out.pods.keys().map(String::as_str).collect();
    let error = format!("pods that wait for images which docker does not have: {}", waiting.join(", "));
    let state = format!("release {name} is booted; everything else of it runs");
    let failure = Failure::new(Kind::Failed, error, state);
    Err(failure.hint(
        "`rackstep verify --repair --stop-services` mends files, mounts and records; then `rackstep boot`",
    ))
}

/// Mounts and records, for all deployments: the booted one's names come last, and so count.
fn record(
    host: &HostArguments,
    sysroot: &Sysroot,
    deployments: &[Deployment],
    booted: &Deployment,
    places: &Places,
) -> Result<(), Failure> {
    let of_host = places;
    let places = RecordPlaces {
        repo: sysroot.repo_path(),
        layers: places.layers(),
        docker_root: host.docker_root.clone(),
    };
    let ours = deployments.iter().filter(|deployment| deployment.id != booted.id).chain([booted]);
    let releases: Vec<CheckedOut> = ours.map(|deployment| CheckedOut::of(sysroot, deployment)).collect();
    let began = Instant::now();
    let outcome = write_records(&releases, &places);
    absent::note(of_host, &outcome).map_err(|error| {
        Failure::new(Kind::Failed, error, "docker's records are written; why images are missing is not")
    })?;
    let done = outcome.map_err(|error| {
        let state = "docker has the images that it had; pods of others wait";
        let in_use = error.is_docker_running();
        let failure = Failure::new(Kind::Failed, error, state);
        if in_use {
            failure.hint(
                "its socket starts it again when somebody calls: \
                 `systemctl stop kubelet cri-dockerd docker.socket docker`, then this again",
            )
        } else {
            failure
        }
    })?;
    for (layer, error) in &done.failed {
        tracing::warn!(%layer, "{}", in_one_line(error));
    }
    for (release, why) in &done.unread {
        tracing::warn!(%release, "its images are not recorded: {why}");
    }
    for (image, why) in &done.absent {
        tracing::warn!(%image, "not recorded: {why}");
    }
    let Recorded { images, written, dropped, failed, .. } = &done.recorded;
    for (chain, why) in failed {
        tracing::warn!(%chain, "no record of this layer: {why}");
    }
    print_line(&format!("layers: {} mounted now, {} not", done.mounted, done.failed.len()));
    print_line(&format!("images: {} in docker's records, {} not", images.len(), done.absent.len()));
    print_line(&format!("records of layers: {written} written, {dropped} dropped"));
    print_line(&format!(
        "state: docker will have {} images ({:.3} s)",
        images.len(),
        began.elapsed().as_secs_f64()
    ));
    Ok(())
}

/// How long the last pods may take to run before the rack server is told that they do not.
const READY: Duration = Duration::from_secs(15 * 60);
/// How often it is looked at.
const LOOK: Duration = Duration::from_secs(5);

/// Calls home: at once, and again when every container runs its pinned image. The host serves whether somebody listens or not.
fn tell_rack(host: &HostArguments, places: &Places, docker: &Docker, release: &Release) {
    let Ok(config) = host.read_config(&places.host_config) else { return };
    // A host that an older rackstep imaged has none: the server says so, and the log here.
    let secret = std::fs::read_to_string(places.host_config.with_file_name(SECRET_NAME)).unwrap_or_default();
    let tell = |report: &BootedReport| tell(&config, secret.trim(), report);
    let Ok(observed) = docker.observe() else { return };
    let present = release.pins.images().filter(|(_, image)| observed.has_image(image));
    let images = present.map(|(_, image)| image.config).collect();
    let mut report = BootedReport { commit: release.pins.commit(), images, ready: all_run(docker, places) };
    if !tell(&report) || report.ready {
        return;
    }
    let began = Instant::now();
    while began.elapsed() < READY {
        std::thread::sleep(LOOK);
        if all_run(docker, places) {
            report.ready = true;
            tell(&report);
            return;
        }
    }
    tracing::warn!("not every container runs its pinned image after {} s", READY.as_secs());
}

fn all_run(docker: &Docker, places: &Places) -> bool {
    observe_services(docker, &places.release)
        .is_ok_and(|containers| containers.iter().all(|c| c.running == Some(c.expected)))
}

/// True when the rack server heard it.
fn tell(config: &HostConfig, secret: &str, report: &BootedReport) -> bool {
    match call_home(config, secret, report) {
        Ok(told) => told,
        Err(error) => {
            tracing::warn!(%error, "the rack server was not told");
            false
        }
    }
}

/// What runs, or in a scratch system what would run next.
fn booted(deployments: &[Deployment]) -> Option<&Deployment> {
    let runs = deployments.iter().find(|deployment| deployment.role == Role::Booted);
    runs.or_else(|| deployments.iter().find(|deployment| deployment.next_boot))
}

fn places_of(root: &Path, is_booted: bool, deployment: &Deployment) -> Places {
    if is_booted {
        return Places::below(Path::new("/"));
    }
    let var = root.join("ostree/deploy").join(&deployment.id.stateroot).join("var");
    Places::of_deployment(&root.join(&deployment.path), &var, &root.join("run"))
}

fn print_boot(name: &str, booted: &Booted) {
    print_line(&format!("release {name}"));
    if booted.new_secrets + booted.new_volumes > 0 {
        print_line(&format!("made: {} secrets, {} volumes", booted.new_secrets, booted.new_volumes));
    }
    print_line(&format!("pods: {} started{}", booted.started.len(), in_brackets(&booted.started)));
    print_kept_out(&booted.kept_out);
    let waits =
        |pod: &&PlannedPod| !pod.waits_for.is_empty() && !booted.kept_out.pods.contains_key(&pod.name);
    for pod in booted.plan.pods.iter().filter(waits) {
        print_line(&format!("pod {} waits for {}", pod.name, pod.waits_for.join(", ")));
    }
    for planned in &booted.plan.phases {
        print_line(&format!("phase {}: {}", planned.phase.id, planned.decision));
    }
}

fn print_phases(name: &str, done: &PhasesDone) {
    print_line(&format!("release {name}"));
    print_line(&format!("phases: {} ran{}", done.ran.len(), in_brackets(&done.ran)));
    print_line(&format!("pods: {} started{}", done.started.len(), in_brackets(&done.started)));
    print_kept_out(&done.kept_out);
    for phase in &done.waiting {
        print_line(&format!("phase {phase} waits until the release is confirmed"));
    }
}

fn print_kept_out(kept_out: &KeptOut) {
    for (pod, why) in &kept_out.pods {
        print_line(&format!("pod {pod} waits: {why}"));
    }
    for (phase, why) in &kept_out.phases {
        print_line(&format!("phase {phase} waits: {why}"));
    }
}

fn in_brackets(names: &[String]) -> String {
    if names.is_empty() { String::new() } else { format!(" ({})", names.join(", ")) }
}
