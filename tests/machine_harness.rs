//! The harness for machine tests, tried on a kernel and a shell script: console, network, power.
#![allow(clippy::unwrap_used)] // a failed unwrap is a failed test

use std::time::Duration;

use rackstep::lab::machine::{
    Boot, DiskSpec, Machine, MachineError, MachineSpec, Network, Ssh, SshKey, tiny,
};

/// A bare kernel under TCG on a busy machine.
const BOOT: Duration = Duration::from_secs(120);
const SOON: Duration = Duration::from_secs(20);

const INIT: &str = "
ip link set lo up; ip link set eth0 up; ip address add 10.78.0.2/24 dev eth0
echo disk serial: $(cat /sys/block/vda/serial)
httpd -p 8000 -h /etc
echo tiny machine is up
read line
";

#[test]
fn a_machine_boots_speaks_and_loses_power() {
    let dir = tempfile::tempdir().unwrap();
    let kernel = tiny::kernel().unwrap();
    let initramfs = dir.path().join("initramfs");
    tiny::initramfs(&kernel, "/init", INIT, &initramfs).unwrap();

    let network = Network::create("10.78.0.1/24").unwrap();
    let name = network.name().to_owned();
    let mut spec = MachineSpec::new("tiny", dir.path().join("tiny"));
    spec.memory_mib = 256;
    spec.disks.push(DiskSpec::create_raw(dir.path().join("disk"), 1 << 20, "serial-7").unwrap());
    let arguments = "console=ttyS0 quiet panic=-1".to_owned();
    spec.boot = Boot::Kernel { kernel: kernel.vmlinuz, initramfs, arguments };
    let mut machine = Machine::new(&network, spec).unwrap();

    machine.power_on().unwrap();
    machine.wait_for_console("disk serial: serial-7", BOOT).unwrap();
    machine.wait_for_console("tiny machine is up", BOOT).unwrap();
    machine.wait_for_port("10.78.0.2", 8000, SOON).unwrap();
    assert!(network.wait_for_port("10.78.0.2", 8001, Duration::ZERO).is_err());

    // No ssh server: the client's failure is an answer, not an error.
    let key = SshKey::create(dir.path()).unwrap();
    assert!(key.public.starts_with("ssh-ed25519 "));
    assert!(!Ssh::new(&network, &key, "root", "10.78.0.2").run("true").unwrap().status.success());

    machine.reset().unwrap();
    machine.wait_for_console("tiny machine is up", BOOT).unwrap();

    machine.quit().unwrap();
    assert!(!machine.is_on().unwrap());
    let error = machine.wait_for_console("never said", SOON).unwrap_err();
    assert!(matches!(&error, MachineError::PoweredOff { .. }), "{error}");
    assert!(error.to_string().contains("tiny machine is up"), "the console's tail is missing: {error}");

    drop(machine);
    drop(network);
    assert!(!std::path::Path::new("/run/netns").join(name).exists());
}

#[test]
fn the_network_of_a_dead_run_is_removed() {
    // Process 1 has not started at tick 1: a name that only a dead run can have left.
    let stale = "rackstep-1-1-0";
    let made = std::process::Command::new("ip").args(["netns", "add", stale]).status().unwrap();
    assert!(made.success());
    let network = Network::create("10.79.0.1/24").unwrap();
    assert!(!std::path::Path::new("/run/netns").join(stale).exists());
    assert!(std::path::Path::new("/run/netns").join(network.name()).exists());
}
