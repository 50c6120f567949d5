//! Makes what is missing of a cluster.
//!
//! 1. the record, the key; 2. the disk that new machines begin with; 3. the network with its DHCP; 4. all machines at once:
//!    disk, power, and waiting until they are what was asked for.
//!
//! A run that is stopped takes back what it made, and nothing else. A run that fails leaves what it made: the machine that
//! did not come up can be looked at, and the next `up` goes on from there.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use super::health::{Wanted, wait_until_healthy};
use super::{ClusterError, Home, Host, Lock, Watcher, network};
use crate::lab::cluster::plan::{MachinePlan, UpPlan};
use crate::lab::machine::accelerator::Accelerator;
use crate::lab::machine::{Boot, Hypervisor, Machine, MachineSpec, Network, Ssh, SshKey};
use crate::model::cluster::{
    Cluster, ClusterMachine, ClusterRecord, ClusterRelease, DEFAULT_PORT, RECORD_FORMAT, SshTarget,
};
use crate::rim::files::naming;
use crate::rim::wait::poll_gently;

/// What a machine must have come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Until {
    /// It is on.
    Power,
    /// Its shell answers.
    Shell,
    /// Every container of its release runs.
    Services,
}

/// What `up` is asked for.
#[derive(Debug)]
pub struct Request<'a> {
    /// The cluster's directory, locked.
    pub home: &'a Home,
    /// Its lock.
    pub lock: &'a Lock,
    /// The file that the cluster comes from.
    pub file: &'a Path,
    /// What is wanted.
    pub cluster: &'a Cluster,
    /// Who runs the machines.
    pub hypervisor: &'a Hypervisor,
    /// What is missing.
    pub plan: &'a UpPlan,
    /// The release of new machines.
    pub release: Option<&'a ClusterRelease>,
    /// What machines start from.
    pub boot: Boot,
    /// What they must have come to.
    pub until: Until,
    /// How long that may take.
    pub bound: Duration,
}

/// Makes the disk of a release, a raw file, at the given path; lines of the keys that root takes are given.
pub type MakeBase<'a> = &'a dyn Fn(&ClusterRelease, &str, &Path) -> Result<(), ClusterError>;

/// What this run made, so that it can be taken back.
#[derive(Debug, Default)]
struct Made {
    base: Option<PathBuf>,
    network: bool,
    /// Machines that it switched on, and whether it made their disks.
    machines: Vec<(String, bool)>,
}

/// Makes what the plan says.
pub fn up(request: &Request<'_>, make_base: MakeBase<'_>, watcher: &dyn Watcher) -> Result<(), ClusterError> {
    let before = request.home.read_record()?;
    let made = Mutex::new(Made::default());
    let result = make(request, before.as_ref(), make_base, watcher, &made);
    if !watcher.stopped() {
        return result;
    }
    let made = made.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    take_back(request, before.as_ref(), &made)?;
    Err(ClusterError::Stopped)
}

fn make(
    request: &Request<'_>,
    before: Option<&ClusterRecord>,
    make_base: MakeBase<'_>,
    watcher: &dyn Watcher,
    made: &Mutex<Made>,
) -> Result<(), ClusterError> {
    let Request { home, cluster, hypervisor, plan, .. } = request;
    let note =
        |act: &dyn Fn(&mut Made)| act(&mut made.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    let go_on = || if watcher.stopped() { Err(ClusterError::Stopped) } else { Ok(()) };
    // Asked before anything is made.
    let accelerator = hypervisor.require(cluster.driver)?;
    home.write_record(&record_of(request, before))?;
    let key = SshKey::create(&home.dir)?;
    if let Some(release) = &plan.base {
        let path = home.base_path(release.commit);
        note(&|made| made.base = Some(path.clone()));
        make_base(release, &key.public, &path)?;
        go_on()?;
    }
    let network = match network::open(home, hypervisor)? {
        Some(network) => network,
        None => {
            note(&|made| made.network = true);
            network::make(home, hypervisor)?
        }
    };
    network::ensure_dhcp(home, &network, &record_of(request, before).machines)?;
    std::thread::scope(|scope| {
        let work = |plan: &MachinePlan, machine: &ClusterMachine| {
            go_on()?;
            if plan.power {
                note(&|made| made.machines.push((plan.name.clone(), plan.disk)));
            }
            let ran = start(request, &network, accelerator, plan, machine, &key, watcher);
            if let Err(error) = &ran {
                // Its first line: the failure that is told in the end has a machine's last words, and all causes.
                let told = error.to_string().lines().next().map(|line| format!("failed: {line}"));
                let told = told.filter(|_| !watcher.stopped()).unwrap_or_else(|| "stopped".to_owned());
                watcher.end(&plan.name, &told);
            }
            ran
        };
        let threads: Vec<_> = plan
            .machines
            .iter()
            .zip(&cluster.machines)
            .map(|(plan, machine)| scope.spawn(move || work(plan, machine)))
            .collect();
        let ended = |thread: std::thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or(Err(ClusterError::Stopped))
        };
        // All of them, before the first failure is told.
        let all: Vec<Result<(), ClusterError>> = threads.into_iter().map(ended).collect();
        all.into_iter().collect()
    })
}

