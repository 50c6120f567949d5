//! What is known of the machines: a JSON file, and beside it a journal of what changed since it was written.
//!
//! 1. A record belongs to a host of the rack file, whichever card it asks by. A change appends that record to the journal and
//!    flushes it: its cost does not depend on how many machines there are. An order is on the disk before it is handed out.
//! 2. The journal is folded into the file, which is replaced as a whole, when it has outgrown it, and at the start.
//! 3. Strangers' records are by card, in memory, and bounded: the newest stay.
//!
//! The formats are in `docs/formats.md`; format 1, which had one record for each card, is read.

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
/// How many machines that the rack file does not know are remembered.
const STRANGERS_KEPT: usize = 500;
/// The journal may grow to the size of the file and this much.
const JOURNAL_ROOM: u64 = 1 << 20;

#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    format: u32,
    hosts: BTreeMap<String, MachineRecord>,
}

/// A line of the journal: the record as it is after a change. The last one may be cut.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    format: u32,
    host: String,
    record: MachineRecord,
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
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    machines: Machines,
    journal: File,
    journal_size: u64,
    file_size: u64,
}

impl Records {
    /// The records in `path` and its journal; none when there is no such file.
    pub(super) fn open(path: &Path) -> Result<Self, RackError> {
        let reading = |path: &Path| RackError::io(format!("reading {}", path.display()));
        let mut machines = match fs::read(path) {
            Ok(bytes) => read(&bytes, path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Machines::new(),
            Err(error) => return Err(reading(path)(error)),
        };
        let journal_path = path.with_extension("journal");
        let journal = File::options()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&journal_path)
            .map_err(RackError::io(format!("opening {}", journal_path.display())))?;
        let text = fs::read(&journal_path).map_err(reading(&journal_path))?;
        replay(&text, &mut machines, &journal_path)?;
        let mut inner = Inner { machines, journal, journal_size: text.len() as u64, file_size: 0 };
        // A full disk stops no netboot: then the journal stays as it is, and only changes that must be stored fail.
        if !text.is_empty()
            && let Err(error) = fold(path, &mut inner)
        {
            tracing::warn!(%error, "the journal of records stays");
        }
        Ok(Self { path: path.to_owned(), inner: Mutex::new(inner) })
    }

    /// A copy of all records.
    pub(super) fn all(&self) -> Machines {
        self.lock().machines.clone()
    }

    /// The subject whose attempt has this digest of a secret.
    pub(super) fn find_secret(&self, digest: &str) -> Option<Subject> {
        let inner = self.lock();
        inner.machines.iter().find(|(_, record)| record.knows(digest)).map(|(subject, _)| subject.clone())
    }

