//! Keeps the journal of phases: a phase counts as run only when its record is on the disk.

use std::path::Path;

use crate::model::journal::JOURNAL_FORMAT;
use crate::model::{PhaseJournal, PhaseRecord};
use crate::rim::files::Durability;
use crate::rim::versioned::{Versioned, VersionedError, read_versioned, write_versioned};

impl Versioned for PhaseJournal {
    const WHAT: &'static str = "the journal of phases";
    const FORMAT: u32 = JOURNAL_FORMAT;
}

/// Reads the journal; one that is not there is empty. A damaged one is never guessed: every phase would run again.
pub fn read_journal(path: &Path) -> Result<PhaseJournal, VersionedError> {
    Ok(read_versioned(path)?.unwrap_or_default())
}

/// Adds a record; it is on the disk when this returns.
pub fn append(path: &Path, journal: &mut PhaseJournal, record: PhaseRecord) -> Result<(), VersionedError> {
    let mut next = journal.clone();
    next.records.push(record);
    write_versioned(path, &next, Durability::Durable)?;
    *journal = next;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Digest;

    #[test]
    fn records_are_kept_and_a_foreign_file_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/phases.json");
        let mut journal = read_journal(&path).unwrap();
        assert_eq!(journal, PhaseJournal::default());
        for phase in ["a", "b"] {
            let record = PhaseRecord {
                phase: phase.to_owned(),
                image: Digest::of(b"image"),
                release: "1".repeat(64).parse().unwrap(),
                created: 7,
            };
            append(&path, &mut journal, record).unwrap();
        }
        assert_eq!(read_journal(&path).unwrap(), journal);
        assert_eq!(journal.records.len(), 2);
        for (text, problem) in [
            ("{", "reading the journal of phases"),
            (r#"{"format": 9, "records": []}"#, "of format 9, expected 1"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = read_journal(&path).unwrap_err().to_string();
            assert!(error.contains(problem), "{error}");
        }
    }
}
