//! The rack as people and programs see it: JSON, and a page without scripts.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use crate::model::Commit;
use crate::model::deployment::name_release;
use crate::model::imaging::BootedReport;
use crate::model::machine::{MachineRecord, MachineState, Order, OrderState, TimedEvent};
use crate::model::rack::{Mac, Rack};

use super::records::{Machines, Subject};

/// Version of the JSON.
const VERSION: u32 = 1;

/// A rack with all its machines: the hosts of the rack file in their order, then unknown ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RackView {
    /// 1.
    pub version: u32,
    /// The rack's name.
    pub rack: String,
    /// The machines.
    pub machines: Vec<MachineView>,
}

/// One machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineView {
    /// Host name, if the rack file knows it.
    pub host: Option<String>,
    /// Hardware address, if it was seen or named.
    pub mac: Option<Mac>,
    /// Its static address.
    pub address: Option<String>,
    /// Its profile.
    pub profile: Option<String>,
    /// What it is now.
    pub state: MachineState,
    /// Why it is not imaged.
    pub reasons: Vec<String>,
    /// The last order.
    pub order: Option<Order>,
    /// What the booted host said last.
    pub booted: Option<BootedReport>,
    /// The version of the release that it booted, if the repo has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// When the host said so, in seconds since 1970, if not everything of it runs yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub booting_since: Option<u64>,
    /// Seconds since 1970.
    pub last_seen: Option<u64>,
    /// The last events, oldest first.
    pub events: Vec<TimedEvent>,
}

impl RackView {
    /// Puts the rack file and the records side by side.
    pub(super) fn new(rack: &Rack, records: &Machines, version: impl Fn(Commit) -> Option<String>) -> Self {
        let mut machines = Vec::new();
        for host in &rack.hosts {
            let record = records.get(&Subject::Host(host.name.clone())).map(|record| &**record);
            let mut view = MachineView::of(record, Some(host.reimage));
            view.host = Some(host.name.clone());
            view.mac = view.mac.or(host.mac);
            view.address = host.address.map(|address| address.to_string());
            view.profile = Some(host.profile.clone());
            machines.push(view);
        }
        let is_stranger = |subject: &Subject| match subject {
            Subject::Host(name) => !rack.hosts.iter().any(|host| host.name == *name),
            // It may have been put into the rack file since then.
            Subject::Stranger(mac) => !rack.hosts.iter().any(|host| host.mac == Some(*mac)),
        };
        let strangers = records.iter().filter(|(subject, _)| is_stranger(subject));
        machines.extend(strangers.map(|(_, record)| MachineView::of(Some(record), None)));
        for machine in &mut machines {
            machine.version = machine.booted.as_ref().and_then(|booted| version(booted.commit));
        }
        Self { version: VERSION, rack: rack.name.clone(), machines }
    }
}

impl MachineView {
    fn of(record: Option<&MachineRecord>, generation: Option<u32>) -> Self {
        let state = match (record, generation) {
            (Some(record), _) => record.state(generation),
            (None, _) => MachineState::Waiting,
        };
        let mut reasons = record.map_or_else(Vec::new, |record| record.refused.clone());
        if let Some(Order { state: OrderState::Failed(why), .. }) =
            record.and_then(|record| record.order.as_ref())
        {
            reasons.push(why.clone());
        }
        reasons.extend(record.map_or_else(Vec::new, MachineRecord::tell_claims));
        Self {
            host: None,
            mac: record.map(|record| record.mac),
            address: None,
            profile: None,
            state,
            reasons,
            order: record.and_then(|record| record.order.clone()),
            booted: record.and_then(|record| record.booted.clone()),
            version: None,
            booting_since: record
                .filter(|_| state == MachineState::Installed)
                .and_then(|record| record.last_at("booted")),
            last_seen: record.map(|record| record.last_seen),
            events: record.map_or_else(Vec::new, |record| record.events.clone()),
        }
    }

