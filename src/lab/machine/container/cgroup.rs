//! The control group of a host: one below the machine's cgroup 2 hierarchy, made for it and removed with it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::ContainerError;
use crate::model::Digest;
use crate::rim::wait::poll;

/// How our groups begin; a digest of the host's directory follows.
const PREFIX: &str = "rackstep-host-";
/// Killed processes leave their groups soon after; a busy machine takes its time.
const EMPTY: Duration = Duration::from_secs(60);
/// Controllers without which kubelet cannot give pods groups of their own.
const NEEDED: [&str; 3] = ["cpu", "memory", "pids"];

/// Where cgroup 2 is mounted on this machine.
pub fn hierarchy() -> Result<PathBuf, ContainerError> {
    let table = fs::read_to_string("/proc/self/mountinfo").map_err(ContainerError::io("reading mounts"))?;
    find_hierarchy(&table)
        .ok_or_else(|| ContainerError::Unable("no cgroup 2 hierarchy is mounted".to_owned()))
}

/// proc(5): the file system's type is the first word after " - ", the mount point the fifth word.
fn find_hierarchy(table: &str) -> Option<PathBuf> {
    table.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        (right.split(' ').next()? == "cgroup2").then(|| left.split(' ').nth(4).map(PathBuf::from))?
    })
}

/// Has the hierarchy what kubelet wants of it?
pub fn has_controllers(hierarchy: &Path) -> bool {
    let text = fs::read_to_string(hierarchy.join("cgroup.controllers")).unwrap_or_default();
    NEEDED.iter().all(|needed| text.split_whitespace().any(|found| found == *needed))
}

/// The group of the host in `dir`.
pub fn of_host(hierarchy: &Path, dir: &Path) -> PathBuf {
    hierarchy.join(format!("{PREFIX}{}", &Digest::of(dir.as_os_str().as_encoded_bytes()).hex()[..12]))
}

/// Makes the group, with limits where there are controllers. What an earlier launcher left is removed first.
pub fn create(group: &Path, memory_mib: u32, cpus: u32) -> Result<(), ContainerError> {
    remove(group)?;
    fs::create_dir(group).map_err(ContainerError::path("making control group", group))?;
    const PERIOD: u64 = 100_000;
    for (file, value) in [
        ("memory.max", (u64::from(memory_mib) << 20).to_string()),
        ("cpu.max", format!("{} {PERIOD}", u64::from(cpus) * PERIOD)),
    ] {
        let path = group.join(file);
        if path.exists() {
            fs::write(&path, value).map_err(ContainerError::path("setting", &path))?;
        }
    }
    Ok(())
}

/// Removes a group of ours once nothing runs in it; one that is not there is fine.
pub fn remove(group: &Path) -> Result<(), ContainerError> {
    let ours = group.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
    if !ours {
        return Err(ContainerError::Unable(format!("{} is not a control group of ours", group.display())));
    }
    let removed = poll(EMPTY, || match remove_tree(group) {
        Ok(()) => Ok(Some(())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Some(())),
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(None),
        Err(error) => Err(error),
    });
    match removed.map_err(ContainerError::path("removing control group", group))? {
        Some(()) => Ok(()),
        None => Err(ContainerError::Unable(format!("processes still run in {}", group.display()))),
    }
}

/// Groups are directories whose files go with them.
fn remove_tree(group: &Path) -> io::Result<()> {
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(group)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hierarchy_is_found_wherever_it_is() {
        let hybrid = "30 29 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      39 30 0:35 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(find_hierarchy(hybrid), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(find_hierarchy("30 29 0:26 / /cgroup2 rw - tmpfs cgroup2 rw\n"), None);
    }

    #[test]
    fn nobody_elses_group_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        assert!(remove(dir.path()).is_err());
        assert!(dir.path().exists());
        assert!(remove(&of_host(dir.path(), Path::new("/m"))).is_ok());
    }
}