/// Machines that the file does not name any more stay on record: they are there.
fn record_of(request: &Request<'_>, before: Option<&ClusterRecord>) -> ClusterRecord {
    let cluster = request.cluster;
    let is_new =
        |machine: &&ClusterMachine| cluster.machines.iter().all(|wanted| wanted.name != machine.name);
    let strays = before.into_iter().flat_map(|record| &record.machines).filter(is_new);
    ClusterRecord {
        format: RECORD_FORMAT,
        file: request.file.to_owned(),
        repo: cluster.repo.clone(),
        platform: request.hypervisor.platform(),
        machines: cluster.machines.iter().chain(strays).cloned().collect(),
    }
}

fn start(
    request: &Request<'_>,
    network: &Network,
    accelerator: Accelerator,
    plan: &MachinePlan,
    machine: &ClusterMachine,
    key: &SshKey,
    watcher: &dyn Watcher,
) -> Result<(), ClusterError> {
    let (home, name) = (request.home, &plan.name);
    let platform = request.hypervisor.platform();
    let spec = home.spec(platform, machine, request.boot.clone());
    let mut guest = Machine::attach(network, spec, accelerator, request.hypervisor)?;
    if plan.disk
        && let Some(release) = request.release
    {
        watcher.tell(name, "makes its disk");
        let base = home.base_path(release.commit);
        request.hypervisor.make_disk(home.disk_path(platform, name), &base, name)?;
    }
    guest.power_on()?;
    if request.until == Until::Power {
        watcher.end(name, if plan.power { "is on" } else { "was on" });
        return Ok(());
    }
    watcher.tell(name, "boots");
    let mut alive = || match guest.trouble() {
        Ok(None) => Ok(()),
        Ok(Some(why)) => Err(why),
        Err(error) => Err(error.to_string()),
    };
    let host = host(Some(network), machine, key);
    let unhealthy = |why| ClusterError::Unhealthy { machine: name.clone(), why };
    if request.until == Until::Shell {
        let answered = poll_gently(
            request.bound,
            || watcher.stopped(),
            || {
                alive()?;
                Ok(host.ssh.run("true").is_ok_and(|output| output.status.success()).then_some(()))
            },
        );
        let in_time = format!("no ssh after {} s", request.bound.as_secs());
        answered.map_err(unhealthy)?.ok_or_else(|| unhealthy(in_time))?;
        watcher.end(name, "ssh answers");
        return Ok(());
    }
    let status = wait_until_healthy(&host, Wanted::default(), request.bound, watcher, &mut alive)
        .map_err(unhealthy)?;
    let release = status.booted.map(|booted| crate::lab::cluster::rollout::plan::release_of(&status, booted));
    watcher.end(
        name,
        &format!("runs release {}, {} containers", release.unwrap_or_default(), status.services.len()),
    );
    Ok(())
}

/// A machine of the cluster, to talk to.
pub fn host<'n>(network: Option<&'n Network>, machine: &ClusterMachine, key: &SshKey) -> Host<'n> {
    let (host, keys) = (machine.address.to_string(), vec![key.private.clone()]);
    let target = SshTarget { host, port: DEFAULT_PORT, user: "root".to_owned(), keys };
    Host { name: machine.name.clone(), ssh: Ssh::to(network, &target) }
}

/// Takes back what this run made. What was there before stays, and runs on.
fn take_back(request: &Request<'_>, before: Option<&ClusterRecord>, made: &Made) -> Result<(), ClusterError> {
    let home = request.home;
    for (name, with_disk) in &made.machines {
        let spec = MachineSpec::new(name, home.machine_dir(name));
        if let Some(running) = request.hypervisor.find(&spec)? {
            running.power_cut()?;
        }
        if *with_disk {
            remove_if_there(&spec.dir, |path| fs::remove_dir_all(path))?;
        }
    }
    if made.network {
        network::remove(home, request.hypervisor)?;
    }
    if let Some(base) = &made.base {
        remove_if_there(base, |path| fs::remove_file(path))?;
    }
    match before {
        Some(before) => home.write_record(before),
        None if request.lock.made => remove_if_there(&home.dir, |path| fs::remove_dir_all(path)),
        None => Ok(()),
    }
}

fn remove_if_there(path: &Path, remove: impl Fn(&Path) -> std::io::Result<()>) -> Result<(), ClusterError> {
    match remove(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(naming("removing", path)(error).into())
        }
        _ => Ok(()),
    }
}
