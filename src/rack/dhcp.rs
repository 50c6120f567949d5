//! dnsmasq as a child that is watched: configured, started, started again when it ends, stopped with the server.
//!
//! A dnsmasq left over from a server that was killed is found by the pid file in the state directory and ended first.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::dhcp_log::DhcpLog;
use super::{RackError, RackOptions, Teller};
use crate::model::causes::in_one_line;
use crate::model::rack::Rack;
use crate::rack::netboot::dnsmasq::{BIOS_PROGRAM, Files, UEFI_PROGRAM, render_dnsmasq};
use crate::rim::dnsmasq;
use crate::rim::files::{Durability, write_atomic};
use crate::rim::process::Detached;

/// Where Debian's `ipxe` package puts its programs.
pub const DEFAULT_IPXE: &str = "/usr/lib/ipxe";

/// A dnsmasq that ends sooner than this has a wrong configuration or a taken port: trying again will not help.
const EARLY: Duration = Duration::from_secs(5);
/// Between two starts.
const PAUSE: Duration = Duration::from_secs(1);
/// dnsmasq ends at once on SIGTERM.
const FAREWELL: Duration = Duration::from_secs(3);

/// Keeps dnsmasq running until `stopped` is true.
pub(super) async fn supervise(
    rack: &Rack,
    options: &RackOptions,
    tell: &Teller,
    mut stopped: watch::Receiver<bool>,
) -> Result<(), RackError> {
    for program in [BIOS_PROGRAM, UEFI_PROGRAM] {
        let path = options.ipxe.join(program);
        if !path.exists() {
            return Err(RackError::BootProgram { path });
        }
    }
    let configuration = options.state.join("dnsmasq.conf");
    let leases = options.state.join("dnsmasq.leases");
    let log = DhcpLog::new(options.state.join("dnsmasq.log"));
    let text = render_dnsmasq(rack, Files { tftp: &options.ipxe, leases: &leases });
    let written = write_atomic(&configuration, text.as_bytes(), 0o644, Durability::Volatile);
    if let Err(error) = &written {
        // A full disk stops no netboot: then dnsmasq reads its configuration from us.
        tracing::warn!("{}", in_one_line(error));
    }
    end_leftover(&options.state, &configuration);
    loop {
        let began = Instant::now();
        let file = written.is_ok().then_some(configuration.as_path());
        let (mut child, follower) = start(file, &text, &log).await?;
        if let Some(pid) = child.id() {
            let _ = fs::write(pid_path(&options.state), pid.to_string());
        }
        tell.rack(&rack.name, "dhcp", &format!("dnsmasq answers on {}", rack.network.interface));
        let ended = tokio::select! {
            ended = child.wait() => ended.map_err(RackError::io("watching dnsmasq"))?,
            () = stop_asked(&mut stopped) => {
                end(&mut child).await;
                let _ = fs::remove_file(pid_path(&options.state));
                return Ok(());
            }
        };
        let _ = tokio::time::timeout(FAREWELL, follower).await;
        let words = log.last_words();
        if began.elapsed() < EARLY {
            return Err(RackError::Dhcp { status: ended.to_string(), words });
        }
        tell.rack(&rack.name, "dhcp", &format!("dnsmasq ended with {ended} ({words}); starting it again"));
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = stop_asked(&mut stopped) => return Ok(()),
        }
    }
}

/// Done when the server is to stop, or is gone.
pub(super) async fn stop_asked(stopped: &mut watch::Receiver<bool>) {
    // The guard inside the answer must not live over another await.
    drop(stopped.wait_for(|stop| *stop).await);
}

/// Starts dnsmasq with its configuration in `file`, or else with `text` through a pipe; the task ends with its last word.
async fn start(file: Option<&Path>, text: &str, log: &DhcpLog) -> Result<(Child, JoinHandle<()>), RackError> {
    let place = file.map_or("-".to_owned(), |file| file.display().to_string());
    let mut child = Command::new(dnsmasq::program())
        .arg("--keep-in-foreground")
        .arg(format!("--conf-file={place}"))
        .args(["--log-facility=-", "--pid-file="])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(RackError::io("starting dnsmasq (Debian package: dnsmasq-base)"))?;
    let (words, stdin) = (child.stderr.take(), child.stdin.take());
    let log = log.clone();
    let follower = tokio::spawn(async move {
        if let Some(words) = words {
            log.follow(words).await;
        }
    });
    if let (None, Some(mut stdin)) = (file, stdin) {
        // One that ends before it has read everything says why.
        let _ = stdin.write_all(text.as_bytes()).await;
    }
    Ok((child, follower))
}

async fn end(child: &mut Child) {
    if let Some(pid) = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())) {
        let _ = kill_process(pid, Signal::TERM);
    }
    if tokio::time::timeout(FAREWELL, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}

/// Ends the dnsmasq of an earlier run that was killed; known by its pid *and* our configuration file's path.
fn end_leftover(state: &Path, configuration: &Path) {
    if let Some(left) = Detached::find(&pid_path(state), &configuration.display().to_string()) {
        let _ = left.kill(FAREWELL);
    }
}

fn pid_path(state: &Path) -> PathBuf {
    state.join("dnsmasq.pid")
}
