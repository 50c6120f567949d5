//! Takes the disk of a machine that a rack imaged as the disk of a cluster's machine.
//!
//! 1. The disk's mark must say that it is this machine's and that its installation is finished (decision 0015); it is looked at
//!    on the file, and nothing is mounted. A cluster that is there already is left as it is; 2. the key that it lets in becomes the cluster's; 3. a copy of it, of the form that
//!    the platform starts, lies in the machine's place; 4. the record. `up` does the rest.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{ClusterError, Home};
use crate::lab::machine::container::storage::copy_base;
use crate::model::cluster::{Cluster, ClusterMachine, ClusterRecord, Platform, RECORD_FORMAT};
use crate::model::imaging::DiskMark;
use crate::rim::command;
use crate::rim::disk::DiskError;
use crate::rim::disk::mark::observe_mark;
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
    /// The cluster has machines of its own.
    #[error("cluster {0} is there already, with a key and machines of its own")]
    There(String),
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
    // Its key is the one that its other machines let in, and its record names them.
    if home.read_record()?.is_some() {
        return Err(AdoptError::There(home.name.clone()));
    }
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
    observe_mark(&target, false)
        .map_err(unread)?
        .require_installed(machine)
        .map_err(|why| AdoptError::NotItsDisk { disk: disk.to_owned(), machine: machine.to_owned(), why })
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
    use crate::lab::manifest::parse_cluster;
    use crate::model::place::SourceText;

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

    #[test]
    fn a_cluster_that_is_there_keeps_its_key_and_its_record() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::new(dir.path(), "dev");
        let _lock = home.lock_or_make().unwrap();
        let source = SourceText::new(
            "cluster.yaml",
            "name: dev\nrepo: /srv/repo\nrelease: 1.0.0\ncontrol: {memory: 4096, cpus: 2}\n",
        );
        let cluster = parse_cluster(&source, "dev").unwrap();
        let record = ClusterRecord {
            format: RECORD_FORMAT,
            file: "cluster.yaml".into(),
            repo: None,
            platform: Platform::Container,
            machines: cluster.machines.clone(),
        };
        home.write_record(&record).unwrap();
        fs::write(home.dir.join("ssh-key"), "its own").unwrap();
        let request = Request {
            home: &home,
            file: Path::new("cluster.yaml"),
            cluster: &cluster,
            platform: Platform::Container,
            machine: &cluster.machines[0],
            disk: Path::new("/dev/null"),
            key: Path::new("/dev/null"),
        };
        assert!(matches!(adopt(&request), Err(AdoptError::There(name)) if name == "dev"));
        assert_eq!(fs::read_to_string(home.dir.join("ssh-key")).unwrap(), "its own");
        assert_eq!(home.read_record().unwrap(), Some(record));
    }
}
