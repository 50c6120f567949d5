//! `rackstep cluster` with QEMU's machines, network namespaces and the installer's disks; the release of the tests boots to
//! nothing, so the machines are asked for no more than to be on, or start from a kernel and a shell script. With a real
//! release: `tests/cluster_real.rs`.
//!
//! Needs root, and what `tests/install_disk.rs` needs.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rackstep::lab::machine::{Hypervisor, Network};
use rackstep::rim::wait::poll;

#[path = "support/installable.rs"]
mod installable;
#[path = "support/cluster.rs"]
mod support;

use installable::{RELEASE, run, stderr};
use support::{SOON, code, interrupt, power};

/// A cluster of QEMU's machines; what runs of it ends with the test.
struct Cluster {
    cluster: support::Cluster,
}

impl std::ops::Deref for Cluster {
    type Target = support::Cluster;

    fn deref(&self) -> &support::Cluster {
        &self.cluster
    }
}

impl Cluster {
    fn new(name: &str) -> Self {
        Self { cluster: support::Cluster::new(name, "qemu") }
    }

    fn rackstep(&self, verb: &str, more: &[&str]) -> Command {
        self.ask(Command::new(env!("CARGO_BIN_EXE_rackstep")), verb, more)
    }

    fn namespace(&self) -> PathBuf {
        Path::new("/run/netns").join(format!("rackstep-cluster-{}", self.name))
    }

    /// The emulator of a machine, if it runs.
    fn pid(&self, machine: &str) -> Option<u32> {
        let text = fs::read_to_string(self.home().join("machines").join(machine).join("qemu.pid")).ok()?;
        let pid: u32 = text.trim().parse().unwrap();
        let command_line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        command_line.contains(machine).then_some(pid)
    }

    fn wait_for(&self, machine: &str) -> u32 {
        let found = poll(SOON, || Ok::<_, std::convert::Infallible>(self.pid(machine)));
        let Ok(found) = found;
        found.unwrap_or_else(|| panic!("{machine} is not on"))
    }

    fn powers(&self) -> Vec<(String, String)> {
        support::powers(self.rackstep("status", &["--json"]))
    }

    fn is_gone(&self) -> bool {
        !self.home().exists() && !self.namespace().exists() && !self.has_processes()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = self.rackstep("down", &[]).output();
    }
}

#[test]
fn up_makes_what_is_missing_and_down_removes_all() {
    let cluster = Cluster::new("whole");
    cluster.write(1);
    let up = || run(&mut cluster.rackstep("up", &["--until=power"]));

    let planned = run(&mut cluster.rackstep("up", &["--dry-run"]));
    let planned = String::from_utf8(planned.stdout).unwrap();
    assert!(planned.contains("  2. make the network\n  3. make control and switch it on\n"), "{planned}");
    assert!(cluster.is_gone());

    up();
    let (control, compute) = (cluster.pid("control").unwrap(), cluster.pid("compute-1").unwrap());
    assert!(cluster.namespace().exists());
    assert_eq!(cluster.powers(), [power("control", "on"), power("compute-1", "on")]);

    // Again: nothing is started anew.
    let again = String::from_utf8(up().stdout).unwrap();
    assert!(again.contains("all of its 2 machines are on"), "{again}");
    assert_eq!((cluster.pid("control"), cluster.pid("compute-1")), (Some(control), Some(compute)));

    // One machine lost its power, another one is new; the third runs on.
    run(Command::new("kill").args(["-KILL", &compute.to_string()]));
    let gone =
        poll(SOON, || Ok::<_, std::convert::Infallible>(cluster.pid("compute-1").is_none().then_some(())));
    assert!(gone.unwrap().is_some());
    assert_eq!(cluster.powers(), [power("control", "on"), power("compute-1", "off")]);
    cluster.write(2);
    up();
    assert_eq!(
        cluster.powers(),
        [power("control", "on"), power("compute-1", "on"), power("compute-2", "on")]
    );
    assert_eq!(cluster.pid("control"), Some(control));

    // A machine that the file does not name any more is told of, and left alone.
    cluster.write(1);
    let stray = String::from_utf8(up().stdout).unwrap();
    assert!(stray.contains("compute-2 is not in "), "{stray}");
    assert_eq!(cluster.powers().len(), 3);

    // No machine of it is a host that answers: nothing is begun.
    let refused = cluster.rackstep("rollback", &[]).output().unwrap();
    assert_eq!(code(&refused), 3, "{}", stderr(&refused));
    assert!(stderr(&refused).contains("control does not answer"), "{}", stderr(&refused));

    run(&mut cluster.rackstep("down", &[]));
    assert!(cluster.is_gone());
    let none = run(&mut cluster.rackstep("down", &[]));
    assert!(String::from_utf8(none.stdout).unwrap().contains("there is no cluster"));
}

