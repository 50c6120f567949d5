//! The machines that Vagrant made of our boxes.

use std::path::Path;

use super::{ClusterError, Host};
use crate::lab::machine::Ssh;
use crate::lab::vagrant;
use crate::lab::vagrantfile::{parse_running, parse_ssh_config};

/// The account that Vagrant logs in to on machines of our boxes, and on no others that we know.
const USER: &str = "root";
/// The machine of vagrant/Vagrantfile that serves a rack: it may be of a box of ours, and follows other releases.
const PROVISIONER: &str = "provisioner";

/// Machines of the project in `directory` that run and are hosts of ours.
pub fn hosts(directory: &Path) -> Result<Vec<Host<'static>>, ClusterError> {
    let names = parse_running(&vagrant::status(directory).map_err(ClusterError::Vagrant)?);
    let config = match names.as_slice() {
        [] => String::new(),
        // Asked for all, it fails at the first that does not run.
        names => vagrant::ssh_config(directory, names).map_err(ClusterError::Vagrant)?,
    };
    let hosts: Vec<Host<'static>> = parse_ssh_config(&config)
        .into_iter()
        .filter(|(name, target)| target.user == USER && name != PROVISIONER)
        .map(|(name, target)| Host { name, ssh: Ssh::to(None, &target) })
        .collect();
    if hosts.is_empty() {
        return Err(ClusterError::NoVagrantMachine(directory.to_owned()));
    }
    Ok(hosts)
}
