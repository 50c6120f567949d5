//! What machines tell the rack server: whatever comes, only a disk that may be wiped is in a plan, and records stay bounded.
//!
//! Input: a byte that chooses the kind of body, then the body.

use std::sync::OnceLock;

use rackstep::imaging::plan::{Situation, installed_here, may_wipe, plan_imaging};
use rackstep::model::Commit;
use rackstep::model::identity::{machine_serial, machine_uuid};
use rackstep::model::imaging::{BootedReport, ImagingAnswer, Inventory, MachineEvent};
use rackstep::model::machine::{MachineRecord, Order, OrderState};
use rackstep::model::printable;
use rackstep::model::rack::{Mac, Rack};

const RACK: &str = "name: r\n\
    network: {interface: rack0, address: 10.77.0.1/24, range: [10.77.0.100, 10.77.0.199]}\n\
    profiles: {p: {ref: a/b}}\n\
    hosts:\n\
    - {name: one, mac: '52:54:00:00:00:01', profile: p, reimage: 2}\n\
    - {name: two, mac: '52:54:00:00:00:02', profile: p, disk: {serial: D1}}\n";
const INVENTORY: &str = r#"{"uuid":"4c4c4544-0042-3510-8052-b4c04f4e3533","serial":"S1","uefi":true,"memory":1,"cpus":1,"disks":[{"name":"vda","size":99000000000,"sector":512,"model":null,"serial":"D1","wwn":"0x5000c500a1b2c3d4","by_path":["pci-0"],"rotational":false,"removable":false,"transport":"virtio","contents":[],"mark":{"host":"one","generation":1,"order":"one.1.1","state":"installed","secret":"ab"}}]}"#;

static THE_RACK: OnceLock<Rack> = OnceLock::new();

fn rack() -> &'static Rack {
    THE_RACK.get_or_init(|| serde_yaml_ng::from_str(RACK).expect("a rack"))
}

fn commit() -> Commit {
    Commit::from_bytes([0x11; 32])
}

fn record() -> MachineRecord {
    let mut record = MachineRecord::new("52:54:00:00:00:01".parse().expect("a card"), 1);
    let (id, disk) = ("one.2.1".to_owned(), "serial d1".to_owned());
    record.order =
        Some(Order { id, generation: 2, attempt: 1, disk, commit: commit(), state: OrderState::Issued });
    record
}

fn inventory(inventory: &Inventory) {
    for host in &rack().hosts {
        let profile = &rack().profiles[&host.profile];
        let mac = host.mac.expect("a card");
        for record in [None, Some(&record())] {
            let situation = Situation { rack: rack(), host, profile, mac, commit: commit(), record };
            let (answer, order) = plan_imaging(&situation, inventory);
            let ImagingAnswer::Image(plan) = &answer else {
                assert!(order.is_none());
                continue;
            };
            let order = order.expect("an order with each plan");
            assert_eq!((&order.id, order.generation, plan.wipe), (&plan.order, host.reimage, false));
            assert!(inventory.disks.contains(&plan.disk));
            assert_eq!(may_wipe(&plan.disk, &host.name, host.reimage, false), Ok(()));
            assert!(installed_here(host, &inventory.disks).is_none());
            let text = serde_json::to_vec(&answer).expect("writing the answer");
            assert_eq!(serde_json::from_slice::<ImagingAnswer>(&text).expect("reading it again"), answer);
        }
    }
}

pub fn run(data: &[u8]) {
    let Some((kind, bytes)) = data.split_first() else { return };
    match kind % 4 {
        0 => {
            if let Ok(read) = serde_json::from_slice::<Inventory>(bytes) {
                inventory(&read);
            }
        }
        1 => {
            let Ok(event) = serde_json::from_slice::<MachineEvent>(bytes) else { return };
            let mut record = record();
            let ends = event.order.as_deref() == Some("one.2.1") && event.step == "done";
            for now in 0..60 {
                record.apply_event(event.clone(), now);
            }
            assert!(record.events.len() <= 50);
            let state = record.order.as_ref().map(|order| order.state.clone());
            assert_eq!(state == Some(OrderState::Done), ends);
            let text = serde_json::to_vec(&record).expect("writing the record");
            assert_eq!(serde_json::from_slice::<MachineRecord>(&text).expect("reading it again"), record);
        }
        2 => {
            let Ok(report) = serde_json::from_slice::<BootedReport>(bytes) else { return };
            let mut record = record();
            let is_ours = report.commit == commit();
            record.apply_booted(report, Some(2));
            assert_eq!(record.installed == Some(2), is_ours);
        }
        _ => {
            let Ok(text) = std::str::from_utf8(bytes) else { return };
            assert!(!printable(text, 128).contains(|c: char| c.is_control()));
            if let Ok(mac) = text.parse::<Mac>() {
                assert_eq!(mac.to_string().parse::<Mac>(), Ok(mac));
                assert_eq!(mac.hyphenated().parse::<Mac>(), Ok(mac));
            }
            for normal in [machine_uuid, machine_serial] {
                if let Some(once) = normal(text) {
                    assert_eq!(normal(&once), Some(once.clone()), "{text:?}");
                }
            }
        }
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let report = format!(r#"{{"commit":"{}","images":[],"ready":true}}"#, commit());
    let texts: [(u8, &str); 7] = [
        (0, INVENTORY),
        (0, &INVENTORY.replace("installed", "unfinished").replace("\"generation\":1", "\"generation\":2")),
        (1, r#"{"order":"one.2.1","step":"done","message":"m","progress":[1,2]}"#),
        (2, &report),
        (3, "52-54-00-00-00-01"),
        (3, "{44454C4C-4200-1035-8052-B4C04F4E3533}"),
        (3, "SGH 123  ABC "),
    ];
    texts.map(|(kind, text)| [&[kind], text.as_bytes()].concat()).to_vec()
}
