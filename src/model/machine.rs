//! What a rack server knows of one machine, and the life of an imaging order.
//!
//! ```text
//! no order ──inventory──▶ issued ──`done`──▶ done ──booted──▶ installed
//!                           │ ▲                       (netboot says "disk" from `done` on)
//!                      `failed` └──inventory: a new attempt, bound to the same disk
//! ```
//!
//! An order belongs to one host and one *generation* of it (`reimage` in the rack file), whichever card asks. Raising it is
//! the only way to image a host again. Each attempt has a secret: netboot hands a new one to the machine that asks, and when
//! its inventory is answered with a plan the former one is void. Here stand their digests alone.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::Commit;
use super::identity::{machine_serial, machine_uuid, normal_text, normal_wwn};
use super::imaging::{BootedReport, Disk, Inventory, MachineEvent};
use super::rack::Mac;

/// How many events of a machine are kept.
const EVENTS_KEPT: usize = 50;

/// Leave to wipe one disk of one host for one release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Its name; the installer repeats it in every event.
    pub id: String,
    /// `reimage` of the host when it was given.
    pub generation: u32,
    /// Counts the starts of the installer within the generation, from 1.
    pub attempt: u32,
    /// What the disk is known by: see [`disk_identity`].
    pub disk: String,
    /// The release.
    pub commit: Commit,
    /// How far it came.
    pub state: OrderState,
}

/// How far an order came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OrderState {
    /// Given to an installer.
    Issued,
    /// The installer said why it did not work.
    Failed(String),
    /// The installer was through: the order is used up.
    Done,
}

/// An event with its time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimedEvent {
    /// Seconds since 1970.
    pub at: u64,
    /// What happened.
    #[serde(flatten)]
    pub event: MachineEvent,
}

/// Another machine that says it is a host which is being imaged elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The card by which it asked.
    pub mac: Mac,
    /// Its SMBIOS UUID.
    pub uuid: Option<String>,
    /// Its SMBIOS serial number.
    pub serial: Option<String>,
}

/// How many other claimants are kept.
const CLAIMS_KEPT: usize = 4;

/// Everything known of one machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineRecord {
    /// The card by which it was seen last.
    pub mac: Mac,
    /// The host that it is, if the rack file knows it.
    pub host: Option<String>,
    /// SMBIOS UUID, as its boot firmware told it.
    pub uuid: Option<String>,
    /// SMBIOS serial number, likewise.
    pub serial: Option<String>,
    /// Seconds since 1970.
    pub first_seen: u64,
    /// Seconds since 1970.
    pub last_seen: u64,
    /// What its installer saw.
    pub inventory: Option<Inventory>,
    /// Why it was not imaged, at the last try.
    #[serde(default)]
    pub refused: Vec<String>,
    /// The last order.
    pub order: Option<Order>,
    /// The generation whose release has booted.
    pub installed: Option<u32>,
    /// What the booted host said last.
    pub booted: Option<BootedReport>,
    /// The last events, oldest first.
    pub events: Vec<TimedEvent>,
    /// Digest of the secret that netboot handed out last; empty: none.
    #[serde(default)]
    pub pending: String,
    /// Digest of the secret of the last attempt, and of the host that it installed; empty: none.
    #[serde(default)]
    pub secret: String,
    /// The card of the machine that the last order was given to.
    #[serde(default)]
    pub ordered_by: Option<Mac>,
    /// Who else says that it is this host.
    #[serde(default)]
    pub claims: Vec<Claim>,
}

/// SHA-256 of a secret, in hexadecimal digits: what is kept of it.
pub fn secret_digest(secret: &str) -> String {
    hex::encode(Sha256::digest(secret.trim()))
}

