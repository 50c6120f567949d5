//! Formats block devices with identities that are chosen beforehand, so that nobody has to ask for them later.

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;

use super::DiskError;
use crate::rim::command;

/// A file system's UUID, as root= and fstab take it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FsUuid(String);

impl FsUuid {
    /// A new random one, from the kernel.
    pub fn random() -> Result<Self, DiskError> {
        let path = "/proc/sys/kernel/random/uuid";
        let text = fs::read_to_string(path).map_err(DiskError::io("reading", path))?;
        Ok(Self(text.trim().to_owned()))
    }

    /// The first 32 bits of it in FAT's form: `3F2A-9C01`.
    pub fn as_fat(&self) -> String {
        let digits: String = self.0.chars().take(8).collect::<String>().to_uppercase();
        format!("{}-{}", &digits[..4], &digits[4..])
    }
}

impl fmt::Display for FsUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Formats the sysroot: XFS with reflinks, which state snapshots need.
pub fn format_xfs(device: &Path, uuid: &FsUuid, label: &str) -> Result<(), DiskError> {
    let mut mkfs = Command::new("mkfs.xfs");
    mkfs.args(["-q", "-f", "-L", label, "-m", &format!("uuid={uuid},reflink=1")]).arg(device);
    run(&mut mkfs, "an XFS file system", device)
}

/// Formats `/boot`: ext4 without the features that GRUB before 2.12 does not read.
pub fn format_ext4(device: &Path, uuid: &FsUuid, label: &str) -> Result<(), DiskError> {
    let mut mkfs = Command::new("mkfs.ext4");
    mkfs.args(["-q", "-F", "-L", label, "-U", &uuid.to_string(), "-O", "^metadata_csum_seed,^orphan_file"])
        .arg(device);
    run(&mut mkfs, "an ext4 file system", device)
}

/// Formats the EFI system partition; `uuid` gives the volume number.
pub fn format_fat(device: &Path, uuid: &FsUuid, label: &str) -> Result<(), DiskError> {
    let mut mkfs = Command::new("mkfs.fat");
    mkfs.args(["-F", "32", "-n", label, "-i", &uuid.as_fat().replace('-', "")]).arg(device);
    run(&mut mkfs, "a FAT file system", device)
}

fn run(mkfs: &mut Command, what: &str, device: &Path) -> Result<(), DiskError> {
    command::run(mkfs)
        .map_err(DiskError::command(format!("making {what} on {}", device.display())))
        .map(|_output| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fat_takes_the_first_eight_digits() {
        let uuid = FsUuid("3f2a9c01-5d47-4b57-9c1e-0a6f5f3f1b22".to_owned());
        assert_eq!(uuid.as_fat(), "3F2A-9C01");
    }
}
