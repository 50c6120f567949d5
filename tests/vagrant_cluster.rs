//! A developer's cluster with real Vagrant and real libvirt: two small releases of the real host, a box of the first one.
//!
//! 1. `rackstep box`, `vagrant box add`;
//! 2. `vagrant up`: control and compute-1 come up beside each other, and `rackstep status` there says what was composed;
//! 3. the services of the release run on both;
//! 4. `rackstep cluster upgrade` brings both to the second release;
//! 5. `vagrant destroy` leaves no machine and no disk.
//!
//! libvirtd is the test's own (`support/libvirt.rs`). `RACKSTEP_SMALL_REPO` names a repo that has the releases already.
//! Needs root, vagrant, vagrant-libvirt, libvirtd.
#![allow(clippy::unwrap_used)] // a failed unwrap is a failed test

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rackstep::engine::machine::accelerator::{self, Accelerator};
use rackstep::engine::machine::{Network, poll};
use rackstep::model::status::Status;
use support::libvirt::Libvirt;
use support::story::{Composed, Story, rackstep, run};

/// Nothing speaks to it: libvirt makes the machines' network itself.
const BRIDGE: &str = "10.81.0.1/24";
const MACHINES: [&str; 2] = ["control", "compute-1"];
/// One processor and little memory each: two emulated machines share two real ones.
const SIZES: &str = "box: small-host\ndriver: auto\ncontrol: {memory: 2048, cpus: 1}\n\
                     compute: {count: 1, memory: 2048, cpus: 1}\n";
/// From ssh to all services, emulated.
const SERVICES: Duration = Duration::from_secs(15 * 60);
/// Lines of a console that tell why.
const TAIL: usize = 40;

#[test]
fn vagrant_brings_a_cluster_up_and_both_machines_are_upgraded() {
    let mut story = Story::begin("RACKSTEP_SMALL_REPO");
    let first = story.compose("first release", "tests/releases/small-host.yaml", "1.0.0");
    let second = story.compose("second release", "tests/releases/small-host-2.yaml", "1.1.0");
    let (repo, boxes) = (story.repo(), story.work().join("boxes"));
    let mut command = rackstep();
    command.args(["box", "1.0.0", "--size=10", "--repo"]).arg(&repo).arg("--output").arg(&boxes);
    command.args(story.public_key().map(|key| format!("--keys={}", key.display())));
    story.timed("rackstep box", || run(&mut command));

    let network = Network::create(BRIDGE).unwrap();
    let libvirt = Libvirt::start(&network, &story.work().join("libvirt"));
    let project = Project::lay(&libvirt, story.work());
    let catalogue = boxes.join("small-host.json");
    story.timed("vagrant box add", || project.vagrant(&["box", "add", &catalogue.display().to_string()]));
    assert!(project.vagrant(&["box", "list"]).contains("small-host (libvirt, 1.0.0)"));
    project.vagrant(&["validate"]);

    story.timed("vagrant up", || project.vagrant(&["up"]));
    for name in MACHINES {
        let status = project.wait_for_status(name);
        assert_eq!(booted(&status), first.commit, "{name}");
        assert_eq!(project.ssh(name, "hostname").unwrap().trim(), name);
        // Everybody's key is taken away at the first start.
        let keys = project.ssh(name, "cat ~/.ssh/authorized_keys").unwrap();
        assert!(!keys.contains("insecure") && keys.starts_with("ssh-"), "{name}: {keys}");
    }
    story.timed("services of the first release", || project.wait_until_services_run(&first));

    story.timed("rackstep cluster upgrade", || {
        let mut upgrade = project.enter(&rackstep().get_program().to_string_lossy());
        upgrade.args(["cluster", "upgrade", &second.version, "--vagrant"]).arg(&project.directory);
        run(upgrade.arg("--repo").arg(&repo))
    });
    story.timed("services of the second release", || project.wait_until_services_run(&second));

    story.timed("vagrant destroy", || project.vagrant(&["destroy", "--force"]));
    let left = run(libvirt.command("virsh").args(["list", "--all", "--name"]));
    assert_eq!(left.trim(), "");
    let disks = run(libvirt.command("virsh").args(["vol-list", "default"]));
    assert!(!MACHINES.iter().any(|name| disks.contains(name)), "{disks}");
    story.print_timings();
}

