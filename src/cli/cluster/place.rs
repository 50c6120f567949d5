//! Which cluster is meant, and how failures of work on one are told.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use crate::cli::disk_image::absolute;
use crate::cli::{Failure, Kind};
use crate::lab::cluster::home::clusters_dir;
use crate::lab::cluster::observe::{Power, observe, power_of};
use crate::lab::cluster::up::host;
use crate::lab::cluster::{ClusterError, Home, Host, network, vagrant};
use crate::lab::machine::{Hypervisor, Network, SshKey};
use crate::lab::manifest::{name_like, parse_cluster};
use crate::model::cluster::{Cluster, ClusterMachine, ClusterRecord, Platform};
use crate::model::place::SourceText;

pub const UNCHANGED: &str = "nothing changed";
/// The cluster file, if none is named.
pub const DEFAULT_FILE: &str = "cluster.yaml";
/// An emulated machine, beside others, needs most of it to its last container.
const DEFAULT_TIMEOUT: u64 = 45 * 60;

/// How long one machine may take.
#[derive(Debug, Clone, Copy, Args)]
pub struct Patience {
    /// How long a machine may take to become healthy
    #[arg(long, value_name = "SECONDS", default_value_t = DEFAULT_TIMEOUT)]
    timeout: u64,
}

impl Patience {
    pub fn bound(self) -> Duration {
        Duration::from_secs(self.timeout)
    }
}

/// A cluster by its file.
pub struct Named {
    /// The file, absolute.
    pub file: PathBuf,
    /// What it wants.
    pub cluster: Cluster,
    /// Where it is kept.
    pub home: Home,
}

/// Reads a cluster file.
pub fn read_file(file: &Path) -> Result<Named, Failure> {
    let bad = |told: String| Failure::new(Kind::BadInput, told, UNCHANGED);
    let path = absolute(file)?;
    let text = std::fs::read_to_string(&path).map_err(|error| {
        bad(format!("reading {}: {error}", file.display()))
            .hint("`rackstep cluster --help` shows a cluster file; vagrant/cluster.yaml is one")
    })?;
    let parent = path.parent().unwrap_or(Path::new("/"));
    let directory = parent.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let source = SourceText::new(file.display().to_string(), text);
    let mut cluster = parse_cluster(&source, &name_like(&directory))
        .map_err(|error| Failure::new(Kind::BadInput, error, UNCHANGED))?;
    cluster.repo = cluster.repo.map(|repo| parent.join(repo));
    let home = Home::new(&clusters_dir(), &cluster.name);
    Ok(Named { file: path, cluster, home })
}

impl Named {
    /// What is kept of it; refused, if it was made from another file.
    pub fn read_record(&self) -> Result<Option<ClusterRecord>, Failure> {
        let record = self.home.read_record().map_err(explain)?;
        match record {
            Some(record) if record.file != self.file => {
                let told = format!(
                    "cluster {:?} was made from {}, not from {}",
                    self.home.name,
                    record.file.display(),
                    self.file.display()
                );
                Err(Failure::new(Kind::Refused, told, UNCHANGED)
                    .hint("`name:` in the file gives this cluster another name"))
            }
            record => Ok(record),
        }
    }

    /// The record of a cluster that must be there.
    pub fn require_record(&self) -> Result<ClusterRecord, Failure> {
        self.read_record()?.ok_or_else(|| explain(ClusterError::Absent(self.home.name.clone())))
    }
}

/// Who runs the machines of a cluster.
pub fn find_hypervisor(record: Option<&ClusterRecord>) -> Result<Hypervisor, Failure> {
    let platform = record.map_or(Platform::Qemu, |record| record.platform);
    Hypervisor::of(platform).map_err(|error| explain(error.into()))
}

/// Namespaces, networks and loop devices are root's.
pub fn require_root(verb: &str) -> Result<(), Failure> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let told = "a cluster's network, and the disks of its machines, are root's to make and to enter";
    Err(Failure::new(Kind::Failed, told, UNCHANGED).hint(format!("sudo rackstep cluster {verb} …")))
}

/// Machines that can be talked to, and what holds their network open.
pub struct Machines {
    pub hosts: Vec<(Host<'static>, Power)>,
    pub network: Option<&'static Network>,
    /// For people: the cluster's name or Vagrant's directory.
    pub name: String,
    /// The repo of the cluster's file.
    pub repo: Option<PathBuf>,
    /// Who runs them, if we know.
    pub platform: Option<Platform>,
    /// Where the cluster is kept, if it is ours.
    pub home: Option<Home>,
}

/// The machines of a cluster file, or of a Vagrant project.
pub fn find_machines(file: &Path, project: Option<&Path>, verb: &str) -> Result<Machines, Failure> {
    if let Some(directory) = project {
        let hosts = vagrant::hosts(directory).map_err(explain)?;
        let hosts = hosts.into_iter().map(|host| (host, Power::On)).collect();
        let name = directory.display().to_string();
        return Ok(Machines { hosts, network: None, name, repo: None, platform: None, home: None });
    }
    let named = read_file(file)?;
    require_root(verb)?;
    let record = named.require_record()?;
    let hypervisor = find_hypervisor(Some(&record))?;
    let seen = observe(&named.home, &hypervisor, None).map_err(explain)?;
    // It is needed until the program ends, and is not removed then.
    let network = network::open(&named.home, &hypervisor).map_err(explain)?;
    let network: Option<&'static Network> = network.map(|network| &*Box::leak(Box::new(network)));
    let key = SshKey::create(&named.home.dir).map_err(|error| explain(error.into()))?;
    let machine = |machine: &ClusterMachine| {
        let power = if network.is_some() { power_of(&seen, &machine.name) } else { Power::Off };
        (host(network, machine, &key), power)
    };
    let hosts = record.machines.iter().map(machine).collect();
    let repo = named.cluster.repo.or(record.repo);
    let platform = Some(record.platform);
    let (name, home) = (named.home.name.clone(), Some(named.home));
    Ok(Machines { hosts, network, name, repo, platform, home })
}

/// There is no machine of that name.
pub fn no_machine(machines: &Machines, name: &str) -> Failure {
    let known: Vec<&str> = machines.hosts.iter().map(|(host, _)| host.name.as_str()).collect();
    let told = format!("{} has no machine {name:?}, but {}", machines.name, known.join(", "));
    Failure::new(Kind::BadInput, told, UNCHANGED)
}

/// Tells a failure that changed nothing.
pub fn explain(error: ClusterError) -> Failure {
    let (kind, hint) = match &error {
        ClusterError::Locked(_) => (Kind::Refused, Some("wait for it to end, and try again")),
        ClusterError::Absent(_) => (Kind::Refused, Some("`rackstep cluster up` makes it")),
        ClusterError::Vagrant(_) => {
            (Kind::Failed, Some("is there a Vagrantfile? `vagrant status` there tells more"))
        }
        ClusterError::NoVagrantMachine(_) => (Kind::Refused, Some("`vagrant up` there starts them")),
        ClusterError::Stopped => (Kind::Interrupted, None),
        _ => (Kind::Failed, None),
    };
    let failure = Failure::new(kind, error, UNCHANGED);
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}
