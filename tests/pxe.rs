//! Machines boot over the network from a real rack server: dnsmasq, iPXE and firmware as they are; only the release is a stub.
//!
//! 1. A BIOS machine is given kernel and initramfs out of the release commit; its installer looks, gets an order, reports;
//! 2. after its reboot, netboot sends it to its disk; the booted disk calls home;
//! 3. a UEFI machine goes the same way by the firmware's own PXE; 4. an unknown machine is not touched, and listed.
#![allow(clippy::unwrap_used)] // a failed unwrap is a failed test

use std::fs;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rackstep::lab::machine::{DiskSpec, Firmware, Machine, MachineSpec, Network, tiny};
use rackstep::model::progress::Silent;
use rackstep::ostree::repo::{CommitOptions, Mode, Repo};
use rackstep::rim::wait::poll;
use serde_json::Value;

const SERVER: &str = "10.77.0.1";
/// From power on to what an installer does, emulated on a busy machine; UEFI firmware alone takes half of it.
const BOOT: Duration = Duration::from_secs(240);
const SOON: Duration = Duration::from_secs(30);
const DISK: u64 = 9 << 30;

/// Does what the installer does on the wire, and nothing to the disk.
const INSTALLER: &str = r#"
for word in $(cat /proc/cmdline); do case $word in
rackstep.server=*) server=${word#*=} ;; rackstep.mac=*) mac=${word#*=} ;; rackstep.ip=*) ip=${word#*=} ;;
rackstep.secret=*) secret=${word#*=} ;;
esac; done
ip link set eth0 up; ip address add $ip dev eth0
url=$server/v1/machines/$(echo $mac | tr : -)
uefi=false; [ -d /sys/firmware/efi ] && uefi=true
disk="{\"name\":\"vda\",\"size\":$(($(cat /sys/block/vda/size)*512)),\"sector\":512,\"model\":null,\"serial\":\"$(cat /sys/block/vda/serial)\",\"wwn\":null,\"by_path\":[],\"rotational\":false,\"removable\":false,\"transport\":\"virtio\",\"contents\":[]}"
post() { wget -q -O - --header 'Content-Type: application/json' --header "Authorization: Bearer $secret" --post-data "$2" $url/$1; echo; }
post inventory "{\"uuid\":null,\"serial\":null,\"uefi\":$uefi,\"memory\":1,\"cpus\":1,\"disks\":[$disk]}" | tee /answer
order=$(sed 's/.*"order":"\([^"]*\)".*/\1/' /answer)
post events "{\"order\":\"$order\",\"step\":\"done\",\"message\":\"stub\",\"progress\":null}"
echo "stub installer is through with $order; its secret is $secret."
reboot -f
"#;

/// A boot sector that says what it is on the serial port, and stops.
fn boot_sector() -> Vec<u8> {
    let text = b"THE DISK BOOTS\r\n\0";
    let mut code = vec![
        0xbe, 0x18, 0x7c, // mov si, text
        0xac, // next: lodsb
        0x84, 0xc0, // test al, al
        0x74, 0x0a, // jz stop
        0xb4, 0x01, // mov ah, 1 (send on a serial port)
        0x31, 0xd2, // xor dx, dx
        0xcd, 0x14, // int 14h
        0xeb, 0xf3, // jmp next
        0x90, 0x90, // padding
        0xf4, // stop: hlt
        0xeb, 0xfd, // jmp stop
        0x90, 0x90, 0x90,
    ];
    assert_eq!(code.len(), 0x18);
    code.extend_from_slice(text);
    code.resize(510, 0);
    code.extend_from_slice(&[0x55, 0xaa]);
    code
}

struct Bench {
    server: Child,
    network: Network,
    dir: tempfile::TempDir,
    commit: String,
}

impl Bench {
    /// A repo with a stub release, and `rackstep serve` on it in a network of its own.
    fn start(hosts: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let kernel = tiny::kernel().unwrap();
        let tree = dir.path().join("tree");
        let modules = tree.join("usr/lib/modules/6.1.0");
        fs::create_dir_all(&modules).unwrap();
        fs::copy(&kernel.vmlinuz, modules.join("vmlinuz")).unwrap();
        tiny::initramfs(
            &kernel,
            "/usr/lib/rackstep/installer-init",
            INSTALLER,
            &modules.join("initramfs.img"),
        )
        .unwrap();
        let repo = Repo::create(&dir.path().join("repo"), Mode::Archive).unwrap();
        let options = CommitOptions { reference: Some("stub/host".parse().unwrap()), ..Default::default() };
        let commit = repo.commit_tree(&tree, &options, &Silent).unwrap().commit.hex();

        let network = Network::create(&format!("{SERVER}/24")).unwrap();
        let rack = dir.path().join("rack.yaml");
        let text = format!(
            "name: test\nnetwork: {{interface: rack0, address: {SERVER}/24, range: [10.77.0.100, 10.77.0.199]}}\n\
             ssh_keys: []\nprofiles:\n  stub: {{ref: stub/host, kernel_arguments: [\"console=ttyS0,115200n8\", quiet]}}\nhosts:\n{hosts}"
        );
        fs::write(&rack, text).unwrap();
        let log = fs::File::create(dir.path().join("serve.log")).unwrap();
        let server = network
            .command(env!("CARGO_BIN_EXE_rackstep"))
            .arg("serve")
            .arg("--rack")
            .arg(&rack)
            .arg("--repo")
            .arg(dir.path().join("repo"))
            .arg("--state")
            .arg(dir.path().join("state"))
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let bench = Self { server, network, dir, commit };
        if let Err(error) = bench.network.wait_for_port(SERVER, 8080, SOON) {
            panic!("{error}\n{}", bench.log());
        }
        bench
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("serve.log")).unwrap()
            + &fs::read_to_string(self.dir.path().join("state/dnsmasq.log")).unwrap_or_default()
    }

    fn machine(&self, name: &str, mac: &str, firmware: Firmware) -> Machine<'_> {
        let dir = self.dir.path().join(name);
        fs::create_dir_all(&dir).unwrap();
        let disk = DiskSpec::create_raw(dir.join("disk"), DISK, &format!("{name}-disk")).unwrap();
        write_at_start(&disk.path, &boot_sector());
        let mut spec = MachineSpec::new(name, dir);
        spec.mac = mac.to_owned();
        spec.firmware = firmware;
        spec.memory_mib = 512;
        spec.cpus = 1;
        spec.disks.push(disk);
        Machine::new(&self.network, spec).unwrap()
    }

    fn curl(&self, arguments: &[&str]) -> String {
        let output = self.network.command("curl").args(["-sS", "-m", "20"]).args(arguments).output().unwrap();
        assert!(output.status.success(), "curl {arguments:?}: {output:?}\n{}", self.log());
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn machines(&self) -> Vec<Value> {
        let view: Value = serde_json::from_str(&self.curl(&["http://10.77.0.1:8080/v1/machines"])).unwrap();
        assert_eq!(view["version"], 1);
        view["machines"].as_array().unwrap().clone()
    }

    fn state(&self, mac: &str) -> String {
        let machines = self.machines();
        let machine = machines.iter().find(|machine| machine["mac"] == mac);
        machine.map_or("absent".to_owned(), |machine| machine["state"].as_str().unwrap().to_owned())
    }

    fn wait_for_state(&self, mac: &str, state: &str) {
        let found = poll(SOON, || Ok::<_, ()>((self.state(mac) == state).then_some(()))).unwrap();
        assert!(found.is_some(), "{mac} is {}, expected {state}\n{}", self.state(mac), self.log());
    }

    /// Presses Ctrl-C and gives the server's exit status.
    fn interrupt_server(&mut self) -> ExitStatus {
        let pid = self.server.id().to_string();
        assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
        let ended = poll(SOON, || self.server.try_wait()).unwrap();
        ended.unwrap_or_else(|| panic!("the server goes on after Ctrl-C\n{}", self.log()))
    }

    fn processes(&self) -> String {
        let output = Command::new("ip").args(["netns", "pids", self.network.name()]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn must<T>(&self, result: Result<T, impl std::fmt::Display>) -> T {
        result.unwrap_or_else(|error| panic!("{error}\n\nrack server:\n{}", self.log()))
    }
}

fn write_at_start(path: &Path, bytes: &[u8]) {
    use std::io::Write;
    fs::OpenOptions::new().write(true).open(path).unwrap().write_all(bytes).unwrap();
}

const BIOS_MAC: &str = "52:54:00:00:00:01";
const UEFI_MAC: &str = "52:54:00:00:00:02";
const STRANGER: &str = "52:54:00:00:00:99";

#[test]
fn bios_machine_is_imaged_once_and_strangers_never() {
    let mut bench = Bench::start(&format!(
        "  - {{name: one, mac: \"{BIOS_MAC}\", profile: stub, address: 10.77.0.11/24, disk: {{serial: one-disk}}}}\n"
    ));
    let mut one = bench.machine("one", BIOS_MAC, Firmware::Bios);
    let mut stranger = bench.machine("stranger", STRANGER, Firmware::Bios);
    bench.must(one.power_on());
    bench.must(stranger.power_on());

    bench.must(stranger.wait_for_console("not in the rack file; not touched", BOOT));
    bench.must(stranger.wait_for_console("THE DISK BOOTS", BOOT));
    assert_eq!(bench.state(STRANGER), "unknown");
    bench.must(stranger.power_cut());

    bench.must(one.wait_for_console("starts the installer of release", BOOT));
    bench.must(one.wait_for_console("stub installer is through with one.0.1", BOOT));
    bench.wait_for_state(BIOS_MAC, "imaged");
    bench.must(one.wait_for_console("one is imaged; boots from its disk", BOOT));
    bench.must(one.wait_for_console("THE DISK BOOTS", BOOT));

    let report = format!(r#"{{"commit":"{}","images":[],"ready":true}}"#, bench.commit);
    let url = "http://10.77.0.1:8080/v1/machines/52-54-00-00-00-01/booted";
    let console = one.console();
    let secret = console.split("its secret is ").nth(1).unwrap().split('.').next().unwrap();
    let secret = format!("Authorization: Bearer {secret}");
    bench.curl(&["-f", "-H", "Content-Type: application/json", "-H", &secret, "-d", &report, url]);
    assert_eq!(bench.state(BIOS_MAC), "ready");
    bench.must(one.reset());
    bench.must(one.wait_for_console("one is installed; boots from its disk", BOOT));
    bench.must(one.wait_for_console("THE DISK BOOTS", BOOT));

    // The server keeps what it knows; firmware asks for the length first.
    let head = bench.curl(&["-fI", &format!("http://10.77.0.1:8080/boot/{}/vmlinuz", bench.commit)]);
    let size = fs::metadata(tiny::kernel().unwrap().vmlinuz).unwrap().len();
    assert!(head.contains(&format!("content-length: {size}")), "{head}");
    let config = bench.curl(&["-f", "http://10.77.0.1:8080/repo/config"]);
    assert!(config.contains("mode=archive"), "{config}");
    let page = bench.curl(&["-f", "http://10.77.0.1:8080/"]);
    assert!(page.contains("Rack test") && page.contains(STRANGER), "{page}");

    drop((one, stranger));
    assert!(bench.interrupt_server().success(), "{}", bench.log());
    assert_eq!(bench.processes(), "", "dnsmasq outlived the server");
    assert!(bench.log().contains("unknown     52:54:00:00:00:99 is not in the rack file"), "{}", bench.log());
}

#[test]
fn uefi_machine_is_imaged_and_then_boots_its_disk() {
    let bench = Bench::start(&format!(
        "  - {{name: two, mac: \"{UEFI_MAC}\", profile: stub, disk: {{min_size: 1000000}}}}\n"
    ));
    let mut two = bench.machine("two", UEFI_MAC, Firmware::Uefi);
    bench.must(two.power_on());
    bench.must(two.wait_for_console("starts the installer of release", BOOT));
    bench.must(two.wait_for_console("stub installer is through with two.0.1", BOOT));
    bench.must(two.wait_for_console("two is imaged; boots from its disk", BOOT));
    // The disk holds no EFI program: that the firmware tries it is what counts.
    bench.must(two.wait_for_console("UEFI Misc Device", BOOT));
    bench.wait_for_state(UEFI_MAC, "imaged");
}