/// A machine's state in a word, for people and `--json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MachineState {
    /// Not in the rack file: never touched.
    Unknown,
    /// In the rack file, not imaged yet.
    Waiting,
    /// The plan refused to touch its disks.
    Refused,
    /// The installer works.
    Imaging,
    /// The installer gave up.
    Failed,
    /// Imaged; its first boot is awaited.
    Imaged,
    /// Booted from its disk.
    Installed,
    /// Installed, and all its services run their pinned images.
    Ready,
}

impl MachineState {
    /// The word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Waiting => "waiting",
            Self::Refused => "refused",
            Self::Imaging => "imaging",
            Self::Failed => "failed",
            Self::Imaged => "imaged",
            Self::Installed => "installed",
            Self::Ready => "ready",
        }
    }
}

impl MachineRecord {
    /// A machine seen for the first time.
    pub fn new(mac: Mac, now: u64) -> Self {
        Self {
            mac,
            host: None,
            uuid: None,
            serial: None,
            first_seen: now,
            last_seen: now,
            inventory: None,
            refused: Vec::new(),
            order: None,
            installed: None,
            booted: None,
            events: Vec::new(),
            pending: String::new(),
            secret: String::new(),
            ordered_by: None,
            claims: Vec::new(),
        }
    }

    /// Is `digest` of the secret that was handed out last, or of the attempt's?
    pub fn knows(&self, digest: &str) -> bool {
        !digest.is_empty() && (self.pending == digest || self.secret == digest)
    }

    /// Does somebody else carry out this host's order of `generation`? By UUID, serial number and disks: the same machine may
    /// ask by another card.
    pub fn is_rival(&self, generation: u32, claim: &Claim, disks: Option<&[Disk]>) -> bool {
        let is_under_way = self.order_of(generation).is_some_and(|order| order.state != OrderState::Done);
        if !is_under_way || claim.mac == self.ordered_by.unwrap_or(self.mac) {
            return false;
        }
        let differ = |ours: &Option<String>, theirs: &Option<String>, normal: fn(&str) -> Option<String>| {
            let (ours, theirs) = (ours.as_deref().and_then(normal), theirs.as_deref().and_then(normal));
            matches!((ours, theirs), (Some(ours), Some(theirs)) if ours != theirs)
        };
        let others_disks = |ours: &Inventory, theirs: &[Disk]| {
            let known: Vec<_> = ours.disks.iter().filter_map(disk_identity).collect();
            !known.is_empty() && !theirs.iter().filter_map(disk_identity).any(|disk| known.contains(&disk))
        };
        differ(&self.uuid, &claim.uuid, machine_uuid)
            || differ(&self.serial, &claim.serial, machine_serial)
            || matches!((&self.inventory, disks), (Some(ours), Some(theirs)) if others_disks(ours, theirs))
    }

    /// Remembers another claimant, for people.
    pub fn remember(&mut self, claim: Claim) {
        self.claims.retain(|known| known.mac != claim.mac);
        self.claims.push(claim);
        let surplus = self.claims.len().saturating_sub(CLAIMS_KEPT);
        self.claims.drain(..surplus);
    }

