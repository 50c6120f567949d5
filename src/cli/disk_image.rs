//! `rackstep box`: a disk image of a release, for Vagrant, libvirt or QEMU.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::interrupt::on_stop;
use super::progress::Terminal;
use super::report::{in_repo, signature};
use super::scratch::Scratch;
use super::{Failure, Kind};
use crate::imaging::install::{Aftermath, Interrupted, Step, Watcher};
use crate::lab::disk_image::plan::{Wish, choose_ref, plan_disk_image};
use crate::lab::disk_image::{DiskImageError, Format, Made, Request, make};
use crate::model::vagrant::{BoxName, is_box_version};
use crate::model::{Commit, Progress, Ref, ReleaseInfo};
use crate::ostree::repo::{CommitInfo, Repo, RepoError};
use crate::ostree::signature::{PublicKey, load_public_keys, verify_in_repo};

/// The format number of `--json`.
const JSON_FORMAT: u32 = 1;
const UNCHANGED: &str = "nothing changed";
/// This machine, as those see it that vagrant-libvirt starts on it with its defaults.
const FOLLOW: &str = "http://192.168.121.1:8080";
/// The key of Vagrant's that everybody has: `vagrant up` replaces it by one of its own. Only the one that all of its
/// versions know, since each takes away no others than it knows.
const VAGRANT_KEY: &str = include_str!("../../vagrant/insecure.pub");
/// GiB that hold two releases, their images in Docker and some state. It is the largest size, not what the file takes.
const DEFAULT_GIB: u64 = 40;
const SMALLEST_GIB: u64 = 4;
/// What XFS and partition tables take is far more; larger ones are typing errors.
const LARGEST_GIB: u64 = 16 * 1024;

