//! Decides, from what is known, whether a machine boots the installer and which disk may be wiped.
//!
//! 1. [`plan_boot`]: what netboot answers; 2. [`plan_imaging`]: what the installer is told, once it has only looked.
//!
//! Nothing is guessed: a rule that matches no disk or two is refused, and so is a disk with data unless the rack file says
//! `wipe`. An order is used once; no sequence of reboots leads from "imaged" back to the installer.

use crate::model::Commit;
use crate::model::imaging::{Disk, DiskRule, ImagingAnswer, ImagingPlan, Inventory};
use crate::model::machine::{MachineRecord, Order, OrderState, disk_identity};
use crate::model::rack::{AddressWithPrefix, Mac, Profile, Rack, RackHost};

/// A host with Docker and two deployments does not fit on less.
pub const SMALLEST_DISK: u64 = 8 << 30;

/// The label of the root file system that the installer makes.
pub const ROOT_LABEL: &str = "rackstep-root";

/// What netboot answers, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootAnswer {
    /// Not in the rack file: never touched.
    LeaveUnknown,
    /// Its release has booted from the disk.
    DiskInstalled,
    /// Imaged; its release has not called home yet.
    DiskImaged,
    /// Start the installer, which only looks at first.
    Installer,
}

/// Decides what a machine boots.
pub fn plan_boot(host: Option<&RackHost>, record: Option<&MachineRecord>) -> BootAnswer {
    let Some(host) = host else { return BootAnswer::LeaveUnknown };
    let Some(record) = record else { return BootAnswer::Installer };
    if record.installed == Some(host.reimage) {
        return BootAnswer::DiskInstalled;
    }
    match record.order_of(host.reimage).map(|order| &order.state) {
        Some(OrderState::Done) => BootAnswer::DiskImaged,
        _ => BootAnswer::Installer,
    }
}

/// What is known when an inventory comes in.
#[derive(Debug, Clone, Copy)]
pub struct Situation<'a> {
    /// The rack.
    pub rack: &'a Rack,
    /// The host that the machine is.
    pub host: &'a RackHost,
    /// Its profile.
    pub profile: &'a Profile,
    /// The card that it booted by.
    pub mac: Mac,
    /// The release to image.
    pub commit: Commit,
    /// What was known before.
    pub record: Option<&'a MachineRecord>,
}

/// Decides whether and how the machine is imaged; with a plan comes the order to record before it is handed out.
pub fn plan_imaging(situation: &Situation<'_>, inventory: &Inventory) -> (ImagingAnswer, Option<Order>) {
    match plan_order(situation, inventory) {
        Ok((disk, order)) => {
            let plan = render_plan(situation, disk, &order);
            (ImagingAnswer::Image(Box::new(plan)), Some(order))
        }
        Err(reasons) => (ImagingAnswer::Refuse { reasons }, None),
    }
}

fn plan_order<'i>(
    situation: &Situation<'_>,
    inventory: &'i Inventory,
) -> Result<(&'i Disk, Order), Vec<String>> {
    let host = situation.host;
    let generation = host.reimage;
    let before = situation.record.and_then(|record| record.order_of(generation));
    if plan_boot(Some(host), situation.record) != BootAnswer::Installer {
        let used = before
            .map_or("its release has booted".to_owned(), |order| format!("order {} was used", order.id));
        return Err(vec![format!(
            "{used}; raise reimage of {} to {} to image it again",
            host.name,
            generation + 1
        )]);
    }
    let disk = choose_disk(&host.disk, &inventory.disks)?;
    let Some(identity) = disk_identity(disk) else {
        return Err(vec![format!(
            "{} has neither serial, WWN nor path: it could be another disk after a reboot",
            tell(disk)
        )]);
    };
    match before {
        // An interrupted attempt: what is on the disk now is ours.
        Some(order) if order.disk == identity => {}
        Some(order) => {
            return Err(vec![format!(
                "order {} is bound to the disk with {}, the rule now matches {}; raise reimage of {} to {} if that is meant",
                order.id,
                order.disk,
                tell(disk),
                host.name,
                generation + 1
            )]);
        }
        None => require_blank(situation, disk)?,
    }
    let attempt = before.map_or(1, |order| order.attempt + 1);
    let id = format!("{}.{generation}.{attempt}", host.name);
    let commit = situation.commit;
    Ok((disk, Order { id, generation, attempt, disk: identity, commit, state: OrderState::Issued }))
}

fn require_blank(situation: &Situation<'_>, disk: &Disk) -> Result<(), Vec<String>> {
    let host = situation.host;
    if disk.contents.is_empty() {
        return Ok(());
    }
    let contents = disk.contents.join(", ");
    let never_ordered = situation.record.is_none_or(|record| record.order.is_none());
    if host.reimage == 0 && never_ordered && contents.contains(ROOT_LABEL) {
        return Err(vec![format!(
            "{} holds an installed host ({contents}) that this server has no record of; set reimage of {} to 1 to image it again",
            tell(disk),
            host.name
        )]);
    }
    if !host.disk.wipe {
        return Err(vec![format!(
            "{} holds data ({contents}) and the rule of {} does not say wipe: true",
            tell(disk),
            host.name
        )]);
    }
    Ok(())
}

