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

use std::process::Command;

use rackstep::lab::machine::Network;
use support::libvirt::Libvirt;
use support::story::{begin, checkout, rackstep, run};
use support::vagrant::{Project, booted, shipped};

/// Nothing speaks to it: libvirt makes the machines' network itself.
const BRIDGE: &str = "10.81.0.1/24";
const MACHINES: [&str; 2] = ["control", "compute-1"];
/// One processor and little memory each: two emulated machines share two real ones.
const SIZES: &str = "box: small-host\ndriver: auto\ncontrol: {memory: 2048, cpus: 1}\n\
                     compute: {count: 1, memory: 2048, cpus: 1}\n";

#[test]
fn vagrant_brings_a_cluster_up_and_both_machines_are_upgraded() {
    let mut story = begin("RACKSTEP_SMALL_REPO");
    let first = story.compose("first release", &checkout("tests/releases/small-host.yaml"), "1.0.0").unwrap();
    let second =
        story.compose("second release", &checkout("tests/releases/small-host-2.yaml"), "1.1.0").unwrap();
    let repo = story.repo();
    let catalogue = story.make_box("small-host").unwrap();

    let network = Network::create(BRIDGE).unwrap();
    let libvirt = Libvirt::start(&network, &story.work().join("libvirt"));
    let project = Project::lay(&libvirt, story.work(), SIZES, &MACHINES);
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
    println!("{}", story.render_timings());
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
