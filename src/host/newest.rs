//! Keeps the newest release that this host has accepted of its ref.

use std::io;
use std::path::{Path, PathBuf};

use crate::model::newest::{KnownRelease, NEWEST_FORMAT, Newest};
use crate::rim::files::{Durability, FileError, ensure_directory, naming, write_atomic};

/// Why the file cannot be used. It is never guessed: without it a repo that was set back would be believed.
#[derive(Debug, thiserror::Error)]
pub enum NewestError {
    /// It could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is not what we write.
    #[error("reading the newest known releases {path}")]
    Damaged {
        /// Where it is.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// A newer program wrote it.
    #[error("the newest known releases {path} are of format {got}, expected {NEWEST_FORMAT}")]
    Format {
        /// Where it is.
        path: PathBuf,
        /// Its format.
        got: u32,
    },
}

/// Reads the file; one that is not there knows nothing.
pub fn read_newest(path: &Path) -> Result<Newest, NewestError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Newest::default()),
        Err(error) => return Err(naming("reading", path)(error).into()),
    };
    let newest: Newest = serde_json::from_slice(&bytes)
        .map_err(|source| NewestError::Damaged { path: path.to_owned(), source })?;
    if newest.format != NEWEST_FORMAT {
        return Err(NewestError::Format { path: path.to_owned(), got: newest.format });
    }
    Ok(newest)
}

/// Takes note of an accepted release of `reference`; it is on the disk when this returns. An older one changes nothing.
pub fn note_accepted(path: &Path, reference: &str, release: KnownRelease) -> Result<(), NewestError> {
    let mut newest = read_newest(path)?;
    if !newest.note(reference, release) {
        return Ok(());
    }
    let mut text = serde_json::to_vec_pretty(&newest)
        .map_err(|source| NewestError::Damaged { path: path.to_owned(), source })?;
    text.push(b'\n');
    if let Some(directory) = path.parent() {
        ensure_directory(directory, 0o755)?;
    }
    write_atomic(path, &text, 0o600, Durability::Durable)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn release(letter: char, created: u64) -> KnownRelease {
        KnownRelease { commit: letter.to_string().repeat(64).parse().unwrap(), version: None, created }
    }

    #[test]
    fn the_newest_accepted_release_of_each_ref_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/newest.json");
        assert_eq!(read_newest(&path).unwrap(), Newest::default());
        for (reference, letter, created, kept) in
            [("main", 'a', 10, 'a'), ("main", 'b', 20, 'b'), ("main", 'c', 15, 'b'), ("edge", 'd', 1, 'd')]
        {
            note_accepted(&path, reference, release(letter, created)).unwrap();
            let commit = read_newest(&path).unwrap().refs[reference].commit;
            assert_eq!(commit, release(kept, 0).commit, "{reference} {letter}");
        }
        for (text, problem) in [
            ("{", "reading the newest known releases"),
            (r#"{"format": 9, "refs": {}}"#, "of format 9, expected 1"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = note_accepted(&path, "main", release('a', 99)).unwrap_err().to_string();
            assert!(error.contains(problem), "{error}");
        }
    }
}
