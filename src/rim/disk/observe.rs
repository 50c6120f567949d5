//! Looks at the whole disks of this machine: who they are, what is on them, who uses them.
//!
//! 1. `lsblk` names disks and what is stacked on them; sysfs fills in serials that udev did not ask for (virtio);
//! 2. `wipefs` without its writing options lists every signature, on the disk and on each partition;
//! 3. the mark of an installation of ours is read, and held against what is there;
//! 4. a disk without a signature whose first or last MiB is not zero holds "data without a signature": it is not blank.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use super::mark::{Found, observe_mark};
use super::target::Target;
use super::{DiskError, MIB};
use crate::model::imaging::{Disk, DiskMark, MarkState};
use crate::rim::command;

/// Columns that are asked of lsblk.
const COLUMNS: &str = "NAME,PATH,TYPE,SIZE,LOG-SEC,MODEL,SERIAL,WWN,ROTA,RM,TRAN,PARTLABEL,MOUNTPOINTS";

/// Kernel disks that are memory or stand for nothing.
const NOT_HARDWARE: [&str; 4] = ["zram", "ram", "loop", "nbd"];

/// A disk and who uses it right now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedDisk {
    /// As it is told to the rack server.
    pub disk: Disk,
    /// Its device node.
    pub path: PathBuf,
    /// One sentence per user (`vda4 is mounted on /`); empty: free.
    pub users: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Listing {
    blockdevices: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    name: String,
    path: PathBuf,
    #[serde(rename = "type")]
    kind: String,
    size: u64,
    #[serde(rename = "log-sec")]
    sector: u32,
    model: Option<String>,
    serial: Option<String>,
    wwn: Option<String>,
    #[serde(default)]
    rota: bool,
    #[serde(default)]
    rm: bool,
    tran: Option<String>,
    partlabel: Option<String>,
    #[serde(default)]
    mountpoints: Vec<Option<String>>,
    #[serde(default)]
    children: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Listed {
    signatures: Vec<Signature>,
}

#[derive(Debug, Deserialize)]
struct Signature {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    label: Option<String>,
}

/// Looks at every whole disk of this machine.
pub fn observe_disks() -> Result<Vec<ObservedDisk>, DiskError> {
    let text = command::run_text(Command::new("lsblk").args(["--json", "--bytes", "--output", COLUMNS]))
        .map_err(DiskError::command("listing the disks"))?;
    let mut found = Vec::new();
    for node in parse_listing(&text)? {
        let mut signatures = Signatures::default();
        collect_signatures(&node, &mut signatures)?;
        let looked = look_further(&node.path, &node.name, signatures)?;
        found.push(describe(node, looked, Path::new("/sys/block"), Path::new("/dev/disk/by-path")));
    }
    Ok(found)
}

/// What is on a disk or an image file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Looked {
    /// In the words that the rack server is told.
    pub contents: Vec<String>,
    /// The mark of an installation of ours that is there.
    pub mark: Option<DiskMark>,
}

/// What is on an image file, in the words that are used for disks.
pub fn observe_file(path: &Path) -> Result<Looked, DiskError> {
    let mut signatures = Signatures::default();
    signatures.add(&signatures_of(path, "the file")?, "the file");
    look_further(path, "the file", signatures)
}

/// Signatures of a disk and of what is on it.
#[derive(Debug, Default)]
struct Signatures {
    words: BTreeSet<String>,
    /// Something else than a GPT is among them.
    has_others: bool,
}

impl Signatures {
    fn add(&mut self, found: &[Signature], name: &str) {
        self.has_others |= found.iter().any(|signature| !["gpt", "PMBR"].contains(&signature.kind.as_str()));
        // The protective MBR is a part of the GPT, which is listed as well.
        let listed = found.iter().filter(|signature| signature.kind != "PMBR");
        self.words.extend(listed.map(|signature| signature.words(name)));
    }
}

/// What no signature tells: the mark, and data without a signature.
fn look_further(path: &Path, name: &str, signatures: Signatures) -> Result<Looked, DiskError> {
    let Signatures { words: mut contents, has_others } = signatures;
    let target = Target::open(path)?;
    let mark = match observe_mark(&target, has_others)? {
        Found::True(mark) => Some(mark),
        Found::Stale(mark) => {
            contents.insert(format!(
                "the mark of {}, generation {}, whose installation is not there",
                mark.host, mark.generation
            ));
            None
        }
        Found::Nothing => None,
    };
    let is_unfinished = mark.as_ref().is_some_and(|mark| mark.state == MarkState::Unfinished);
    if contents.is_empty() && !is_unfinished && !ends_are_zero(&target)? {
        contents.insert(format!("data without a signature on {name}"));
    }
    Ok(Looked { contents: contents.into_iter().collect(), mark })
}

