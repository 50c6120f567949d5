//! `rackstep cluster` with libvirt's machines: the verbs that `tests/cluster.rs` tries with QEMU's, on a real libvirtd of the
//! test's own (`support/libvirt.rs`).
//!
//! Needs root, libvirtd, virsh, and what `tests/install_disk.rs` needs.

#![allow(clippy::unwrap_used)]

use std::process::{Command, Stdio};

use rackstep::lab::machine::{Hypervisor, Network};
use rackstep::rim::wait::poll;

#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/installable.rs"]
mod installable;
#[path = "support/libvirt.rs"]
mod libvirt;

use cluster::{Cluster, SOON, code, interrupt, power, powers};
use installable::{run, stderr};
use libvirt::Libvirt;

/// Nothing speaks to it: the machines have a network of libvirt's.
const BRIDGE: &str = "10.83.0.1/24";

/// A cluster, and the libvirtd that has its machines; that ends with everything that it started.
struct Laptop {
    cluster: Cluster,
    libvirt: Libvirt,
    network: Network,
    _work: tempfile::TempDir,
}

impl Laptop {
    fn new(name: &str, platform: &'static str) -> Self {
        let (network, work) = (Network::create(BRIDGE).unwrap(), tempfile::tempdir().unwrap());
        let libvirt = Libvirt::start(&network, work.path());
        Self { cluster: Cluster::new(name, platform), libvirt, network, _work: work }
    }

    fn rackstep(&self, verb: &str, more: &[&str]) -> Command {
        self.cluster.ask(self.libvirt.command(env!("CARGO_BIN_EXE_rackstep")), verb, more)
    }

    fn say(&self, verb: &str, more: &[&str]) -> String {
        String::from_utf8(run(&mut self.rackstep(verb, more)).stdout).unwrap()
    }

    fn virsh(&self, arguments: &[&str]) -> String {
        let said = run(self.libvirt.command("virsh").arg("--quiet").args(arguments)).stdout;
        String::from_utf8(said).unwrap().trim().to_owned()
    }

    fn domain(&self, machine: &str) -> String {
        format!("rackstep-cluster-{}-{machine}", self.cluster.name)
    }

    /// A number that a domain has for as long as it runs.
    fn id(&self, machine: &str) -> Option<String> {
        let mut virsh = self.libvirt.command("virsh");
        let asked = virsh.args(["--quiet", "domid", &self.domain(machine)]).output().unwrap();
        asked.status.success().then(|| String::from_utf8(asked.stdout).unwrap().trim().to_owned())
    }

    fn powers(&self) -> Vec<(String, String)> {
        powers(self.rackstep("status", &["--json"]))
    }

    fn is_gone(&self) -> bool {
        let left = [self.virsh(&["list", "--all", "--name"]), self.virsh(&["net-list", "--all", "--name"])];
        let links =
            String::from_utf8(run(self.libvirt.command("ip").args(["-brief", "link"])).stdout).unwrap();
        left.iter().all(String::is_empty)
            && !links.contains("rs-")
            && !self.cluster.home().exists()
            && !self.cluster.has_processes()
    }
}

#[test]
fn machines_on_libvirt_come_go_and_come_back() {
    let laptop = Laptop::new("whole", "auto");
    laptop.cluster.write(1);

    let planned = laptop.say("up", &["--dry-run"]);
    assert!(planned.contains("  2. make the network\n  3. make control and switch it on\n"), "{planned}");
    assert!(planned.ends_with("state: nothing changed; it would be done on libvirt\n"), "{planned}");
    assert!(laptop.is_gone());

    let made = laptop.say("up", &["--until=power"]);
    assert!(made.contains("is up on libvirt: 2 machines"), "{made}");
    assert_eq!(laptop.powers(), [power("control", "on"), power("compute-1", "on")]);
    let (control, compute) = (laptop.id("control").unwrap(), laptop.id("compute-1").unwrap());
    let xml = laptop.virsh(&["dumpxml", &laptop.domain("control")]);
    assert!(xml.contains("<entry>io.systemd.credential:system.hostname=control</entry>"), "{xml}");
    assert!(xml.contains("<memory unit='KiB'>262144</memory>"), "{xml}");
    assert!(
        !std::path::Path::new("/run/netns")
            .join(format!("rackstep-cluster-{}", laptop.cluster.name))
            .exists()
    );

    // Again: nothing is started anew, and nobody else takes over.
    let again = laptop.say("up", &["--until=power"]);
    assert!(again.contains("on libvirt: all of its 2 machines are on"), "{again}");
    assert_eq!((laptop.id("control"), laptop.id("compute-1")), (Some(control.clone()), Some(compute)));
    let elsewhere = laptop.rackstep("up", &["--platform=qemu"]).output().unwrap();
    assert_eq!(code(&elsewhere), 3, "{}", stderr(&elsewhere));
    assert!(
        stderr(&elsewhere).contains("its machines are on libvirt, not on QEMU"),
        "{}",
        stderr(&elsewhere)
    );

    // One is switched off by hand, another one is new; the third runs on.
    laptop.virsh(&["destroy", &laptop.domain("compute-1")]);
    assert_eq!(laptop.powers(), [power("control", "on"), power("compute-1", "off")]);
    laptop.cluster.write(2);
    laptop.say("up", &["--until=power"]);
    let all = [power("control", "on"), power("compute-1", "on"), power("compute-2", "on")];
    assert_eq!(laptop.powers(), all);
    assert_eq!(laptop.id("control"), Some(control.clone()));

    // What is stopped takes back the machine that it made, and no other.
    laptop.cluster.write(3);
    let mut up = laptop.rackstep("up", &["--until=ssh"]);
    let up = up.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let Ok(new) = poll(SOON, || Ok::<_, std::convert::Infallible>(laptop.id("compute-3")));
    assert!(new.is_some());
    interrupt(&up);
    let stopped = up.wait_with_output().unwrap();
    assert_eq!(code(&stopped), 130, "{}", stderr(&stopped));
    assert_eq!((laptop.id("compute-3"), laptop.id("control")), (None, Some(control)));
    assert_eq!(laptop.powers(), all);

    let refused = laptop.rackstep("rollback", &[]).output().unwrap();
    assert_eq!(code(&refused), 3, "{}", stderr(&refused));
    assert!(stderr(&refused).contains("control does not answer"), "{}", stderr(&refused));

    laptop.say("down", &[]);
    assert!(laptop.is_gone());
}

#[test]
fn machines_on_libvirt_get_their_addresses_and_know_each_other() {
    let laptop = Laptop::new("tiny", "libvirt");
    laptop.cluster.write(1);
    let libvirt = rackstep::lab::machine::Libvirt::at(&laptop.libvirt.uri()).unwrap();
    let start = || laptop.cluster.start_tiny(&Hypervisor::Libvirt(libvirt));
    laptop.network.inside(start).unwrap();
    laptop.cluster.wait_until_known(&laptop.network);

    laptop.say("down", &[]);
    assert!(laptop.is_gone());
}
