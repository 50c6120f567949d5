//! What is known of the machines: a JSON file, and beside it a journal of what changed since it was written.
//!
//! 1. A record belongs to a host of the rack file, whichever card it asks by. A change queues that record for the journal;
//!    whoever comes to the journal first writes everything that is queued, and flushes once for all of it. The cost of a
//!    change does not depend on how many machines there are, and many changes at once share a flush.
//! 2. A change is answered when it is on the disk. If the journal cannot be written, then neither the queued changes nor
//!    those that were made upon them are made: the records are again as they are on the disk.
//! 3. The journal is folded into the file, which is replaced as a whole, when it has outgrown it, and at the start.
//! 4. Strangers' records are by card, in memory, and bounded: the newest stay.
//!
//! The formats are in `docs/formats.md`; format 1, which had one record for each card, is read.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::RackError;
use crate::model::causes::in_one_line;
use crate::model::machine::{MachineRecord, OrderState};
use crate::model::rack::Mac;
use crate::rim::files::{Durability, write_atomic};

const FORMAT: u32 = 2;
/// How many machines that the rack file does not know are remembered.
const STRANGERS_KEPT: usize = 500;
/// The journal may grow to the size of the file and this much.
const JOURNAL_ROOM: u64 = 1 << 20;

#[derive(Debug, Deserialize)]
struct Stored {
    hosts: BTreeMap<String, MachineRecord>,
}

#[derive(Debug, Serialize)]
struct Storing<'r> {
    format: u32,
    hosts: BTreeMap<&'r str, &'r MachineRecord>,
}

/// A line of the journal: the record as it is after a change. The last one may be cut.
#[derive(Debug, Deserialize)]
struct Entry {
    host: String,
    record: MachineRecord,
}

#[derive(Debug, Serialize)]
struct NewEntry<'r> {
    format: u32,
    host: &'r str,
    record: &'r MachineRecord,
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
pub(super) type Machines = BTreeMap<Subject, Arc<MachineRecord>>;

/// The records of one rack.
#[derive(Debug)]
pub(super) struct Records {
    path: PathBuf,
    inner: Mutex<Inner>,
    /// Locked before `inner`, never after it.
    journal: Mutex<Journal>,
}

#[derive(Debug, Default)]
struct Inner {
    machines: Machines,
    /// Whose a digest of a secret is.
    secrets: HashMap<String, Subject>,
    /// What waits for the journal, in the order of the changes.
    queue: Vec<Change>,
    /// The number of the next change.
    next: u64,
    /// Changes that could not be stored, until whoever made them knows it.
    failed: HashMap<u64, io::Error>,
}

/// A record on its way to the disk.
#[derive(Debug)]
struct Change {
    number: u64,
    host: String,
    record: Arc<MachineRecord>,
    line: Vec<u8>,
}

#[derive(Debug)]
struct Journal {
    file: File,
    size: u64,
    /// Of the file beside it.
    file_size: u64,
    /// What is on the disk.
    hosts: BTreeMap<String, Arc<MachineRecord>>,
    /// All changes before this one are stored, or have failed.
    settled: u64,
    /// Something half-written may stand behind `size`.
    is_torn: bool,
}

impl Records {
    /// The records in `path` and its journal; none when there is no such file.
    pub(super) fn open(path: &Path) -> Result<Self, RackError> {
        let reading = |path: &Path| RackError::io(format!("reading {}", path.display()));
        // What an older server left half-written. The directory may be shared: nothing else in it is looked at.
        let _ = fs::remove_file(path.with_extension("json.partial"));
        let mut machines = match fs::read(path) {
            Ok(bytes) => read(&bytes, path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Machines::new(),
            Err(error) => return Err(reading(path)(error)),
        };
        let journal_path = path.with_extension("journal");
        let file = File::options()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&journal_path)
            .map_err(RackError::io(format!("opening {}", journal_path.display())))?;
        let text = fs::read(&journal_path).map_err(reading(&journal_path))?;
        let end = replay(&text, &mut machines, &journal_path)?;
        if end < text.len() {
            // The next line would be written behind it otherwise.
            file.set_len(end as u64).map_err(RackError::io(format!("writing {}", journal_path.display())))?;
        }
        let hosts = machines.iter().filter_map(|(subject, record)| match subject {
            Subject::Host(name) => Some((name.clone(), record.clone())),
            Subject::Stranger(_) => None,
        });
        let mut journal = Journal {
            file,
            size: end as u64,
            file_size: 0,
            hosts: hosts.collect(),
            settled: 0,
            is_torn: false,
        };
        // A full disk stops no netboot: then the journal stays as it is, and only changes that must be stored fail.
        if !text.is_empty() {
            journal.fold(path);
        }
        let mut inner = Inner::default();
        for (subject, record) in machines {
            inner.put(&subject, record);
        }
        Ok(Self { path: path.to_owned(), inner: Mutex::new(inner), journal: Mutex::new(journal) })
    }

