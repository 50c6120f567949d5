//! The steps of imaging, and who watches them.

use std::fmt;

use super::files::FileError;
use super::release::ReleaseError;
use crate::model::Progress;
use crate::ostree::sysroot::SysrootError;
use crate::rim::disk::DiskError;
use crate::rim::grub::GrubError;

/// One step of imaging, in the order in which they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Look once more; write nothing.
    Check,
    /// Zero both ends of the disk.
    Wipe,
    /// Attach, format, mount.
    Partition,
    /// Fetch the release.
    Pull,
    /// Check it out and write its boot entry.
    Deploy,
    /// Host name, network, keys, mounts.
    Configure,
    /// GRUB for BIOS and UEFI.
    Bootloader,
    /// Unmount; partition table and boot code.
    Seal,
}

impl Step {
    /// Every step, in order.
    pub const ALL: [Self; 8] = [
        Self::Check,
        Self::Wipe,
        Self::Partition,
        Self::Pull,
        Self::Deploy,
        Self::Configure,
        Self::Bootloader,
        Self::Seal,
    ];

    /// Its name in events.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Check => "check",
            Self::Wipe => "wipe",
            Self::Partition => "partition",
            Self::Pull => "pull",
            Self::Deploy => "deploy",
            Self::Configure => "configure",
            Self::Bootloader => "bootloader",
            Self::Seal => "seal",
        }
    }

    /// What it does, for people.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Check => "checking disk and release",
            Self::Wipe => "wiping both ends of the disk",
            Self::Partition => "making file systems",
            Self::Pull => "pulling the release",
            Self::Deploy => "deploying the release",
            Self::Configure => "configuring the host",
            Self::Bootloader => "installing the boot loader",
            Self::Seal => "writing the partition table",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whoever watches stopped it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("stopped: {0}")]
pub struct Interrupted(pub String);

/// Watches the steps, and may stop the work before and after each.
pub trait Watcher: Progress {
    /// A step is about to begin.
    fn before(&self, _step: Step) -> Result<(), Interrupted> {
        Ok(())
    }

    /// A step has ended well.
    fn after(&self, _step: Step) -> Result<(), Interrupted> {
        Ok(())
    }
}

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// It was stopped.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// The disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// What `root=UUID=` would find is not the root file system.
    #[error("root=UUID={expected} would find {found}")]
    RootNotFound {
        /// The UUID that was given to it.
        expected: String,
        /// What is found there instead.
        found: String,
    },
    /// The release could not be had.
    #[error(transparent)]
    Release(#[from] ReleaseError),
    /// libostree.
    #[error(transparent)]
    Sysroot(#[from] SysrootError),
    /// A file of the host.
    #[error(transparent)]
    File(#[from] FileError),
    /// The host's configuration.
    #[error("rendering the host's configuration")]
    Render(#[from] serde_json::Error),
    /// The boot loader.
    #[error(transparent)]
    Grub(#[from] GrubError),
}

/// Runs one step under the watcher's eyes.
pub(super) fn run<T>(
    watcher: &dyn Watcher,
    step: Step,
    act: impl FnOnce() -> Result<T, StepError>,
) -> Result<T, StepError> {
    watcher.before(step)?;
    // A pull tells its own stages, with bytes.
    let tells_itself = step == Step::Pull;
    if !tells_itself {
        watcher.begin(step.title(), None);
    }
    let value = act()?;
    if !tells_itself {
        watcher.end("");
    }
    watcher.after(step)?;
    Ok(value)
}
