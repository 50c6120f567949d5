//! A test's own libvirtd: the real one, with network, configuration, state and sockets apart from the machine's.
//!
//! 1. it runs in the test's network namespace: its bridges, DHCP servers and machines are there;
//! 2. directories of the test's are mounted over its own, in a mount namespace that ends with it;
//! 3. who wants to talk to it enters both: [`Libvirt::command`].
//!
//! The network namespace ends its processes by their ids when it goes: whatever libvirtd started, machines too.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use rackstep::lab::machine::Network;
use rackstep::rim::wait::poll;

/// Everything as root, no log daemon beside it, and no claims on the control groups of this machine.
const CONFIGURATION: &str = "user = \"root\"\ngroup = \"root\"\nsecurity_driver = \"none\"\n\
                             cgroup_controllers = []\nremember_owner = 0\nstdio_handler = \"file\"\n";
/// Where libvirtd keeps its things, and what they are called in the test's directory.
const PLACES: [(&str, &str); 5] = [
    ("/etc/libvirt", "etc"),
    ("/var/lib/libvirt", "state"),
    ("/var/log/libvirt", "log"),
    ("/var/cache/libvirt", "cache"),
    ("/run/libvirt", "run"),
];
/// It asks the firmware and the processor about themselves, with programs that may be slow to fail.
const START: Duration = Duration::from_secs(120);

/// The user that Debian's libvirtd looks up before it reads that it is to use another one. Only a package that starts a
/// libvirtd on this machine makes it.
const BUILT_IN_USER: &str = "libvirt-qemu";

/// Lines that give the test's namespace an account that this machine may lack; `rest` is the entry after its name.
fn with_account(work: &Path, file: &str, rest: &str) -> String {
    let (place, ours) = (format!("/etc/{file}"), work.join(file));
    let mut text = fs::read_to_string(&place).unwrap();
    if text.lines().any(|line| line.starts_with(&format!("{BUILT_IN_USER}:"))) {
        return String::new();
    }
    text += &format!("{BUILT_IN_USER}{rest}\n");
    fs::write(&ours, text).unwrap();
    format!("mount --bind {} {place}\n", ours.display())
}

/// A libvirtd, ended when dropped.
pub struct Libvirt {
    daemon: Child,
    work: PathBuf,
}

impl Libvirt {
    /// Starts it in `network`, with its files in `work`, and waits until it answers.
    pub fn start(network: &Network, work: &Path) -> Self {
        let mut script = String::from("set -e\n");
        for (place, name) in PLACES {
            let ours = work.join(name);
            fs::create_dir_all(&ours).unwrap();
            // Only what is missing on a machine with the daemon's program alone; it stays, empty.
            fs::create_dir_all(place).unwrap();
            script += &format!("mount --bind {} {place}\n", ours.display());
        }
        fs::write(work.join("etc/qemu.conf"), CONFIGURATION).unwrap();
        for (file, id) in
            [("passwd", ":x:64055:64055::/nonexistent:/usr/sbin/nologin"), ("group", ":x:64055:")]
        {
            script += &with_account(work, file, id);
        }
        // Two at a time, each with its own.
        script += "exec libvirtd --pid-file /run/libvirt/libvirtd.pid\n";
        let log = File::create(work.join("libvirtd.log")).unwrap();
        // `ip netns exec` makes the mount namespace: nothing that is mounted in it is seen outside.
        let mut daemon = network.command("sh");
        daemon.args(["-c", &script]).stdout(log.try_clone().unwrap()).stderr(log);
        // A Ctrl-C is the test's, which ends it in its order.
        let daemon = daemon.process_group(0).spawn().unwrap();
        let mut started = Self { daemon, work: work.to_owned() };
        let up = poll(START, || -> Result<_, std::convert::Infallible> {
            let ended = started.daemon.try_wait().unwrap();
            assert!(ended.is_none(), "libvirtd: {ended:?}\n{}", started.words());
            let asked = started.command("virsh").args(["list", "--all"]).output().unwrap();
            Ok(asked.status.success().then_some(()))
        });
        let Ok(up) = up;
        assert!(up.is_some(), "libvirtd does not answer:\n{}", started.words());
        started
    }

    /// A command that sees this libvirtd, and whose network is the one of its machines.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--target={}", self.daemon.id())).args(["--mount", "--net"]).arg(program);
        command.env("LIBVIRT_DEFAULT_URI", "qemu:///system");
        command
    }

    /// Its address for who is elsewhere.
    pub fn uri(&self) -> String {
        format!("qemu+unix:///system?socket={}", self.work.join("run/libvirt-sock").display())
    }

    /// What it said.
    pub fn words(&self) -> String {
        fs::read_to_string(self.work.join("libvirtd.log")).unwrap_or_default()
    }
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}
