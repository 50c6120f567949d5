//! What is known of the machines, in one JSON file that is replaced as a whole.
//!
//! A record belongs to a host of the rack file, whichever card it asks by, or to the card of a stranger. An order is on the
//! disk before it is handed out. The formats are in `docs/formats.md`; format 1, which had one record for each card, is read.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::RackError;
use crate::model::machine::{MachineRecord, OrderState};
use crate::model::rack::Mac;

const FORMAT: u32 = 2;

#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    format: u32,
    hosts: BTreeMap<String, MachineRecord>,
    strangers: BTreeMap<Mac, MachineRecord>,
}

/// Format 1.
#[derive(Debug, Deserialize)]
struct ByCard {
    machines: BTreeMap<Mac, MachineRecord>,
}

#[derive(Debug, Deserialize)]
struct Numbered {
    format: u32,
}

/// Whose record it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Subject {
    /// A host of the rack file.
    Host(String),
    /// The card of a machine that the rack file does not know.
    Stranger(Mac),
}

/// All records.
pub(super) type Machines = BTreeMap<Subject, MachineRecord>;

/// The records of one rack.
#[derive(Debug)]
pub(super) struct Records {
    path: PathBuf,
    machines: Mutex<Machines>,
}

impl Records {
    /// The records in `path`; none when there is no such file.
    pub(super) fn open(path: &Path) -> Result<Self, RackError> {
        let machines = match fs::read(path) {
            Ok(bytes) => read(&bytes, path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Machines::new(),
            Err(error) => return Err(RackError::io(format!("reading {}", path.display()))(error)),
        };
        Ok(Self { path: path.to_owned(), machines: Mutex::new(machines) })
    }

    /// A copy of all records.
    pub(super) fn all(&self) -> Machines {
        self.lock().clone()
    }

    /// The subject whose attempt has this digest of a secret.
    pub(super) fn find_secret(&self, digest: &str) -> Option<Subject> {
        self.lock().iter().find(|(_, record)| record.knows(digest)).map(|(subject, _)| subject.clone())
    }

    /// Changes one record, made for the card `mac` if there is none; on the disk when this returns if `durable`.
    ///
    /// A change that cannot be stored is not made: nothing is handed out that a restart would forget.
    pub(super) fn change<R>(
        &self,
        (subject, mac): (&Subject, Mac),
        now: u64,
        durable: bool,
        act: impl FnOnce(&mut MachineRecord) -> R,
    ) -> Result<R, RackError> {
        let mut machines = self.lock();
        let before = machines.get(subject).cloned();
        let record = machines.entry(subject.clone()).or_insert_with(|| MachineRecord::new(mac, now));
        record.last_seen = now;
        let answer = act(record);
        if durable && let Err(error) = self.store(&machines) {
            match before {
                Some(before) => machines.insert(subject.clone(), before),
                None => machines.remove(subject),
            };
            return Err(error);
        }
        Ok(answer)
    }

    fn store(&self, machines: &Machines) -> Result<(), RackError> {
        let (mut hosts, mut strangers) = (BTreeMap::new(), BTreeMap::new());
        for (subject, record) in machines {
            match subject {
                Subject::Host(name) => drop(hosts.insert(name.clone(), record.clone())),
                Subject::Stranger(mac) => drop(strangers.insert(*mac, record.clone())),
            }
        }
        let stored = Stored { format: FORMAT, hosts, strangers };
        let bytes = serde_json::to_vec_pretty(&stored)
            .map_err(|source| RackError::Records { path: self.path.clone(), source })?;
        let partial = self.path.with_extension("json.partial");
        let write = || {
            let mut file =
                File::options().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
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

    fn lock(&self) -> MutexGuard<'_, Machines> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(bytes: &[u8], path: &Path) -> Result<Machines, RackError> {
    let damaged = |source| RackError::Records { path: path.to_owned(), source };
    let Numbered { format } = serde_json::from_slice(bytes).map_err(damaged)?;
    match format {
        1 => Ok(by_host(serde_json::from_slice::<ByCard>(bytes).map_err(damaged)?.machines)),
        FORMAT => {
            let Stored { hosts, strangers, .. } = serde_json::from_slice(bytes).map_err(damaged)?;
            let hosts = hosts.into_iter().map(|(name, record)| (Subject::Host(name), record));
            let strangers = strangers.into_iter().map(|(mac, record)| (Subject::Stranger(mac), record));
            Ok(hosts.chain(strangers).collect())
        }
        _ => Err(RackError::RecordsFormat { path: path.to_owned(), format }),
    }
}

/// The records of format 1, which had one for each card: of two for one host the one that came further counts.
fn by_host(cards: BTreeMap<Mac, MachineRecord>) -> Machines {
    let mut machines = Machines::new();
    for (mac, record) in cards {
        let subject = record.host.clone().map_or(Subject::Stranger(mac), Subject::Host);
        let reached = |record: &MachineRecord| {
            let is_done = record.order.as_ref().is_some_and(|order| order.state == OrderState::Done);
            (record.last_generation(), record.installed, is_done, record.last_seen)
        };
        match machines.get(&subject) {
            Some(known) if reached(known) >= reached(&record) => {}
            _ => drop(machines.insert(subject, record)),
        }
    }
    machines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> (Subject, Mac) {
        (Subject::Host("control-1".into()), "52:54:00:00:00:01".parse().unwrap())
    }

    #[test]
    fn records_survive_and_a_change_that_cannot_be_stored_is_not_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("machines.json");
        let (subject, mac) = host();
        let records = Records::open(&path).unwrap();
        records.change((&subject, mac), 7, true, |record| record.serial = Some("S1".into())).unwrap();
        let again = Records::open(&path).unwrap();
        assert_eq!(again.all()[&subject].serial.as_deref(), Some("S1"));
        assert_eq!(again.all()[&subject].first_seen, 7);

        fs::create_dir(path.with_extension("json.partial")).unwrap();
        assert!(again.change((&subject, mac), 8, true, |record| record.serial = None).is_err());
        assert_eq!(again.all()[&subject].serial.as_deref(), Some("S1"));
        fs::remove_dir(path.with_extension("json.partial")).unwrap();

        fs::write(&path, "{").unwrap();
        assert!(matches!(Records::open(&path), Err(RackError::Records { .. })));
        fs::write(&path, r#"{"format": 3}"#).unwrap();
        assert!(matches!(Records::open(&path), Err(RackError::RecordsFormat { format: 3, .. })));
    }

    /// One host by two cards, one by one, and a stranger.
    #[test]
    fn format_1_is_read() {
        let old = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/machines-1.json");
        let machines = Records::open(&old).unwrap().all();
        let subjects: Vec<_> = machines.keys().cloned().collect();
        let stranger = "52:54:00:00:00:99".parse().unwrap();
        assert_eq!(
            subjects,
            [
                Subject::Host("control-1".into()),
                Subject::Host("control-3".into()),
                Subject::Stranger(stranger)
            ]
        );
        let installed = &machines[&Subject::Host("control-3".into())];
        assert_eq!((installed.installed, installed.mac.to_string().as_str()), (Some(1), "52:54:00:00:00:0a"));
        assert_eq!(installed.secret, "");
    }
}
