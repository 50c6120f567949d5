//! Is the disk still what the plan was made for? Pure.

use std::path::Path;

use crate::model::imaging::{Disk, ImagingPlan};
use crate::rim::disk::observe::ObservedDisk;

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
            "disk {} has the same serial number and world-wide name as {}",
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
    reasons.extend(require_leave(plan, &found.disk.contents));
    if reasons.is_empty() { Ok(found) } else { Err(reasons) }
}

/// Every reason not to write to an image file of `size` bytes that holds `contents`.
pub fn require_file(
    plan: &ImagingPlan,
    path: &Path,
    size: u64,
    sector: u32,
    contents: &[String],
) -> Result<(), Vec<String>> {
    let mut reasons = Vec::new();
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
    reasons.extend(require_leave(plan, contents));
    if reasons.is_empty() { Ok(()) } else { Err(reasons) }
}

/// A plan that wipes names what is lost; one that names nothing may only have a blank disk.
fn require_leave(plan: &ImagingPlan, contents: &[String]) -> Option<String> {
    (!contents.is_empty() && plan.wiped.is_empty())
        .then(|| format!("it holds data and the plan does not say to wipe it: {}", contents.join(", ")))
}

/// Names are not stable, so a twin of the disk makes the choice a guess.
fn is_second(chosen: &Disk, other: &Disk) -> bool {
    let has_identity = chosen.serial.is_some() || chosen.wwn.is_some();
    other.name != chosen.name && has_identity && (&chosen.serial, &chosen.wwn) == (&other.serial, &other.wwn)
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
                "disk vdc has the same serial number and world-wide name as vda",
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
    fn data_is_kept_unless_the_plan_names_what_is_lost() {
        let contents = vec!["gpt partition table on vda".to_owned()];
        let mut plan = plan();
        plan.disk.contents = contents.clone();
        let mut now = [disk("vda", Some("RS-1"))];
        now[0].disk.contents = contents.clone();
        let reasons = require_disk(&plan, None, &now).unwrap_err();
        assert_eq!(
            reasons,
            ["it holds data and the plan does not say to wipe it: gpt partition table on vda"]
        );
        plan.wiped = contents;
        assert!(require_disk(&plan, None, &now).is_ok());
    }

    #[test]
    fn image_files() {
        let path = Path::new("/x/image");
        assert!(require_file(&plan(), path, 8_589_934_592, 512, &[]).is_ok());
        assert_eq!(
            require_file(&plan(), path, 5, 512, &[]).unwrap_err(),
            ["/x/image has 5 bytes, the plan says 8589934592"]
        );
        assert!(require_file(&plan(), path, 8_589_934_592, 512, &["xfs on the file".into()]).is_err());
    }
}