/// Make a Vagrant box or a disk image of a release.
///
/// The disk is made by the installer's own code on a file: what boots is what a rack boots. Nothing in it belongs to one
/// machine: network by DHCP, host name from outside, machine id and host keys at the first boot, serial console.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  rackstep box 1.0.0 --repo /srv/rackstep/repo --output /srv/boxes\n  vagrant box add /srv/boxes/openstack-host.json && vagrant init openstack-host && vagrant up\n\nNeeds root: loop devices and mounts. A box lets in whoever has Vagrant's insecure key, until `vagrant up` replaces it;\nother images let in nobody but the keys of --ssh-keys."
)]
pub struct Arguments {
    /// The release: ref, version, commit or the beginning of one
    revision: String,
    /// The repo that has it
    #[arg(long, value_name = "DIR")]
    repo: PathBuf,
    /// Where the result goes; made if it is not there
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// What to make
    #[arg(long, value_enum, default_value_t = FormatArgument::Vagrant)]
    format: FormatArgument,
    /// Name of the box and of the files [default: the release's]
    #[arg(long)]
    name: Option<BoxName>,
    /// Version of the box and of the files [default: the release's]
    #[arg(long, value_name = "VERSION")]
    box_version: Option<String>,
    /// Size of the disk in GiB; the file takes only what is used of it
    #[arg(long, value_name = "GIB", default_value_t = DEFAULT_GIB, value_parser = clap::value_parser!(u64).range(SMALLEST_GIB..=LARGEST_GIB))]
    size: u64,
    /// Where machines will look for newer releases
    #[arg(long, value_name = "URL", default_value = FOLLOW)]
    follow: String,
    /// Public keys that the release must be signed with one of, and that the machines will trust
    #[arg(long, value_name = "FILE")]
    keys: Option<PathBuf>,
    /// Lines for root's authorized_keys [default: for Vagrant the key that everybody has, else none]
    #[arg(long, value_name = "FILE")]
    ssh_keys: Option<PathBuf>,
    /// Address of the output directory, for the catalogue [default: the directory itself, file://…]
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Print what was made as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum FormatArgument {
    /// A box for vagrant-libvirt and its entry in the catalogue
    Vagrant,
    /// Compressed, for libvirt and QEMU
    Qcow2,
    /// A sparse file
    Raw,
}

impl From<FormatArgument> for Format {
    fn from(argument: FormatArgument) -> Self {
        match argument {
            FormatArgument::Vagrant => Self::Vagrant,
            FormatArgument::Qcow2 => Self::Qcow2,
            FormatArgument::Raw => Self::Raw,
        }
    }
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let release = look(arguments)?;
    if !rustix::process::geteuid().is_root() {
        let told = "a disk image takes loop devices and mounts, which only root may use";
        return Err(Failure::new(Kind::Failed, told, UNCHANGED).hint("sudo rackstep box …"));
    }
    let scratch = Scratch::enter()?;
    let stop = stop_on_interrupt();
    let watcher = Told::new(&stop);
    let plan = plan_disk_image(&release.wish);
    let request = Request {
        plan: &plan,
        format: arguments.format.into(),
        name: &release.name,
        version: &release.version,
        description: &release.description,
        output: &arguments.output,
        url: &release.url,
        sync: release.sync,
        scratch: scratch.path(),
        stop: &stop,
    };
    let made = make(&request, &watcher).map_err(explain)?;
    print(&made, &release, arguments)
}

/// What was found out before anything is done.
struct Looked {
    wish: Wish,
    name: BoxName,
    version: String,
    description: String,
    url: String,
    sync: bool,
}

/// A release in a repo on this machine, its signature checked.
pub(super) struct FoundRelease {
    pub(super) repo: Repo,
    pub(super) info: CommitInfo,
    /// What the release says of itself.
    pub(super) told: Option<ReleaseInfo>,
    /// The ref that machines made of it follow.
    pub(super) follows: Ref,
}

/// Finds the release `revision`, which must be signed with one of `keys` unless there are none.
pub(super) fn find_release(path: &Path, revision: &str, keys: &[PublicKey]) -> Result<FoundRelease, Failure> {
    let repo = Repo::open(path).map_err(in_repo)?;
    let commit = repo.resolve(revision).map_err(|error| {
        in_repo(error).hint(format!("rackstep release list --repo {}", repo.path().display()))
    })?;
    let info = repo.commit_info(commit).map_err(in_repo)?;
    let told = repo.release_info(commit).map_err(in_repo)?;
    verify_in_repo(&repo, commit, keys).map_err(signature)?;
    let follows = follows(&repo, &info)?;
    Ok(FoundRelease { repo, info, told, follows })
}

fn look(arguments: &Arguments) -> Result<Looked, Failure> {
    let bad = |told: String| Failure::new(Kind::BadInput, told, UNCHANGED);
    let keys = arguments.keys.as_deref().map(load_public_keys).transpose().map_err(signature)?;
    let keys = keys.unwrap_or_default();
    let FoundRelease { repo, info, told, follows } =
        find_release(&arguments.repo, &arguments.revision, &keys)?;
    let commit = info.commit;
    let name = match &arguments.name {
        Some(name) => name.clone(),
        None => {
            let name = default_name(told.as_ref(), &follows);
            name.parse().map_err(|error| bad(format!("{error}")).hint("--name gives another"))?
        }
    };
    let version = arguments.box_version.clone().or(info.version).unwrap_or_else(|| commit.short());
    // Every format: the version is in the file's name, and one that Vagrant takes has no '/'.
    if !is_box_version(&version) {
        let told = format!("{version:?} is not a version for a box (numbers and words divided by dots)");
        return Err(bad(told).hint("--box-version gives another"));
    }
    let ssh_keys = match (&arguments.ssh_keys, arguments.format) {
        (Some(path), _) => read_ssh_keys(path)?,
        (None, FormatArgument::Vagrant) => lines_of(VAGRANT_KEY),
        (None, _) => Vec::new(),
    };
    let wish = Wish {
        commit,
        follows,
        repo: absolute(&arguments.repo)?.display().to_string(),
        follow_repo: arguments.follow.clone(),
        trusted_keys: keys.iter().map(PublicKey::render).collect(),
        ssh_keys,
        gib: arguments.size,
    };
    let url = match &arguments.url {
        Some(url) => url.clone(),
        None => format!("file://{}", absolute(&arguments.output)?.display()),
    };
    let description = format!("{name}: the host that the racks run, made by rackstep box");
    let sync = has_file(&repo, commit, "usr/bin/rsync")?;
    Ok(Looked { wish, name, version, description, url, sync })
}

fn follows(repo: &Repo, info: &CommitInfo) -> Result<Ref, Failure> {
    let refs = repo.refs().map_err(in_repo)?;
    let pointing: Vec<String> =
        refs.into_iter().filter(|(_, commit)| *commit == info.commit).map(|(name, _)| name).collect();
    choose_ref(&info.refs, &pointing).ok_or_else(|| {
        let told = format!("no moving ref names {}: its machines would have nothing to follow", info.commit);
        Failure::new(Kind::BadInput, told, UNCHANGED)
    })
}

/// The treefile's name, or the last part of the ref.
fn default_name(release: Option<&ReleaseInfo>, follows: &Ref) -> String {
    let last = || follows.as_str().rsplit('/').next().unwrap_or_default().to_owned();
    release.map_or_else(last, |release| release.name.clone())
}

fn has_file(repo: &Repo, commit: Commit, path: &str) -> Result<bool, Failure> {
    match repo.read_file(commit, path) {
        Ok(_) => Ok(true),
        Err(RepoError::NoFile { .. }) => Ok(false),
        Err(error) => Err(in_repo(error)),
    }
}

pub(super) fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|error| {
        Failure::new(Kind::BadInput, format!("the path {}: {error}", path.display()), UNCHANGED)
    })
}

