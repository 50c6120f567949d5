//! Is the disk still what the plan was made for? Pure.

use std::path::Path;

use crate::imaging::plan::{may_wipe, tell_mark};
use crate::model::imaging::{Disk, ImagingPlan};
use crate::model::machine::disk_identity;
use crate::rim::disk::observe::{Looked, ObservedDisk};

/// Gives the plan's disk, or every reason not to touch it.
///
/// `reported` are the disks of the inventory that the plan was made from, if there was one: a disk that appeared since then
/// might match the host's rule as well.
pub fn require_disk<'a>(
    plan: &ImagingPlan,
    reported: Option<&[Disk]>,
    now: &'a [ObservedDisk],
) -> Result<&'a ObservedDisk, Vec<String>> {
    let Some(found) = now.iter().find(|seen| seen.disk.name == plan.disk.name) else {
        return Err(vec![format!("disk {} is not there (any more)", plan.disk.name)]);
    };
    let mut reasons = differences(&plan.disk, &found.disk);
    reasons.extend(found.users.iter().cloned());
    reasons.extend(now.iter().filter(|seen| is_second(&found.disk, &seen.disk)).map(|seen| {
        format!(
            "disk {} has the same serial number, world-wide name, path and size as {}",
            seen.disk.name, found.disk.name
        )
    }));
    if let Some(reported) = reported {
        let is_new = |seen: &&ObservedDisk| !reported.iter().any(|disk| disk.name == seen.disk.name);
        reasons.extend(
            now.iter()
                .filter(is_new)
                .map(|seen| format!("disk {} appeared after the plan was made", seen.disk.name)),
        );
    }
    reasons.extend(require_leave(plan, &found.disk));
    if reasons.is_empty() { Ok(found) } else { Err(reasons) }
}

/// Every reason not to write to an image file of `size` bytes that holds what was `seen`.
pub fn require_file(
    plan: &ImagingPlan,
    path: &Path,
    size: u64,
    sector: u32,
    seen: Looked,
) -> Result<(), Vec<String>> {
    let mut reasons = Vec::new();
    let found = Disk { contents: seen.contents, mark: seen.mark, size, ..plan.disk.clone() };
    if size != plan.disk.size {
        reasons.push(format!("{} has {size} bytes, the plan says {}", path.display(), plan.disk.size));
    }
    if sector != plan.disk.sector {
        reasons.push(format!(
            "{} has sectors of {sector} bytes, the plan says {}",
            path.display(),
            plan.disk.sector
        ));
    }
    reasons.extend(require_leave(plan, &found));
    if reasons.is_empty() { Ok(()) } else { Err(reasons) }
}

/// The installer's own judgement, from what it sees: a plan that was made from a forged inventory, or by a server that
/// forgot, wipes no finished installation.
fn require_leave(plan: &ImagingPlan, found: &Disk) -> Option<String> {
    may_wipe(found, &plan.host, plan.generation, plan.wipe).err()
}

/// Names are not stable, so a twin of the disk makes the choice a guess.
fn is_second(chosen: &Disk, other: &Disk) -> bool {
    let identity = disk_identity(chosen);
    other.name != chosen.name && identity.is_some() && identity == disk_identity(other)
}

