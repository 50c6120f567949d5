//! Takes out of a tree what belongs to this machine or this minute.
//!
//! Two composes of one lock must give the same bytes; every line here is something that once made them differ,
//! or a secret that must not be shared by all hosts.

use std::fs;
use std::path::Path;

use walkdir::WalkDir;

use super::{PackageError, at, remove};

/// Bump when [`clean`] changes what it leaves.
pub const CLEAN_VERSION: u32 = 1;

/// Files of this machine, this minute, or one host alone.
pub(super) const REMOVED: [&str; 19] = [
    "etc/mtab",
    "etc/.pwd.lock",
    "etc/passwd-",
    "etc/group-",
    "etc/shadow-",
    "etc/gshadow-",
    "etc/subuid-",
    "etc/subgid-",
    "etc/apt/sources.list.d/0000sources.list",
    "etc/apt/sources.list",
    "etc/apt/apt.conf.d/99mmdebstrap",
    "etc/dpkg/dpkg.cfg.d/99mmdebstrap",
    "var/lib/dbus/machine-id",
    "var/lib/systemd/random-seed",
    "var/cache/ldconfig",
    "var/cache/apt",
    "var/cache/debconf",
    "var/lib/apt",
    "root/.cache",
];

/// Directories whose content is of the moment.
const EMPTIED: [&str; 7] = ["dev", "proc", "sys", "run", "tmp", "var/tmp", "var/log"];

const SECONDS_PER_DAY: u64 = 86_400;

/// Removes what the bootstrap copied from this machine; the host image may put its own there afterwards.
pub fn clean_builder(root: &Path) -> Result<(), PackageError> {
    ["etc/hostname", "etc/resolv.conf"].iter().try_for_each(|path| remove(&root.join(path)))
}

/// Cleans the tree at `root`.
pub fn clean(root: &Path, created: u64) -> Result<(), PackageError> {
    for path in REMOVED {
        remove(&root.join(path))?;
    }
    for directory in EMPTIED {
        empty(&root.join(directory))?;
    }
    // A key that every host has is a key that nobody should trust.
    for entry in read_names(&root.join("etc/ssh"))? {
        if entry.starts_with("ssh_host_") {
            remove(&root.join("etc/ssh").join(entry))?;
        }
    }
    let database = root.join("var/lib/dpkg");
    for entry in read_names(&database)? {
        if entry.ends_with("-old") || entry.starts_with("lock") {
            remove(&database.join(entry))?;
        }
    }
    remove_bytecode(root)?;
    fix_password_days(&root.join("etc/shadow"), created)
}

/// Removes everything in `directory`, not the directory.
pub fn empty(directory: &Path) -> Result<(), PackageError> {
    for entry in read_names(directory)? {
        remove(&directory.join(entry))?;
    }
    Ok(())
}

/// Names in a directory, sorted; none if it does not exist.
pub fn read_names(directory: &Path) -> Result<Vec<String>, PackageError> {
    if !directory.is_dir() {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(at(directory))? {
        names.push(entry.map_err(at(directory))?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Python's compiled files carry the source's time, which ostree does not keep: they would never be used.
fn remove_bytecode(root: &Path) -> Result<(), PackageError> {
    let caches: Vec<_> = WalkDir::new(root.join("usr"))
        .into_iter()
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_dir() && entry.file_name() == "__pycache__")
        .map(walkdir::DirEntry::into_path)
        .collect();
    caches.iter().try_for_each(|path| remove(path))
}

/// Tools that add users note the day; the lock's day stands for all.
fn fix_password_days(shadow: &Path, created: u64) -> Result<(), PackageError> {
    let Ok(text) = fs::read_to_string(shadow) else { return Ok(()) };
    fs::write(shadow, with_password_day(&text, created / SECONDS_PER_DAY)).map_err(at(shadow))
}

fn with_password_day(text: &str, day: u64) -> String {
    let mut fixed = String::with_capacity(text.len());
    for line in text.lines() {
        let mut fields: Vec<String> = line.split(':').map(str::to_owned).collect();
        if let Some(changed) = fields.get_mut(2).filter(|changed| !changed.is_empty()) {
            *changed = day.to_string();
        }
        fixed.push_str(&fields.join(":"));
        fixed.push('\n');
    }
    fixed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleans() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        for file in [
            "etc/ssh/ssh_host_rsa_key",
            "etc/ssh/sshd_config",
            "etc/mtab",
            "var/log/x/y",
            "usr/a/__pycache__/b.pyc",
        ] {
            fs::create_dir_all(root.join(file).parent().unwrap()).unwrap();
            fs::write(root.join(file), "x").unwrap();
        }
        fs::write(root.join("etc/shadow"), "root:*:19999:0:::::\nx:!::::::\n").unwrap();
        clean(root, 86_400 * 5 + 7).unwrap();
        let left: Vec<_> = WalkDir::new(root)
            .sort_by_file_name()
            .into_iter()
            .filter_map(Result::ok)
            .filter(|e| e.file_type().is_file())
            .map(|e| e.path().strip_prefix(root).unwrap().display().to_string())
            .collect();
        assert_eq!(left, ["etc/shadow", "etc/ssh/sshd_config"]);
        assert_eq!(fs::read_to_string(root.join("etc/shadow")).unwrap(), "root:*:5:0:::::\nx:!::::::\n");
        assert!(root.join("var/log").is_dir());
    }
}
