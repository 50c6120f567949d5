//! `rackstep cluster up`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::{Args, ValueEnum};

use super::board::Board;
use super::place::{DEFAULT_FILE, Named, Patience, UNCHANGED, explain, read_file, require_root};
use crate::cli::disk_image::{FoundRelease, Told, find_release, stop_on_interrupt};
use crate::cli::report::{in_repo, signature};
use crate::cli::scratch::Scratch;
use crate::cli::{Failure, Kind, print_json};
use crate::lab::cluster::observe::observe;
use crate::lab::cluster::plan::{Choice, Offers, Seen, UpPlan, Why, choose_platform, plan_up};
use crate::lab::cluster::up::{Request, Until, up};
use crate::lab::cluster::{ClusterError, Home, Watcher as _};
use crate::lab::disk_image::plan::{Wish, plan_disk_image};
use crate::lab::disk_image::{self, Format};
use crate::lab::machine::accelerator::{self, Accelerator};
use crate::lab::machine::container::probe;
use crate::lab::machine::{Boot, Hypervisor, Libvirt};
use crate::model::causes::in_one_line;
use crate::model::cluster::{Cluster, ClusterRelease, Platform, REPO_PORT, SERVER};
use crate::model::commit::RELEASE_REFS;
use crate::model::vagrant::BoxName;
use crate::ostree::repo::Repo;
use crate::ostree::signature::parse_public_keys;
use crate::rim::files::naming;

/// The format number of `--json`.
const JSON_FORMAT: u32 = 1;
/// A released disk is called `base-<commit>.raw`.
const BASE: &str = "base";
/// Nothing is put there: no disk is made.
const NO_SCRATCH: &str = "/run";

