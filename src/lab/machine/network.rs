//! A network of machines: a namespace with one bridge, for one run or kept until it is removed; or a bridge of somebody else's.
//!
//! 1. Namespaces of runs that are dead are removed: their name tells the pid and its start time;
//! 2. a namespace `rackstep-<pid>-<start>-<n>` is made, with the bridge [`BRIDGE`] and the host's address on it; one that is
//!    kept has a name of the caller's, which outlives the program;
//! 3. machines plug taps into the bridge; servers and clients run inside by [`Network::inside`] or [`Network::command`];
//! 4. where libvirt has the machines, the bridge is its own and stands where this program runs: inside is here.
//!
//! There is no way out of the namespace: a machine under test reaches its rack server and nothing else.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{MachineError, interrupt};
use crate::rim::command;
use crate::rim::process::start_time;
use crate::rim::wait::poll;

/// The bridge's name inside a namespace.
const BRIDGE: &str = "rack0";

const PREFIX: &str = "rackstep-";
const NAMESPACES: &str = "/run/netns";
/// An old card is gone at once, on a machine that is not out of breath.
const CARD: Duration = Duration::from_secs(30);
/// One attempt to connect; longer than any round trip on a bridge, shorter than patience.
const CONNECT: Duration = Duration::from_secs(1);

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A network with a bridge, removed on drop unless it is kept.
#[derive(Debug)]
pub struct Network {
    name: String,
    bridge: String,
    /// Is it in a namespace of its own?
    apart: bool,
    taps: AtomicU32,
    kept: bool,
}

impl Network {
    /// Makes a namespace whose bridge has `address` (`10.77.0.1/24`).
    pub fn create(address: &str) -> Result<Self, MachineError> {
        remove_stale();
        let pid = std::process::id();
        let start = start_time(pid).unwrap_or_default();
        let name = format!("{PREFIX}{pid}-{start}-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        interrupt::register_namespace(&name);
        let mut network = Self::named(&name);
        network.kept = false;
        network.make(address)?;
        Ok(network)
    }

    /// The namespace `name` that stays when the program ends; none, if it is not there or was never finished.
    pub fn open(name: &str) -> Option<Self> {
        let network = Self::named(name);
        // The bridge goes up last.
        let bridge = ["-netns", name, "-oneline", "link", "show", BRIDGE, "up"];
        let shown = network.path().exists()
            && command::run_text(Command::new("ip").args(bridge)).is_ok_and(|text| !text.trim().is_empty());
        shown.then_some(network)
    }

    /// Makes the namespace `name`, which stays when the program ends; one that was never finished is made anew.
    pub fn keep(name: &str, address: &str) -> Result<Self, MachineError> {
        Self::remove(name);
        let network = Self::named(name);
        network.make(address)?;
        Ok(network)
    }

    /// The network `name` whose `bridge` somebody else made, in the namespace where this program runs.
    pub(super) fn here(name: &str, bridge: String) -> Self {
        let name = name.to_owned();
        Self { name, bridge, apart: false, taps: AtomicU32::new(0), kept: true }
    }

    /// The namespace `name`, kept.
    fn named(name: &str) -> Self {
        let (name, bridge) = (name.to_owned(), BRIDGE.to_owned());
        Self { name, bridge, apart: true, taps: AtomicU32::new(0), kept: true }
    }

    /// Removes the kept namespace `name` with all that runs in it; one that is not there is fine.
    pub fn remove(name: &str) {
        if Path::new(NAMESPACES).join(name).exists() {
            delete_namespace(name);
        }
    }

    fn make(&self, address: &str) -> Result<(), MachineError> {
        ip(&["netns", "add", &self.name])?;
        self.ip(&["link", "set", "lo", "up"])?;
        let bridge = &self.bridge;
        self.ip(&["link", "add", bridge, "type", "bridge", "stp_state", "0", "forward_delay", "0"])?;
        self.ip(&["address", "add", address, "dev", bridge])?;
        self.ip(&["link", "set", bridge, "up"])
    }

    /// Its name: of the namespace, as `ip netns` shows it, if it has one.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The bridge.
    pub fn bridge(&self) -> &str {
        &self.bridge
    }

    /// A command that runs inside.
    pub fn command(&self, program: &str) -> Command {
        if !self.apart {
            return Command::new(program);
        }
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// Runs `act` on a thread inside; threads and processes that it starts are inside too.
    pub fn inside<R: Send>(&self, act: impl FnOnce() -> R + Send) -> Result<R, MachineError> {
        if !self.apart {
            return Ok(act());
        }
        let path = self.path();
        let entering = || format!("entering network namespace {}", self.name);
        let file = File::open(&path).map_err(MachineError::io(entering()))?;
        let ran = std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).map(|()| act())
                })
                .join()
        });
        match ran {
            Ok(entered) => entered.map_err(|errno| MachineError::io(entering())(errno.into())),
            // A panic in `act` is the caller's: let it go on as if there were no thread.
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Waits until a connection to `address:port` is accepted.
    pub fn wait_for_port(&self, address: &str, port: u16, bound: Duration) -> Result<(), MachineError> {
        self.poll_port(address, port, bound, || Ok(()))
    }

    pub(super) fn poll_port(
        &self,
        address: &str,
        port: u16,
        bound: Duration,
        mut check: impl FnMut() -> Result<(), MachineError> + Send,
    ) -> Result<(), MachineError> {
        let target: SocketAddr = (address, port)
            .to_socket_addrs()
            .ok()
            .and_then(|mut all| all.next())
            .ok_or_else(|| MachineError::Input(format!("{address:?} is not an address")))?;
        let reached = self.inside(|| {
            poll(bound, || {
                check()?;
                Ok::<_, MachineError>(TcpStream::connect_timeout(&target, CONNECT).ok().map(drop))
            })
        })??;
        reached.ok_or_else(|| MachineError::Timeout {
            machine: self.name.clone(),
            waited: format!("an open port {target}"),
            bound,
            tail: String::new(),
        })
    }

    /// Makes a tap on the bridge and gives its name.
    pub(super) fn add_tap(&self) -> Result<String, MachineError> {
        let tap = format!("tap{}", self.taps.fetch_add(1, Ordering::Relaxed));
        self.plug(&tap)?;
        Ok(tap)
    }

    /// Makes the tap `tap` on the bridge; one that is there already stays as it is.
    pub(super) fn plug(&self, tap: &str) -> Result<(), MachineError> {
        if self.ip(&["link", "show", tap]).is_err() {
            self.ip(&["tuntap", "add", "dev", tap, "mode", "tap"])?;
        }
        self.ip(&["link", "set", tap, "master", &self.bridge, "up"])
    }

    pub(super) fn remove_tap(&self, tap: &str) {
        if let Err(error) = self.ip(&["link", "delete", tap]) {
            tracing::debug!(%error, tap, "removing a tap");
        }
    }

    /// Gives the network namespace of process `pid` the card `host0`, whose cable ends on the bridge as `outside`.
    pub(super) fn plug_host(&self, outside: &str, mac: &str, pid: u32) -> Result<(), MachineError> {
        // The kernel takes the cards of a namespace that has ended away in its own time, perhaps while we do.
        let gone = poll(CARD, || {
            if self.ip(&["link", "show", outside]).is_err() {
                return Ok::<_, MachineError>(Some(()));
            }
            let _ = self.ip(&["link", "delete", outside]);
            Ok(None)
        })?;
        gone.ok_or_else(|| MachineError::Input(format!("{outside} is on {} still", self.bridge)))?;
        let pid = pid.to_string();
        let card = ["peer", "name", "host0", "address", mac, "netns", &pid];
        self.ip(&[&["link", "add", outside, "type", "veth"][..], &card].concat())?;
        self.ip(&["link", "set", outside, "master", &self.bridge, "up"])
    }

    /// Takes the cable out (`up` false) or puts it in: what the host side of the bridge does to every machine.
    pub fn set_link(&self, up: bool) -> Result<(), MachineError> {
        self.ip(&["link", "set", &self.bridge, if up { "up" } else { "down" }])
    }

    fn ip(&self, arguments: &[&str]) -> Result<(), MachineError> {
        let mut all = if self.apart { vec!["-netns", self.name.as_str()] } else { Vec::new() };
        all.extend(arguments);
        ip(&all)
    }

    fn path(&self) -> PathBuf {
        Path::new(NAMESPACES).join(&self.name)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        delete_namespace(&self.name);
        interrupt::forget_namespace(&self.name);
    }
}

