//! Vagrant, asked for the machines that it made.

use std::path::Path;
use std::process::Command;

use crate::rim::command::{self, CommandError};

/// What it says of the states of its machines: `time,name,kind,data` in lines.
pub fn status(directory: &Path) -> Result<String, CommandError> {
    command::run_text(Command::new("vagrant").args(["status", "--machine-readable"]).current_dir(directory))
}

/// How `ssh` reaches the machines `names`; it fails if one of them is not there.
pub fn ssh_config(directory: &Path, names: &[String]) -> Result<String, CommandError> {
    command::run_text(Command::new("vagrant").arg("ssh-config").args(names).current_dir(directory))
}