    /// Changes one record, made for the card `mac` if there is none; on the disk when this returns if `is_durable` says so
    /// of what was changed. Strangers are kept in memory alone.
    ///
    /// A change that cannot be stored is not made: nothing is handed out that a restart would forget.
    pub(super) fn change<R>(
        &self,
        (subject, mac): (&Subject, Mac),
        now: u64,
        is_durable: impl FnOnce(&R) -> bool,
        act: impl FnOnce(&mut MachineRecord) -> R,
    ) -> Result<R, RackError> {
        let mut inner = self.lock();
        let before = inner.machines.get(subject).cloned();
        let mut record = before.unwrap_or_else(|| MachineRecord::new(mac, now));
        record.last_seen = now;
        let answer = act(&mut record);
        if let Subject::Host(name) = subject
            && is_durable(&answer)
        {
            append(&self.path, &mut inner, name, &record)?;
        }
        inner.machines.insert(subject.clone(), record);
        forget_strangers(&mut inner.machines);
        if inner.journal_size > inner.file_size + JOURNAL_ROOM
            && let Err(error) = fold(&self.path, &mut inner)
        {
            tracing::warn!(%error, "the journal of records stays");
        }
        Ok(answer)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Appends one record and waits for the disk; what could not be written whole is cut off again.
fn append(path: &Path, inner: &mut Inner, name: &str, record: &MachineRecord) -> Result<(), RackError> {
    let entry = Entry { format: FORMAT, host: name.to_owned(), record: record.clone() };
    let mut line =
        serde_json::to_vec(&entry).map_err(|source| RackError::Records { path: path.to_owned(), source })?;
    line.push(b'\n');
    let written = inner.journal.write_all(&line).and_then(|()| inner.journal.sync_data());
    if let Err(error) = written {
        let _ = inner.journal.set_len(inner.journal_size);
        return Err(RackError::io(format!("writing {}", path.with_extension("journal").display()))(error));
    }
    inner.journal_size += line.len() as u64;
    Ok(())
}

/// Writes everything into the file, and empties the journal. Cut in between, the journal says the same again.
fn fold(path: &Path, inner: &mut Inner) -> Result<(), RackError> {
    let of_host = |(subject, record): (&Subject, &MachineRecord)| match subject {
        Subject::Host(name) => Some((name.clone(), record.clone())),
        Subject::Stranger(_) => None,
    };
    let stored = Stored { format: FORMAT, hosts: inner.machines.iter().filter_map(of_host).collect() };
    let bytes = serde_json::to_vec_pretty(&stored)
        .map_err(|source| RackError::Records { path: path.to_owned(), source })?;
    let partial = path.with_extension("json.partial");
    let write = || {
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&partial, path)?;
        if let Some(dir) = path.parent() {
            File::open(dir)?.sync_all()?;
        }
        inner.journal.set_len(0)
    };
    write().map_err(RackError::io(format!("writing {}", path.display())))?;
    (inner.file_size, inner.journal_size) = (bytes.len() as u64, 0);
    Ok(())
}

/// Takes the journal in; a last line without an end was never answered.
fn replay(text: &[u8], machines: &mut Machines, path: &Path) -> Result<(), RackError> {
    let Some(end) = text.iter().rposition(|byte| *byte == b'\n') else { return Ok(()) };
    for line in text[..end].split(|byte| *byte == b'\n') {
        let damaged = |source| RackError::Records { path: path.to_owned(), source };
        let Numbered { format } = serde_json::from_slice(line).map_err(damaged)?;
        if format != FORMAT {
            return Err(RackError::RecordsFormat { path: path.to_owned(), format });
        }
        let Entry { host, record, .. } = serde_json::from_slice(line).map_err(damaged)?;
        machines.insert(Subject::Host(host), record);
    }
    Ok(())
}

/// Strangers are many where somebody makes them up: the ones that were seen last stay.
fn forget_strangers(machines: &mut Machines) {
    let is_stranger = |subject: &&Subject| matches!(subject, Subject::Stranger(_));
    // They are behind all hosts in the order of keys.
    if machines.keys().rev().take_while(is_stranger).count() <= STRANGERS_KEPT {
        return;
    }
    let strangers = machines.iter().rev().take_while(|(subject, _)| is_stranger(subject));
    if let Some(oldest) =
        strangers.min_by_key(|(_, record)| record.last_seen).map(|(subject, _)| subject.clone())
    {
        machines.remove(&oldest);
    }
}

fn read(bytes: &[u8], path: &Path) -> Result<Machines, RackError> {
    let damaged = |source| RackError::Records { path: path.to_owned(), source };
    let Numbered { format } = serde_json::from_slice(bytes).map_err(damaged)?;
    match format {
        1 => Ok(by_host(serde_json::from_slice::<ByCard>(bytes).map_err(damaged)?.machines)),
        FORMAT => {
            let Stored { hosts, .. } = serde_json::from_slice(bytes).map_err(damaged)?;
            Ok(hosts.into_iter().map(|(name, record)| (Subject::Host(name), record)).collect())
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
        let set = |records: &Records, at: u64, serial: &str| {
            let serial = Some(serial.to_owned());
            records.change((&subject, mac), at, |()| true, |record| record.serial = serial)
        };
        let serial = |records: &Records| records.all()[&subject].serial.clone().unwrap();
        let records = Records::open(&path).unwrap();
        set(&records, 7, "S1").unwrap();
        set(&records, 8, "S2").unwrap();
        // Dead before anything was folded; a line that was cut was never answered.
        drop(records);
        let journal = path.with_extension("journal");
        File::options().append(true).open(&journal).unwrap().write_all(b"{\"format\":2,\"ho").unwrap();
        let again = Records::open(&path).unwrap();
        assert_eq!((serial(&again).as_str(), again.all()[&subject].first_seen), ("S2", 7));
        assert_eq!(fs::metadata(&journal).unwrap().len(), 0);

        let full = File::options().write(true).open("/dev/full").unwrap();
        let kept = std::mem::replace(&mut again.lock().journal, full);
        assert!(set(&again, 9, "S3").is_err());
        assert_eq!(serial(&again), "S2");
        again.lock().journal = kept;
        set(&again, 10, "S4").unwrap();
        assert_eq!(serial(&Records::open(&path).unwrap()), "S4");

        fs::write(&journal, "{\"format\":3}\n").unwrap();
        assert!(matches!(Records::open(&path), Err(RackError::RecordsFormat { format: 3, .. })));
        fs::remove_file(&journal).unwrap();
        fs::write(&path, "{").unwrap();
        assert!(matches!(Records::open(&path), Err(RackError::Records { .. })));
        fs::write(&path, r#"{"format": 3}"#).unwrap();
        assert!(matches!(Records::open(&path), Err(RackError::RecordsFormat { format: 3, .. })));
    }

    #[test]
    fn the_journal_is_folded_and_strangers_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("machines.json");
        let records = Records::open(&path).unwrap();
        let (subject, mac) = host();
        for number in 0..600_u64 {
            let serial = "s".repeat(4000);
            records
                .change((&subject, mac), number, |()| true, |record| record.serial = Some(serial))
                .unwrap();
            let card = format!("02:00:00:00:{:02x}:{:02x}", number >> 8, number & 255).parse().unwrap();
            records.change((&Subject::Stranger(card), card), number, |()| true, |_| ()).unwrap();
        }
        let journal = fs::metadata(path.with_extension("journal")).unwrap().len();
        assert!(journal < 2 * JOURNAL_ROOM, "{journal}");
        let all = records.all();
        assert_eq!(all.len(), 1 + STRANGERS_KEPT);
        assert!(all.values().all(|record| record.last_seen >= 100));
        assert_eq!(Records::open(&path).unwrap().all().len(), 1);
    }

    /// One host by two cards, one by one, and a stranger.
    #[test]
    fn format_1_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("machines.json");
        fs::write(&path, include_str!("../../tests/fixtures/machines-1.json")).unwrap();
        let machines = Records::open(&path).unwrap().all();
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
