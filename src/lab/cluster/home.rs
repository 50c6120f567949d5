//! The directory of one cluster.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::ClusterError;
use crate::lab::machine::{Boot, DiskFormat, DiskSpec, MachineSpec};
use crate::model::Commit;
use crate::model::cluster::{ClusterMachine, ClusterRecord, DOMAIN, Platform};
use crate::rim::files::{Durability, ensure_directory, naming, write_atomic};

/// How networks of clusters are called; never like those that end with their program.
const NETWORK_PREFIX: &str = "rackstep-cluster-";

/// Where clusters are: below `$XDG_STATE_HOME`, or `~/.local/state`.
pub fn clusters_dir() -> PathBuf {
    let base = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    base.or_else(home).unwrap_or_else(|| PathBuf::from("/var/lib")).join("rackstep/clusters")
}

/// One cluster's directory, which may not be there yet.
#[derive(Debug, Clone)]
pub struct Home {
    /// The cluster's name.
    pub name: String,
    /// Its directory.
    pub dir: PathBuf,
}

/// Nobody else works on the cluster as long as this lives.
#[derive(Debug)]
pub struct Lock {
    _dir: File,
    /// Was the directory made for it?
    pub made: bool,
}

impl Home {
    /// The cluster `name` below `clusters`.
    pub fn new(clusters: &Path, name: &str) -> Self {
        Self { name: name.to_owned(), dir: clusters.join(name) }
    }

    /// Locks it; it must be there.
    pub fn lock(&self) -> Result<Lock, ClusterError> {
        if !self.dir.is_dir() {
            return Err(ClusterError::Absent(self.name.clone()));
        }
        self.lock_or_make()
    }

    /// Locks it; it is made if it is not there.
    pub fn lock_or_make(&self) -> Result<Lock, ClusterError> {
        let failed = || naming("locking", &self.dir);
        loop {
            let made = ensure_directory(&self.dir, 0o700)?;
            let dir = File::open(&self.dir).map_err(failed())?;
            match flock(&dir, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Err(ClusterError::Locked(self.name.clone())),
                Err(errno) => return Err(failed()(errno.into()).into()),
            }
            // Whoever had the lock before may have removed the directory: then it is the lock of nothing.
            let ours = dir.metadata().map_err(failed())?.ino();
            if fs::metadata(&self.dir).is_ok_and(|there| there.ino() == ours) {
                return Ok(Lock { _dir: dir, made });
            }
        }
    }

    /// What is kept of it; none, if there is no such cluster.
    pub fn read_record(&self) -> Result<Option<ClusterRecord>, ClusterError> {
        let path = self.record_path();
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(naming("reading", &path)(error).into()),
        };
        serde_json::from_slice(&bytes).map(Some).map_err(|source| ClusterError::Record { path, source })
    }

    /// Keeps `record`.
    pub fn write_record(&self, record: &ClusterRecord) -> Result<(), ClusterError> {
        let path = self.record_path();
        let bytes = serde_json::to_vec_pretty(record)
            .map_err(|source| ClusterError::Record { path: path.clone(), source })?;
        write_atomic(&path, &bytes, 0o600, Durability::Durable)?;
        Ok(())
    }

    fn record_path(&self) -> PathBuf {
        self.dir.join("cluster.json")
    }

    /// The disk that new machines of a release begin with.
    pub fn base_path(&self, commit: Commit) -> PathBuf {
        self.dir.join(format!("base-{commit}.raw"))
    }

    /// The name of its network, and of its namespace if it has one.
    pub fn network_name(&self) -> String {
        format!("{NETWORK_PREFIX}{}", self.name)
    }

    /// A directory for each machine.
    pub fn machines_dir(&self) -> PathBuf {
        self.dir.join("machines")
    }

    /// The directory of a machine.
    pub fn machine_dir(&self, machine: &str) -> PathBuf {
        self.machines_dir().join(machine)
    }

    /// The disk of a machine: it lies over its base, or is a copy of it.
    pub fn disk_path(&self, platform: Platform, machine: &str) -> PathBuf {
        self.machine_dir(machine).join(match platform {
            Platform::Qemu | Platform::Libvirt => "disk.qcow2",
            Platform::Container => "disk.raw",
        })
    }

    /// dnsmasq's configuration.
    pub fn dhcp_path(&self) -> PathBuf {
        self.dir.join("dnsmasq.conf")
    }

    /// What a machine is made of.
    pub fn spec(&self, platform: Platform, machine: &ClusterMachine, boot: Boot) -> MachineSpec {
        let mut spec = MachineSpec::new(&machine.name, self.machine_dir(&machine.name));
        spec.boot = boot;
        spec.memory_mib = machine.memory;
        spec.cpus = machine.cpus;
        spec.mac = machine.mac.to_string();
        let (path, serial) = (self.disk_path(platform, &machine.name), machine.name.clone());
        let format = match platform {
            Platform::Qemu | Platform::Libvirt => DiskFormat::Qcow2,
            Platform::Container => DiskFormat::Raw,
        };
        spec.disks.push(DiskSpec { path, format, serial });
        // The machine has its name before anything of it starts. systemd-resolved asks nobody for a name without a domain.
        spec.credentials.push(("system.hostname".to_owned(), machine.name.clone()));
        spec.credentials.push(("network.search_domains".to_owned(), DOMAIN.to_owned()));
        spec
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::cluster::{RECORD_FORMAT, Role};

    #[test]
    fn one_verb_at_a_time() {
        let clusters = tempfile::tempdir().unwrap();
        let home = Home::new(clusters.path(), "dev");
        assert!(matches!(home.lock(), Err(ClusterError::Absent(_))));
        let lock = home.lock_or_make().unwrap();
        assert!(lock.made);
        assert!(matches!(home.lock(), Err(ClusterError::Locked(_))));
        fs::remove_dir(&home.dir).unwrap();
        // `down` removed it: the next one works on a new directory, not on the removed one.
        assert!(home.lock_or_make().unwrap().made);
        drop(lock);
        assert!(!home.lock().unwrap().made);
    }

    #[test]
    fn records_are_read_back() {
        let clusters = tempfile::tempdir().unwrap();
        let home = Home::new(clusters.path(), "dev");
        assert_eq!(home.read_record().unwrap(), None);
        let _lock = home.lock_or_make().unwrap();
        let record = ClusterRecord {
            format: RECORD_FORMAT,
            file: "/srv/dev/cluster.yaml".into(),
            repo: Some("/srv/repo".into()),
            platform: Platform::Libvirt,
            machines: vec![ClusterMachine::new("control".into(), Role::Control, 1, 1024, 1)],
        };
        home.write_record(&record).unwrap();
        assert_eq!(home.read_record().unwrap(), Some(record));
        // As it was written before there was a choice.
        let old = r#"{"format": 1, "file": "/srv/dev/cluster.yaml", "repo": null, "machines": []}"#;
        fs::write(home.dir.join("cluster.json"), old).unwrap();
        assert_eq!(home.read_record().unwrap().unwrap().platform, Platform::Qemu);
        fs::write(home.dir.join("cluster.json"), "{").unwrap();
        assert!(home.read_record().is_err());
    }
}
