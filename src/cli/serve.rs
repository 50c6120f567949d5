//! `rackstep serve`: images the machines of a rack, and tells what happens.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::{Failure, Kind};
use crate::model::place::{InputErrors, SourceText};
use crate::model::rack::Rack;
use crate::rack::check::faults_of;
use crate::rack::manifest::parse_rack;
use crate::rack::{DEFAULT_IPXE, RackEvent, RackOptions, serve};
use crate::rim::clock::now;

/// Progress of one machine is printed no more often.
const PROGRESS_PAUSE: Duration = Duration::from_secs(5);

/// Image the machines of a rack over the network, until Ctrl-C.
///
/// It also serves the release repo to hosts that are imaged already. The rack file is read once, at the start.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The rack file
    #[arg(long, value_name = "FILE")]
    rack: PathBuf,
    /// The release repo; left out, the rack file's
    #[arg(long, value_name = "DIR")]
    repo: Option<PathBuf>,
    /// Where records, leases and boot files are kept [default: /var/lib/rackstep/racks/NAME]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// The directory with iPXE's programs
    #[arg(long, value_name = "DIR", default_value = DEFAULT_IPXE)]
    ipxe: PathBuf,
    /// Leave DHCP and TFTP to someone else
    #[arg(long)]
    no_dhcp: bool,
    /// Only check the rack file, this machine and the repo, and show what is in the file
    #[arg(long)]
    check: bool,
}

/// For what is still in the channel when the server has ended.
const LAST_LINES: Duration = Duration::from_millis(500);

/// Runs the verb until Ctrl-C.
pub fn run(arguments: Arguments) -> Result<(), Failure> {
    const UNCHANGED: &str = "nothing served, nothing changed";
    let file = arguments.rack.display().to_string();
    let text = std::fs::read_to_string(&arguments.rack)
        .map_err(|error| Failure::new(Kind::BadInput, format!("reading {file}: {error}"), UNCHANGED))?;
    let source = SourceText::new(file, text);
    let rack = parse_rack(&source).map_err(|error| Failure::new(Kind::BadInput, error, UNCHANGED))?;
    let repo = arguments.repo.or_else(|| rack.repo.clone()).ok_or_else(|| {
        Failure::new(Kind::BadInput, "no release repo", UNCHANGED)
            .hint("--repo DIR, or repo: in the rack file")
    })?;
    let state = arguments
        .state
        .unwrap_or_else(|| PathBuf::from("/var/lib/rackstep/racks").join(rack.name.replace('/', "_")));
    let options = RackOptions { repo, state, ipxe: arguments.ipxe, dhcp: !arguments.no_dhcp };
    let faults = faults_of(&source, &rack, &options);
    if !faults.is_empty() {
        return Err(Failure::new(Kind::BadInput, InputErrors(faults), UNCHANGED));
    }
    print_rack(&rack);
    if arguments.check {
        return Ok(());
    }

    let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
        Failure::new(Kind::Failed, error, "the rack is not served; machines boot from their disks")
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| failed(Box::new(error)))?;
    let served = runtime.block_on(async {
        let (sender, receiver) = unbounded_channel();
        let printer = tokio::spawn(print_events(receiver));
        let served = serve(rack, options, sender, interrupted()).await;
        // Connections that are still open keep their end of the channel: the last lines come at once or never.
        let _ = tokio::time::timeout(LAST_LINES, printer).await;
        served
    });
    // A machine that still pulls would keep its connection: do not wait for it.
    runtime.shutdown_background();
    served.map_err(|error| failed(Box::new(error)))
}

/// Done at SIGINT or SIGTERM.
async fn interrupted() {
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}

/// A number and its noun: `1 host`, `2 hosts`.
fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

fn print_rack(rack: &Rack) {
    say!(
        "rack {}: {} on {} ({})",
        rack.name,
        count(rack.hosts.len(), "host"),
        rack.network.interface,
        rack.network.address
    );
    if rack.trusted_keys.is_empty() {
        say!("warning: {}", super::NO_KEY);
    }
    if rack.ssh_keys.is_empty() {
        say!("warning: no ssh key (ssh_keys): nobody can log in to these hosts over the network");
    }
    for host in &rack.hosts {
        let selector = host
            .mac
            .map(|mac| mac.to_string())
            .or_else(|| host.uuid.clone())
            .or_else(|| host.serial.clone())
            .unwrap_or_default();
        let address = host.address.map_or("by DHCP".to_owned(), |address| address.to_string());
        let release = rack.profiles.get(&host.profile).map_or("", |profile| profile.release.as_str());
        say!("  {:<20} {selector:<36} {address:<18} {} ({release})", host.name, host.profile);
    }
}

async fn print_events(mut receiver: UnboundedReceiver<RackEvent>) {
    let mut last_progress: BTreeMap<(String, String), Instant> = BTreeMap::new();
    while let Some(event) = receiver.recv().await {
        if event.progress.is_some() {
            let key = (event.subject.clone(), event.step.clone());
            if last_progress.get(&key).is_some_and(|last| last.elapsed() < PROGRESS_PAUSE) {
                continue;
            }
            last_progress.insert(key, Instant::now());
        }
        say!("{}", render_event(&event, seconds_of_day()));
    }
}

fn render_event(event: &RackEvent, second: u64) -> String {
    let (hours, minutes, seconds) = (second / 3600, second / 60 % 60, second % 60);
    let progress = match event.progress {
        Some((done, all)) if all > 0 => format!(" {:>3} %", done.saturating_mul(100) / all),
        _ => String::new(),
    };
    let (subject, step, message) = (&event.subject, &event.step, &event.message);
    format!("{hours:02}:{minutes:02}:{seconds:02} {subject:<18} {step:<11} {message}{progress}")
}

fn seconds_of_day() -> u64 {
    now() % 86_400
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_lines() {
        let event = RackEvent {
            subject: "control-1".to_owned(),
            step: "pull".to_owned(),
            message: "shard 3 of 9".to_owned(),
            progress: Some((1, 3)),
        };
        assert_eq!(render_event(&event, 3_723), "01:02:03 control-1          pull        shard 3 of 9  33 %");
    }
}