fn ip(arguments: &[&str]) -> Result<(), MachineError> {
    command::run(Command::new("ip").args(arguments))
        .map(drop)
        .map_err(MachineError::program(format!("ip {}", arguments.join(" "))))
}

/// Kills what still runs in the namespace and removes it; failures are logged, for nobody can do more about them.
pub(super) fn delete_namespace(name: &str) {
    let pids = command::run_text(Command::new("ip").args(["netns", "pids", name])).unwrap_or_default();
    for pid in pids.lines().filter_map(|line| line.trim().parse().ok()) {
        if pid != std::process::id() {
            interrupt::signal_pid(pid, Signal::KILL);
        }
    }
    if let Err(error) = ip(&["netns", "delete", name]) {
        tracing::warn!(%error, name, "removing a network namespace");
    }
}

/// Removes the namespaces of runs whose process is gone.
fn remove_stale() {
    let Ok(entries) = fs::read_dir(NAMESPACES) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some((pid, start)) = parse_owner(&name)
            && start_time(pid) != Some(start)
        {
            tracing::info!(name, "removing the network of a run that is dead");
            delete_namespace(&name);
        }
    }
}

/// The pid and start time in a namespace's name.
fn parse_owner(name: &str) -> Option<(u32, u64)> {
    let mut parts = name.strip_prefix(PREFIX)?.splitn(3, '-');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners() {
        let cases = [
            ("rackstep-12-345-0", Some((12, 345))),
            ("rackstep-12-345", Some((12, 345))),
            ("rackstep-x-345-0", None),
            ("rackstep-12", None),
            ("someone-12-345-0", None),
            ("rackstep-cluster-demo", None),
        ];
        for (name, expected) in cases {
            assert_eq!(parse_owner(name), expected, "{name}");
        }
    }
}
