//! The partition table, made somewhere else and written last.
//!
//! sfdisk writes it to a sparse scratch file of the disk's size; the two ends of that file are kept in memory. Only
//! [`PreparedTable::write`] puts them on the disk: the backup first, then the entries, then the first two sectors with the
//! boot code, which make a table of it all. At every instant the disk boots whole or not at all.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use super::layout::{HEAD, Layout, TAIL, render_sfdisk};
use super::loops::LoopDevice;
use super::mark::{BoundMark, MARK_START, guid_in};
use super::target::Target;
use super::{DiskError, MIB};
use crate::rim::command::{self, CommandError};

/// Sector size that sfdisk assumes for a plain file.
const PLAIN_SECTOR: u32 = 512;

/// The first and the last MiB of the finished disk, not yet written.
#[derive(Debug)]
pub struct PreparedTable {
    head: Vec<u8>,
    tail: Vec<u8>,
}

impl PreparedTable {
    /// Makes the table for `target` with the help of a sparse file in `scratch`.
    pub fn prepare(target: &Target, layout: &Layout, scratch: &Path) -> Result<Self, DiskError> {
        let path = scratch.join("table");
        let file = File::create(&path).map_err(DiskError::io("creating", &path))?;
        file.set_len(target.size()).map_err(DiskError::io("sizing", &path))?;
        let script = render_sfdisk(layout, target.sector());
        if target.sector() == PLAIN_SECTOR {
            run_sfdisk(&path, &script)?;
        } else {
            let device = LoopDevice::attach_file(&path, target.size(), target.sector())?;
            run_sfdisk(device.path(), &script)?;
            device.detach()?;
        }
        let made = Target::open(&path)?;
        let table = Self { head: made.read(0, HEAD)?, tail: made.read(target.size() - TAIL, TAIL)? };
        std::fs::remove_file(&path).map_err(DiskError::io("removing", &path))?;
        Ok(table)
    }

    /// Puts boot code into the first sector, in front of the protective partition's entry.
    pub fn set_boot_code(&mut self, code: &[u8; BOOT_CODE]) {
        self.head[..BOOT_CODE].copy_from_slice(code);
    }

    /// The table's GUID, in hexadecimal digits, for a disk with sectors of `sector` bytes.
    pub fn guid(&self, sector: u32) -> Option<String> {
        guid_in(&self.head, sector)
    }

    /// Writes the table: from here on the disk can boot. The mark is told last.
    ///
    /// It takes the proof that everything else is unmounted, and waits for the disk before it writes a byte.
    pub fn write(
        self,
        target: &Target,
        mark: Option<&BoundMark>,
        _settled: Settled,
    ) -> Result<(), DiskError> {
        // The protective table with the boot code, and the header.
        let top = 2 * target.sector() as usize;
        target.sync()?;
        target.write(target.size() - MIB, &self.tail)?;
        target.write(top as u64, &self.head[top..MARK_START as usize])?;
        target.write(0, &self.head[..top])?;
        mark.map_or(Ok(()), |mark| mark.clone().sealed().write(target))
    }
}

/// Proof that nothing of ours is mounted or attached any more.
#[derive(Debug)]
pub struct Settled(());

impl Settled {
    /// To be called by what has just unmounted and detached everything, and by nobody else.
    pub(crate) const fn from_unmounting() -> Self {
        Self(())
    }
}

/// Bytes of boot code in a protective MBR (UEFI specification, 5.2.3).
pub const BOOT_CODE: usize = 440;

fn run_sfdisk(path: &Path, script: &str) -> Result<(), DiskError> {
    let doing = "making the partition table";
    let start = |source| DiskError::Command {
        doing: doing.to_owned(),
        source: CommandError::Start { program: "sfdisk".to_owned(), source },
    };
    let mut script_file = tempfile::tempfile().map_err(start)?;
    script_file.write_all(script.as_bytes()).map_err(start)?;
    std::io::Seek::rewind(&mut script_file).map_err(start)?;
    let mut sfdisk = Command::new("sfdisk");
    sfdisk.args(["--quiet", "--no-reread", "--no-tell-kernel", "--wipe=never"]).arg(path);
    command::run(sfdisk.stdin(Stdio::from(script_file))).map_err(DiskError::command(doing))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rim::disk::layout::plan_layout;

    const SIZE: u64 = 4096 * MIB;

    #[test]
    fn nothing_is_on_the_disk_until_it_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        File::create(&image).unwrap().set_len(SIZE).unwrap();
        let target = Target::open_for_writing(&image).unwrap();
        let layout = plan_layout(SIZE).unwrap();
        let mut table = PreparedTable::prepare(&target, &layout, dir.path()).unwrap();
        assert!(target.is_zero(0, MIB).unwrap());
        assert!(target.is_zero(SIZE - MIB, MIB).unwrap());
        table.set_boot_code(&[0x90; BOOT_CODE]);
        table.write(&target, None, Settled::from_unmounting()).unwrap();
        command::run(Command::new("sfdisk").arg("--verify").arg(&image)).unwrap();
        let json = command::run_text(Command::new("sfdisk").arg("--json").arg(&image)).unwrap();
        let listing: serde_json::Value = serde_json::from_str(&json).unwrap();
        let partitions = listing["partitiontable"]["partitions"].as_array().unwrap();
        let starts: Vec<_> = partitions.iter().map(|p| p["start"].as_u64().unwrap()).collect();
        assert_eq!(starts, [2048, 4096, 1_052_672, 3_149_824]);
        assert_eq!(target.read(0, 440).unwrap(), [0x90; 440]);
        assert_eq!(target.read(510, 2).unwrap(), [0x55, 0xaa]);
    }
}
