//! Checkouts that are no deployment any more, made removable.
//!
//! libostree removes them when it cleans up, and ends at the first file that cannot go: one `chattr +i` of an operator
//! would stop all collection for good. So flags of files that are garbage are taken away first, and told; what keeps its
//! flag is moved aside, by a name that libostree passes over, and tried again the next time.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{IFlags, OFlags, ioctl_getflags, ioctl_setflags};
use walkdir::WalkDir;

use crate::model::Commit;

/// What names of checkouts begin with that could not be removed.
const STUCK: &str = "stuck-";

/// What stood in the way of a clean-up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Files whose flags were taken away, so that they could go.
    pub loosened: Vec<PathBuf>,
    /// Files that stay, and why.
    pub stuck: Vec<(PathBuf, String)>,
}

/// Prepares all checkouts below `sysroot` that are none of `deployments` (`<commit>.<serial>`) for their removal.
pub(super) fn loosen(sysroot: &Path, deployments: &BTreeSet<String>) -> Leftovers {
    let mut leftovers = Leftovers::default();
    for stateroot in entries(&sysroot.join("ostree/deploy")) {
        for checkout in entries(&stateroot.join("deploy")) {
            let name = checkout.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let was_stuck = name.starts_with(STUCK);
            let is_garbage = was_stuck || (is_checkout(&name) && !deployments.contains(&name));
            if !is_garbage || !checkout.is_dir() {
                continue;
            }
            let stuck = loosen_tree(&checkout, &mut leftovers.loosened);
            if was_stuck {
                // libostree does not know the name: its removal is ours.
                if let Err(error) = fs::remove_dir_all(&checkout) {
                    leftovers.stuck.push((checkout.clone(), error.to_string()));
                }
            } else if !stuck.is_empty() {
                let aside = checkout.with_file_name(format!("{STUCK}{name}"));
                if let Err(error) = fs::rename(&checkout, &aside) {
                    tracing::warn!(path = %checkout.display(), %error, "moving a stuck checkout aside");
                }
            }
            leftovers.stuck.extend(stuck);
        }
    }
    leftovers
}

/// Is it a name that libostree gives to checkouts, `<commit>.<serial>`?
fn is_checkout(name: &str) -> bool {
    name.split_once('.')
        .is_some_and(|(commit, serial)| commit.parse::<Commit>().is_ok() && serial.parse::<u32>().is_ok())
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let Ok(read) = fs::read_dir(directory) else { return Vec::new() };
    let mut found: Vec<PathBuf> = read.filter_map(Result::ok).map(|entry| entry.path()).collect();
    found.sort();
    found
}

/// Takes the flags of everything in `tree`, the tree itself included; gives what keeps them.
fn loosen_tree(tree: &Path, loosened: &mut Vec<PathBuf>) -> Vec<(PathBuf, String)> {
    let mut stuck = Vec::new();
    for entry in WalkDir::new(tree).same_file_system(true).into_iter().filter_map(Result::ok) {
        let kind = entry.file_type();
        if !kind.is_dir() && !kind.is_file() {
            continue;
        }
        match loosen_file(entry.path()) {
            // libostree itself makes the root of every checkout immutable.
            Ok(true) if entry.depth() > 0 => loosened.push(entry.into_path()),
            Ok(_) => {}
            Err(error) => stuck.push((entry.into_path(), error.to_string())),
        }
    }
    stuck
}

/// True: there was a flag, and it is gone.
fn loosen_file(path: &Path) -> io::Result<bool> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file: File = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path)?;
    // A file system without flags has none that could be in the way.
    let Ok(found) = ioctl_getflags(&file) else { return Ok(false) };
    let blocking = IFlags::IMMUTABLE | IFlags::APPEND;
    if !found.intersects(blocking) {
        return Ok(false);
    }
    ioctl_setflags(&file, found - blocking)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn chattr(change: &str, path: &Path) {
        assert!(Command::new("chattr").arg(change).arg(path).status().unwrap().success());
    }

    /// Needs root and a file system with flags, as every host has.
    #[test]
    fn an_immutable_file_of_an_old_deployment_stops_nothing() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let deploy = dir.path().join("ostree/deploy/rackstep/deploy");
        let id = |letter: &str| format!("{}.0", letter.repeat(64));
        let (old, kept, stuck) = (id("a"), id("b"), format!("{STUCK}{}", id("c")));
        for name in [&old, &kept, &stuck] {
            let etc = deploy.join(name).join("etc");
            fs::create_dir_all(&etc).unwrap();
            fs::write(etc.join("resolv.conf"), "nameserver 10.0.0.1").unwrap();
            chattr("+i", &etc.join("resolv.conf"));
        }
        chattr("+a", &deploy.join(&old).join("etc"));
        chattr("+i", &deploy.join(&old));
        let deployments = BTreeSet::from([kept.clone()]);
        let told = loosen(dir.path(), &deployments);
        let expected = ["etc", "etc/resolv.conf"].map(|name| deploy.join(&old).join(name));
        let mut expected: Vec<PathBuf> = expected.to_vec();
        expected.push(deploy.join(&stuck).join("etc/resolv.conf"));
        assert_eq!(told, Leftovers { loosened: expected, stuck: vec![] });
        fs::remove_dir_all(deploy.join(&old)).unwrap();
        assert!(!deploy.join(&stuck).exists());
        let ours = deploy.join(&kept).join("etc/resolv.conf");
        assert!(fs::remove_file(&ours).is_err(), "a deployment's file keeps its flag");
        chattr("-i", &ours);
    }
}
