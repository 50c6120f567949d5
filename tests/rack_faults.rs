//! A rack server whose state disk is full: machines are answered all the same.
//!
//! The server and dnsmasq are the real ones in a network of the test's. Needs root, ip, curl, mount.
#![allow(clippy::unwrap_used)] // a failed unwrap is a failed test

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rackstep::lab::machine::Network;
use rackstep::model::progress::Silent;
use rackstep::ostree::repo::{CommitOptions, Mode, Repo};
use rackstep::rim::wait::poll;

const SERVER: &str = "10.77.0.1";
const SOON: Duration = Duration::from_secs(60);
const HOSTS: &str = "  - {name: one, mac: '52:54:00:00:00:01', profile: stub, disk: {serial: D1}}\n\
                     \x20 - {name: two, mac: '52:54:00:00:00:02', profile: stub, address: 10.77.0.12/24, disk: {serial: D2}}\n";

struct Rack {
    server: Option<Child>,
    network: Network,
    state: Tmpfs,
    dir: tempfile::TempDir,
}

/// A file system of one MiB in memory.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(path: PathBuf) -> Self {
        fs::create_dir_all(&path).unwrap();
        let mount = ["-t", "tmpfs", "-o", "size=1m,mode=700", "rackstep-test"];
        assert!(Command::new("mount").args(mount).arg(&path).status().unwrap().success());
        Self(path)
    }

    fn fill(&self) {
        use std::io::Write as _;
        let mut file = fs::File::create(self.0.join("filler")).unwrap();
        while file.write_all(&[7; 512]).is_ok() {}
    }

    fn free(&self) {
        fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-l".as_ref(), self.0.as_os_str()]).status();
    }
}

impl Rack {
    fn prepare() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let modules = dir.path().join("tree/usr/lib/modules/6.1.0");
        fs::create_dir_all(&modules).unwrap();
        for name in ["vmlinuz", "initramfs.img"] {
            fs::write(modules.join(name), vec![b'k'; 100_000]).unwrap();
        }
        let repo = Repo::create(&dir.path().join("repo"), Mode::Archive).unwrap();
        let options = CommitOptions { reference: Some("stub/host".parse().unwrap()), ..Default::default() };
        repo.commit_tree(&dir.path().join("tree"), &options, &Silent).unwrap();
        let text = format!(
            "name: test\nnetwork: {{interface: rack0, address: {SERVER}/24, range: [10.77.0.100, 10.77.0.109]}}\n\
             profiles:\n  stub: {{ref: stub/host}}\nhosts:\n{HOSTS}"
        );
        fs::write(dir.path().join("rack.yaml"), text).unwrap();
        let network = Network::create(&format!("{SERVER}/24")).unwrap();
        Self { server: None, network, state: Tmpfs::mount(dir.path().join("state")), dir }
    }

    fn serve(&mut self) {
        self.stop();
        let path = |name: &str| self.dir.path().join(name);
        let log = fs::File::create(path("serve.log")).unwrap();
        let mut command = self.network.command(env!("CARGO_BIN_EXE_rackstep"));
        command.args(["serve", "--rack"]).arg(path("rack.yaml")).arg("--repo").arg(path("repo"));
        command.arg("--state").arg(&self.state.0);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.server = Some(command.spawn().unwrap());
        if let Err(error) = self.network.wait_for_port(SERVER, 8080, SOON) {
            panic!("{error}\n{}", self.log());
        }
        let answers = poll(SOON, || Ok::<_, ()>(self.log().contains("dnsmasq answers").then_some(())));
        assert!(answers.unwrap().is_some(), "{}", self.log());
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("serve.log")).unwrap()
    }

    fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = Command::new("kill").args(["-INT", &server.id().to_string()]).status();
            server.wait().unwrap();
        }
    }

    fn netboot(&self, card: &str) -> String {
        let url = format!("http://{SERVER}:8080/boot/ipxe?mac={card}");
        let output = self.network.command("curl").args(["-sSf", "-m", "20", &url]).output().unwrap();
        assert!(output.status.success(), "{output:?}\n{}", self.log());
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Rack {
    fn drop(&mut self) {
        self.stop();
    }
}

const ONE: &str = "52-54-00-00-00-01";
const STRANGER: &str = "52-54-00-00-00-99";

#[test]
fn a_full_state_disk_stops_no_answer() {
    let mut rack = Rack::prepare();
    rack.serve();
    assert!(rack.netboot(ONE).contains("starts the installer"));
    rack.state.fill();
    let full = |rack: &Rack| {
        assert!(rack.netboot(STRANGER).contains("not in the rack file"));
        let script = rack.netboot(ONE);
        assert!(script.contains("one is not imaged") && script.ends_with("exit 1\n"), "{script}");
        let partial = fs::read_dir(&rack.state.0).unwrap().flatten();
        let partial = partial.filter(|file| file.file_name().to_string_lossy().ends_with("partial"));
        assert_eq!(partial.count(), 0);
    };
    full(&rack);
    // The same after a start with the full disk, dnsmasq included.
    rack.serve();
    full(&rack);
    rack.state.free();
    assert!(rack.netboot(ONE).contains("starts the installer"));
    rack.serve();
    assert!(rack.netboot(ONE).contains("starts the installer"));
}
