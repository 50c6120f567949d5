//! Old signatures: what was on a disk before must not be found inside what is made on it.
//!
//! A RAID superblock in the middle of a new partition, a second file system's magic behind the first: `blkid` then calls the
//! partition ambivalent and tells no UUID, and a host whose `root=UUID=` is not found does not start.

use std::process::Command;

use serde::Deserialize;

use super::DiskError;
use super::layout::Span;
use super::loops::LoopDevice;
use super::target::Target;
use crate::rim::command;

#[derive(Debug, Deserialize)]
struct Listing {
    partitiontable: Table,
}

#[derive(Debug, Deserialize)]
struct Table {
    #[serde(default = "default_sector")]
    sectorsize: u64,
    #[serde(default)]
    partitions: Vec<Partition>,
}

const fn default_sector() -> u64 {
    512
}

#[derive(Debug, Deserialize)]
struct Partition {
    start: u64,
    size: u64,
}

/// The partitions that a disk has now; none: it has no table that sfdisk can read.
pub fn observe_spans(target: &Target) -> Vec<Span> {
    let Ok(text) = command::run_text(Command::new("sfdisk").arg("--json").arg(target.path())) else {
        return Vec::new();
    };
    parse_spans(&text, target.size())
}

fn parse_spans(text: &str, size: u64) -> Vec<Span> {
    let Ok(Listing { partitiontable: table }) = serde_json::from_str(text) else { return Vec::new() };
    let spans = table.partitions.into_iter().map(|partition| Span {
        start: partition.start.saturating_mul(table.sectorsize),
        size: partition.size.saturating_mul(table.sectorsize),
    });
    // A table of another disk may be on this one: nothing outside it is wanted. The ends of the disk are wiped as such.
    spans
        .filter(|span| {
            span.start >= super::MIB
                && span.size > 0
                && span.start.saturating_add(span.size) <= size - super::MIB
        })
        .collect()
}

/// Takes away every signature of a span that `wipefs` knows, then both of its ends.
pub fn wipe_span(target: &Target, span: Span) -> Result<(), DiskError> {
    let device = LoopDevice::attach(target, span)?;
    command::run(Command::new("wipefs").args(["--all", "--quiet"]).arg(device.path())).map_err(
        DiskError::command(format!(
            "wiping signatures at byte {} of {}",
            span.start,
            target.path().display()
        )),
    )?;
    device.detach()?;
    target.wipe_ends_of(span)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::rim::disk::MIB;
    use crate::rim::disk::filesystem::{format_xfs, random_uuid};
    use crate::rim::disk::mark::fs_uuid;

    #[test]
    fn spans_of_a_listing() {
        let text = r#"{"partitiontable": {"label":"gpt", "unit":"sectors", "sectorsize":512, "partitions": [
            {"node":"x1","start":2048,"size":2048}, {"node":"x2","start":4096,"size":99999999}, {"node":"x3","start":0,"size":1}]}}"#;
        assert_eq!(parse_spans(text, 8 * MIB), [Span { start: MIB, size: MIB }]);
        assert_eq!(parse_spans("sfdisk: no table", 8 * MIB), []);
    }

    /// Needs loop devices: two file systems in one place are ambivalent, and after the wipe the new one is found.
    #[test]
    fn nothing_old_makes_the_new_ambivalent() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        File::create(&image).unwrap().set_len(1024 * MIB).unwrap();
        let target = Target::open_for_writing(&image).unwrap();
        let span = Span { start: MIB, size: 1000 * MIB };
        let uuid = random_uuid().unwrap();
        let format = || {
            let device = LoopDevice::attach(&target, span).unwrap();
            format_xfs(device.path(), &uuid, "root").unwrap();
            device.detach().unwrap();
        };
        // An md superblock 1.0 stands 8 KiB before the end, ext4's magic 1 KiB after the start.
        let leave = |at: u64, bytes: &[u8]| target.write(at, bytes).unwrap();
        format();
        leave(span.start + 1024 + 56, &[0x53, 0xef]);
        let mut block = vec![0; 4096];
        block[..8].copy_from_slice(&[0xfc, 0x4e, 0x2b, 0xa9, 1, 0, 0, 0]);
        leave(span.start + span.size - 8192, &block);
        wipe_span(&target, span).unwrap();
        format();
        assert_eq!(fs_uuid(&target, span).unwrap(), Some(uuid.to_string()));
        assert!(target.is_zero(span.start + span.size - MIB, MIB).unwrap());
    }
}