fn read_ssh_keys(path: &Path) -> Result<Vec<String>, Failure> {
    let text = fs::read_to_string(path).map_err(|error| {
        Failure::new(Kind::BadInput, format!("reading {}: {error}", path.display()), UNCHANGED)
    })?;
    Ok(lines_of(&text))
}

fn lines_of(text: &str) -> Vec<String> {
    let is_key = |line: &&str| !line.is_empty() && !line.starts_with('#');
    text.lines().map(str::trim).filter(is_key).map(str::to_owned).collect()
}

fn explain(error: DiskImageError) -> Failure {
    let (kind, state) = match &error {
        DiskImageError::Catalogue { .. } | DiskImageError::OtherBox { .. } => {
            (Kind::BadInput, UNCHANGED.to_owned())
        }
        DiskImageError::Stopped => (Kind::Interrupted, UNCHANGED.to_owned()),
        DiskImageError::Uncatalogued { file, .. } => {
            (Kind::Failed, format!("{} is whole; `vagrant box add` takes it by its path", file.display()))
        }
        // Only the work file, which is gone; but who mounted it may hold what could not be let go.
        DiskImageError::Install(error) if matches!(error.aftermath, Aftermath::Unknown(_)) => (
            Kind::Failed,
            "no image was made; `losetup` may show loop devices that were left behind".to_owned(),
        ),
        _ => (Kind::Failed, UNCHANGED.to_owned()),
    };
    Failure::new(kind, error, state)
}

fn print(made: &Made, release: &Looked, arguments: &Arguments) -> Result<(), Failure> {
    let Looked { wish, name, version, .. } = release;
    let (digest, catalogue) = made.catalogued.as_ref().map(|(digest, path)| (digest.hex(), path)).unzip();
    if arguments.json {
        let told = serde_json::json!({
            "format": JSON_FORMAT, "commit": wish.commit, "ref": wish.follows, "name": name.to_string(),
            "version": version, "file": made.file, "bytes": made.bytes, "virtual_size_gib": wish.gib,
            "sha256": digest, "catalogue": catalogue,
        });
        return super::print_json(&told);
    }
    say!("{} ({} MB, disk of {} GiB)", made.file.display(), made.bytes / 1_000_000, wish.gib);
    say!("release {version} {}", wish.commit);
    if let Some(catalogue) = catalogue {
        say!("catalogue {}", catalogue.display());
        say!("next: vagrant box add {}", catalogue.display());
    }
    Ok(())
}

/// A flag that SIGINT and SIGTERM set: the work ends at its next look, unmounts what it mounted and removes its files.
pub(super) fn stop_on_interrupt() -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(false));
    let set = Arc::clone(&stop);
    on_stop(move || set.store(true, Ordering::Relaxed));
    stop
}

/// Shows progress, and stops the installer between two steps.
pub(super) struct Told {
    terminal: Terminal,
    stop: Arc<AtomicBool>,
}

impl Told {
    pub(super) fn new(stop: &Arc<AtomicBool>) -> Self {
        Self { terminal: Terminal::default(), stop: Arc::clone(stop) }
    }

    fn go_on(&self) -> Result<(), Interrupted> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(Interrupted("interrupted".to_owned()));
        }
        Ok(())
    }
}

impl Progress for Told {
    fn begin(&self, stage: &str, total: Option<u64>) {
        self.terminal.begin(stage, total);
    }

    fn advance(&self, amount: u64) {
        self.terminal.advance(amount);
    }

    fn end(&self, summary: &str) {
        self.terminal.end(summary);
    }
}

impl Watcher for Told {
    fn before(&self, _step: Step) -> Result<(), Interrupted> {
        self.go_on()
    }

    fn after(&self, _step: Step) -> Result<(), Interrupted> {
        self.go_on()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_the_one_that_every_vagrant_takes_away() {
        // Vagrant removes whole lines, comment and all.
        let lines = lines_of(VAGRANT_KEY);
        assert_eq!(lines.len(), 1);
        assert!(lines[0].starts_with("ssh-rsa AAAAB3NzaC1yc2EAAAABIwAAAQEA6NF8iallvQVp22WDkTkyrtvp9eWW6A8Y"));
        assert!(lines[0].ends_with("8tehUc9c9WhQ== vagrant insecure public key"));
    }

    #[test]
    fn names_that_are_not_given() {
        let follows: Ref = "rackstep/x86_64/openstack-host".parse().unwrap();
        assert_eq!(default_name(None, &follows), "openstack-host");
    }
}
