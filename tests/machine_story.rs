//! The main job on real parts: compose two releases, image a blank machine over PXE, upgrade it, roll it back.
//!
//! 1. lock and compose both releases of the OpenStack host into one repo;
//! 2. a rack server in a network namespace images a blank virtual machine with the first;
//! 3. on the machine: the composed commit is booted, every container runs its pinned image, keystone issues a token;
//! 4. `upgrade` leaves the next boot alone; `upgrade --commit` and a reboot give the second release, all of it;
//! 5. with the rack server stopped, `rollback` and a reboot give the first release back, all of it.
//!
//! Ends with a table of what was seen. `make demo` tells it for people; needs root.
//! `RACKSTEP_FIRMWARE=uefi` starts the machine by OVMF; `RACKSTEP_UNTIL=ssh` ends with the first shell on the imaged host,
//! `RACKSTEP_UNTIL=services` with its services: container hosts tell the rest in a tenth of the time.
#![allow(clippy::unwrap_used, clippy::print_stdout)] // a failed unwrap is a failed test

mod support;

use std::time::Duration;

use rackstep::lab::machine::Firmware;
use rackstep::lab::story::{Plain, Rack};
use support::story::{begin, checkout};

/// From power on to the installed host's call home. Emulated processors are slow.
const IMAGING: Duration = Duration::from_secs(20 * 60);
/// From a restart to all services running.
const BOOT: Duration = Duration::from_secs(30 * 60);

#[test]
fn imaged_upgraded_and_rolled_back_as_one() {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let firmware = if variable("RACKSTEP_FIRMWARE") == "uefi" { Firmware::Uefi } else { Firmware::Bios };
    let mut story = begin("RACKSTEP_STORY_REPO");
    let first = story.compose("first release", &checkout("host-image/openstack-host.yaml"), "1.0.0").unwrap();
    let network = Rack::network().unwrap();
    let mut rack = Rack::start(&network, &story, &first.version, firmware).unwrap();
    story.on = rack.runs_on();
    story.timed("imaging over PXE", || rack.image_machine(IMAGING, &Plain)).unwrap();
    if variable("RACKSTEP_UNTIL") == "ssh" {
        story.timed("first boot to ssh", || rack.wait_for_shell(BOOT)).unwrap();
        let status = rack.host().status().unwrap();
        assert_eq!(status.booted.unwrap().to_string(), first.commit);
        println!("{}", story.render_timings());
        return;
    }
    let host = rack.host();
    let services = |commit: &str| host.wait_until_services_run(commit, BOOT, &Plain).unwrap();
    let before = story.timed("first boot to services", || services(&first.commit));
    before.require_exactly(&first).unwrap();
    host.require_token().unwrap();
    rack.require_ready().unwrap();
    if variable("RACKSTEP_UNTIL") == "services" {
        println!("{}", story.render_timings());
        return;
    }

    let second =
        story.compose("second release", &checkout("tests/releases/openstack-host-2.yaml"), "2.0.0").unwrap();
    assert_ne!(first.commit, second.commit);
    let prepared =
        story.timed("upgrade (prepare)", || host.rackstep_json(&["upgrade", "--json"], &Plain)).unwrap();
    story.pulled = prepared["bytes_pulled"].as_u64();
    assert!(story.pulled > Some(0), "{prepared:#}");
    assert_eq!(
        host.next_boot().unwrap(),
        first.commit,
        "upgrade without --commit leaves the next boot alone"
    );

    let upgrade = story
        .timed("upgrade --commit", || host.rackstep_json(&["upgrade", "--commit", "--json"], &Plain))
        .unwrap();
    assert_eq!(upgrade["bytes_pulled"], 0, "what is prepared is not pulled again");
    assert_eq!(host.next_boot().unwrap(), second.commit);
    let after = story.timed("reboot into the second release", || {
        rack.reboot_machine().unwrap();
        services(&second.commit)
    });
    after.require_exactly(&second).unwrap();
    host.require_token().unwrap();
    assert_ne!(before.kernel, after.kernel);
    assert_ne!(before.keystone_version, after.keystone_version);
    assert_ne!(before.keystone_image, after.keystone_image);

    rack.stop_server();
    story.timed("rollback", || host.rackstep(&["rollback"], &Plain)).unwrap();
    let back = story.timed("reboot into the first release", || {
        rack.reboot_machine().unwrap();
        services(&first.commit)
    });
    back.require_exactly(&first).unwrap();
    host.require_token().unwrap();
    assert_eq!(back, before);

    let seen = [("before", &before), ("after the upgrade", &after), ("after the rollback", &back)];
    println!("{}", story.render_table(&[&first, &second], &seen));
}
