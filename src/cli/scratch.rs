//! What imaging a disk needs of the process: a directory for mount points, and the variable by which libostree finds GRUB's
//! configuration program.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Failure, Kind};
use crate::imaging::install::GRUB_CONFIG_LINK;

/// Where small files and mount points are; in memory on every system that has systemd.
const SCRATCH: &str = "/run";
/// The variable that tells libostree who writes `grub.cfg`.
const GRUB_CONFIG_VARIABLE: &str = "OSTREE_GRUB2_EXEC";

/// A directory of this process, removed at the end.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Makes it, in a process that libostree can write GRUB's configuration in: call it first, it may start the program anew.
    ///
    /// It is named after the process: the name outlives the `exec`.
    pub fn enter() -> Result<Self, Failure> {
        let scratch =
            Self { path: Path::new(SCRATCH).join(format!("rackstep-install.{}", std::process::id())) };
        ensure_grub_config_variable(&scratch)?;
        fs::create_dir_all(&scratch.path).map_err(|error| {
            let told = format!("creating {}: {error}", scratch.path.display());
            Failure::new(Kind::Failed, told, "nothing changed")
        })?;
        Ok(scratch)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Never recursively: what is still mounted below it is somebody's disk.
        let files = fs::read_dir(&self.path).into_iter().flatten().flatten();
        for entry in files {
            let path = entry.path();
            let _ = if path.is_dir() && !path.is_symlink() {
                fs::remove_dir(&path)
            } else {
                fs::remove_file(&path)
            };
        }
        let _ = fs::remove_dir(&self.path);
    }
}

/// Starts this program again with the variable that makes libostree run the *release's* `grub-config`.
///
/// libostree takes it from the environment alone, and a process cannot change its own safely once it has threads.
fn ensure_grub_config_variable(scratch: &Scratch) -> Result<(), Failure> {
    let link = scratch.path.join(GRUB_CONFIG_LINK);
    if std::env::var_os(GRUB_CONFIG_VARIABLE).as_deref() == Some(link.as_os_str()) {
        return Ok(());
    }
    let error = Command::new("/proc/self/exe")
        .arg0("rackstep")
        .args(std::env::args_os().skip(1))
        .env(GRUB_CONFIG_VARIABLE, &link)
        // Else what the script says of a failure goes to /dev/null.
        .env("OSTREE_DEBUG_GRUB2", "1")
        .exec();
    Err(Failure::new(Kind::Failed, format!("starting rackstep again: {error}"), "nothing changed"))
}