/// The whole disks of an lsblk listing.
fn parse_listing(text: &str) -> Result<Vec<Node>, DiskError> {
    let listing: Listing =
        serde_json::from_str(text).map_err(|source| DiskError::Output { program: "lsblk", source })?;
    let is_disk = |node: &Node| {
        node.kind == "disk" && node.size > 0 && !NOT_HARDWARE.iter().any(|name| node.name.starts_with(name))
    };
    Ok(listing.blockdevices.into_iter().filter(is_disk).collect())
}

fn collect_signatures(node: &Node, signatures: &mut Signatures) -> Result<(), DiskError> {
    // The partition's name tells an installed host of ours from somebody else's data.
    let name = match &node.partlabel {
        Some(label) => format!("{} ({label})", node.name),
        None => node.name.clone(),
    };
    signatures.add(&signatures_of(&node.path, &name)?, &name);
    node.children.iter().try_for_each(|child| collect_signatures(child, signatures))
}

fn signatures_of(path: &Path, name: &str) -> Result<Vec<Signature>, DiskError> {
    let text = command::run_text(Command::new("wipefs").arg("--json").arg(path))
        .map_err(DiskError::command(format!("looking for signatures on {name}")))?;
    parse_signatures(&text)
}

/// Signatures as wipefs lists them. It prints nothing at all where it finds none.
fn parse_signatures(text: &str) -> Result<Vec<Signature>, DiskError> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let found: Listed =
        serde_json::from_str(text).map_err(|source| DiskError::Output { program: "wipefs", source })?;
    Ok(found.signatures)
}

impl Signature {
    fn words(&self, name: &str) -> String {
        match (self.kind.as_str(), &self.label) {
            ("gpt" | "dos", _) => format!("{} partition table on {name}", self.kind),
            (kind, Some(label)) => format!("{kind} {label:?} on {name}"),
            (kind, None) => format!("{kind} on {name}"),
        }
    }
}

fn ends_are_zero(target: &Target) -> Result<bool, DiskError> {
    let span = MIB.min(target.size());
    Ok(target.is_zero(0, span)? && target.is_zero(target.size() - span, span)?)
}

fn describe(node: Node, looked: Looked, sysfs: &Path, by_path: &Path) -> ObservedDisk {
    let mut users = Vec::new();
    collect_users(&node, &mut users);
    let attribute = |name: &str| fs::read_to_string(sysfs.join(&node.name).join(name)).ok();
    let trimmed = |value: Option<String>| value.map(|v| v.trim().to_owned()).filter(|v| !v.is_empty());
    let disk = Disk {
        model: trimmed(node.model),
        serial: trimmed(node.serial)
            .or_else(|| trimmed(attribute("serial")))
            .or_else(|| trimmed(attribute("device/serial"))),
        wwn: trimmed(node.wwn),
        by_path: links_to(&node.name, by_path),
        rotational: node.rota,
        removable: node.rm,
        transport: trimmed(node.tran),
        contents: looked.contents,
        mark: looked.mark,
        size: node.size,
        sector: node.sector,
        name: node.name,
    };
    ObservedDisk { disk, path: node.path, users }
}

fn collect_users(node: &Node, users: &mut Vec<String>) {
    users.extend(node.mountpoints.iter().flatten().map(|place| {
        if place == "[SWAP]" {
            format!("{} is used as swap", node.name)
        } else {
            format!("{} is mounted on {place}", node.name)
        }
    }));
    for child in &node.children {
        if child.kind != "part" {
            users.push(format!("{} ({}) is built on {}", child.name, child.kind, node.name));
        }
        collect_users(child, users);
    }
}