/// What CI can say of the file even where no machine can be started.
#[test]
fn the_vagrantfile_is_valid() {
    let home = tempfile::tempdir().unwrap();
    for driver in ["auto", "kvm", "qemu"] {
        let mut vagrant = Command::new("vagrant");
        vagrant.arg("validate").env("VAGRANT_HOME", home.path()).env("RACKSTEP_DRIVER", driver);
        run(vagrant.env("VAGRANT_DOTFILE_PATH", home.path().join("dot")).env("VAGRANT_CWD", shipped()));
    }
}

/// The directory of the Vagrantfile that is under test.
fn shipped() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("vagrant")
}

fn booted(status: &Status) -> String {
    status.booted.map(|commit| commit.to_string()).unwrap_or_default()
}

/// A directory with a Vagrantfile that is ours, and consoles in files beside it.
struct Project<'l> {
    libvirt: &'l Libvirt,
    directory: PathBuf,
}

impl<'l> Project<'l> {
    fn lay(libvirt: &'l Libvirt, work: &Path) -> Self {
        let directory = work.join("project");
        std::fs::create_dir(&directory).unwrap();
        std::fs::write(directory.join("cluster.yaml"), SIZES).unwrap();
        let mut text =
            format!("load {:?}\nVagrant.configure(\"2\") do |config|\n", shipped().join("Vagrantfile"));
        for name in MACHINES {
            let console = directory.join(format!("{name}.console"));
            text += &format!(
                "  config.vm.define {name:?} do |machine|\n    machine.vm.provider(:libvirt) {{ |libvirt| \
                 libvirt.serial type: \"file\", source: {{ path: {console:?} }} }}\n  end\n"
            );
        }
        std::fs::write(directory.join("Vagrantfile"), text + "end\n").unwrap();
        Self { libvirt, directory }
    }

    /// A command where the machines are, with a Vagrant home of the test's.
    fn enter(&self, program: &str) -> Command {
        let mut command = self.libvirt.command(program);
        command
            .env("VAGRANT_CWD", &self.directory)
            .env("RACKSTEP_CLUSTER", self.directory.join("cluster.yaml"));
        command.env("VAGRANT_HOME", self.directory.join("home")).env("HOME", &self.directory);
        command.env("VAGRANT_CHECKPOINT_DISABLE", "1");
        // By a kernel that starts or does not, where the Vagrantfile only looks for a device.
        let driver = if accelerator::choose().unwrap() == Accelerator::Kvm { "kvm" } else { "qemu" };
        command.env("RACKSTEP_DRIVER", driver);
        command
    }

    fn vagrant(&self, arguments: &[&str]) -> String {
        run(self.enter("vagrant").args(arguments))
    }

    /// What a command says on a machine.
    fn ssh(&self, name: &str, script: &str) -> Result<String, String> {
        let output = self.enter("vagrant").args(["ssh", name, "--no-tty", "-c", script]).output().unwrap();
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        Ok(String::from_utf8(output.stdout).unwrap())
    }

    fn status(&self, name: &str) -> Result<Status, String> {
        let text = self.ssh(name, "rackstep status --json")?;
        serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))
    }

    /// The status, from a machine that may be too busy to answer at once: `vagrant ssh` has ended there without a word.
    fn wait_for_status(&self, name: &str) -> Status {
        let mut last = String::new();
        let found = poll(SERVICES, || -> Result<_, std::convert::Infallible> {
            Ok(self.status(name).map_err(|error| last = error).ok())
        });
        let Ok(found) = found;
        found.unwrap_or_else(|| panic!("{name} says nothing: {last}"))
    }

    /// Waits until each machine has booted `release`, and every container runs the image that it pins.
    fn wait_until_services_run(&self, release: &Composed) {
        for name in MACHINES {
            let mut last = Err("not asked yet".to_owned());
            let found = poll(SERVICES, || -> Result<_, std::convert::Infallible> {
                last = self.status(name);
                Ok(last.as_ref().is_ok_and(|status| runs(status, release)).then_some(()))
            });
            let Ok(found) = found;
            assert!(found.is_some(), "the services of {} do not run on {name}: {last:?}", release.version);
        }
    }
}

fn runs(status: &Status, release: &Composed) -> bool {
    let exact = status.services.iter().all(|container| container.running == Some(container.expected));
    booted(status) == release.commit && !status.services.is_empty() && exact
}

impl Drop for Project<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for name in MACHINES {
            let bytes = std::fs::read(self.directory.join(format!("{name}.console"))).unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let lines: Vec<&str> = text.lines().collect();
            eprintln!("--- console of {name}\n{}", lines[lines.len().saturating_sub(TAIL)..].join("\n"));
        }
    }
}