    /// A copy of all records.
    pub(super) fn all(&self) -> Machines {
        locked(&self.inner).machines.clone()
    }

    /// The subject whose attempt has this digest of a secret.
    pub(super) fn find_secret(&self, digest: &str) -> Option<Subject> {
        locked(&self.inner).secrets.get(digest).cloned()
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
        let mut inner = locked(&self.inner);
        let known = inner.machines.get(subject);
        let mut record = known.map_or_else(|| MachineRecord::new(mac, now), |known| (**known).clone());
        record.last_seen = now;
        let answer = act(&mut record);
        let record = Arc::new(record);
        let queued = match subject {
            Subject::Host(name) if is_durable(&answer) => Some(inner.enqueue(name, &record, &self.path)?),
            _ => None,
        };
        inner.put(subject, record);
        drop(inner);
        if let Some(number) = queued {
            self.settle(number)?;
        }
        Ok(answer)
    }

    /// Waits until change `number` is on the disk; writes it, with all that are queued, if nobody else has.
    fn settle(&self, number: u64) -> Result<(), RackError> {
        let mut journal = locked(&self.journal);
        if journal.settled <= number {
            let (mut batch, next) = {
                let mut inner = locked(&self.inner);
                (std::mem::take(&mut inner.queue), inner.next)
            };
            match journal.append(&batch) {
                Ok(()) => {
                    journal.settled = next;
                    batch.drain(..).for_each(|change| drop(journal.hosts.insert(change.host, change.record)));
                    if journal.size > journal.file_size + JOURNAL_ROOM {
                        journal.fold(&self.path);
                    }
                }
                Err(error) => journal.settled = locked(&self.inner).take_back(batch, &error, &journal.hosts),
            }
        }
        match locked(&self.inner).failed.remove(&number) {
            Some(error) => Err(RackError::io(format!(
                "writing {}",
                self.path.with_extension("journal").display()
            ))(error)),
            None => Ok(()),
        }
    }
}

impl Inner {
    fn enqueue(&mut self, host: &str, record: &Arc<MachineRecord>, path: &Path) -> Result<u64, RackError> {
        let mut line = serde_json::to_vec(&NewEntry { format: FORMAT, host, record })
            .map_err(|source| RackError::Records { path: path.to_owned(), source })?;
        line.push(b'\n');
        let number = self.next;
        self.next += 1;
        self.queue.push(Change { number, host: host.to_owned(), record: record.clone(), line });
        Ok(number)
    }

    /// Puts a record in place of what is known of `subject`.
    fn put(&mut self, subject: &Subject, record: Arc<MachineRecord>) {
        self.remove(subject);
        for digest in [&record.pending, &record.secret].into_iter().filter(|digest| !digest.is_empty()) {
            self.secrets.entry(digest.clone()).or_insert_with(|| subject.clone());
        }
        self.machines.insert(subject.clone(), record);
        if matches!(subject, Subject::Stranger(_)) {
            self.forget_strangers();
        }
    }

    fn remove(&mut self, subject: &Subject) {
        let Some(former) = self.machines.remove(subject) else { return };
        for digest in [&former.pending, &former.secret] {
            if self.secrets.get(digest) == Some(subject) {
                self.secrets.remove(digest);
            }
        }
    }