/// Make what is missing of a cluster, and wait until all its services run.
///
/// What runs is left as it is. A disk of the release is made once, by the installer's own code; the machines' disks lie over
/// it. Ctrl-C takes back what this `up` made.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  rackstep cluster up\n  rackstep cluster up dev.yaml --until ssh\n  rackstep cluster up --platform qemu\n\nNeeds root, qemu-system-x86, dnsmasq-base and openssh-client; on libvirt libvirt-daemon-system,\non QEMU iproute2."
)]
pub struct Arguments {
    /// The cluster file
    #[arg(default_value = DEFAULT_FILE)]
    file: PathBuf,
    /// Who runs the machines [default: the file's, whoever runs them already, the fastest that works here]
    #[arg(long, value_enum)]
    platform: Option<PlatformArgument>,
    /// What a machine must have come to
    #[arg(long, value_enum, default_value_t = UntilArgument::Services)]
    until: UntilArgument,
    #[command(flatten)]
    patience: Patience,
    /// Show what is missing and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Print what was done as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PlatformArgument {
    /// System containers on this machine's own kernel: seconds, and no kernel, boot loader or firmware of their own
    Container,
    /// This machine's libvirt: `virsh console`, virt-manager, and machines that everything here reaches
    Libvirt,
    /// QEMU in a network namespace
    Qemu,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum UntilArgument {
    /// It is on
    Power,
    /// ssh answers
    Ssh,
    /// Every container of its release runs
    Services,
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let named = read_file(&arguments.file)?;
    require_root("up")?;
    // Before the lock: who makes a disk may have to start the program anew.
    let found = look(&named, arguments.platform)?;
    if arguments.dry_run {
        return print(&named, &found, arguments);
    }
    let scratch = found.plan.base.is_some().then(Scratch::enter).transpose()?;
    let stop = stop_on_interrupt();
    let lock = named.home.lock_or_make().map_err(explain)?;
    let found = look(&named, arguments.platform)?;
    let Found { hypervisor, why, plan, release } = &found;
    let board = Board::new(&stop);
    board.end("platform", &format!("{}: {why}", hypervisor.platform()));
    let request = Request {
        home: &named.home,
        lock: &lock,
        file: &named.file,
        cluster: &named.cluster,
        hypervisor,
        plan,
        release: release.as_ref(),
        boot: Boot::Disk,
        until: match arguments.until {
            UntilArgument::Power => Until::Power,
            UntilArgument::Ssh => Until::Shell,
            UntilArgument::Services => Until::Services,
        },
        bound: arguments.patience.bound(),
    };
    let scratch = match (&plan.base, &scratch) {
        (Some(_), None) => {
            let told = format!("cluster {} changed just now", named.home.name);
            return Err(Failure::new(Kind::Refused, told, UNCHANGED).hint("try again"));
        }
        (_, scratch) => scratch.as_ref().map_or(Path::new(NO_SCRATCH), Scratch::path),
    };
    let name: BoxName =
        BASE.parse().map_err(|error| Failure::new(Kind::Failed, format!("{error}"), UNCHANGED))?;
    let make_base = |release: &ClusterRelease, ssh_key: &str, path: &Path| {
        make_base(&named, release, ssh_key, path, &name, scratch, &stop)
    };
    up(&request, &make_base, &board).map_err(tell_failure)?;
    print(&named, &found, arguments)
}

/// What is missing, the release for it, and who will run it.
struct Found {
    hypervisor: Hypervisor,
    why: Why,
    plan: UpPlan,
    release: Option<ClusterRelease>,
}

fn look(named: &Named, wanted: Option<PlatformArgument>) -> Result<Found, Failure> {
    let Named { cluster, home, .. } = named;
    let (hypervisor, why) = choose_hypervisor(named, wanted)?;
    let seen = observe(home, &hypervisor, None).map_err(explain)?;
    let is_new = |name: &String| seen.machines.get(name).is_none_or(|machine| !machine.disk);
    // A release is looked for only if a machine needs it: the repo may be gone, and the cluster is there.
    let release = match &cluster.repo {
        Some(repo) if cluster.machines.iter().any(|machine| is_new(&machine.name)) => {
            Some(choose_release(cluster, repo)?)
        }
        _ => None,
    };
    let base = release.as_ref().is_some_and(|release| home.base_path(release.commit).exists());
    let plan = plan_up(cluster, release.as_ref(), &Seen { base, ..seen }).map_err(|error| {
        Failure::new(Kind::BadInput, error, UNCHANGED)
            .hint("`repo: DIR` in the file names a repo that `rackstep compose` made")
    })?;
    Ok(Found { hypervisor, why, plan, release })
}

/// What this machine can do.
struct ThisMachine;

impl Offers for ThisMachine {
    fn kvm(&self) -> bool {
        let chosen = accelerator::choose();
        let chosen = chosen.inspect_err(|error| tracing::debug!(error = in_one_line(error), "no QEMU"));
        matches!(chosen, Ok(Accelerator::Kvm))
    }

    fn libvirt(&self) -> bool {
        let answer = Libvirt::of_this_machine().and_then(|libvirt| libvirt.require_answer());
        answer.inspect_err(|error| tracing::debug!(error = in_one_line(error), "no libvirt")).is_ok()
    }

