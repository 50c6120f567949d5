//! A cluster of a test's: its file, its directory for state, and the program on it. Machines are asked for no more than to be
//! on, for the release of the tests boots to nothing; or they start from a kernel and a shell script.

// Each test takes what it needs of it.
#![allow(dead_code, clippy::unwrap_used)]

use std::convert::Infallible;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::time::Duration;

use rackstep::lab::cluster::observe::observe;
use rackstep::lab::cluster::plan::plan_up;
use rackstep::lab::cluster::up::{Request, Until, up};
use rackstep::lab::cluster::{Home, Watcher};
use rackstep::lab::machine::{Boot, Hypervisor, Network, tiny};
use rackstep::lab::manifest::parse_cluster;
use rackstep::model::cluster::ClusterRelease;
use rackstep::model::place::SourceText;
use rackstep::rim::wait::poll;
use serde_json::Value;

use super::installable::{RELEASE, run};

/// A disk of the small release, or a bare kernel, on a machine that is busy with other things.
pub const SOON: Duration = Duration::from_secs(600);

/// A cluster file and a directory for state.
pub struct Cluster {
    pub dir: tempfile::TempDir,
    pub name: String,
    platform: &'static str,
}

impl Cluster {
    /// Nothing of it is there yet; `platform` is the file's.
    pub fn new(name: &str, platform: &'static str) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), name: format!("{name}-{}", std::process::id()), platform }
    }

    pub fn write(&self, computes: u32) {
        let text = format!(
            "name: {}\nrepo: {}\nplatform: {}\ndriver: qemu\ndisk: 4\ncontrol: {{memory: 256, cpus: 1}}\n\
             compute: {{count: {computes}, memory: 256, cpus: 1}}\n",
            self.name,
            RELEASE.repo.display(),
            self.platform
        );
        fs::write(self.file(), text).unwrap();
    }

    pub fn file(&self) -> PathBuf {
        self.dir.path().join("cluster.yaml")
    }

    /// `program` is rackstep, started here or elsewhere.
    pub fn ask(&self, mut program: Command, verb: &str, more: &[&str]) -> Command {
        program.args(["cluster", verb]).args(more).arg(self.file());
        program.env("XDG_STATE_HOME", self.dir.path());
        program
    }

    pub fn state(&self) -> Home {
        Home::new(&self.dir.path().join("rackstep/clusters"), &self.name)
    }

    pub fn home(&self) -> PathBuf {
        self.state().dir
    }

    /// Does anything run that has to do with it?
    pub fn has_processes(&self) -> bool {
        let processes = Command::new("pgrep").arg("-f").arg(self.dir.path()).output().unwrap();
        !processes.stdout.is_empty()
    }

    /// Starts machines from a small kernel, which do what [`INIT`] says.
    pub fn start_tiny(&self, hypervisor: &Hypervisor) {
        let kernel = tiny::kernel().unwrap();
        let initramfs = self.dir.path().join("initramfs");
        tiny::initramfs(&kernel, "/init", INIT, &initramfs).unwrap();
        let arguments = "console=ttyS0 quiet panic=-1 no_timer_check".to_owned();

        let text = fs::read_to_string(self.file()).unwrap();
        let wanted = parse_cluster(&SourceText::new("cluster.yaml", text), "").unwrap();
        let release = ClusterRelease {
            repo: RELEASE.repo.clone(),
            commit: RELEASE.commit.parse().unwrap(),
            version: None,
            follows: "rackstep/x86_64/test".parse().unwrap(),
        };
        let home = self.state();
        let lock = home.lock_or_make().unwrap();
        let seen = observe(&home, hypervisor, None).unwrap();
        let request = Request {
            home: &home,
            lock: &lock,
            file: &self.file(),
            cluster: &wanted,
            hypervisor,
            plan: &plan_up(&wanted, Some(&release), &seen).unwrap(),
            release: Some(&release),
            boot: Boot::Kernel { kernel: kernel.vmlinuz, initramfs, arguments },
            until: Until::Power,
            bound: SOON,
        };
        let make_base = |_: &ClusterRelease, _: &str, path: &Path| {
            fs::File::create(path).unwrap().set_len(1 << 20).unwrap();
            Ok(())
        };
        up(&request, &make_base, &Quiet).unwrap();
    }

    /// Waits until the machines have their addresses, know each other, and can be reached in `network`.
    pub fn wait_until_known(&self, network: &Network) {
        for (machine, address) in [("control", "10.90.0.11"), ("compute-1", "10.90.0.101")] {
            let console = self.state().machine_dir(machine).join("console.log");
            let read = || fs::read_to_string(&console).unwrap_or_default();
            let ready = poll(SOON, || Ok::<_, Infallible>(read().contains("machine is ready").then_some(())));
            assert!(ready.unwrap().is_some(), "{}", read());
            let leased = format!("leased {address} mask 24 router 10.90.0.1 names 10.90.0.1");
            assert!(read().contains(&leased), "{}", read());
            let known = read().lines().find(|line| line.starts_with("known: ")).unwrap().to_owned();
            assert!(known.contains("Address: 10.90.0.11"), "{known}");
            network.wait_for_port(address, 8000, SOON).unwrap();
        }
    }
}

/// Names and powers, as `cluster status --json` tells them.
pub fn powers(mut status: Command) -> Vec<(String, String)> {
    let status: Value = serde_json::from_slice(&run(&mut status).stdout).unwrap();
    let text = |machine: &Value, key: &str| machine[key].as_str().unwrap().to_owned();
    let machines = status["machines"].as_array().unwrap();
    machines.iter().map(|machine| (text(machine, "name"), text(machine, "power"))).collect()
}

pub fn power(name: &str, power: &str) -> (String, String) {
    (name.to_owned(), power.to_owned())
}

pub fn interrupt(child: &Child) {
    run(Command::new("kill").args(["-INT", &child.id().to_string()]));
}

pub fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

/// What tiny machines do: they take what DHCP gives, and tell what they were given and whom they know.
pub const INIT: &str = r#"
ip link set lo up; ip link set eth0 up
printf '#!/bin/sh\n[ "$1" = bound ] || exit 0\nip address add $ip/$mask dev eth0; ip route add default via $router\n' >/lease
echo 'echo leased $ip mask $mask router $router names $dns' >>/lease
chmod +x /lease
udhcpc -i eth0 -s /lease -q -t 30 -T 1 </dev/null
echo known: $(nslookup control 10.90.0.1)
httpd -p 8000 -h /etc
echo machine is ready
read line
"#;

#[derive(Debug)]
struct Quiet;

impl Watcher for Quiet {
    fn tell(&self, _machine: &str, _what: &str) {}
    fn end(&self, _machine: &str, _what: &str) {}
    fn stopped(&self) -> bool {
        false
    }
}
