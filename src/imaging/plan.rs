//! Decides, from what is known, whether a machine boots the installer and which disk may be wiped.
//!
//! 1. [`plan_boot`]: what netboot answers; 2. [`plan_imaging`]: what the installer is told, once it has only looked.
//!
//! Nothing is guessed: a rule that matches no disk or two is refused, and so is a disk with data unless the rack file says
//! `wipe`. An order belongs to a host and its generation, whichever card asks; it is used once, and no sequence of reboots
//! leads from "imaged" back to the installer. What may be wiped is decided anew at every attempt, from what is on the disk
//! ([`may_wipe`]), by server and installer alike: neither a lost record nor a forged one makes an installed host wipe itself.

use crate::model::Commit;
use crate::model::identity::{normal_path, normal_text, normal_wwn};
use crate::model::imaging::{Disk, DiskMark, DiskRule, ImagingAnswer, ImagingPlan, Inventory, MarkState};
use crate::model::machine::{MachineRecord, Order, OrderState, disk_identity};
use crate::model::rack::{AddressWithPrefix, Mac, Profile, Rack, RackHost};

/// A host with Docker and two deployments does not fit on less.
pub const SMALLEST_DISK: u64 = 8 << 30;

/// The name of the root partition that the installer makes; it tells a host of ours from somebody else's data.
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
    // A generation that is over never comes back: a lowered number must not wipe what a higher one installed.
    if record.installed >= Some(host.reimage) {
        return BootAnswer::DiskInstalled;
    }
    if record.last_generation() > Some(host.reimage) {
        return BootAnswer::DiskImaged;
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
    if let Some((disk, mark)) = installed_here(situation.host, &inventory.disks) {
        let reason = format!(
            "{} holds {} as generation {} installed it; it boots from there until reimage is raised to {}",
            tell(disk),
            mark.host,
            mark.generation,
            mark.generation.saturating_add(1)
        );
        return (ImagingAnswer::BootDisk { reason }, None);
    }
    match plan_order(situation, inventory) {
        Ok((disk, order)) => {
            let plan = render_plan(situation, disk, &order);
            (ImagingAnswer::Image(Box::new(plan)), Some(order))
        }
        Err(reasons) => (ImagingAnswer::Refuse { reasons }, None),
    }
}

/// The finished installation of this host that its generation does not replace, on whichever disk it is.
pub fn installed_here<'i>(host: &RackHost, disks: &'i [Disk]) -> Option<(&'i Disk, &'i DiskMark)> {
    let marked = disks.iter().filter_map(|disk| disk.mark.as_ref().map(|mark| (disk, mark)));
    marked
        .filter(|(_, mark)| mark.state == MarkState::Installed && mark.host == host.name)
        .filter(|(_, mark)| mark.generation >= host.reimage)
        .max_by_key(|(_, mark)| mark.generation)
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
            situation.record.and_then(MachineRecord::last_generation).unwrap_or(generation).max(generation)
                + 1
        )]);
    }
    let disk = choose_disk(&host.disk, &inventory.disks)?;
    let Some(identity) = disk_identity(disk) else {
        return Err(vec![format!(
            "{} has neither serial, WWN nor path: it could be another disk after a reboot",
            tell(disk)
        )]);
    };
    if let Some(order) = before
        && !is_same_disk(&order.disk, &identity)
    {
        return Err(vec![format!(
            "order {} is bound to the disk with {}, the rule now matches {}; raise reimage of {} to {} if that is meant",
            order.id,
            order.disk,
            tell(disk),
            host.name,
            generation + 1
        )]);
    }
    require_known_generation(situation, disk)?;
    may_wipe(disk, &host.name, generation, host.disk.wipe).map_err(|reason| vec![reason])?;
    let attempt = before.map_or(1, |order| order.attempt + 1);
    let id = format!("{}.{generation}.{attempt}", host.name);
    let commit = situation.commit;
    Ok((disk, Order { id, generation, attempt, disk: identity, commit, state: OrderState::Issued }))
}

/// Orders of older records name a disk by its serial number alone.
fn is_same_disk(ordered: &str, found: &str) -> bool {
    let ordered = ordered.to_lowercase();
    found.to_lowercase().strip_prefix(&ordered).is_some_and(|rest| rest.is_empty() || rest.starts_with(", "))
}

