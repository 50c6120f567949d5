//! Keeps the newest release that this host has accepted of its ref.

use std::path::Path;

use crate::model::newest::{KnownRelease, NEWEST_FORMAT, Newest};
use crate::rim::files::Durability;
use crate::rim::versioned::{Versioned, VersionedError, read_versioned, write_versioned};

impl Versioned for Newest {
    const WHAT: &'static str = "the newest known releases";
    const FORMAT: u32 = NEWEST_FORMAT;
}

/// Reads the file; one that is not there knows nothing. A damaged one is never guessed: a repo that was set back would be
/// believed.
pub fn read_newest(path: &Path) -> Result<Newest, VersionedError> {
    Ok(read_versioned(path)?.unwrap_or_default())
}

/// Takes note of an accepted release of `reference`; it is on the disk when this returns. An older one changes nothing.
pub fn note_accepted(path: &Path, reference: &str, release: KnownRelease) -> Result<(), VersionedError> {
    let mut newest = read_newest(path)?;
    if newest.note(reference, release) {
        write_versioned(path, &newest, Durability::Durable)?;
    }
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
