//! A shell on a machine: the `ssh` client, run inside the machine's network namespace if it has one.
//!
//! Host keys are not checked: the network holds nothing but our own machines, which get new keys with every imaging.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::{MachineError, Network};
use crate::model::cluster::{DEFAULT_PORT, SshTarget};
use crate::rim::command;

/// A key pair made for one run.
#[derive(Debug, Clone)]
pub struct SshKey {
    /// Path of the private key.
    pub private: PathBuf,
    /// The line for `authorized_keys`.
    pub public: String,
}

impl SshKey {
    /// The key pair in `dir`, made if there is none.
    pub fn create(dir: &Path) -> Result<Self, MachineError> {
        let private = dir.join("ssh-key");
        if !private.exists() {
            command::run(
                Command::new("ssh-keygen")
                    .args(["-q", "-t", "ed25519", "-N", "", "-C", "rackstep-run", "-f"])
                    .arg(&private),
            )
            .map_err(MachineError::program("making an ssh key"))?;
        }
        let path = private.with_extension("pub");
        let public = std::fs::read_to_string(&path)
            .map_err(MachineError::io(format!("reading {}", path.display())))?
            .trim()
            .to_owned();
        Ok(Self { private, public })
    }
}

/// How to reach one machine's shell.
#[derive(Debug, Clone)]
pub struct Ssh<'n> {
    network: Option<&'n Network>,
    keys: Vec<PathBuf>,
    target: String,
    port: u16,
    /// The machine's address.
    pub address: String,
}

impl<'n> Ssh<'n> {
    /// A shell as `user` at `address`.
    pub fn new(network: &'n Network, key: &SshKey, user: &str, address: &str) -> Self {
        let (host, user, port) = (address.to_owned(), user.to_owned(), DEFAULT_PORT);
        Self::to(Some(network), &SshTarget { host, port, user, keys: vec![key.private.clone()] })
    }

    /// A shell at `target`, from `network` or else from where this program runs.
    pub fn to(network: Option<&'n Network>, target: &SshTarget) -> Self {
        Self {
            network,
            keys: target.keys.clone(),
            target: format!("{}@{}", target.user, target.host),
            port: target.port,
            address: target.host.clone(),
        }
    }

    /// The client, ready to run `remote` in the machine's shell; stdin and stdout are the caller's to set.
    pub fn command(&self, remote: &str) -> Command {
        let mut ssh = self.client();
        ssh.args(["-o", "BatchMode=yes"]).arg(&self.target).arg(remote);
        ssh
    }

    /// The client for a person: a login shell, or `remote` in one.
    pub fn terminal(&self, remote: &[String]) -> Command {
        let mut ssh = self.client();
        ssh.arg(&self.target).args(remote);
        ssh
    }

    fn client(&self) -> Command {
        let mut ssh = self.network.map_or_else(|| Command::new("ssh"), |network| network.command("ssh"));
        for key in &self.keys {
            ssh.arg("-i").arg(key);
        }
        ssh.args(["-p", &self.port.to_string()]);
        for option in [
            "IdentitiesOnly=yes",
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "LogLevel=ERROR",
            // A machine under TCG may take several seconds for the key exchange.
            "ConnectTimeout=30",
            "ServerAliveInterval=10",
            "ServerAliveCountMax=6",
        ] {
            ssh.args(["-o", option]);
        }
        ssh
    }

    /// Runs `remote` and gives its output whatever its exit status was.
    pub fn run(&self, remote: &str) -> Result<Output, MachineError> {
        self.command(remote)
            .stdin(std::process::Stdio::null())
            .output()
            .map_err(MachineError::io(format!("ssh {} {remote:?}", self.target)))
    }

    /// Runs `remote`, which must succeed, and gives its stdout without the last line end.
    pub fn text(&self, remote: &str) -> Result<String, MachineError> {
        let mut client = self.command(remote);
        client.stdin(std::process::Stdio::null());
        command::run_text(&mut client)
            .map(|text| text.trim_end().to_owned())
            .map_err(MachineError::program(format!("ssh {} {remote:?}", self.target)))
    }
}
