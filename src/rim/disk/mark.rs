//! The mark of an installation: one block in the gap between partition table and first partition, which no file system, boot
//! loader or partitioning program of ours uses. It is read without mounting anything.
//!
//! Format 1: the line `rackstep-mark 1 <length> <sha256>\n`, then `<length>` bytes of JSON; zeros to the end of the block.
//!
//! What it says counts only together with what is there, so that a mark that another system left in its place means nothing:
//!
//! 1. *installed*: the primary partition table has the mark's GUID, and the root file system its UUID, whatever the mark says
//!    of its own state: a disk that can boot may have booted;
//! 2. *unfinished*: the mark says so, and there is nothing on the disk, but for that table's backup and the protective table
//!    of a seal that was cut;
//! 3. anything else is data like other data.

use std::process::Command;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::layout::Span;
use super::target::Target;
use super::{DiskError, MIB};
use crate::model::imaging::{DiskMark, MarkState};
use crate::rim::command;

/// Where the block is: after the longest partition table, before the first partition.
pub const MARK_START: u64 = MIB / 2;
/// Bytes of the block: one sector of the disks that have the largest ones.
pub const MARK_SIZE: u64 = 4096;

const FORMAT: &str = "rackstep-mark 1";
/// UEFI specification, 5.3.2.
const GPT_MAGIC: &[u8] = b"EFI PART";
const GPT_GUID: usize = 56;

/// The mark with what it is bound to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoundMark {
    /// What it says.
    #[serde(flatten)]
    pub mark: DiskMark,
    /// GUID of the partition table, as its 16 bytes in hexadecimal digits.
    pub table: String,
    /// First byte of the root file system.
    pub root_start: u64,
    /// Bytes of its partition.
    pub root_size: u64,
    /// UUID of the root file system.
    pub root_uuid: String,
}

impl BoundMark {
    fn encode(&self) -> Result<Vec<u8>, DiskError> {
        let json =
            serde_json::to_vec(self).map_err(|source| DiskError::Output { program: "rackstep", source })?;
        let mut block =
            format!("{FORMAT} {} {}\n", json.len(), hex::encode(Sha256::digest(&json))).into_bytes();
        block.extend_from_slice(&json);
        block.resize(block.len().max(MARK_SIZE as usize), 0);
        Ok(block)
    }

    fn decode(block: &[u8]) -> Option<Self> {
        let end = block.iter().position(|byte| *byte == b'\n')?;
        let line = str::from_utf8(&block[..end]).ok()?.strip_prefix(FORMAT)?.trim_start();
        let (length, digest) = line.split_once(' ')?;
        let json = block.get(end + 1..)?.get(..length.parse().ok()?)?;
        (hex::encode(Sha256::digest(json)) == digest).then_some(())?;
        serde_json::from_slice(json).ok()
    }

    /// Puts it on the disk and reads it back.
    pub fn write(&self, target: &Target) -> Result<(), DiskError> {
        target.write(MARK_START, &self.encode()?)
    }

    /// The same mark of an installation that is sealed.
    #[must_use]
    pub fn sealed(mut self) -> Self {
        self.mark.state = MarkState::Installed;
        self
    }
}

/// What a look for a mark found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// No mark.
    Nothing,
    /// A mark that is true of the disk.
    True(DiskMark),
    /// A mark of something that is not there (any more).
    Stale(DiskMark),
}

impl Found {
    /// The mark, if it says that the disk holds the finished installation of `host`; else what it says instead.
    pub fn require_installed(self, host: &str) -> Result<DiskMark, String> {
        match self {
            Self::True(mark) if mark.state == MarkState::Installed && mark.host == host => Ok(mark),
            Self::True(mark) if mark.state == MarkState::Installed => Err(format!("it is {}'s", mark.host)),
            Self::True(mark) => Err(format!("the installation of {} was never finished", mark.host)),
            Self::Stale(mark) => Err(format!("it has a mark of {}, which is not there any more", mark.host)),
            Self::Nothing => Err("it has no mark: no rack imaged it".to_owned()),
        }
    }
}

/// Looks for a mark on a disk; `has_others`: signatures of something else than a GPT were found there.
pub fn observe_mark(target: &Target, has_others: bool) -> Result<Found, DiskError> {
    let Some(found) = read(target)? else { return Ok(Found::Nothing) };
    let primary = table_guid(target, u64::from(target.sector()))?;
    let backup = table_guid(target, target.size() - u64::from(target.sector()))?;
    let is_ours = |guid: &Option<String>| guid.as_ref() == Some(&found.table);
    let mut mark = found.mark.clone();
    if is_ours(&primary) && fs_uuid(target, found.root())?.as_ref() == Some(&found.root_uuid) {
        mark.state = MarkState::Installed;
        return Ok(Found::True(mark));
    }
    let is_alone = primary.is_none() && (backup.is_none() || is_ours(&backup)) && !has_others;
    if mark.state == MarkState::Unfinished && is_alone {
        return Ok(Found::True(mark));
    }
    Ok(Found::Stale(mark))
}

impl BoundMark {
    fn root(&self) -> Span {
        Span { start: self.root_start, size: self.root_size }
    }
}

fn read(target: &Target) -> Result<Option<BoundMark>, DiskError> {
    if target.size() < 4 * MIB {
        return Ok(None);
    }
    Ok(BoundMark::decode(&target.read(MARK_START, MARK_SIZE)?))
}

/// The GUID of the partition table whose header begins at `offset`.
fn table_guid(target: &Target, offset: u64) -> Result<Option<String>, DiskError> {
    let header = target.read(offset, 512)?;
    Ok(header.starts_with(GPT_MAGIC).then(|| hex::encode(&header[GPT_GUID..GPT_GUID + 16])))
}

