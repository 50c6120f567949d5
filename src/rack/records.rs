//! What is known of the machines, in one JSON file that is replaced as a whole.
//!
//! A rack is some dozens of machines and a change every few seconds at most: a file that is written, flushed and renamed
//! is enough, can be read by people, and needs no database. An order is on the disk before it is handed out.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::RackError;
use crate::model::machine::MachineRecord;
use crate::model::rack::Mac;

const FORMAT: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    format: u32,
    machines: BTreeMap<Mac, MachineRecord>,
}

/// The records of one rack.
#[derive(Debug)]
pub(super) struct Records {
    path: PathBuf,
    machines: Mutex<BTreeMap<Mac, MachineRecord>>,
}

impl Records {
    /// The records in `path`; none when there is no such file.
    pub(super) fn open(path: &Path) -> Result<Self, RackError> {
        let machines = match fs::read(path) {
            Ok(bytes) => {
                let stored: Stored = serde_json::from_slice(&bytes)
                    .map_err(|source| RackError::Records { path: path.to_owned(), source })?;
                stored.machines
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(RackError::io(format!("reading {}", path.display()))(error)),
        };
        Ok(Self { path: path.to_owned(), machines: Mutex::new(machines) })
    }

    /// A copy of all records.
    pub(super) fn all(&self) -> BTreeMap<Mac, MachineRecord> {
        self.lock().clone()
    }

    /// One machine's record.
    pub(super) fn get(&self, mac: Mac) -> Option<MachineRecord> {
        self.lock().get(&mac).cloned()
    }

    /// Changes one machine's record, made if there is none; on the disk when this returns if `durable`.
    ///
    /// A change that cannot be stored is not made: nothing is handed out that a restart would forget.
    pub(super) fn change<R>(
        &self,
        mac: Mac,
        now: u64,
        durable: bool,
        act: impl FnOnce(&mut MachineRecord) -> R,
    ) -> Result<R, RackError> {
        let mut machines = self.lock();
        let before = machines.get(&mac).cloned();
        let record = machines.entry(mac).or_insert_with(|| MachineRecord::new(mac, now));
        record.last_seen = now;
        let answer = act(record);
        if durable && let Err(error) = self.store(&machines) {
            match before {
                Some(before) => machines.insert(mac, before),
                None => machines.remove(&mac),
            };
            return Err(error);
        }
        Ok(answer)
    }

    fn store(&self, machines: &BTreeMap<Mac, MachineRecord>) -> Result<(), RackError> {
        let stored = Stored { format: FORMAT, machines: machines.clone() };
        let bytes = serde_json::to_vec_pretty(&stored)
            .map_err(|source| RackError::Records { path: self.path.clone(), source })?;
        let partial = self.path.with_extension("json.partial");
        let write = || {
            let mut file = File::create(&partial)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            fs::rename(&partial, &self.path)?;
            match self.path.parent() {
                Some(dir) => File::open(dir)?.sync_all(),
                None => Ok(()),
            }
        };
        write().map_err(RackError::io(format!("writing {}", self.path.display())))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Mac, MachineRecord>> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_and_a_change_that_cannot_be_stored_is_not_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("machines.json");
        let mac: Mac = "52:54:00:00:00:01".parse().unwrap();
        let records = Records::open(&path).unwrap();
        records.change(mac, 7, true, |record| record.serial = Some("S1".into())).unwrap();
        let again = Records::open(&path).unwrap();
        assert_eq!(again.get(mac).unwrap().serial.as_deref(), Some("S1"));
        assert_eq!(again.get(mac).unwrap().first_seen, 7);

        fs::create_dir(path.with_extension("json.partial")).unwrap();
        assert!(again.change(mac, 8, true, |record| record.serial = None).is_err());
        assert_eq!(again.get(mac).unwrap().serial.as_deref(), Some("S1"));
        fs::remove_dir(path.with_extension("json.partial")).unwrap();

        fs::write(&path, "{").unwrap();
        assert!(matches!(Records::open(&path), Err(RackError::Records { .. })));
    }
}