/// The one usable disk that the rule matches.
fn choose_disk<'i>(rule: &DiskRule, disks: &'i [Disk]) -> Result<&'i Disk, Vec<String>> {
    let matched: Vec<&Disk> = disks.iter().filter(|disk| matches(rule, disk)).collect();
    if matched.is_empty() {
        let mut reasons = vec![format!("no disk matches the rule ({})", tell_rule(rule))];
        reasons.extend(disks.iter().map(|disk| format!("there is {}", tell(disk))));
        return Err(reasons);
    }
    let (usable, unusable): (Vec<&Disk>, Vec<&Disk>) =
        matched.iter().partition(|disk| why_unusable(disk).is_none());
    match usable[..] {
        [disk] => Ok(disk),
        [] => Err(unusable
            .iter()
            .filter_map(|disk| why_unusable(disk).map(|why| format!("{} {why}", tell(disk))))
            .collect()),
        _ => {
            let mut reasons = vec![format!(
                "{} disks match the rule ({}); it must match one alone",
                usable.len(),
                tell_rule(rule)
            )];
            reasons.extend(usable.iter().map(|disk| tell(disk)));
            Err(reasons)
        }
    }
}

fn why_unusable(disk: &Disk) -> Option<String> {
    let transport = disk.transport.as_deref().unwrap_or_default();
    if disk.removable || transport.eq_ignore_ascii_case("usb") {
        return Some("is removable".to_owned());
    }
    // A SAN volume may be shared with other hosts, and may be reached over the very network that is being set up.
    if ["iscsi", "fc", "fcoe", "nbd"].iter().any(|remote| transport.eq_ignore_ascii_case(remote)) {
        return Some(format!("is reached by {transport}: it may belong to others"));
    }
    (disk.size < SMALLEST_DISK).then(|| format!("is too small: {} GiB are needed", SMALLEST_DISK >> 30))
}

fn matches(rule: &DiskRule, disk: &Disk) -> bool {
    let same = |wanted: &Option<String>, got: &Option<String>| {
        wanted.as_ref().is_none_or(|wanted| got.as_deref().is_some_and(|got| got.trim() == wanted.trim()))
    };
    same(&rule.serial, &disk.serial)
        && same(&rule.wwn, &disk.wwn)
        && same(&rule.model, &disk.model)
        && rule.path.as_ref().is_none_or(|path| disk.by_path.contains(path))
        && rule.min_size.is_none_or(|least| disk.size >= least)
        && rule.max_size.is_none_or(|most| disk.size <= most)
}

fn tell_rule(rule: &DiskRule) -> String {
    let size = |size: Option<u64>| size.map(|size| size.to_string());
    let fields = [
        ("serial", rule.serial.clone()),
        ("wwn", rule.wwn.clone()),
        ("model", rule.model.clone()),
        ("path", rule.path.clone()),
        ("min_size", size(rule.min_size)),
        ("max_size", size(rule.max_size)),
    ];
    let given: Vec<String> =
        fields.into_iter().filter_map(|(name, value)| value.map(|value| format!("{name} {value}"))).collect();
    if given.is_empty() { "any disk".to_owned() } else { given.join(", ") }
}

/// A disk in words: `disk vda (serial disk-1, 20.0 GiB)`.
fn tell(disk: &Disk) -> String {
    let tenths = disk.size / ((1 << 30) / 10);
    let identity = disk_identity(disk).map_or(String::new(), |identity| format!("{identity}, "));
    format!("disk {} ({identity}{}.{} GiB)", disk.name, tenths / 10, tenths % 10)
}

fn render_plan(situation: &Situation<'_>, disk: &Disk, order: &Order) -> ImagingPlan {
    let Situation { rack, host, profile, .. } = situation;
    let network = &rack.network;
    ImagingPlan {
        order: order.id.clone(),
        host: host.name.clone(),
        disk: disk.clone(),
        wiped: disk.contents.clone(),
        commit: order.commit,
        follows: profile.follows.clone(),
        repo: network.repo_url(),
        trusted_keys: rack.trusted_keys.clone(),
        kernel_arguments: profile.kernel_arguments.clone(),
        ssh_keys: rack.ssh_keys.clone(),
        mac: situation.mac.to_string(),
        address: host.address.as_ref().map(AddressWithPrefix::to_string),
        gateway: network.gateway.map(|gateway| gateway.to_string()),
        dns: network.dns.iter().map(ToString::to_string).collect(),
        rack_server: network.server_url(),
    }
}
