//! The main job on real parts: compose two releases, image a blank machine over PXE, upgrade it, roll it back.
//!
//! 1. lock and compose both releases of the OpenStack host into one repo;
//! 2. a rack server in a network namespace images a blank virtual machine with the first;
//! 3. on the machine: the composed commit is booted, every container runs its pinned image, keystone issues a token;
//! 4. `upgrade` leaves the next boot alone; `upgrade --commit` and a reboot give the second release, all of it;
//! 5. with the rack server stopped, `rollback` and a reboot give the first release back, all of it.
//!
//! Ends with a table of what was seen. `make demo` shows it; needs root.
#![allow(clippy::unwrap_used)] // a failed unwrap is a failed test

mod support;

use std::time::Duration;

use rackstep::lab::machine::Network;
use support::rack::{Rack, SERVER};
use support::story::Story;

/// From power on to the installed host's call home. Emulated processors are slow.
const IMAGING: Duration = Duration::from_secs(20 * 60);
/// From a restart to all services running.
const BOOT: Duration = Duration::from_secs(30 * 60);

#[test]
fn imaged_upgraded_and_rolled_back_as_one() {
    let mut story = Story::begin("RACKSTEP_STORY_REPO");
    let first = story.compose("first release", "host-image/openstack-host.yaml", "1.0.0");
    let second = story.compose("second release", "tests/releases/openstack-host-2.yaml", "2.0.0");
    assert_ne!(first.commit, second.commit);

    let network = Network::create(SERVER).unwrap();
    let mut rack = Rack::start(&network, &story, &first.version);
    story.timed("imaging over PXE", || rack.image_machine(IMAGING));
    let host = rack.host();
    let before = story.timed("first boot to services", || host.wait_until_services_run(&first.commit, BOOT));
    before.require_exactly(&first);
    host.require_token();
    rack.require_ready();

    let prepared = story.timed("upgrade (prepare)", || host.rackstep_json(&["upgrade", "--json"]));
    story.pulled = prepared["bytes_pulled"].as_u64();
    assert!(story.pulled > Some(0), "{prepared:#}");
    assert_eq!(host.next_boot(), first.commit, "upgrade without --commit leaves the next boot alone");

    let upgrade = story.timed("upgrade --commit", || host.rackstep_json(&["upgrade", "--commit", "--json"]));
    assert_eq!(upgrade["bytes_pulled"], 0, "what is prepared is not pulled again");
    assert_eq!(host.next_boot(), second.commit);
    let after = story.timed("reboot into the second release", || {
        rack.reboot_machine();
        host.wait_until_services_run(&second.commit, BOOT)
    });
    after.require_exactly(&second);
    host.require_token();
    assert_ne!(before.kernel, after.kernel);
    assert_ne!(before.keystone_version, after.keystone_version);
    assert_ne!(before.keystone_image, after.keystone_image);

    rack.stop_server();
    story.timed("rollback", || host.rackstep(&["rollback"]));
    let back = story.timed("reboot into the first release", || {
        rack.reboot_machine();
        host.wait_until_services_run(&first.commit, BOOT)
    });
    back.require_exactly(&first);
    host.require_token();
    assert_eq!(back, before);

    story.print_table(
        &[&first, &second],
        &[("before", &before), ("after the upgrade", &after), ("after the rollback", &back)],
    );
}
