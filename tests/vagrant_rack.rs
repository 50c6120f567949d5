//! The rack path on a laptop, with real Vagrant and real libvirt: a provisioner and a blank machine beside it.
//!
//! 1. `rackstep box` of `host-image/provisioner.yaml`, `vagrant box add`;
//! 2. `vagrant up provisioner`: it gets the release repo over rsync and serves the rack's private network;
//! 3. `vagrant up blank-1`: an empty disk, imaged over PXE;
//! 4. the machine is ready in the provisioner's eyes, and `rackstep status` on it says what was composed.
//!
//! `RACKSTEP_SMALL_REPO` and `RACKSTEP_PROVISIONER_REPO` name repos that have the releases already.
//! Needs root, vagrant, vagrant-libvirt, libvirtd.
#![allow(clippy::unwrap_used)] // a failed unwrap is a failed test

mod support;

use std::time::Duration;

use rackstep::lab::machine::{Network, SshKey};
use rackstep::lab::story::{Composed, Story};
use rackstep::model::status::Status;
use serde_json::Value;
use support::libvirt::Libvirt;
use support::story::{begin, checkout};
use support::vagrant::{Project, runs, until};

/// Nothing speaks to it: libvirt makes the machines' networks itself.
const BRIDGE: &str = "10.82.0.1/24";
const BLANK: &str = "10.78.0.11";
/// From power on to the call home of the installed host, emulated, with all of its services.
const IMAGING: Duration = Duration::from_secs(25 * 60);

#[test]
fn a_blank_machine_beside_the_provisioner_is_imaged() {
    let mut story = begin("RACKSTEP_SMALL_REPO");
    let release = story.compose("release", &checkout("tests/releases/small-host.yaml"), "1.0.0").unwrap();
    let mut server = begin("RACKSTEP_PROVISIONER_REPO");
    server.compose("provisioner", &checkout("host-image/provisioner.yaml"), "1.0.0").unwrap();
    let catalogue = server.make_box("provisioner").unwrap();

    let network = Network::create(BRIDGE).unwrap();
    let libvirt = Libvirt::start(&network, &story.work().join("libvirt"));
    let key = SshKey::create(story.work()).unwrap();
    let machines = ["provisioner", "blank-1"];
    let project = Project::lay(&libvirt, story.work(), &cluster(&story, &release, &key), &machines);
    project.vagrant(&["box", "add", &catalogue.display().to_string()]);
    story.timed("vagrant up provisioner", || project.vagrant(&["up", "provisioner"]));
    story.timed("vagrant up blank-1", || project.vagrant(&["up", "blank-1"]));
    story.timed("imaging over PXE, and its services", || wait_until_ready(&project));

    // Vagrant has no way to it; the provisioner has.
    let private = std::fs::read_to_string(&key.private).unwrap();
    project.ssh("provisioner", &format!("umask 077; echo '{private}' >key")).unwrap();
    require_release(&project, &release);
    story.timed("vagrant destroy", || project.vagrant(&["destroy", "--force", "provisioner", "blank-1"]));
    println!("{}", server.render_timings());
    println!("{}", story.render_timings());
}

/// What `cluster.yaml` says of them.
fn cluster(story: &Story<'_>, release: &Composed, key: &SshKey) -> String {
    serde_json::json!({
        "driver": "auto",
        "box": "small-host",
        "control": { "memory": 2048, "cpus": 1 },
        "provisioner": {
            "box": "provisioner", "memory": 1024, "cpus": 1,
            "repo": story.repo(), "ref": "rackstep/x86_64/small-host", "release": release.version,
            "trusted_keys": story.trusted_keys().unwrap(), "ssh_keys": [key.public],
        },
        "blank": { "count": 1, "memory": 2048, "cpus": 1, "disk": "10G" },
    })
    .to_string()
}

/// Waits until the rack server says that the machine runs its release with all services.
fn wait_until_ready(project: &Project<'_>) {
    let mut last = String::from("not asked yet");
    let ready = until(IMAGING, || {
        last = project
            .ssh("provisioner", "curl -s http://10.78.0.2:8080/v1/machines")
            .unwrap_or_else(|error| error);
        let rack: Value = serde_json::from_str(&last).unwrap_or_default();
        let state = rack["machines"][0]["state"].as_str().unwrap_or_default();
        assert!(!["failed", "refused"].contains(&state), "imaging: {rack:#}");
        (state == "ready").then_some(())
    });
    assert!(ready.is_some(), "not ready within {} s: {last}", IMAGING.as_secs());
}

/// What the machine says of itself.
fn require_release(project: &Project<'_>, release: &Composed) {
    let options = "-i key -o BatchMode=yes -o StrictHostKeyChecking=no";
    let text =
        project.ssh("provisioner", &format!("ssh {options} root@{BLANK} rackstep status --json")).unwrap();
    let status: Status = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert!(runs(&status, release), "{status:#?}");
}
