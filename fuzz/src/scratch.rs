//! Directories that targets write to, below `TMPDIR`.

use std::path::Path;

/// A fresh directory, gone when dropped; libFuzzer ends without dropping anything, so `run.sh` clears up behind it.
pub fn dir() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("rackstep-fuzz-").tempdir().expect("making a directory")
}

/// Names in a directory, sorted.
pub fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).expect("listing");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("listing").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
