//! `rackstep cluster` with QEMU's machines, network namespaces and the installer's disks; the release of the tests boots to
//! nothing, so the machines are asked for no more than to be on, or start from a kernel and a shell script. With a real
//! release: `tests/cluster_real.rs`.
//!
//! Needs root, and what `tests/install_disk.rs` needs.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use rackstep::engine::machine::{Boot, Network, poll, tiny};
use rackstep::exec::cluster::observe::observe;
use rackstep::exec::cluster::up::{Request, Until, up};
use rackstep::exec::cluster::{Home, Watcher};
use rackstep::manifest::SourceText;
use rackstep::manifest::cluster::parse_cluster;
use rackstep::model::cluster::ClusterRelease;
use rackstep::plan::cluster::plan_up;
use serde_json::Value;

#[path = "support/installable.rs"]
mod installable;

use installable::{RELEASE, run, stderr};

/// A disk of the small release, or a bare kernel, on a machine that is busy with other things.
const SOON: Duration = Duration::from_secs(600);

/// A cluster file and a directory for state; what runs of it ends with the test.
struct Cluster {
    dir: tempfile::TempDir,
    name: String,
}

impl Cluster {
    fn new(name: &str) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), name: format!("{name}-{}", std::process::id()) }
    }

    fn write(&self, computes: u32) {
        let text = format!(
            "name: {}\nrepo: {}\ndriver: qemu\ndisk: 4\ncontrol: {{memory: 256, cpus: 1}}\n\
             compute: {{count: {computes}, memory: 256, cpus: 1}}\n",
            self.name,
            RELEASE.repo.display()
        );
        fs::write(self.file(), text).unwrap();
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("cluster.yaml")
    }

    fn rackstep(&self, verb: &str, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rackstep"));
        command.args(["cluster", verb]).args(more).arg(self.file());
        command.env("XDG_STATE_HOME", self.dir.path());
        command
    }

    fn home(&self) -> PathBuf {
        self.dir.path().join("rackstep/clusters").join(&self.name)
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
        let status = run(&mut self.rackstep("status", &["--json"]));
        let status: Value = serde_json::from_slice(&status.stdout).unwrap();
        let text = |machine: &Value, key: &str| machine[key].as_str().unwrap().to_owned();
        let machines = status["machines"].as_array().unwrap();
        machines.iter().map(|machine| (text(machine, "name"), text(machine, "power"))).collect()
    }

    fn is_gone(&self) -> bool {
        let processes = Command::new("pgrep").arg("-f").arg(self.dir.path()).output().unwrap();
        !self.home().exists() && !self.namespace().exists() && processes.stdout.is_empty()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = self.rackstep("down", &[]).output();
    }
}

fn power(name: &str, power: &str) -> (String, String) {
    (name.to_owned(), power.to_owned())
}

fn interrupt(child: &std::process::Child) {
    run(Command::new("kill").args(["-INT", &child.id().to_string()]));
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
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

/// What the machines of the next test do: they take what DHCP gives, and tell what they were given and whom they know.
const INIT: &str = r#"
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

#[test]
fn machines_get_their_addresses_and_know_each_other() {
    let cluster = Cluster::new("tiny");
    cluster.write(1);
    let kernel = tiny::kernel().unwrap();
    let initramfs = cluster.dir.path().join("initramfs");
    tiny::initramfs(&kernel, "/init", INIT, &initramfs).unwrap();
    let arguments = "console=ttyS0 quiet panic=-1 no_timer_check".to_owned();

    let text = fs::read_to_string(cluster.file()).unwrap();
    let wanted = parse_cluster(&SourceText::new("cluster.yaml", text), "").unwrap();
    let release = ClusterRelease {
        repo: RELEASE.repo.clone(),
        commit: RELEASE.commit.parse().unwrap(),
        version: None,
        follows: "rackstep/x86_64/test".parse().unwrap(),
    };
    let home = Home::new(&cluster.dir.path().join("rackstep/clusters"), &cluster.name);
    let lock = home.lock_or_make().unwrap();
    let plan = plan_up(&wanted, Some(&release), &observe(&home, None).unwrap()).unwrap();
    let request = Request {
        home: &home,
        lock: &lock,
        file: &cluster.file(),
        cluster: &wanted,
        plan: &plan,
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

    let network = Network::open(&home.network_name()).unwrap();
    for machine in &wanted.machines {
        let console = home.machine_dir(&machine.name).join("console.log");
        let read = || fs::read_to_string(&console).unwrap_or_default();
        let ready = poll(SOON, || {
            Ok::<_, std::convert::Infallible>(read().contains("machine is ready").then_some(()))
        });
        assert!(ready.unwrap().is_some(), "{}", read());
        let leased = format!("leased {} mask 24 router 10.90.0.1 names 10.90.0.1", machine.address);
        assert!(read().contains(&leased), "{}", read());
        let known = read().lines().find(|line| line.starts_with("known: ")).unwrap().to_owned();
        assert!(known.contains("Address: 10.90.0.11"), "{known}");
        network.wait_for_port(&machine.address.to_string(), 8000, SOON).unwrap();
    }
    drop(lock);
    run(&mut cluster.rackstep("down", &[]));
    assert!(cluster.is_gone());
}

#[test]
fn what_cannot_be_is_said_before_anything_is_made() {
    let cluster = Cluster::new("refused");
    let none = cluster.rackstep("up", &[]).output().unwrap();
    assert_eq!(code(&none), 2);
    assert!(stderr(&none).contains("`rackstep cluster --help` shows a cluster file"), "{}", stderr(&none));

    let sizes = "control: {memory: 256, cpus: 1}\n";
    for (text, told) in [
        (
            format!("{sizes}computes: {{}}\n"),
            "cluster.yaml:2:1: unknown field `computes`, expected one of `name`",
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