#[test]
fn an_interruption_takes_back_what_this_up_made_and_no_more() {
    let cluster = Cluster::new("stopped");
    cluster.write(1);
    let start = || cluster.rackstep("up", &["--until=ssh"]).stderr(Stdio::piped()).spawn().unwrap();

    let child = start();
    cluster.wait_for("compute-1");
    cluster.wait_for("control");
    // Two at once would step on each other's toes.
    let other = cluster.rackstep("down", &[]).output().unwrap();
    assert_eq!(code(&other), 3, "{}", stderr(&other));
    assert!(stderr(&other).contains("another rackstep works on cluster"), "{}", stderr(&other));
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    assert_eq!(code(&output), 130, "{}", stderr(&output));
    assert!(stderr(&output).ends_with("state: what this `up` made is gone; what was there before runs on\n"));
    assert!(cluster.is_gone());

    run(&mut cluster.rackstep("up", &["--until=power"]));
    let control = cluster.pid("control").unwrap();
    cluster.write(2);
    let child = start();
    cluster.wait_for("compute-2");
    interrupt(&child);
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(130));
    assert_eq!(cluster.pid("control"), Some(control));
    assert!(!cluster.home().join("machines/compute-2").exists());
    assert_eq!(cluster.powers(), [power("control", "on"), power("compute-1", "on")]);
}

#[test]
fn machines_get_their_addresses_and_know_each_other() {
    let cluster = Cluster::new("tiny");
    cluster.write(1);
    cluster.start_tiny(&Hypervisor::Qemu);
    cluster.wait_until_known(&Network::open(&cluster.state().network_name()).unwrap());
    run(&mut cluster.rackstep("down", &[]));
    assert!(cluster.is_gone());
}

#[test]
fn what_cannot_be_is_said_before_anything_is_made() {
    let cluster = Cluster::new("refused");
    let none = cluster.rackstep("up", &[]).output().unwrap();
    assert_eq!(code(&none), 2);
    assert!(stderr(&none).contains("`rackstep cluster --help` shows a cluster file"), "{}", stderr(&none));

    let sizes = "platform: qemu\ncontrol: {memory: 256, cpus: 1}\n";
    for (text, told) in [
        (
            format!("{sizes}computes: {{}}\n"),
            "cluster.yaml:3:1: unknown field `computes`, expected one of `name`",
        ),
        (sizes.to_owned(), "control is to be made, and there is no repo to take a release from"),
        (format!("{sizes}repo: /nonexistent\n"), "/nonexistent"),
        (format!("{sizes}repo: {}\nrelease: 9.9\n", RELEASE.repo.display()), "9.9"),
    ] {
        fs::write(cluster.file(), text).unwrap();
        let output = cluster.rackstep("up", &[]).output().unwrap();
        assert_eq!(code(&output), 2, "{}", stderr(&output));
        assert!(stderr(&output).contains(told), "{}", stderr(&output));
        assert!(stderr(&output).ends_with("state: nothing changed\n"), "{}", stderr(&output));
        assert!(cluster.is_gone());
    }
    let absent = cluster.rackstep("status", &[]).output().unwrap();
    assert!(stderr(&absent).contains("hint: `rackstep cluster up` makes it"), "{}", stderr(&absent));
}