/// Names of the links in `directory` that lead to the device `name`, sorted.
fn links_to(name: &str, directory: &Path) -> Vec<String> {
    let mut links: Vec<_> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| fs::read_link(entry.path()).is_ok_and(|link| link.file_name() == Some(name.as_ref())))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    links.sort();
    links
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTING: &str = r#"{"blockdevices": [
        {"name":"zram0","path":"/dev/zram0","type":"disk","size":4096,"log-sec":4096,"model":null,"serial":null,
         "wwn":null,"rota":false,"rm":false,"tran":null,"mountpoints":["[SWAP]"]},
        {"name":"sr0","path":"/dev/sr0","type":"rom","size":1073741312,"log-sec":2048,"model":"QEMU DVD-ROM",
         "serial":"QM3","wwn":null,"rota":true,"rm":true,"tran":"sata","mountpoints":[null]},
        {"name":"fd0","path":"/dev/fd0","type":"disk","size":0,"log-sec":512,"model":null,"serial":null,
         "wwn":null,"rota":true,"rm":true,"tran":null,"mountpoints":[null]},
        {"name":"sda","path":"/dev/sda","type":"disk","size":480103981056,"log-sec":512,"model":"INTEL SSDSC2KB48 ",
         "serial":" PHYF1 ","wwn":"0x55cd2e414f","rota":false,"rm":false,"tran":"sata","mountpoints":[null],
         "children":[
           {"name":"sda1","path":"/dev/sda1","type":"part","size":1048576,"log-sec":512,"model":null,"serial":null,
            "wwn":null,"rota":false,"rm":false,"tran":null,"mountpoints":["/boot",null]},
           {"name":"sda2","path":"/dev/sda2","type":"part","size":1048576,"log-sec":512,"model":null,"serial":null,
            "wwn":null,"rota":false,"rm":false,"tran":null,"mountpoints":[null],
            "children":[{"name":"md127","path":"/dev/md127","type":"raid1","size":1048576,"log-sec":512,"model":null,
              "serial":null,"wwn":null,"rota":false,"rm":false,"tran":null,"mountpoints":["[SWAP]"]}]}]},
        {"name":"vda","path":"/dev/vda","type":"disk","size":8589934592,"log-sec":4096,"model":null,"serial":null,
         "wwn":null,"rota":true,"rm":false,"tran":"virtio","mountpoints":[null]}
    ]}"#;

    #[test]
    fn only_whole_disks_with_a_size() {
        let names: Vec<_> = parse_listing(LISTING).unwrap().into_iter().map(|node| node.name).collect();
        assert_eq!(names, ["sda", "vda"]);
        assert!(parse_listing("lsblk: broken").is_err());
    }

    #[test]
    fn users_are_mounts_swap_and_what_is_stacked() {
        let disks = parse_listing(LISTING).unwrap();
        let nowhere = Path::new("/nonexistent");
        let described: Vec<_> =
            disks.into_iter().map(|node| describe(node, Looked::default(), nowhere, nowhere)).collect();
        assert_eq!(
            described[0].users,
            ["sda1 is mounted on /boot", "md127 (raid1) is built on sda2", "md127 is used as swap"]
        );
        assert_eq!(described[0].disk.serial.as_deref(), Some("PHYF1"));
        assert_eq!(described[0].disk.model.as_deref(), Some("INTEL SSDSC2KB48"));
        assert!(described[1].users.is_empty());
        assert_eq!(described[1].disk.sector, 4096);
    }

    #[test]
    fn sysfs_and_links_fill_in() {
        let dir = tempfile::tempdir().unwrap();
        let (sysfs, links) = (dir.path().join("block"), dir.path().join("by-path"));
        fs::create_dir_all(sysfs.join("vda")).unwrap();
        fs::write(sysfs.join("vda/serial"), "RS-0001\n").unwrap();
        fs::create_dir(&links).unwrap();
        std::os::unix::fs::symlink("../../vda", links.join("virtio-pci-0000:00:04.0")).unwrap();
        std::os::unix::fs::symlink("../../vda", links.join("pci-0000:00:04.0")).unwrap();
        std::os::unix::fs::symlink("../../vda1", links.join("pci-0000:00:04.0-part1")).unwrap();
        let node = parse_listing(LISTING).unwrap().pop().unwrap();
        let disk = describe(node, Looked::default(), &sysfs, &links).disk;
        assert_eq!(disk.serial.as_deref(), Some("RS-0001"));
        assert_eq!(disk.by_path, ["pci-0000:00:04.0", "virtio-pci-0000:00:04.0"]);
    }

    #[test]
    fn signatures_in_words() {
        let text = r#"{"signatures": [
            {"device":"sda","offset":"0x200","type":"gpt","uuid":"1","label":null},
            {"device":"sda","offset":"0x1fe","type":"PMBR","uuid":null,"label":null},
            {"device":"sda","offset":"0x0","type":"xfs","uuid":"2","label":"root"},
            {"device":"sda","offset":"0x218","type":"LVM2_member","uuid":"3","label":null}]}"#;
        let mut signatures = Signatures::default();
        signatures.add(&parse_signatures(text).unwrap(), "sda");
        let words: Vec<_> = signatures.words.into_iter().collect();
        assert_eq!(words, ["LVM2_member on sda", "gpt partition table on sda", "xfs \"root\" on sda"]);
        assert!(signatures.has_others);
        assert!(parse_signatures("\n").unwrap().is_empty());
    }
}
