//! The host's whole life with real releases, on this machine's own kernel: first boot, upgrade, rollback, power cut, each real
//! but for kernel, boot loader and firmware (`tests/machine_story.rs` has those).
//!
//! `RACKSTEP_STORY_REPO` may name a repo that has both releases already. Needs root.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod support;

use std::fs;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::Duration;

use rackstep::lab::cluster::Home;
use rackstep::lab::machine::container::storage::loops_of;
use rackstep::lab::machine::container::{Container, cgroup};
use rackstep::lab::machine::{Network, Ssh, SshKey};
use rackstep::lab::story::{Host, Observed, Plain, Story};
use rackstep::rack::repo::RepoServer;
use support::story::{begin, checkout};

/// On a machine that composes other things beside it.
const BOOT: Duration = Duration::from_secs(5 * 60);
const CONTROL: &str = "10.90.0.11";
const COMPUTE: &str = "10.90.0.101";

/// A cluster in a directory, taken down whatever happens.
struct Cluster {
    dir: tempfile::TempDir,
    name: String,
}

impl Cluster {
    fn new() -> Self {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        Self { dir, name: format!("containers-{}", std::process::id()) }
    }

    fn write(&self, story: &Story<'_>, computes: u32) {
        let text = format!(
            "name: {}\nrepo: {}\nrelease: 1.0.0\nplatform: container\ndisk: 12\ntrusted_keys: {:?}\n\
             control: {{memory: 2048, cpus: 2}}\ncompute: {{count: {computes}, memory: 2048, cpus: 2}}\n",
            self.name,
            story.repo().display(),
            story.trusted_keys().unwrap(),
        );
        fs::write(self.dir.path().join("cluster.yaml"), text).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = support::story::rackstep();
        command.arg("cluster").args(arguments).current_dir(self.dir.path());
        command.env("XDG_STATE_HOME", self.dir.path()).stdin(Stdio::null());
        command
    }

    fn say(&self, arguments: &[&str]) -> String {
        support::story::run(&mut self.command(arguments))
    }

    fn home(&self) -> Home {
        Home::new(&self.dir.path().join("rackstep/clusters"), &self.name)
    }

    fn ssh<'n>(&self, network: &'n Network, address: &str) -> Ssh<'n> {
        Ssh::new(network, &SshKey::create(&self.home().dir).unwrap(), "root", address)
    }

    /// What is left of a machine's container.
    fn remains(&self, machine: &str) -> Vec<String> {
        let dir = self.home().machine_dir(machine);
        let mut found = loops_of(&dir.join("disk.raw"));
        let group = cgroup::of_host(&cgroup::hierarchy().unwrap(), &dir);
        found.extend(group.exists().then(|| group.display().to_string()));
        found.extend(Container::find(&dir).map(|_| machine.to_owned()));
        found
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let read =
                |file| fs::read_to_string(self.home().machine_dir("control").join(file)).unwrap_or_default();
            let console = read("console.log");
            let last: Vec<&str> = console.lines().rev().take(40).collect();
            let last: Vec<&str> = last.into_iter().rev().collect();
            eprintln!("launcher: {}\nconsole:\n{}", read("launcher.log"), last.join("\n"));
        }
        let _ = self.command(&["down"]).output();
    }
}

/// Runs a verb that ends with a restart of the host, and its connection with it.
fn restart(host: &Host<'_>, verb: &str) {
    let _ = host.ssh.run(verb);
}