    /// The other claimants in words, with the one that has the order.
    pub fn tell_claims(&self) -> Vec<String> {
        let tell = |mac: Mac, uuid: &Option<String>, serial: &Option<String>| {
            let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "none".to_owned());
            format!("{mac} (uuid {}, serial {})", or_none(uuid), or_none(serial))
        };
        let first = tell(self.ordered_by.unwrap_or(self.mac), &self.uuid, &self.serial);
        let claims = self.claims.iter();
        claims
            .map(|claim| {
                let second = tell(claim.mac, &claim.uuid, &claim.serial);
                format!("{second} says that it is this host, which {first} is being imaged as; give each a selector of its own")
            })
            .collect()
    }

    /// The highest generation that was ever ordered or installed.
    pub fn last_generation(&self) -> Option<u32> {
        self.order.as_ref().map(|order| order.generation).max(self.installed)
    }

    /// The order of this generation, if there is one.
    pub fn order_of(&self, generation: u32) -> Option<&Order> {
        self.order.as_ref().filter(|order| order.generation == generation)
    }

    /// The state with regard to a host's generation; `None`: the rack file does not know it.
    pub fn state(&self, generation: Option<u32>) -> MachineState {
        let Some(generation) = generation else { return MachineState::Unknown };
        if self.installed == Some(generation) {
            return match &self.booted {
                Some(booted) if booted.ready => MachineState::Ready,
                _ => MachineState::Installed,
            };
        }
        if !self.refused.is_empty() {
            return MachineState::Refused;
        }
        match self.order_of(generation).map(|order| &order.state) {
            None => MachineState::Waiting,
            Some(OrderState::Issued) => MachineState::Imaging,
            Some(OrderState::Failed(_)) => MachineState::Failed,
            Some(OrderState::Done) => MachineState::Imaged,
        }
    }

    /// Takes an event in; one that names another order than the last is kept but changes nothing.
    pub fn apply_event(&mut self, event: MachineEvent, now: u64) {
        if let Some(order) = &mut self.order
            && event.order.as_deref() == Some(order.id.as_str())
            && order.state != OrderState::Done
        {
            match event.step.as_str() {
                "done" => order.state = OrderState::Done,
                "failed" => order.state = OrderState::Failed(event.message.clone()),
                _ => {}
            }
        }
        // Progress within a step replaces what was there: fifty of them would push everything else out.
        if event.progress.is_some()
            && let Some(last) = self.events.last_mut()
            && last.event.step == event.step
            && last.event.progress.is_some()
        {
            *last = TimedEvent { at: now, event };
            return;
        }
        self.events.push(TimedEvent { at: now, event });
        let surplus = self.events.len().saturating_sub(EVENTS_KEPT);
        self.events.drain(..surplus);
    }

    /// Keeps an event that the server itself saw; the same step again takes the place of the last.
    pub fn note(&mut self, step: &str, message: String, now: u64) {
        self.events.pop_if(|last| last.event.step == step && last.event.order.is_none());
        let event = MachineEvent { order: None, step: step.to_owned(), message, progress: None };
        self.apply_event(event, now);
    }

    /// When the last step of this name was, in seconds since 1970.
    pub fn last_at(&self, step: &str) -> Option<u64> {
        self.events.iter().rfind(|event| event.event.step == step).map(|event| event.at)
    }

    /// Takes in what a booted host says; `generation` is its host's, if the rack file knows it.
    ///
    /// It counts as installed only when this generation's order was carried out: the old system of a machine that is to
    /// be imaged again calls home too.
    pub fn apply_booted(&mut self, report: BootedReport, generation: Option<u32>) {
        if let Some(generation) = generation {
            let carried_out = match self.order_of(generation) {
                Some(order) => order.state == OrderState::Done || order.commit == report.commit,
                None => false,
            };
            if carried_out {
                self.installed = Some(generation);
                self.refused.clear();
            }
        }
        self.booted = Some(report);
    }
}

/// What a disk is known by over reboots: serial number, world-wide name, size and path, as many as there are. One alone may
/// be shared: by the namespaces of an NVMe drive, by the volumes of a RAID controller, by its clones.
///
/// `None`: neither serial, name nor path. Kernel names are not stable.
pub fn disk_identity(disk: &Disk) -> Option<String> {
    let given = |text: &Option<String>| text.as_deref().map(normal_text).filter(|text| !text.is_empty());
    let mut words = Vec::new();
    words.extend(given(&disk.serial).map(|serial| format!("serial {serial}")));
    let wwn = disk.wwn.as_deref().and_then(|wwn| normal_wwn(wwn).or_else(|| given(&disk.wwn)));
    words.extend(wwn.map(|wwn| format!("wwn {wwn}")));
    words.extend(disk.by_path.first().map(|path| format!("path {path}")));
    if words.is_empty() {
        return None;
    }
    words.push(format!("{} bytes", disk.size));
    Some(words.join(", "))
}
