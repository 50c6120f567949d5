//! The disk, or the image file, that is written.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, OFlags};

use super::{DiskError, MIB};

/// Sector size of image files.
const FILE_SECTOR: u32 = 512;

/// One whole disk or image file, open.
#[derive(Debug)]
pub struct Target {
    path: PathBuf,
    file: File,
    size: u64,
    sector: u32,
    is_device: bool,
}

impl Target {
    /// Opens it for looking only.
    pub fn open(path: &Path) -> Result<Self, DiskError> {
        Self::with(path, OpenOptions::new().read(true))
    }

    /// Opens it for writing.
    ///
    /// The kernel refuses the exclusive open of a device that is mounted, swapped on, or held by RAID or LVM.
    pub fn open_for_writing(path: &Path) -> Result<Self, DiskError> {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        if is_device(path)? {
            drop(Self::with(path, options.clone().custom_flags(OFlags::EXCL.bits() as i32))?);
        }
        Self::with(path, &options)
    }

    fn with(path: &Path, options: &OpenOptions) -> Result<Self, DiskError> {
        let is_device = is_device(path)?;
        let mut file = options.open(path).map_err(DiskError::io("opening", path))?;
        let size = file.seek(SeekFrom::End(0)).map_err(DiskError::io("measuring", path))?;
        let sector = if is_device {
            rustix::fs::ioctl_blksszget(&file)
                .map_err(|errno| DiskError::io("asking the sector size of", path)(errno.into()))?
        } else {
            FILE_SECTOR
        };
        Ok(Self { path: path.to_owned(), file, size, sector, is_device })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Logical sector size in bytes.
    pub const fn sector(&self) -> u32 {
        self.sector
    }

    /// True for a block device, false for an image file.
    pub const fn is_device(&self) -> bool {
        self.is_device
    }

    /// Reads `size` bytes from `offset`.
    pub fn read(&self, offset: u64, size: u64) -> Result<Vec<u8>, DiskError> {
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(usize::MAX)];
        self.file.read_exact_at(&mut bytes, offset).map_err(DiskError::io("reading", &self.path))?;
        Ok(bytes)
    }

    /// Is every byte of the span zero?
    pub fn is_zero(&self, offset: u64, size: u64) -> Result<bool, DiskError> {
        Ok(self.read(offset, size)?.iter().all(|byte| *byte == 0))
    }

    /// Writes `bytes` at `offset`, waits for the disk, and reads them back from it.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.file.write_all_at(bytes, offset).map_err(DiskError::io("writing", &self.path))?;
        self.sync()?;
        // Reading back from the page cache would prove nothing.
        rustix::fs::fadvise(&self.file, 0, None, Advice::DontNeed)
            .map_err(|errno| DiskError::io("dropping the cache of", &self.path)(errno.into()))?;
        let back = self.read(offset, bytes.len() as u64)?;
        match back.iter().zip(bytes).position(|(read, written)| read != written) {
            None => Ok(()),
            Some(at) => Err(DiskError::ReadBack { path: self.path.clone(), at: offset + at as u64 }),
        }
    }

    /// Waits until everything written is on the disk.
    pub fn sync(&self) -> Result<(), DiskError> {
        self.file.sync_all().map_err(DiskError::io("waiting for the writes to", &self.path))
    }

    /// Makes the disk unbootable and blank to the eye: the last MiB goes first, then the first one.
    ///
    /// The last MiB holds the backup GPT, from which some firmware restores the first, and old RAID superblocks. A power cut
    /// after it leaves the old system as it was.
    pub fn wipe_ends(&self) -> Result<(), DiskError> {
        self.wipe_ends_of(super::layout::Span { start: 0, size: self.size })
    }

    /// Writes zeros to the last MiB of a span, then to the first one.
    pub fn wipe_ends_of(&self, span: super::layout::Span) -> Result<(), DiskError> {
        let size = MIB.min(span.size);
        let zeroes = vec![0; usize::try_from(size).unwrap_or(usize::MAX)];
        self.write(span.start + span.size - size, &zeroes)?;
        self.write(span.start, &zeroes)
    }
}

fn is_device(path: &Path) -> Result<bool, DiskError> {
    let metadata = path.metadata().map_err(DiskError::io("looking at", path))?;
    Ok(metadata.file_type().is_block_device())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wiping_clears_both_ends_and_nothing_else() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![7; 3 * MIB as usize]).unwrap();
        let target = Target::open_for_writing(file.path()).unwrap();
        target.wipe_ends().unwrap();
        assert!(target.is_zero(0, MIB).unwrap());
        assert!(target.is_zero(2 * MIB, MIB).unwrap());
        assert_eq!(target.read(MIB, MIB).unwrap(), vec![7; MIB as usize]);
    }
}
