//! Leave to write to one disk: given by looking at it, used once.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::check::{require_disk, require_file};
use super::steps::StepError;
use crate::model::imaging::{Disk, ImagingPlan};
use crate::rim::command;
use crate::rim::disk::DiskError;
use crate::rim::disk::observe::{observe_disks, observe_file};
use crate::rim::disk::target::Target;

/// Leave to write to a disk or to an image file.
#[derive(Debug)]
pub struct Approved {
    path: PathBuf,
}

/// Why there is no leave.
#[derive(Debug, thiserror::Error)]
pub enum ApproveError {
    /// Checks said no; one sentence each.
    #[error("{target} is not touched: {}", reasons.join("; "))]
    Refused {
        /// The disk or file.
        target: String,
        /// Why not.
        reasons: Vec<String>,
    },
    /// It could not be looked at.
    #[error(transparent)]
    Look(#[from] DiskError),
}

/// Looks at this machine's disks and approves the plan's one.
///
/// `reported` are the disks of the inventory that the plan was made from.
pub fn approve_disk(plan: &ImagingPlan, reported: Option<&[Disk]>) -> Result<Approved, ApproveError> {
    let now = observe_disks()?;
    match require_disk(plan, reported, &now) {
        Ok(found) => Ok(Approved { path: found.path.clone() }),
        Err(reasons) => Err(ApproveError::Refused { target: format!("disk {}", plan.disk.name), reasons }),
    }
}

/// Looks at an image file and approves it; a file that is not there is made, with the plan's size.
pub fn approve_file(plan: &ImagingPlan, path: &Path) -> Result<Approved, ApproveError> {
    if !path.exists() {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(path)
            .map_err(DiskError::io("creating", path))?;
        file.set_len(plan.disk.size).map_err(DiskError::io("sizing", path))?;
    }
    let target = Target::open(path)?;
    match require_file(plan, path, target.size(), target.sector(), observe_file(path)?) {
        Ok(()) => Ok(Approved { path: path.to_owned() }),
        Err(reasons) => Err(ApproveError::Refused { target: path.display().to_string(), reasons }),
    }
}

impl Approved {
    /// What it is leave for.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens it for writing, once: nobody who still holds an approval can use it again.
    pub(super) fn open(self) -> Result<Target, DiskError> {
        Target::open_for_writing(&self.path)
    }
}

/// Makes the kernel forget the partitions of the table that was just wiped; it refuses when one of them is in use.
pub(super) fn require_forgotten(target: &Target) -> Result<(), StepError> {
    if target.is_device() {
        command::run(Command::new("blockdev").arg("--rereadpt").arg(target.path())).map_err(
            DiskError::command(format!(
                "making the kernel forget the partitions of {}",
                target.path().display()
            )),
        )?;
    }
    Ok(())
}