    /// What to say behind the state: reasons, the last step, or the release.
    fn remark(&self, now: u64) -> String {
        if !self.reasons.is_empty() {
            return self.reasons.join("; ");
        }
        if let (MachineState::Installed | MachineState::Ready, Some(booted)) = (self.state, &self.booted) {
            let name = name_release(self.version.as_deref(), booted.commit);
            let boot = self
                .booting_since
                .map(|at| format!("; bringing services up since {} s", now.saturating_sub(at)))
                .unwrap_or_default();
            return format!("release {name}, {} images{boot}", booted.images.len());
        }
        let Some(TimedEvent { event, .. }) = self.events.last() else { return String::new() };
        match event.progress {
            Some((done, all)) if all > 0 => {
                format!("{}: {} ({} %)", event.step, event.message, done.saturating_mul(100) / all)
            }
            _ => format!("{}: {}", event.step, event.message),
        }
    }
}

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:64rem;padding:0 1rem;color:#223;\
background:#fafbfc}h1{font-size:1.4rem}table{border-collapse:collapse;width:100%;background:#fff}td,th{text-align:left;\
padding:.5rem .8rem;border-bottom:1px solid #e3e6ea;vertical-align:top}td:first-child{font-weight:600}code{color:#667}\
.s{border-radius:1em;padding:.1em .7em;background:#e3e6ea;white-space:nowrap}.ready,.installed{background:#cfeedd}\
.imaging,.imaged{background:#d5e5fb}.failed,.refused{background:#f9d6d2}.unknown{background:#f6e9c6}";

/// The rack view: one row per machine, made anew every few seconds.
pub(super) fn render_page(view: &RackView, now: u64) -> String {
    let rack = escape(&view.rack);
    let mut page = format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta http-equiv=refresh content=3><title>rack {rack}</title>\
         <style>{STYLE}</style><h1>Rack {rack}</h1><table><tr><th>Host<th>Machine<th>State<th><th>Seen"
    );
    for machine in &view.machines {
        let word = machine.state.word();
        let mac = machine.mac.map(|mac| mac.to_string()).unwrap_or_default();
        let seen =
            machine.last_seen.map_or("never".to_owned(), |at| format!("{} s ago", now.saturating_sub(at)));
        let host = escape(machine.host.as_deref().unwrap_or("not in the rack file"));
        let address = escape(machine.address.as_deref().unwrap_or_default());
        let remark = escape(&machine.remark(now));
        // Writing to a String does not fail.
        let _ = write!(
            page,
            "<tr><td>{host}<td><code>{mac}<br>{address}</code><td><span class=\"s {word}\">{word}</span><td>{remark}<td>{seen}"
        );
    }
    page.push_str("</table><p><a href=/v1/machines>JSON</a></html>\n");
    page
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The version stands beside the commit, and a boot is not taken for a fault.
    #[test]
    fn a_booted_host_is_told_by_version_and_by_what_it_is_at() {
        let commit: Commit = "a".repeat(64).parse().unwrap();
        let mut record = MachineRecord::new("52:54:00:00:00:09".parse().unwrap(), 100);
        record.installed = Some(1);
        let report = |ready| BootedReport { commit, images: vec![], ready };
        for at in [110, 112] {
            record.note("netboot", "starts the installer".to_owned(), at);
        }
        record.apply_booted(report(false), Some(1));
        record.note("booted", "release 1.0.0 booted".to_owned(), 120);
        let steps: Vec<_> = record.events.iter().map(|event| (event.at, event.event.step.as_str())).collect();
        assert_eq!(steps, [(112, "netboot"), (120, "booted")]);
        let remark = |record: &MachineRecord| {
            let version = Some("1.0.0".to_owned());
            MachineView { version, ..MachineView::of(Some(record), Some(1)) }.remark(160)
        };
        assert_eq!(remark(&record), "release 1.0.0 (aaaaaaaaaa), 0 images; bringing services up since 40 s");
        record.apply_booted(report(true), Some(1));
        assert_eq!(remark(&record), "release 1.0.0 (aaaaaaaaaa), 0 images");
    }

    #[test]
    fn a_page_escapes_what_machines_say() {
        let mut record = MachineRecord::new("52:54:00:00:00:09".parse().unwrap(), 100);
        record.refused = vec!["<script>".to_owned()];
        let view = RackView {
            version: 1,
            rack: "a&b".to_owned(),
            machines: vec![MachineView::of(Some(&record), None)],
        };
        let page = render_page(&view, 107);
        assert!(page.contains("&lt;script&gt;") && !page.contains("<script>"), "{page}");
        assert!(
            page.contains("Rack a&amp;b") && page.contains("7 s ago") && page.contains("unknown"),
            "{page}"
        );
    }
}
