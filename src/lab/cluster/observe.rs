//! Looks at a cluster.

use std::collections::BTreeSet;

use serde::Serialize;

use super::health::ask;
use super::{ClusterError, Home, Host, network};
use crate::lab::cluster::plan::{MachineSeen, Seen};
use crate::lab::machine::{Hypervisor, MachineSpec};
use crate::model::host::HOST_CONFIG;
use crate::model::status::Status;
use crate::model::{Commit, HostConfig};
use crate::rim::files::list;

/// Is a machine on?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Power {
    /// It runs.
    On,
    /// It has a disk and does not run.
    Off,
    /// It was never made.
    Missing,
}

/// One machine as `cluster status` shows it.
#[derive(Debug, Clone, Serialize)]
pub struct MachineView {
    /// Its name.
    pub name: String,
    /// Is it on?
    pub power: Power,
    /// Its address.
    pub address: String,
    /// What it says of itself.
    pub status: Option<Status>,
    /// Why it says nothing.
    pub trouble: Option<String>,
}

/// What there is of a cluster; `release` is the one that new machines would get.
pub fn observe(home: &Home, hypervisor: &Hypervisor, release: Option<Commit>) -> Result<Seen, ClusterError> {
    let mut seen = Seen {
        network: network::open(home, hypervisor)?.is_some(),
        base: release.is_some_and(|commit| home.base_path(commit).exists()),
        ..Seen::default()
    };
    for directory in list(&home.machines_dir())? {
        let Some(name) = directory.file_name().map(|name| name.to_string_lossy().into_owned()) else {
            continue;
        };
        let on = hypervisor.find(&MachineSpec::new(&name, &directory))?.is_some();
        let machine = MachineSeen { disk: home.disk_path(hypervisor.platform(), &name).exists(), on };
        seen.machines.insert(name, machine);
    }
    Ok(seen)
}

/// Is the machine on?
pub fn power_of(seen: &Seen, name: &str) -> Power {
    match seen.machines.get(name) {
        Some(machine) if machine.on => Power::On,
        Some(machine) if machine.disk => Power::Off,
        _ => Power::Missing,
    }
}

/// Asks every machine that is on, all at once.
pub fn look(hosts: &[(Host<'_>, Power)]) -> Vec<MachineView> {
    let look_at = |host: &Host<'_>, power: Power| {
        let heard = if power == Power::On { ask(&host.ssh).map(Some) } else { Ok(None) };
        let (status, trouble) = match heard {
            Ok(heard) => (heard.map(|heard| heard.status), None),
            Err(why) => (None, Some(why)),
        };
        MachineView { name: host.name.clone(), power, address: host.ssh.address.clone(), status, trouble }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            hosts.iter().map(|(host, power)| scope.spawn(move || look_at(host, *power))).collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
    })
}

/// Base URLs of the repos that the machines follow.
pub fn followed(hosts: &[Host<'_>]) -> BTreeSet<String> {
    let question = format!("cat /{HOST_CONFIG}");
    let repo_of = |host: &Host<'_>| -> Option<String> {
        let config: HostConfig = serde_json::from_str(&host.ssh.text(&question).ok()?).ok()?;
        Some(config.repo)
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = hosts.iter().map(|host| scope.spawn(|| repo_of(host))).collect();
        threads.into_iter().filter_map(|thread| thread.join().ok().flatten()).collect()
    })
}
