//! Keeps the journal of phases: a phase counts as run only when its record is on the disk.

use std::io;
use std::path::{Path, PathBuf};

use crate::model::journal::JOURNAL_FORMAT;
use crate::model::{PhaseJournal, PhaseRecord};

use crate::rim::files::{Durability, FileError, ensure_directory, write_atomic};

/// Why the journal cannot be used. It is never guessed: a lost journal would run every phase again.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// It could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is not what we write.
    #[error("reading the journal of phases {path}")]
    Damaged {
        /// Where it is.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// A newer program wrote it.
    #[error("the journal of phases {path} is of format {got}, expected {JOURNAL_FORMAT}")]
    Format {
        /// Where it is.
        path: PathBuf,
        /// Its format.
        got: u32,
    },
}

/// Reads the journal; one that is not there is empty.
pub fn read_journal(path: &Path) -> Result<PhaseJournal, JournalError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(PhaseJournal::default()),
        Err(source) => {
            return Err(FileError { operation: "reading", path: path.to_owned(), source }.into());
        }
    };
    let journal: PhaseJournal = serde_json::from_slice(&bytes)
        .map_err(|source| JournalError::Damaged { path: path.to_owned(), source })?;
    if journal.format != JOURNAL_FORMAT {
        return Err(JournalError::Format { path: path.to_owned(), got: journal.format });
    }
    Ok(journal)
}

/// Adds a record; it is on the disk when this returns.
pub fn append(path: &Path, journal: &mut PhaseJournal, record: PhaseRecord) -> Result<(), JournalError> {
    let mut next = journal.clone();
    next.records.push(record);
    let mut text = serde_json::to_vec_pretty(&next)
        .map_err(|source| JournalError::Damaged { path: path.to_owned(), source })?;
    text.push(b'\n');
    if let Some(directory) = path.parent() {
        ensure_directory(directory, 0o755)?;
    }
    write_atomic(path, &text, 0o600, Durability::Durable)?;
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
