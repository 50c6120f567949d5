//! Takes the disk of a machine that a rack imaged as the disk of a cluster's machine.
//!
//! 1. The disk's mark must say that it is this machine's and that its installation is finished (decision 0015); it is looked at
//!    on the file, and nothing is mounted; 2. the key that it lets in becomes the cluster's; 3. a copy of it, of the form that
//!    the platform starts, lies in the machine's place; 4. the record. `up` does the rest.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{ClusterError, Home};
use crate::lab::machine::container::storage::copy_base;
use crate::model::cluster::{Cluster, ClusterMachine, ClusterRecord, Platform, RECORD_FORMAT};
use crate::model::imaging::{DiskMark, MarkState};
use crate::rim::command;
use crate::rim::disk::DiskError;
use crate::rim::disk::mark::{Found, observe_mark};
use crate::rim::disk::target::Target;
use crate::rim::files::{ensure_directory, naming};

/// Why a disk is not taken.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// The cluster's directory.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The disk cannot be read.
    #[error("reading the mark of {}", disk.display())]
    Unread {
        /// The disk.
        disk: PathBuf,
        /// Why.
        #[source]
        source: DiskError,
    },
    /// The disk is another machine's, nobody's, or not finished.
    #[error("{} is not the disk of an imaged {machine}: {why}", disk.display())]
    NotItsDisk {
        /// The disk.
        disk: PathBuf,
        /// The machine.
        machine: String,
        /// What the disk says.
        why: String,
    },
    /// The machine has a disk.
    #[error("{0} has a disk already")]
    Taken(String),
}

/// What to take, as what.
#[derive(Debug)]
pub struct Request<'a> {
    /// The cluster's directory, locked.
    pub home: &'a Home,
    /// The cluster file.
    pub file: &'a Path,
    /// What it wants.
    pub cluster: &'a Cluster,
    /// Who will run the machine.
    pub platform: Platform,
    /// The machine.
    pub machine: &'a ClusterMachine,
    /// The disk: a raw file.
    pub disk: &'a Path,
    /// The private key that it lets in as root; the public one lies beside it.
    pub key: &'a Path,
}

/// Takes the disk.
pub fn adopt(request: &Request<'_>) -> Result<DiskMark, AdoptError> {
    let Request { home, machine, disk, .. } = request;
    let mark = require_mark(disk, &machine.name)?;
    let place = home.disk_path(request.platform, &machine.name);
    if place.exists() {
        return Err(AdoptError::Taken(machine.name.clone()));
    }
    let failed = |error| AdoptError::Cluster(error);
    ensure_directory(&home.machine_dir(&machine.name), 0o700).map_err(|error| failed(error.into()))?;
    for (from, to) in
        [(request.key.to_owned(), "ssh-key"), (request.key.with_extension("pub"), "ssh-key.pub")]
    {
        let to = home.dir.join(to);
        fs::copy(&from, &to).map_err(|error| failed(naming("taking the key", &from)(error).into()))?;
    }
    match request.platform {
        Platform::Container => {
            copy_base(disk, &place).map_err(|error| failed(ClusterError::Machine(error.into())))?;
        }
        Platform::Qemu | Platform::Libvirt => convert(disk, &place).map_err(failed)?,
    }
    let record = ClusterRecord {
        format: RECORD_FORMAT,
        file: request.file.to_owned(),
        repo: request.cluster.repo.clone(),
        platform: request.platform,
        machines: vec![(*machine).clone()],
    };
    home.write_record(&record).map_err(failed)?;
    Ok(mark)
}

fn require_mark(disk: &Path, machine: &str) -> Result<DiskMark, AdoptError> {
    let unread = |source| AdoptError::Unread { disk: disk.to_owned(), source };
    let target = Target::open(disk).map_err(unread)?;
    let why = match observe_mark(&target, false).map_err(unread)? {
        Found::True(mark) if mark.state == MarkState::Installed && mark.host == machine => return Ok(mark),
        Found::True(mark) if mark.state == MarkState::Installed => format!("it is {}'s", mark.host),
        Found::True(mark) => format!("the installation of {} was never finished", mark.host),
        Found::Stale(mark) => format!("it has a mark of {}, which is not there any more", mark.host),
        Found::Nothing => "it has no mark: no rack imaged it".to_owned(),
    };
    Err(AdoptError::NotItsDisk { disk: disk.to_owned(), machine: machine.to_owned(), why })
}

fn convert(disk: &Path, place: &Path) -> Result<(), ClusterError> {
    let unfinished = place.with_extension("new");
    command::run(
        Command::new("qemu-img").args(["convert", "-f", "raw", "-O", "qcow2"]).arg(disk).arg(&unfinished),
    )
    .map_err(ClusterError::Convert)?;
    fs::rename(&unfinished, place).map_err(|error| naming("making", place)(error).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_without_a_mark_is_nobodys() {
        let dir = tempfile::tempdir().unwrap();
        let disk = dir.path().join("disk");
        fs::File::create(&disk).unwrap().set_len(8 << 20).unwrap();
        let told = require_mark(&disk, "control").unwrap_err().to_string();
        assert!(
            told.ends_with("is not the disk of an imaged control: it has no mark: no rack imaged it"),
            "{told}"
        );
    }
}
