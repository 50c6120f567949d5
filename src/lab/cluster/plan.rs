//! Plans `cluster up`: what is missing of a cluster. Pure.
//!
//! What is there stays as it is: a machine that runs is not touched, one that is off is switched on, one that is not there
//! is made. Nothing is ever removed; machines that the file does not name any more are only told of.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::model::cluster::{Cluster, ClusterRelease, Driver, Platform};

/// What there is of one machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MachineSeen {
    /// Its disk.
    pub disk: bool,
    /// Its emulator runs.
    pub on: bool,
}

/// What there is of a cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Its network.
    pub network: bool,
    /// The disk that new machines of the wanted release begin with.
    pub base: bool,
    /// Machines by name.
    pub machines: BTreeMap<String, MachineSeen>,
}

/// What `up` does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UpPlan {
    /// Make the disk that new machines begin with.
    pub base: Option<ClusterRelease>,
    /// Make the network.
    pub network: bool,
    /// What to do for each machine of the file, in its order.
    pub machines: Vec<MachinePlan>,
    /// Machines that are there, and not in the file.
    pub strays: Vec<String>,
}

/// What `up` does for one machine; it waits for each of them in the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MachinePlan {
    /// The machine.
    pub name: String,
    /// Make its disk.
    pub disk: bool,
    /// Switch it on.
    pub power: bool,
}

/// A cluster is there already, and somebody else runs its machines.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("its machines are on {made}, not on {wanted}")]
pub struct MadeElsewhere {
    /// Who runs them.
    pub made: Platform,
    /// Who was to.
    pub wanted: Platform,
}

/// What this machine can do, each asked only when it matters: the answers cost seconds.
pub trait Offers {
    /// Does a kernel boot by KVM?
    fn kvm(&self) -> bool;
    /// Does libvirt answer?
    fn libvirt(&self) -> bool;
    /// Do hosts run as containers? Else why not.
    fn containers(&self) -> Result<(), String>;
}

/// Who runs the machines, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// Who.
    pub platform: Platform,
    /// Why.
    pub why: Why,
}

/// Why somebody runs the machines.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// They are there already.
    #[error("they run the machines already")]
    Made,
    /// It was said.
    #[error("as asked for")]
    Wanted,
    /// `driver` of the cluster file leaves no other choice.
    #[error("`driver` in the cluster file wants a virtual machine")]
    Driver,
    /// Virtual machines are fast here.
    #[error("a kernel boots by KVM here")]
    Kvm,
    /// Virtual machines would be emulated.
    #[error("no kernel boots by KVM here, and hosts run as containers")]
    Containers,
    /// Nothing else works.
    #[error("emulated: no kernel boots by KVM here, and {0}")]
    Emulation(String),
}

/// Who runs the machines: whoever does already; whoever is wanted; virtual machines (libvirt's where it answers) where KVM
/// works; containers where they do; emulation.
pub fn choose_platform(
    wanted: Option<Platform>,
    made: Option<Platform>,
    driver: Driver,
    offers: &impl Offers,
) -> Result<Choice, MadeElsewhere> {
    let choice = |platform, why| Ok(Choice { platform, why });
    let virtual_machines = || if offers.libvirt() { Platform::Libvirt } else { Platform::Qemu };
    match (wanted, made) {
        (Some(wanted), Some(made)) if wanted != made => Err(MadeElsewhere { made, wanted }),
        (_, Some(made)) => choice(made, Why::Made),
        (Some(wanted), None) => choice(wanted, Why::Wanted),
        (None, None) if driver != Driver::Auto => choice(virtual_machines(), Why::Driver),
        (None, None) if offers.kvm() => choice(virtual_machines(), Why::Kvm),
        (None, None) => match offers.containers() {
            Ok(()) => choice(Platform::Container, Why::Containers),
            Err(why) => choice(virtual_machines(), Why::Emulation(why)),
        },
    }
}

/// New machines need a release, and the file names none that can be found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{machine} is to be made, and there is no repo to take a release from")]
pub struct NoRelease {
    /// The first machine that is not there.
    pub machine: String,
}

/// Plans `up`; `release` is what new machines get.
pub fn plan_up(
    cluster: &Cluster,
    release: Option<&ClusterRelease>,
    seen: &Seen,
) -> Result<UpPlan, NoRelease> {
    let there = |name: &str| seen.machines.get(name).copied().unwrap_or_default();
    let plan = |name: &String| {
        let seen = there(name);
        MachinePlan { name: name.clone(), disk: !seen.disk, power: !seen.on }
    };
    let machines: Vec<MachinePlan> = cluster.machines.iter().map(|machine| plan(&machine.name)).collect();
    let new = machines.iter().find(|machine| machine.disk);
    let base = match (new, release) {
        (Some(_), Some(release)) if !seen.base => Some(release.clone()),
        (Some(machine), None) => return Err(NoRelease { machine: machine.name.clone() }),
        _ => None,
    };
    let is_wanted = |name: &String| cluster.machines.iter().any(|machine| machine.name == *name);
    let strays = seen.machines.keys().filter(|name| !is_wanted(name)).cloned().collect();
    Ok(UpPlan { base, network: !seen.network, machines, strays })
}

