//! A disk image of a real release, booted: the release named by `RACKSTEP_RELEASE` in the repo `RACKSTEP_REPO`, which
//! `make demo` or `rackstep compose` made. It must come up as a machine that nobody described beforehand.
//!
//! `RACKSTEP_REPO=/srv/repo RACKSTEP_RELEASE=1.0.0 cargo test --test box_boot -- --ignored --nocapture`; needs root.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::io::Write as _;
use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rackstep::lab::machine::{
    Boot, DiskFormat, DiskSpec, Machine, MachineError, MachineSpec, Network, Ssh, SshKey,
};
use rackstep::rim::wait::poll;
use serde_json::Value;

const SERVER: &str = "10.79.0.1/24";
const MAC: &str = "52:54:00:79:00:05";
/// What its network gives it.
const LEASE: Ipv4Addr = Ipv4Addr::new(10, 79, 0, 50);
/// Emulated processors, busy.
const BOOT: Duration = Duration::from_secs(20 * 60);

#[test]
#[ignore = "needs a composed release: RACKSTEP_REPO and RACKSTEP_RELEASE"]
fn a_disk_image_comes_up_by_dhcp_and_lets_its_key_in() {
    let variable = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
    let dir = tempfile::tempdir().unwrap();
    let key = SshKey::create(dir.path()).unwrap();
    let began = Instant::now();
    let made = Command::new(env!("CARGO_BIN_EXE_rackstep"))
        .args(["box", &variable("RACKSTEP_RELEASE"), "--repo", &variable("RACKSTEP_REPO")])
        .args(["--format=qcow2", "--json", "--output"])
        .arg(dir.path())
        .arg("--ssh-keys")
        .arg(key.private.with_extension("pub"))
        .stderr(std::process::Stdio::inherit())
        .output()
        .unwrap();
    assert!(made.status.success());
    let made: Value = serde_json::from_slice(&made.stdout).unwrap();
    println!("image: {} s, {} MB", began.elapsed().as_secs(), made["bytes"].as_u64().unwrap() / 1_000_000);

    let network = Network::create(SERVER).unwrap();
    let _dhcp = Dhcp::start(&network);
    let mut spec = MachineSpec::new("box", dir.path().join("box"));
    (spec.memory_mib, spec.mac, spec.boot) = (3072, MAC.into(), Boot::Disk);
    spec.disks.push(DiskSpec {
        path: made["file"].as_str().unwrap().into(),
        format: DiskFormat::Qcow2,
        serial: "box".into(),
    });
    let mut machine = Machine::new(&network, spec).unwrap();
    let began = Instant::now();
    machine.power_on().unwrap();
    let ssh = Ssh::new(&network, &key, "root", &LEASE.to_string());
    machine.wait_for_ssh(&ssh, BOOT).unwrap();
    println!("power on to ssh: {} s", began.elapsed().as_secs());

    let status: Value = serde_json::from_str(&ssh.text("rackstep status --json").unwrap()).unwrap();
    assert_eq!(status["booted"], made["commit"]);
    assert!(ssh.text("cat /proc/cmdline").unwrap().contains("console=ttyS0,115200n8"));
    assert!(!ssh.run("test -e /etc/hostname").unwrap().status.success());
    let identity = ssh.text("cat /etc/machine-id").unwrap();
    assert!(identity.len() == 32 && identity.bytes().all(|byte| byte.is_ascii_hexdigit()), "{identity}");

    let began = Instant::now();
    let rot = |name: &str| ssh.text(&format!("cat /run/rot/{name}"));
    let running = |service: &Value| service["running"] == service["expected"];
    let services = poll(BOOT, || {
        let status = ssh
            .text("rackstep status --json")
            .ok()
            .and_then(|text| serde_json::from_str::<Value>(&text).ok());
        let services = status.and_then(|status| status["services"].as_array().cloned()).unwrap_or_default();
        Ok::<_, MachineError>(
            (!services.is_empty() && services.iter().all(running)).then_some(services.len()),
        )
    });
    println!("services: {:?} after {} s more", services.unwrap().unwrap(), began.elapsed().as_secs());

    // The release may be older than the program that is tested.
    let program = dir.path().join("rackstep");
    let stripped =
        Command::new("strip").args(["-o"]).arg(&program).arg(env!("CARGO_BIN_EXE_rackstep")).status();
    assert!(stripped.unwrap().success());
    send(&ssh, &std::fs::read(&program).unwrap(), "/var/tmp/rackstep-tested");
    send(&ssh, include_bytes!("support/rot.sh"), "/run/rot.sh");
    let began = Instant::now();
    ssh.text("systemd-run --unit=rot sh /run/rot.sh /var/tmp/rackstep-tested").unwrap();
    let done = poll(ROT, || Ok::<_, MachineError>(rot("done").ok())).unwrap();
    assert!(done.is_some(), "the machine did not come back");
    let step = |name: &str| -> Value { serde_json::from_str(&rot(name).unwrap()).unwrap() };
    println!("two bytes: {} s; {}", began.elapsed().as_secs(), rot("file").unwrap());
    assert_eq!(rot("routes").unwrap().trim(), "", "there was a network");
    let found = step("repo-found");
    assert_eq!(
        (&found["code"], found["answer"]["bad_files"].as_array().unwrap().len()),
        (&3.into(), 1),
        "{found}"
    );
    let mended = step("repo-mended");
    assert_eq!(
        (&mended["code"], &mended["answer"]["mended"]["files_from_docker"]),
        (&0.into(), &1.into()),
        "{mended}"
    );
    assert_eq!(rot("repo-same").unwrap().trim(), "same");
    let found = step("docker-found");
    assert_eq!(found["code"], 3, "{found}");
    let mended = step("docker-mended");
    assert_eq!(mended["code"], 0, "{mended}");
    assert!(mended["answer"]["mended"]["images_replaced"].as_u64().unwrap() >= 1, "{mended}");
    println!("{found}\n{mended}");
}

/// Writes a file on the machine that can be run.
fn send(ssh: &Ssh<'_>, bytes: &[u8], path: &str) {
    let mut command = ssh.command(&format!("cat >{path} && chmod 755 {path}"));
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    assert!(child.wait().unwrap().success());
}

/// Reading a release four times, emulated.
const ROT: Duration = Duration::from_secs(40 * 60);

/// The network's own DHCP, ended by its id.
struct Dhcp(Child);

impl Dhcp {
    fn start(network: &Network) -> Self {
        let mut dnsmasq = network.command("dnsmasq");
        dnsmasq.args([
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--user=root",
            "--port=0",
            "--leasefile-ro",
        ]);
        dnsmasq.args(["--pid-file", "--dhcp-authoritative", &format!("--dhcp-range={LEASE},{LEASE}")]);
        dnsmasq.arg(format!("--dhcp-host={MAC},{LEASE}"));
        Self(dnsmasq.spawn().unwrap())
    }
}

impl Drop for Dhcp {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
