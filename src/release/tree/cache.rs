//! Work that need not be done twice, and the place for work in progress.
//!
//! 1. a stage's result is a directory named by its key, moved into place when whole; 2. the least recently used are
//!    removed; 3. work in progress lives beside them, so that files can be linked instead of copied, and what a killed
//!    process left behind is swept by the next one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use crate::model::Digest;
use crate::rim::cache_dir::cache_dir;
use crate::rim::command::{CommandError, run};

/// Results kept per stage: two releases and the two before them.
const KEPT: usize = 4;

/// The cache directory.
#[derive(Debug, Clone)]
pub struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// Takes `dir`, or `$RACKSTEP_CACHE`, or `rackstep` in the user's cache directory.
    pub fn open(dir: Option<&Path>) -> io::Result<Self> {
        let dir = dir
            .map(Path::to_owned)
            .or_else(cache_dir)
            .ok_or_else(|| io::Error::other("neither --cache nor HOME tells where the cache is"))?;
        fs::create_dir_all(&dir)?;
        Ok(Self { dir: fs::canonicalize(dir)? })
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A directory for work in progress, removed when dropped.
    pub fn work(&self) -> io::Result<tempfile::TempDir> {
        let parent = self.dir.join("work");
        fs::create_dir_all(&parent)?;
        sweep(&parent);
        tempfile::Builder::new().prefix(&format!("{}-", std::process::id())).tempdir_in(parent)
    }

    /// The finished result of `stage` under `key`, if there is one.
    pub fn find(&self, stage: &str, key: &Digest) -> Option<PathBuf> {
        let path = self.dir.join(stage).join(key.hex());
        let found = path.is_dir();
        // Its time is when it was last of use.
        if found && let Ok(directory) = fs::File::open(&path) {
            let _ = directory.set_modified(SystemTime::now());
        }
        found.then_some(path)
    }

    /// Moves a finished `result` into place; somebody else's equal result may be there first.
    pub fn keep(&self, stage: &str, key: &Digest, result: &Path) -> io::Result<PathBuf> {
        let parent = self.dir.join(stage);
        fs::create_dir_all(&parent)?;
        let path = parent.join(key.hex());
        match fs::rename(result, &path) {
            Err(_) if path.is_dir() => fs::remove_dir_all(result)?,
            outcome => outcome?,
        }
        if let Ok(directory) = fs::File::open(&path) {
            let _ = directory.set_modified(SystemTime::now());
        }
        reap(&parent, KEPT);
        Ok(path)
    }
}

/// Copies a tree with everything that it has; shares blocks where the file system can.
pub fn copy_tree(from: &Path, to: &Path) -> Result<(), CommandError> {
    run(Command::new("cp").args(["-a", "--reflink=auto", "-T", "--"]).arg(from).arg(to)).map(drop)
}

/// Links a tree's files into a second one: for trees whose files nobody changes in place.
pub fn link_tree(from: &Path, to: &Path) -> Result<(), CommandError> {
    let linked = run(Command::new("cp").args(["-al", "-T", "--"]).arg(from).arg(to));
    linked.map(drop).or_else(|_| copy_tree(from, to))
}

/// Removes all but the `kept` most recently used; a failure only leaves more on the disk.
fn reap(parent: &Path, kept: usize) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    let mut found: Vec<(SystemTime, PathBuf)> = entries
        .filter_map(Result::ok)
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    found.sort();
    let surplus = found.len().saturating_sub(kept);
    for (_, path) in found.iter().take(surplus) {
        if let Err(error) = fs::remove_dir_all(path) {
            tracing::warn!(path = %path.display(), %error, "removing an old stage");
        }
    }
}

/// Removes work directories of processes that are gone.
fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(process) = name.split('-').next().and_then(|digits| digits.parse::<u32>().ok()) else {
            continue;
        };
        if !Path::new("/proc").join(process.to_string()).exists()
            && let Err(error) = fs::remove_dir_all(entry.path())
        {
            tracing::warn!(path = %entry.path().display(), %error, "removing abandoned work");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_newest_and_sweeps_the_abandoned() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(Some(dir.path())).unwrap();
        // No process has this id: it is above the kernel's limit.
        let abandoned = cache.dir().join("work/4194399-x");
        fs::create_dir_all(&abandoned).unwrap();
        let work = cache.work().unwrap();
        assert!(!abandoned.exists());
        for number in 0..KEPT + 2 {
            let result = work.path().join(number.to_string());
            fs::create_dir(&result).unwrap();
            let key = Digest::of(&[number as u8]);
            let kept = cache.keep("stage", &key, &result).unwrap();
            let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(number as u64);
            fs::File::open(&kept).unwrap().set_modified(time).unwrap();
        }
        assert!(cache.find("stage", &Digest::of(&[0])).is_none());
        assert!(cache.find("stage", &Digest::of(&[KEPT as u8 + 1])).is_some());
    }
}