    fn containers(&self) -> Result<(), String> {
        probe::probe().map_err(|error| in_one_line(&error))
    }
}

fn choose_hypervisor(named: &Named, wanted: Option<PlatformArgument>) -> Result<(Hypervisor, Why), Failure> {
    let wanted = wanted.map(|wanted| match wanted {
        PlatformArgument::Container => Platform::Container,
        PlatformArgument::Libvirt => Platform::Libvirt,
        PlatformArgument::Qemu => Platform::Qemu,
    });
    let made = named.read_record()?.map(|record| record.platform);
    let cluster = &named.cluster;
    let choice = choose_platform(wanted.or(cluster.platform), made, cluster.driver, &ThisMachine);
    let Choice { platform, why } = choice.map_err(|error| {
        let told = format!("cluster {} is there: {error}", named.home.name);
        Failure::new(Kind::Refused, told, UNCHANGED).hint("`rackstep cluster down` removes it, and its disks")
    })?;
    let hypervisor = Hypervisor::of(platform).map_err(|error| explain(error.into()))?;
    Ok((hypervisor, why))
}

fn choose_release(cluster: &Cluster, path: &Path) -> Result<ClusterRelease, Failure> {
    let keys = parse_public_keys(&cluster.trusted_keys).map_err(signature)?;
    let revision = match &cluster.release {
        Some(release) => release.clone(),
        None => only_ref(path)?,
    };
    let FoundRelease { info, follows, .. } = find_release(path, &revision, &keys)?;
    Ok(ClusterRelease { repo: path.to_owned(), commit: info.commit, version: info.version, follows })
}

/// The repo's moving ref; several would be a choice, and that is not ours.
fn only_ref(path: &Path) -> Result<String, Failure> {
    let refs = Repo::open(path).and_then(|repo| repo.refs()).map_err(in_repo)?;
    let mut moving: Vec<String> =
        refs.into_iter().map(|(name, _)| name).filter(|name| !name.starts_with(RELEASE_REFS)).collect();
    match (moving.pop(), moving.is_empty()) {
        (Some(only), true) => Ok(only),
        (None, _) => {
            let told = format!("the repo {} has no release", path.display());
            Err(Failure::new(Kind::BadInput, told, UNCHANGED))
        }
        (Some(last), false) => {
            moving.push(last);
            let told = format!("the repo {} has several refs: {}", path.display(), moving.join(", "));
            Err(Failure::new(Kind::BadInput, told, UNCHANGED)
                .hint("`release:` in the file names a ref, a version or a commit"))
        }
    }
}

/// Makes the disk that machines begin with.
fn make_base(
    named: &Named,
    release: &ClusterRelease,
    ssh_key: &str,
    path: &Path,
    name: &BoxName,
    scratch: &Path,
    stop: &Arc<AtomicBool>,
) -> Result<(), ClusterError> {
    let Named { cluster, home: Home { dir, .. }, .. } = named;
    let wish = Wish {
        commit: release.commit,
        follows: release.follows.clone(),
        repo: release.repo.display().to_string(),
        follow_repo: format!("http://{SERVER}:{REPO_PORT}"),
        trusted_keys: cluster.trusted_keys.clone(),
        ssh_keys: vec![ssh_key.trim().to_owned()],
        gib: cluster.disk_gib,
    };
    let request = disk_image::Request {
        plan: &plan_disk_image(&wish),
        format: Format::Raw,
        name,
        version: &release.commit.to_string(),
        description: "",
        output: dir,
        url: "",
        sync: false,
        scratch,
        stop,
    };
    let made = disk_image::make(&request, &Told::new(stop)).map_err(ClusterError::Base)?;
    if made.file != *path {
        fs::rename(&made.file, path).map_err(naming("putting into place", path))?;
    }
    Ok(())
}

fn tell_failure(error: ClusterError) -> Failure {
    match error {
        ClusterError::Stopped => Failure::new(
            Kind::Interrupted,
            error,
            "what this `up` made is gone; what was there before runs on",
        ),
        error => Failure::new(
            Kind::Failed,
            error,
            "what was made so far stays; `rackstep cluster up` goes on from there",
        )
        .hint("`rackstep cluster status` shows it, `rackstep cluster down` removes it"),
    }
}

fn print(named: &Named, found: &Found, arguments: &Arguments) -> Result<(), Failure> {
    let name = &named.home.name;
    let Found { hypervisor, why, plan, release } = found;
    let platform = hypervisor.platform();
    if arguments.json {
        let told = serde_json::json!({
            "format": JSON_FORMAT, "cluster": name, "directory": named.home.dir, "platform": platform, "why": why.to_string(),
            "release": release, "plan": plan,
            "machines": named.cluster.machines, "done": !arguments.dry_run,
        });
        return print_json(&told);
    }
    let lines = plan.lines();
    if arguments.dry_run {
        say!("platform {platform}: {why}");
        for (index, line) in lines.iter().enumerate() {
            say!("{:>3}. {line}", index + 1);
        }
    }
    for stray in &plan.strays {
        say!("{stray} is not in {} any more; it is left as it is", named.file.display());
    }
    let count = named.cluster.machines.len();
    match (lines.is_empty(), arguments.dry_run) {
        (true, _) => say!("state: cluster {name} on {platform}: all of its {count} machines are on"),
        (false, true) => say!("state: {UNCHANGED}; it would be done on {platform}"),
        (false, false) => say!("state: cluster {name} is up on {platform}: {count} machines"),
    }
    Ok(())
}