/// The GUID in a table that is not written yet: the first MiB of a disk with sectors of `sector` bytes.
pub fn guid_in(head: &[u8], sector: u32) -> Option<String> {
    let header = head.get(sector as usize..)?;
    header.starts_with(GPT_MAGIC).then(|| hex::encode(&header[GPT_GUID..GPT_GUID + 16]))
}

/// What `UUID=` finds in a span of the disk; `None`: nothing, or more than one thing.
pub fn fs_uuid(target: &Target, span: Span) -> Result<Option<String>, DiskError> {
    let mut blkid = Command::new("blkid");
    blkid.args(["--probe", "--match-tag", "UUID", "--output", "value"]);
    blkid.arg(format!("--offset={}", span.start)).arg(format!("--size={}", span.size)).arg(target.path());
    let output = blkid
        .output()
        .map_err(|source| command::CommandError::Start { program: "blkid".to_owned(), source })
        .map_err(DiskError::command("looking for the root file system"))?;
    // 2: nothing found; 8: ambivalent.
    if !output.status.success() {
        return Ok(None);
    }
    Ok(Some(String::from_utf8_lossy(&output.stdout).trim().to_owned()).filter(|uuid| !uuid.is_empty()))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::path::Path;

    use super::*;
    use uuid::Uuid;

    use crate::rim::disk::filesystem::{format_ext4, random_uuid};
    use crate::rim::disk::layout::plan_layout;
    use crate::rim::disk::table::{PreparedTable, Settled};

    const SIZE: u64 = 4096 * MIB;

    fn bound(table: &str, root: Span, uuid: &Uuid) -> BoundMark {
        let mark = DiskMark {
            host: "control-1".into(),
            generation: 2,
            order: "control-1.2.1".into(),
            state: MarkState::Unfinished,
            secret: "ab".repeat(32),
        };
        let (root_start, root_size) = (root.start, root.size);
        BoundMark { mark, table: table.into(), root_start, root_size, root_uuid: uuid.to_string() }
    }

    #[test]
    fn a_damaged_block_is_no_mark() {
        let made = bound("00", Span { start: 1, size: 2 }, &random_uuid().unwrap());
        let block = made.encode().unwrap();
        assert_eq!(block.len() as u64, MARK_SIZE);
        assert_eq!(BoundMark::decode(&block), Some(made));
        for (at, byte) in [(0, b'R'), (14, b'9'), (40, b'z'), (200, 0)] {
            let mut damaged = block.clone();
            damaged[at] = byte;
            assert_eq!(BoundMark::decode(&damaged), None, "{at}");
        }
        assert_eq!(BoundMark::decode(&[0; 4096]), None);
        assert_eq!(BoundMark::decode(b"rackstep-mark 1 99999999999999999999 x\n"), None);
    }

    /// A disk through all states of an installation, as a power cut would leave it.
    #[test]
    fn a_mark_is_true_only_of_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        File::create(&image).unwrap().set_len(SIZE).unwrap();
        let target = Target::open_for_writing(&image).unwrap();
        let layout = plan_layout(SIZE).unwrap();
        let table = PreparedTable::prepare(&target, &layout, dir.path()).unwrap();
        let uuid = random_uuid().unwrap();
        let mark = bound(&table.guid(512).unwrap(), layout.root, &uuid);
        let state = |has_others| match observe_mark(&target, has_others).unwrap() {
            Found::Nothing => "nothing",
            Found::True(DiskMark { state: MarkState::Unfinished, .. }) => "unfinished",
            Found::True(DiskMark { state: MarkState::Installed, .. }) => "installed",
            Found::Stale(_) => "stale",
        };
        assert_eq!(state(false), "nothing");
        mark.write(&target).unwrap();
        assert_eq!((state(false), state(true)), ("unfinished", "stale"));
        write_root(&image, dir.path(), layout.root, &uuid);
        assert_eq!(state(false), "unfinished");
        table.write(&target, Some(&mark), Settled::from_unmounting()).unwrap();
        assert_eq!(state(false), "installed");
        // The state in the mark is the last thing that is written: without it the disk may have booted all the same.
        mark.write(&target).unwrap();
        assert_eq!(state(false), "installed");
        // Another system in the same partitions, or with a table of its own, leaves the mark where it is.
        write_root(&image, dir.path(), layout.root, &random_uuid().unwrap());
        assert_eq!(state(true), "stale");
        write_root(&image, dir.path(), layout.root, &uuid);
        assert_eq!(state(false), "installed");
        let mut other = target.read(512, 512).unwrap();
        other[GPT_GUID] ^= 1;
        target.write(512, &other).unwrap();
        assert_eq!(state(true), "stale");
        // Cut before the last sector of the seal: only the backup of our table is there.
        target.write(512, &[0; 512]).unwrap();
        assert_eq!((state(false), state(true)), ("unfinished", "stale"));
        mark.sealed().write(&target).unwrap();
        assert_eq!(state(false), "stale", "an installation whose table somebody took away is data");
    }

    fn write_root(image: &Path, dir: &Path, root: Span, uuid: &Uuid) {
        use std::os::unix::fs::FileExt as _;
        let made = dir.join("root");
        File::create(&made).unwrap().set_len(64 * MIB).unwrap();
        format_ext4(&made, uuid, "root").unwrap();
        let file = File::options().write(true).open(image).unwrap();
        file.write_all_at(&std::fs::read(&made).unwrap()[..MIB as usize], root.start).unwrap();
        file.sync_all().unwrap();
    }
}