fn differences(expected: &Disk, got: &Disk) -> Vec<String> {
    let show = |value: &Option<String>| value.clone().unwrap_or_else(|| "none".to_owned());
    let list = |values: &[String]| if values.is_empty() { "none".to_owned() } else { values.join(", ") };
    [
        ("size", expected.size.to_string(), got.size.to_string()),
        ("sector size", expected.sector.to_string(), got.sector.to_string()),
        ("model", show(&expected.model), show(&got.model)),
        ("serial number", show(&expected.serial), show(&got.serial)),
        ("world-wide name", show(&expected.wwn), show(&got.wwn)),
        ("place", list(&expected.by_path), list(&got.by_path)),
        ("content", list(&expected.contents), list(&got.contents)),
        ("mark", show(&expected.mark.as_ref().map(tell_mark)), show(&got.mark.as_ref().map(tell_mark))),
    ]
    .into_iter()
    .filter(|(_, expected, got)| expected != got)
    .map(|(what, plan, there)| format!("{what} of disk {}: the plan says {plan}, there is {there}", got.name))
    .collect()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::imaging::install::tests_support::plan;
    use crate::model::imaging::{DiskMark, MarkState};

    fn disk(name: &str, serial: Option<&str>) -> ObservedDisk {
        let disk = Disk { name: name.into(), serial: serial.map(Into::into), ..plan().disk };
        ObservedDisk { path: PathBuf::from(format!("/dev/{name}")), disk, users: vec![] }
    }

    #[test]
    fn the_same_disk_passes() {
        let now = [disk("vda", Some("RS-1")), disk("vdb", Some("RS-2"))];
        let reported: Vec<_> = now.iter().map(|seen| seen.disk.clone()).collect();
        assert_eq!(require_disk(&plan(), Some(&reported), &now).unwrap().disk.name, "vda");
    }

    /// What happened to the machine since the plan was made, and the words for it.
    type Change = (&'static str, fn(&mut Vec<ObservedDisk>), &'static str);

    #[test]
    fn each_change_is_a_reason() {
        let changes: [Change; 8] = [
            ("pulled", |now| now.clear(), "disk vda is not there (any more)"),
            (
                "swapped",
                |now| now[0].disk.serial = Some("RS-9".into()),
                "serial number of disk vda: the plan says RS-1, there is RS-9",
            ),
            (
                "other size",
                |now| now[0].disk.size = 1,
                "size of disk vda: the plan says 8589934592, there is 1",
            ),
            (
                "filled",
                |now| now[0].disk.contents = vec!["xfs on vda".into()],
                "content of disk vda: the plan says none, there is xfs on vda",
            ),
            (
                "moved",
                |now| now[0].disk.by_path = vec!["pci-9".into()],
                "place of disk vda: the plan says none, there is pci-9",
            ),
            ("mounted", |now| now[0].users = vec!["vda1 is mounted on /".into()], "vda1 is mounted on /"),
            (
                "twin",
                |now| now.push(disk("vdc", Some("RS-1"))),
                "disk vdc has the same serial number, world-wide name, path and size as vda",
            ),
            ("new disk", |now| now.push(disk("vdc", None)), "disk vdc appeared after the plan was made"),
        ];
        for (name, change, reason) in changes {
            let mut now = vec![disk("vda", Some("RS-1")), disk("vdb", Some("RS-2"))];
            let reported: Vec<_> = now.iter().map(|seen| seen.disk.clone()).collect();
            change(&mut now);
            let reasons = require_disk(&plan(), Some(&reported), &now).unwrap_err();
            assert!(reasons.iter().any(|found| found == reason), "{name}: {reasons:?}");
        }
    }

    #[test]
    fn data_is_kept_unless_the_plan_says_otherwise() {
        let contents = vec!["gpt partition table on vda".to_owned()];
        let mut plan = plan();
        plan.disk.contents = contents.clone();
        let mut now = [disk("vda", Some("RS-1"))];
        now[0].disk.contents = contents.clone();
        let reasons = require_disk(&plan, None, &now).unwrap_err();
        assert_eq!(
            reasons,
            [
                "disk vda (serial RS-1, 8.0 GiB = 8589934592 bytes) holds data (gpt partition table on vda) and the rule of \
              control-1 does not say wipe: true"
            ]
        );
        plan.wipe = true;
        assert!(require_disk(&plan, None, &now).is_ok());
    }

    #[test]
    fn image_files() {
        let path = Path::new("/x/image");
        assert!(require_file(&plan(), path, 8_589_934_592, 512, Looked::default()).is_ok());
        assert_eq!(
            require_file(&plan(), path, 5, 512, Looked::default()).unwrap_err(),
            ["/x/image has 5 bytes, the plan says 8589934592"]
        );
        let full = Looked { contents: vec!["xfs on the file".into()], mark: None };
        assert!(require_file(&plan(), path, 8_589_934_592, 512, full).is_err());
    }

    /// Whatever the server says, and `wipe: true` with it.
    #[test]
    fn the_installer_never_wipes_a_finished_installation_of_this_generation() {
        let mark = |generation, state| DiskMark {
            host: "control-1".into(),
            generation,
            order: format!("control-1.{generation}.1"),
            state,
            secret: String::new(),
        };
        let contents = vec!["gpt partition table on vda".to_owned()];
        for (generation, state, may) in [
            (1, MarkState::Installed, false),
            (2, MarkState::Installed, false),
            (0, MarkState::Installed, true),
            (1, MarkState::Unfinished, true),
        ] {
            let mut plan = ImagingPlan { generation: 1, wipe: true, ..plan() };
            (plan.disk.contents, plan.disk.mark) = (contents.clone(), Some(mark(generation, state)));
            let mut now = [disk("vda", Some("RS-1"))];
            now[0].disk = plan.disk.clone();
            assert_eq!(require_disk(&plan, None, &now).is_ok(), may, "{generation} {state:?}");
            // The server was told of a blank disk.
            let forged = ImagingPlan {
                disk: Disk { contents: vec![], mark: None, ..plan.disk.clone() },
                wipe: false,
                ..plan
            };
            assert!(require_disk(&forged, None, &now).is_err());
        }
    }
}