    /// Makes undone what could not be stored, and what was queued since then: it was made upon that. Returns the number of
    /// the next change.
    fn take_back(
        &mut self,
        batch: Vec<Change>,
        error: &io::Error,
        stored: &BTreeMap<String, Arc<MachineRecord>>,
    ) -> u64 {
        let since = std::mem::take(&mut self.queue);
        for change in batch.into_iter().chain(since) {
            let again = match error.raw_os_error() {
                Some(number) => io::Error::from_raw_os_error(number),
                None => io::Error::new(error.kind(), error.to_string()),
            };
            self.failed.insert(change.number, again);
            let subject = Subject::Host(change.host);
            self.remove(&subject);
            if let Subject::Host(name) = &subject
                && let Some(record) = stored.get(name)
            {
                self.put(&subject, record.clone());
            }
        }
        self.next
    }

    /// Strangers are many where somebody makes them up: the ones that were seen last stay.
    fn forget_strangers(&mut self) {
        // They are behind all hosts in the order of keys.
        let is_stranger = |subject: &&Subject| matches!(subject, Subject::Stranger(_));
        if self.machines.keys().rev().take_while(is_stranger).count() <= STRANGERS_KEPT {
            return;
        }
        let strangers = self.machines.iter().rev().take_while(|(subject, _)| is_stranger(subject));
        let oldest = strangers.min_by_key(|(_, record)| record.last_seen).map(|(subject, _)| subject.clone());
        if let Some(oldest) = oldest {
            self.remove(&oldest);
        }
    }
}

impl Journal {
    /// Appends a batch and waits for the disk; what could not be written whole is cut off again.
    fn append(&mut self, batch: &[Change]) -> io::Result<()> {
        let lines = batch.iter().map(|change| change.line.as_slice()).collect::<Vec<_>>().concat();
        if self.is_torn {
            self.file.set_len(self.size)?;
        }
        self.is_torn = true;
        let written = self.file.write_all(&lines).and_then(|()| self.file.sync_data());
        match &written {
            Ok(()) => (self.size, self.is_torn) = (self.size + lines.len() as u64, false),
            Err(_) => self.is_torn = self.file.set_len(self.size).is_err(),
        }
        written
    }

    /// Writes everything into the file, and empties the journal. Cut in between, the journal says the same again. Where it
    /// does not work the journal stays.
    fn fold(&mut self, path: &Path) {
        match self.write_file(path) {
            Ok(size) => (self.file_size, self.size) = (size, 0),
            Err(error) => {
                // It is tried again when as much has come again.
                self.file_size = self.size;
                tracing::warn!("the journal of records stays: {}", in_one_line(&error));
            }
        }
    }

