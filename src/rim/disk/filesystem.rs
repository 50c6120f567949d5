//! Formats block devices with identities that are chosen beforehand, so that nobody has to ask for them later.

use std::path::Path;
use std::process::Command;

use uuid::Uuid;

use super::DiskError;
use crate::rim::command;

/// A new random identity for a file system, as root= and fstab take it.
pub fn random_uuid() -> Result<Uuid, DiskError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| DiskError::io("making", "a UUID")(error.into()))?;
    Ok(uuid::Builder::from_random_bytes(bytes).into_uuid())
}

/// The volume number that a FAT file system of the identity `uuid` has: its first 32 bits, `3F2A-9C01`.
pub fn fat_volume(uuid: &Uuid) -> String {
    let (first, ..) = uuid.as_fields();
    format!("{:04X}-{:04X}", first >> 16, first & 0xffff)
}

/// Formats the sysroot: XFS with reflinks, which state snapshots need.
pub fn format_xfs(device: &Path, uuid: &Uuid, label: &str) -> Result<(), DiskError> {
    let mut mkfs = Command::new("mkfs.xfs");
    mkfs.args(["-q", "-f", "-L", label, "-m", &format!("uuid={uuid},reflink=1")]).arg(device);
    run(&mut mkfs, "an XFS file system", device)
}

/// Formats `/boot`: ext4 without the features that GRUB before 2.12 does not read.
pub fn format_ext4(device: &Path, uuid: &Uuid, label: &str) -> Result<(), DiskError> {
    let mut mkfs = Command::new("mkfs.ext4");
    mkfs.args(["-q", "-F", "-L", label, "-U", &uuid.to_string(), "-O", "^metadata_csum_seed,^orphan_file"])
        .arg(device);
    run(&mut mkfs, "an ext4 file system", device)
}

/// Formats the EFI system partition; `uuid` gives the volume number.
pub fn format_fat(device: &Path, uuid: &Uuid, label: &str) -> Result<(), DiskError> {
    let mut mkfs = Command::new("mkfs.fat");
    mkfs.args(["-F", "32", "-n", label, "-i", &fat_volume(uuid).replace('-', "")]).arg(device);
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
        let uuid: Uuid = "3f2a9c01-5d47-4b57-9c1e-0a6f5f3f1b22".parse().unwrap();
        assert_eq!(fat_volume(&uuid), "3F2A-9C01");
    }
}
