//! Directories that targets write to, in memory where the machine has such.

use std::path::Path;

/// A fresh directory, gone when dropped.
pub fn dir() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let below = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    tempfile::Builder::new().prefix("rackstep-fuzz-").tempdir_in(below).expect("making a directory")
}

/// Names in a directory, sorted.
pub fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).expect("listing");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("listing").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