#[test]
fn a_host_on_this_machines_kernel_is_upgraded_and_rolled_back_and_loses_its_power() {
    let mut story = begin("RACKSTEP_STORY_REPO");
    let first = story.compose("first release", &checkout("host-image/openstack-host.yaml"), "1.0.0").unwrap();
    let second =
        story.compose("second release", &checkout("tests/releases/openstack-host-2.yaml"), "2.0.0").unwrap();
    let cluster = Cluster::new();
    cluster.write(&story, 0);

    story.timed("disk of the release, and power on", || cluster.say(&["up", "--until=power"]));
    let network = Network::open(&cluster.home().network_name()).unwrap();
    let host = Host { network: &network, ssh: cluster.ssh(&network, CONTROL) };
    let services = |commit: &str| host.wait_until_services_run(commit, BOOT, &Plain).unwrap();
    let before = story.timed("first boot to services", || services(&first.commit));
    before.require_exactly(&first).unwrap();
    story.timed("a token", || host.require_token().unwrap());

    let bind = || TcpListener::bind("10.90.0.1:8080").unwrap();
    let server = RepoServer::start(network.inside(bind).unwrap(), "/", &story.repo()).unwrap();
    let prepared =
        story.timed("upgrade (prepare)", || host.rackstep_json(&["upgrade", "--json"], &Plain).unwrap());
    story.pulled = prepared["bytes_pulled"].as_u64();
    assert!(story.pulled > Some(0), "{prepared:#}");
    assert_eq!(
        host.next_boot().unwrap(),
        first.commit,
        "upgrade without --commit leaves the next boot alone"
    );
    let after = story.timed("upgrade --commit --reboot to services", || {
        restart(&host, "rackstep upgrade --commit --reboot");
        services(&second.commit)
    });
    after.require_exactly(&second).unwrap();
    host.require_token().unwrap();
    assert_ne!(before.keystone_version, after.keystone_version);
    story.timed("verify", || host.rackstep(&["verify"], &Plain).unwrap());

    push_a_program(&mut story, &cluster, &host);
    drop(server);
    let back = story.timed("rollback --reboot to services", || {
        restart(&host, "rackstep rollback --reboot");
        services(&first.commit)
    });
    back.require_exactly(&first).unwrap();
    assert_eq!(back, before);

    cut_power(&mut story, &cluster, &host, &first.commit, &before);
    add_a_second_host(&mut story, &cluster, &host);

    cluster.say(&["down"]);
    for machine in ["control", "compute-1"] {
        assert_eq!(cluster.remains(machine), Vec::<String>::new());
    }
    assert!(Network::open(network.name()).is_none());
    println!(
        "{}",
        story.render_table(
            &[&first, &second],
            &[("before", &before), ("after the upgrade", &after), ("after the rollback", &back)],
        )
    );
}

/// A developer's program lies over the release's, `status` says so, and it goes again.
fn push_a_program(story: &mut Story<'_>, cluster: &Cluster, host: &Host<'_>) {
    let began = std::time::Instant::now();
    story.timed("cluster push", || cluster.say(&["push", "control"]));
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    assert!(host.status().unwrap().unlocked.is_some());
    assert!(host.ssh.text("rackstep status").unwrap().contains("UNLOCKED"));
    // A second one takes the first one's place.
    cluster.say(&["push", "control"]);
    assert_eq!(host.ssh.text("grep -c ' /usr/bin/rackstep ' /proc/self/mountinfo").unwrap(), "1");
    cluster.say(&["push", "control", "--undo"]);
    assert_eq!(host.ssh.text("grep -c ' /usr/bin/rackstep ' /proc/self/mountinfo || true").unwrap(), "0");
}

fn cut_power(story: &mut Story<'_>, cluster: &Cluster, host: &Host<'_>, commit: &str, before: &Observed) {
    host.ssh.text("echo kept >/var/kept && sync && echo lost >/var/lost").unwrap();
    let cut = story.timed("power cut", || cluster.say(&["cut", "control"]));
    assert!(cut.contains("state: control is off"), "{cut}");
    assert_eq!(cluster.remains("control"), Vec::<String>::new());
    let again = story.timed("power on to services", || {
        cluster.say(&["up", "--until=power"]);
        host.wait_until_services_run(commit, BOOT, &Plain).unwrap()
    });
    assert_eq!(again, *before);
    assert_eq!(
        host.ssh.text("cat /var/kept; ls /var/lost 2>&1 || true").unwrap().lines().next(),
        Some("kept")
    );
    assert!(!host.ssh.run("test -e /var/lost").unwrap().status.success(), "it was not synced");
    host.require_token().unwrap();
    story.timed("verify after the power cut", || host.rackstep(&["verify"], &Plain).unwrap());
}

fn add_a_second_host(story: &mut Story<'_>, cluster: &Cluster, host: &Host<'_>) {
    cluster.write(story, 1);
    story.timed("a second host from the same base, to ssh", || cluster.say(&["up", "--until=ssh"]));
    assert_eq!(cluster.say(&["exec", "compute-1", "--", "hostname"]), "compute-1\n");
    host.ssh.text("echo mine >/etc/mine").unwrap();
    let other = cluster.ssh(host.network, COMPUTE);
    assert!(!other.run("test -e /etc/mine").unwrap().status.success());
    let named = other.text("getent hosts control").unwrap();
    assert!(named.starts_with(CONTROL), "{named}");
    let console = cluster.say(&["logs", "control"]);
    assert!(console.matches("rackstep: boots ").count() >= 4, "{console}");
}
