//! dnsmasq as a daemon of its own, on a network that is kept.

use std::path::Path;
use std::process::Stdio;

use super::command::{self, CommandError};
use super::process::Detached;
use crate::lab::machine::Network;

/// The program. sbin is not in every PATH that may start us.
pub fn program() -> &'static str {
    ["/usr/sbin/dnsmasq", "/usr/local/sbin/dnsmasq"]
        .into_iter()
        .find(|path| Path::new(path).exists())
        .unwrap_or("dnsmasq")
}

/// The daemon that was started with this configuration, if it runs.
pub fn find(configuration: &Path, pid_file: &Path) -> Option<Detached> {
    Detached::find(pid_file, &configuration.display().to_string())
}

/// Starts it inside `network`. It says what is wrong before it leaves for the background.
pub fn start(network: &Network, configuration: &Path) -> Result<(), CommandError> {
    let mut command = network.command(program());
    command.arg(format!("--conf-file={}", configuration.display())).stdin(Stdio::null());
    command::run(&mut command).map(drop)
}