/// A host that was imaged before disks had marks tells no generation: only a record can say that a newer one is meant.
fn require_known_generation(situation: &Situation<'_>, disk: &Disk) -> Result<(), Vec<String>> {
    let contents = disk.contents.join(", ");
    if disk.mark.is_some() || !contents.contains(ROOT_LABEL) {
        return Ok(());
    }
    let before = situation.record.and_then(MachineRecord::last_generation);
    if before.is_some_and(|before| before < situation.host.reimage) {
        return Ok(());
    }
    Err(vec![format!(
        "{} holds an installed host ({contents}) without a mark that this server has no record of; \
         if it may go, blank the disk by hand (sgdisk --zap-all), else have the machine boot from it",
        tell(disk)
    )])
}

/// May `host` have this disk for its `generation`? Said by the server of what it was told, and by the installer of what it
/// sees.
///
/// A blank disk, the leftovers of this very order, and an older generation of the same host may go; a finished installation
/// of this generation never; anything else only with `wipe`, the operator's word for it.
pub fn may_wipe(disk: &Disk, host: &str, generation: u32, wipe: bool) -> Result<(), String> {
    match &disk.mark {
        Some(mark) if mark.host == host && mark.state == MarkState::Installed => {
            if mark.generation < generation {
                return Ok(());
            }
            return Err(format!(
                "{} holds {host} as generation {} installed it, and the order is for generation {generation}; \
                 raise reimage of {host} to {} to image it again",
                tell(disk),
                mark.generation,
                mark.generation.saturating_add(1)
            ));
        }
        Some(mark) if mark.host == host && mark.generation <= generation => return Ok(()),
        _ => {}
    }
    let mut holds = disk.contents.clone();
    holds.extend(disk.mark.as_ref().map(tell_mark));
    if holds.is_empty() || wipe {
        return Ok(());
    }
    Err(format!(
        "{} holds data ({}) and the rule of {host} does not say wipe: true",
        tell(disk),
        holds.join(", ")
    ))
}

