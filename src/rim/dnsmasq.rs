//! dnsmasq as a daemon of its own, on a network that is kept.

use std::path::Path;
use std::process::{Command, Stdio};

use super::command::{self, CommandError};
use super::process::Detached;

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

/// Starts the daemon by `command`, which runs [`program`] in the right network namespace.
///
/// dnsmasq says what is wrong before it leaves for the background.
pub fn start(mut command: Command, configuration: &Path) -> Result<(), CommandError> {
    command.arg(format!("--conf-file={}", configuration.display())).stdin(Stdio::null());
    command::run(&mut command).map(drop)
}