    fn write_file(&self, path: &Path) -> Result<u64, RackError> {
        let hosts = self.hosts.iter().map(|(name, record)| (name.as_str(), &**record)).collect();
        let bytes = serde_json::to_vec_pretty(&Storing { format: FORMAT, hosts })
            .map_err(|source| RackError::Records { path: path.to_owned(), source })?;
        write_atomic(path, &bytes, 0o600, Durability::Durable)?;
        self.file.set_len(0).map_err(RackError::io("emptying the journal of records"))?;
        Ok(bytes.len() as u64)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes the journal in, and returns how much of it is whole: a last line without an end was never answered.
fn replay(text: &[u8], machines: &mut Machines, path: &Path) -> Result<usize, RackError> {
    let Some(end) = text.iter().rposition(|byte| *byte == b'\n') else { return Ok(0) };
    for line in text[..end].split(|byte| *byte == b'\n') {
        let damaged = |source| RackError::Records { path: path.to_owned(), source };
        let Numbered { format } = serde_json::from_slice(line).map_err(damaged)?;
        if format != FORMAT {
            return Err(RackError::RecordsFormat { path: path.to_owned(), format });
        }
        let Entry { host, record } = serde_json::from_slice(line).map_err(damaged)?;
        machines.insert(Subject::Host(host), Arc::new(record));
    }
    Ok(end + 1)
}

fn read(bytes: &[u8], path: &Path) -> Result<Machines, RackError> {
    let damaged = |source| RackError::Records { path: path.to_owned(), source };
    let Numbered { format } = serde_json::from_slice(bytes).map_err(damaged)?;
    match format {
        1 => Ok(by_host(serde_json::from_slice::<ByCard>(bytes).map_err(damaged)?.machines)),
        FORMAT => {
            let Stored { hosts } = serde_json::from_slice(bytes).map_err(damaged)?;
            Ok(hosts.into_iter().map(|(name, record)| (Subject::Host(name), Arc::new(record))).collect())
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
            _ => drop(machines.insert(subject, Arc::new(record))),
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
        let kept = std::mem::replace(&mut again.journal.lock().unwrap().file, full);
        assert!(set(&again, 9, "S3").is_err());
        assert_eq!(serial(&again), "S2");
        again.journal.lock().unwrap().file = kept;
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

    /// Many writers at once, with the journal failing in between: what was answered is on the disk, what failed is nowhere.
    #[test]
    fn what_is_answered_is_stored_and_what_fails_is_not_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("machines.json");
        let records = Records::open(&path).unwrap();
        let mac: Mac = "52:54:00:00:00:01".parse().unwrap();
        let fault = |file: &str| {
            let file = File::options().append(true).open(file).unwrap();
            std::mem::replace(&mut records.journal.lock().unwrap().file, file)
        };
        let write = |writer: u64, round: u64| {
            let subject = Subject::Host(format!("host-{writer}"));
            let secret = format!("{writer}.{round}");
            let stored = records.change(
                (&subject, mac),
                round,
                |()| true,
                |record| {
                    // Made upon what went before: a change after a failed one must not carry it.
                    record.refused.push(secret.clone());
                    record.pending = secret.clone();
                },
            );
            stored.is_ok().then_some(secret)
        };
        let answered: Vec<Vec<String>> = std::thread::scope(|scope| {
            let write = &write;
            let writers = (0..16).map(|writer| {
                scope.spawn(move || {
                    (0..40).filter_map(|round| write(writer % 4, writer * 100 + round)).collect()
                })
            });
            let writers: Vec<_> = writers.collect();
            for _ in 0..5 {
                let kept = fault("/dev/full");
                std::thread::yield_now();
                records.journal.lock().unwrap().file = kept;
            }
            writers.into_iter().map(|writer| writer.join().unwrap()).collect()
        });
        let kept = fault("/dev/full");
        assert_eq!(write(0, 9999), None);
        records.journal.lock().unwrap().file = kept;
        assert_eq!((records.find_secret("0.9999"), records.inner.lock().unwrap().failed.len()), (None, 0));
        let mut answered: Vec<String> = answered.concat();
        answered.sort();
        let known = |records: &Records| {
            let mut known: Vec<String> =
                records.all().values().flat_map(|record| record.refused.clone()).collect();
            known.sort();
            known
        };
        assert!(!answered.is_empty());
        assert_eq!(known(&records), answered);
        assert_eq!(known(&Records::open(&path).unwrap()), answered);
    }

    #[test]
    fn damage_before_the_end_is_an_error_that_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("machines.json");
        let (subject, mac) = host();
        let records = Records::open(&path).unwrap();
        records.change((&subject, mac), 1, |()| true, |_| ()).unwrap();
        drop(records);
        let journal = path.with_extension("journal");
        let whole = fs::read(&journal).unwrap();
        for (bytes, is_fine) in [
            (whole[..whole.len() / 2].to_vec(), true),
            ([&whole[..], &whole[..9]].concat(), true),
            ([&whole[..9], b"\n", &whole[..]].concat(), false),
            ([&whole[..], b"\0\0\0\n"].concat(), false),
        ] {
            fs::write(&journal, &bytes).unwrap();
            match Records::open(&path) {
                Ok(_) => assert!(is_fine),
                Err(error) => assert!(!is_fine && error.to_string().contains("machines.journal"), "{error}"),
            }
            let _ = fs::remove_file(&path);
        }
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