/// A mark in words.
pub fn tell_mark(mark: &DiskMark) -> String {
    let state = match mark.state {
        MarkState::Installed => "installed",
        MarkState::Unfinished => "an unfinished installation",
    };
    format!("{} of generation {}, {state}", mark.host, mark.generation)
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

/// Both sides in one spelling: see [`crate::model::identity`].
fn matches(rule: &DiskRule, disk: &Disk) -> bool {
    let same = |wanted: &Option<String>, got: &Option<String>, normal: fn(&str) -> Option<String>| {
        let Some(wanted) = wanted else { return true };
        let wanted = normal(wanted);
        wanted.is_some() && wanted == got.as_deref().and_then(normal)
    };
    let text = |text: &str| Some(normal_text(text)).filter(|text| !text.is_empty());
    let path = rule.path.as_ref().is_none_or(|wanted| {
        let wanted = normal_path(wanted);
        wanted.is_some() && disk.by_path.iter().any(|path| normal_path(path) == wanted)
    });
    same(&rule.serial, &disk.serial, text)
        && same(&rule.wwn, &disk.wwn, normal_wwn)
        && same(&rule.model, &disk.model, text)
        && path
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

/// A disk in words, with all that a rule may name: `disk vda (serial disk-1, path pci-0000:00:04.0, 20.0 GiB)`.
pub fn tell(disk: &Disk) -> String {
    let tenths = disk.size / ((1 << 30) / 10);
    let named = [("serial", &disk.serial), ("wwn", &disk.wwn), ("model", &disk.model)];
    let mut words: Vec<String> = named
        .iter()
        .filter_map(|(name, value)| value.as_ref().map(|value| format!("{name} {value}")))
        .collect();
    words.extend(disk.by_path.iter().map(|path| format!("path {path}")));
    words.push(format!("{}.{} GiB = {} bytes", tenths / 10, tenths % 10, disk.size));
    format!("disk {} ({})", disk.name, words.join(", "))
}

fn render_plan(situation: &Situation<'_>, disk: &Disk, order: &Order) -> ImagingPlan {
    let Situation { rack, host, profile, .. } = situation;
    let network = &rack.network;
    ImagingPlan {
        order: order.id.clone(),
        host: host.name.clone(),
        generation: order.generation,
        disk: disk.clone(),
        wiped: disk.contents.iter().cloned().chain(disk.mark.as_ref().map(tell_mark)).collect(),
        wipe: host.disk.wipe,
        commit: order.commit,
        follows: profile.follows.clone(),
        repo: network.repo_url(),
        follow_repo: None,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::imaging::{BootedReport, MachineEvent};
    use crate::model::machine::MachineState;

    const MAC: &str = "52:54:00:00:00:01";

    fn commit(digit: &str) -> Commit {
        digit.repeat(64).parse().unwrap()
    }

    fn disk(name: &str, change: impl FnOnce(&mut Disk)) -> Disk {
        let mut disk = Disk {
            name: name.to_owned(),
            size: 20 << 30,
            sector: 512,
            model: Some("QEMU".to_owned()),
            serial: Some(format!("serial-{name}")),
            wwn: None,
            by_path: vec![format!("pci-{name}")],
            rotational: false,
            removable: false,
            transport: Some("virtio".to_owned()),
            contents: Vec::new(),
            mark: None,
        };
        change(&mut disk);
        disk
    }

    fn plain(name: &str) -> Disk {
        disk(name, |_| {})
    }

    fn inventory(disks: Vec<Disk>) -> Inventory {
        Inventory { uuid: None, serial: None, uefi: true, memory: 1 << 30, cpus: 2, disks }
    }

    fn rack(rule: &str, reimage: u32) -> Rack {
        serde_yaml_ng::from_str(&format!(
            "name: r\nnetwork: {{interface: rack0, address: 10.77.0.1/24, range: [10.77.0.100, 10.77.0.199]}}\n\
             profiles: {{p: {{ref: a/b, kernel_arguments: [quiet]}}}}\n\
             hosts: [{{name: one, mac: '{MAC}', profile: p, address: 10.77.0.11/24, disk: {{{rule}}}, reimage: {reimage}}}]"
        ))
        .unwrap()
    }

    fn plan(rack: &Rack, record: Option<&MachineRecord>, disks: Vec<Disk>) -> (ImagingAnswer, Option<Order>) {
        let host = &rack.hosts[0];
        let (profile, mac) = (&rack.profiles["p"], MAC.parse().unwrap());
        plan_imaging(&Situation { rack, host, profile, mac, commit: commit("a"), record }, &inventory(disks))
    }

    fn reasons(answer: ImagingAnswer) -> String {
        match answer {
            ImagingAnswer::Refuse { reasons } => reasons.join("; "),
            other => panic!("{other:?}"),
        }
    }

    fn mark(host: &str, generation: u32, state: MarkState) -> Option<DiskMark> {
        let order = format!("{host}.{generation}.1");
        Some(DiskMark { host: host.to_owned(), generation, order, state, secret: "5e".to_owned() })
    }

    /// A disk with an installation of ours.
    fn marked(host: &str, generation: u32) -> Disk {
        disk("vda", |disk| {
            disk.contents = vec!["gpt".into(), "xfs on vda4 (rackstep-root)".into()];
            disk.mark = mark(host, generation, MarkState::Installed);
        })
    }

    #[test]
    fn one_matching_disk_is_planned() {
        let old = disk("vdb", |disk| disk.contents = vec!["gpt".to_owned()]);
        let table = [
            ("serial: serial-vda", vec![plain("vda"), plain("vdb")], "vda"),
            ("path: pci-vdb", vec![plain("vda"), plain("vdb")], "vdb"),
            ("min_size: 30000000000", vec![plain("vda"), disk("vdb", |disk| disk.size = 40 << 30)], "vdb"),
            ("", vec![plain("vda"), disk("sda", |disk| disk.removable = true)], "vda"),
            ("serial: serial-vdb, wipe: true", vec![old], "vdb"),
        ];
        for (rule, disks, expected) in table {
            let (answer, order) = plan(&rack(rule, 0), None, disks);
            let ImagingAnswer::Image(plan) = answer else { panic!("{rule}: {answer:?}") };
            let order = order.unwrap();
            assert_eq!((plan.disk.name.as_str(), plan.order.as_str()), (expected, "one.0.1"), "{rule}");
            assert_eq!(plan.wiped, plan.disk.contents, "{rule}");
            assert_eq!(
                (order.disk, order.commit),
                (
                    format!("serial serial-{expected}, path pci-{expected}, {} bytes", plan.disk.size),
                    commit("a")
                ),
                "{rule}"
            );
            assert_eq!(plan.repo, "http://10.77.0.1:8080/repo");
        }
    }

    #[test]
    fn anything_doubtful_is_refused_with_its_reason() {
        let changed = |change: fn(&mut Disk)| vec![disk("vda", change)];
        let nameless = |disk: &mut Disk| {
            disk.serial = None;
            disk.by_path.clear();
        };
        let table: Vec<(&str, Vec<Disk>, &str)> = vec![
            (
                "serial: other",
                vec![plain("vda")],
                "no disk matches the rule (serial other); there is disk vda (serial serial-vda, model QEMU, path pci-vda, 20.0 GiB = 21474836480 bytes)",
            ),
            ("", vec![], "no disk matches the rule (any disk)"),
            ("", vec![plain("vda"), plain("vdb")], "2 disks match the rule (any disk)"),
            (
                "",
                changed(|disk| disk.contents = vec!["gpt".into(), "ext4".into()]),
                "holds data (gpt, ext4) and the rule of one does not say wipe: true",
            ),
            ("serial: serial-vda, wipe: true", changed(|disk| disk.removable = true), "is removable"),
            ("wipe: true", changed(|disk| disk.transport = Some("iscsi".into())), "is reached by iscsi"),
            ("wipe: true", changed(|disk| disk.size = 1 << 30), "is too small: 8 GiB are needed"),
            ("", changed(nameless), "neither serial, WWN nor path"),
            (
                "wipe: true",
                changed(|disk| disk.contents = vec!["xfs rackstep-root".into()]),
                "holds an installed host (xfs rackstep-root) without a mark that this server has no record of",
            ),
        ];
        for (rule, disks, expected) in table {
            let (answer, order) = plan(&rack(rule, 0), None, disks);
            let got = reasons(answer);
            assert!(got.contains(expected), "{rule}: {got}");
            assert!(order.is_none());
        }
    }

    /// A record after the events of one run of the installer.
    fn record_after(order: Option<Order>, steps: &[&str]) -> MachineRecord {
        let mut record = MachineRecord::new(MAC.parse().unwrap(), 1);
        let id = order.as_ref().map(|order| order.id.clone());
        record.order = order;
        for step in steps {
            let (order, step) = (id.clone(), (*step).to_owned());
            record.apply_event(MachineEvent { order, step, message: "m".into(), progress: None }, 2);
        }
        record
    }

    #[test]
    fn an_order_is_used_once_whatever_reboots() {
        let rack0 = rack("wipe: true", 0);
        let order = plan(&rack0, None, vec![plain("vda")]).1;
        let host = &rack0.hosts[0];

        let interrupted = record_after(order.clone(), &["partition", "pull"]);
        assert_eq!(plan_boot(Some(host), Some(&interrupted)), BootAnswer::Installer);
        let left = || disk("vda", |disk| disk.mark = mark("one", 0, MarkState::Unfinished));
        let again = plan(&rack("", 0), Some(&interrupted), vec![left()]).1.unwrap();
        assert_eq!((again.id.as_str(), again.attempt), ("one.0.2", 2), "what an attempt left behind is ours");
        let half = || disk("vda", |disk| disk.contents = vec!["xfs rackstep-root".into()]);
        let elsewhere =
            plan(&rack("serial: serial-vdb", 0), Some(&interrupted), vec![plain("vda"), plain("vdb")]);
        assert!(
            reasons(elsewhere.0)
                .contains("bound to the disk with serial serial-vda, path pci-vda, 21474836480 bytes, the rule now matches disk vdb")
        );

        let failed = record_after(order.clone(), &["failed"]);
        assert_eq!(failed.state(Some(0)), MachineState::Failed);
        assert_eq!(plan_boot(Some(host), Some(&failed)), BootAnswer::Installer);

        let mut done = record_after(order, &["done"]);
        assert_eq!(plan_boot(Some(host), Some(&done)), BootAnswer::DiskImaged);
        assert!(
            reasons(plan(&rack0, Some(&done), vec![half()]).0)
                .contains("order one.0.1 was used; raise reimage of one to 1")
        );
        let late = MachineEvent {
            order: Some("one.0.1".into()),
            step: "failed".into(),
            message: String::new(),
            progress: None,
        };
        done.apply_event(late, 3);
        assert_eq!(plan_boot(Some(host), Some(&done)), BootAnswer::DiskImaged, "what is done stays done");

        done.apply_booted(BootedReport { commit: commit("a"), images: vec![], ready: false }, Some(0));
        assert_eq!(plan_boot(Some(host), Some(&done)), BootAnswer::DiskInstalled);

        // Raised: imaged again, once; the old system calling home in between does not count.
        let rack1 = rack("wipe: true", 1);
        assert_eq!(plan_boot(Some(&rack1.hosts[0]), Some(&done)), BootAnswer::Installer);
        done.apply_booted(BootedReport { commit: commit("a"), images: vec![], ready: true }, Some(1));
        assert_eq!(plan_boot(Some(&rack1.hosts[0]), Some(&done)), BootAnswer::Installer);
        let next = plan(&rack1, Some(&done), vec![half()]).1.unwrap();
        assert_eq!(next.id, "one.1.1");

        // Lowered again: neither before nor after the second imaging does the old number wipe anything.
        let ordered = MachineRecord { order: Some(next), ..done };
        assert_eq!(plan_boot(Some(host), Some(&ordered)), BootAnswer::DiskInstalled);
        let fresh = MachineRecord { installed: None, ..ordered };
        assert_eq!(plan_boot(Some(host), Some(&fresh)), BootAnswer::DiskImaged);
        assert!(reasons(plan(&rack0, Some(&fresh), vec![half()]).0).contains("raise reimage of one to 2"));
        let done = fresh;
        assert_eq!(plan_boot(None, Some(&done)), BootAnswer::LeaveUnknown);
    }

    /// Whatever the server remembers, and whatever the first attempt found.
    #[test]
    fn what_is_on_the_disk_decides_at_every_attempt() {
        let with = |contents: &[&str], mark: Option<DiskMark>| {
            disk("vda", |disk| {
                disk.contents = contents.iter().map(|&word| word.to_owned()).collect();
                disk.mark = mark;
            })
        };
        let unfinished = |host: &str, generation| mark(host, generation, MarkState::Unfinished);
        // Disk, reimage; may it go without `wipe`, and with it? None: it boots from its disk.
        let table = [
            ("blank", with(&[], None), 1, Some((true, true))),
            ("data", with(&["ext4"], None), 1, Some((false, true))),
            ("leftovers of this order", with(&[], unfinished("one", 1)), 1, Some((true, true))),
            ("leftovers of an older order", with(&[], unfinished("one", 0)), 1, Some((true, true))),
            ("leftovers of a newer order", with(&[], unfinished("one", 2)), 1, Some((false, true))),
            ("leftovers of another host", with(&[], unfinished("two", 1)), 1, Some((false, true))),
            ("an older generation", marked("one", 0), 1, Some((true, true))),
            ("this generation", marked("one", 1), 1, None),
            ("a newer generation", marked("one", 2), 1, None),
            ("another host", marked("two", 0), 1, Some((false, true))),
        ];
        let order = plan(&rack("", 1), None, vec![plain("vda")]).1;
        // No record at all, one of an attempt that died, one of an attempt that failed.
        let records =
            [None, Some(record_after(order.clone(), &["pull"])), Some(record_after(order, &["failed"]))];
        for (name, disk, reimage, expected) in table {
            for (record, wipe) in records.iter().flat_map(|record| [(record, false), (record, true)]) {
                let rack = rack(if wipe { "wipe: true" } else { "" }, reimage);
                let (answer, order) = plan(&rack, record.as_ref(), vec![disk.clone()]);
                let may = expected.map(|(without, with)| if wipe { with } else { without });
                let got = match &answer {
                    ImagingAnswer::Image(_) => Some(true),
                    ImagingAnswer::Refuse { .. } => Some(false),
                    ImagingAnswer::BootDisk { .. } => None,
                };
                assert_eq!(
                    (got, order.is_some()),
                    (may, may == Some(true)),
                    "{name}, wipe {wipe}: {answer:?}"
                );
                assert_eq!(may_wipe(&disk, "one", reimage, wipe).is_ok(), may == Some(true), "{name}");
            }
        }
        // On whichever disk: the rule may have been changed to a blank one since.
        let (answer, _) =
            plan(&rack("serial: serial-vdb, wipe: true", 1), None, vec![marked("one", 1), plain("vdb")]);
        assert!(matches!(answer, ImagingAnswer::BootDisk { .. }), "{answer:?}");
    }

    #[test]
    fn rules_match_in_every_spelling() {
        let named = disk("vda", |disk| {
            disk.serial = Some("SGH 123  ABC".to_owned());
            disk.wwn = Some("0x5000c500a1b2c3d4".to_owned());
            disk.model = Some("Other  SSD".to_owned());
        });
        for rule in [
            "serial: \" sgh 123 abc\"",
            "wwn: naa.5000C500A1B2C3D4",
            "wwn: wwn-0x5000c500a1b2c3d4",
            "wwn: 5000c500a1b2c3d4",
            "path: /dev/disk/by-path/pci-vda",
            "model: other ssd",
        ] {
            let (answer, _) = plan(&rack(rule, 0), None, vec![named.clone(), plain("vdb")]);
            let ImagingAnswer::Image(plan) = answer else { panic!("{rule}: {answer:?}") };
            assert_eq!(plan.disk.name, "vda", "{rule}");
        }
    }
}