impl UpPlan {
    /// The steps as lines for people.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if let Some(base) = &self.base {
            let version = base.version.as_deref().unwrap_or("without version");
            lines.push(format!("make a disk of release {version} ({})", base.commit.short()));
        }
        if self.network {
            lines.push("make the network".to_owned());
        }
        for machine in &self.machines {
            match (machine.disk, machine.power) {
                (true, _) => lines.push(format!("make {} and switch it on", machine.name)),
                (false, true) => lines.push(format!("switch {} on", machine.name)),
                (false, false) => {}
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::cluster::{ClusterMachine, Role};

    fn cluster() -> Cluster {
        let machine = |name: &str, role| ClusterMachine::new(name.to_owned(), role, 1, 1024, 1);
        Cluster {
            name: "dev".into(),
            repo: None,
            release: None,
            trusted_keys: Vec::new(),
            platform: None,
            driver: Driver::Auto,
            disk_gib: 40,
            machines: vec![machine("control", Role::Control), machine("compute-1", Role::Compute)],
        }
    }

    fn release() -> ClusterRelease {
        ClusterRelease {
            repo: "/srv/repo".into(),
            commit: "3f2a9c015d474b579c1e0a6f5f3f1b223f2a9c015d474b579c1e0a6f5f3f1b22".parse().unwrap(),
            version: Some("1.0.0".into()),
            follows: "rackstep/x86_64/host".parse().unwrap(),
        }
    }

    fn seen(network: bool, base: bool, machines: &[(&str, bool, bool)]) -> Seen {
        let machines = machines.iter().map(|&(name, disk, on)| (name.to_owned(), MachineSeen { disk, on }));
        Seen { network, base, machines: machines.collect() }
    }

    #[test]
    fn a_cluster_stays_where_it_was_made() {
        use Platform::{Container, Libvirt, Qemu};
        let elsewhere = |made, wanted| Err(MadeElsewhere { made, wanted });
        let able = Able { kvm: false, libvirt: true, containers: true };
        for (wanted, made, chosen) in [
            (Some(Qemu), None, Ok((Qemu, Why::Wanted))),
            (Some(Libvirt), None, Ok((Libvirt, Why::Wanted))),
            (None, Some(Qemu), Ok((Qemu, Why::Made))),
            (None, Some(Libvirt), Ok((Libvirt, Why::Made))),
            (Some(Libvirt), Some(Libvirt), Ok((Libvirt, Why::Made))),
            (Some(Libvirt), Some(Qemu), elsewhere(Qemu, Libvirt)),
            (Some(Container), Some(Libvirt), elsewhere(Libvirt, Container)),
        ] {
            let found = choose_platform(wanted, made, Driver::Auto, &able);
            assert_eq!(found.map(|choice| (choice.platform, choice.why)), chosen, "{wanted:?} {made:?}");
        }
        assert_eq!(
            choose_platform(Some(Qemu), Some(Libvirt), Driver::Auto, &able).unwrap_err().to_string(),
            "its machines are on libvirt, not on QEMU"
        );
    }

    struct Able {
        kvm: bool,
        libvirt: bool,
        containers: bool,
    }

    impl Offers for Able {
        fn kvm(&self) -> bool {
            self.kvm
        }
        fn libvirt(&self) -> bool {
            self.libvirt
        }
        fn containers(&self) -> Result<(), String> {
            if self.containers { Ok(()) } else { Err("it has no loop devices".to_owned()) }
        }
    }

    #[test]
    fn the_fastest_that_works_is_chosen() {
        use Platform::{Container, Libvirt, Qemu};
        let emulated = || Why::Emulation("it has no loop devices".to_owned());
        for (driver, kvm, libvirt, containers, platform, why) in [
            (Driver::Auto, true, true, true, Libvirt, Why::Kvm),
            (Driver::Auto, true, false, true, Qemu, Why::Kvm),
            (Driver::Auto, false, true, true, Container, Why::Containers),
            (Driver::Auto, false, true, false, Libvirt, emulated()),
            (Driver::Auto, false, false, false, Qemu, emulated()),
            // What old files say means what it meant.
            (Driver::Qemu, false, true, true, Libvirt, Why::Driver),
            (Driver::Kvm, false, false, true, Qemu, Why::Driver),
        ] {
            let able = Able { kvm, libvirt, containers };
            let found = choose_platform(None, None, driver, &able);
            assert_eq!(found, Ok(Choice { platform, why }), "{driver:?} {kvm} {libvirt} {containers}");
        }
    }

    #[test]
    fn what_is_missing_is_made_and_what_is_there_stays() {
        let table = [
            (
                seen(false, false, &[]),
                vec![
                    "make a disk of release 1.0.0 (3f2a9c015d)",
                    "make the network",
                    "make control and switch it on",
                    "make compute-1 and switch it on",
                ],
            ),
            (seen(true, true, &[("control", true, true)]), vec!["make compute-1 and switch it on"]),
            // The machine below was restarted: namespaces and processes are gone, disks are not.
            (
                seen(false, true, &[("control", true, false), ("compute-1", true, false)]),
                vec!["make the network", "switch control on", "switch compute-1 on"],
            ),
            (seen(true, false, &[("control", true, true), ("compute-1", true, true)]), vec![]),
        ];
        for (seen, expected) in table {
            let plan = plan_up(&cluster(), Some(&release()), &seen).unwrap();
            assert_eq!(plan.lines(), expected, "{seen:?}");
        }
    }

    #[test]
    fn a_machine_that_the_file_forgot_is_told_of() {
        let seen = seen(
            true,
            true,
            &[("control", true, true), ("compute-1", true, true), ("compute-2", true, true)],
        );
        let plan = plan_up(&cluster(), None, &seen).unwrap();
        assert_eq!((plan.strays, plan.base), (vec!["compute-2".to_owned()], None));
    }

    #[test]
    fn new_machines_need_a_release() {
        let error = plan_up(&cluster(), None, &seen(true, true, &[("control", true, true)])).unwrap_err();
        assert_eq!(error.to_string(), "compute-1 is to be made, and there is no repo to take a release from");
    }
}
