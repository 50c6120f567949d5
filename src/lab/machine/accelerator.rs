//! How QEMU runs a guest here: KVM or TCG.
//!
//! 1. `RACKSTEP_ACCELERATOR=kvm|tcg` decides when set;
//! 2. no `/dev/kvm`: TCG;
//! 3. otherwise a kernel is booted under KVM and its first line waited for: on a paravirtual host `/dev/kvm` opens, creates
//!    a machine, and never runs a stock kernel;
//! 4. the answer is cached per boot of this machine and per QEMU version.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{MachineError, tiny};
use crate::rim::cache_dir::cache_dir;
use crate::rim::command;
use crate::rim::wait::poll;

/// The emulator.
pub const QEMU: &str = "qemu-system-x86_64";

/// A stock kernel prints its first line within a second under working KVM.
const PROBE: Duration = Duration::from_secs(8);

/// Emulated: `max` is broken in older QEMU; a modern user space needs no more than x86-64-v2.
pub(super) const TRANSLATED: &str = "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt";

/// How QEMU runs a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// Hardware virtualisation.
    Kvm,
    /// Translation, on several threads.
    Tcg,
    /// Translation on one thread: QEMU before 10 corrupts registers with several.
    TcgSingle,
    /// No QEMU at all: a container on this machine's own kernel.
    Native,
}

impl Accelerator {
    /// QEMU's arguments.
    pub fn arguments(self) -> [&'static str; 4] {
        match self {
            // Containers have no use for them.
            Self::Kvm | Self::Native => ["-accel", "kvm", "-cpu", "host"],
            Self::Tcg => ["-accel", "tcg,thread=multi", "-cpu", TRANSLATED],
            Self::TcgSingle => ["-accel", "tcg,thread=single", "-cpu", TRANSLATED],
        }
    }

    /// How much longer a machine may take than under KVM.
    pub fn patience(self) -> u32 {
        if matches!(self, Self::Kvm | Self::Native) { 1 } else { 8 }
    }
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Probed {
    boot: String,
    qemu: String,
    accelerator: Accelerator,
}

/// Translation, as this machine's QEMU can do it.
pub fn translated() -> Result<Accelerator, MachineError> {
    qemu_version().map(|qemu| translated_by(&qemu))
}

fn translated_by(qemu: &str) -> Accelerator {
    if major(qemu) >= 10 { Accelerator::Tcg } else { Accelerator::TcgSingle }
}

/// Chooses, from the cache if this machine was probed since its last boot.
pub fn choose() -> Result<Accelerator, MachineError> {
    let qemu = qemu_version()?;
    let translated = translated_by(&qemu);
    match std::env::var("RACKSTEP_ACCELERATOR").as_deref() {
        Ok("kvm") => return Ok(Accelerator::Kvm),
        Ok("tcg") => return Ok(translated),
        Ok(other) => {
            return Err(MachineError::Input(format!(
                "RACKSTEP_ACCELERATOR is {other:?}, expected kvm or tcg"
            )));
        }
        Err(_) => {}
    }
    if !Path::new("/dev/kvm").exists() {
        return Ok(translated);
    }
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
    let home = cache_dir().unwrap_or_else(std::env::temp_dir);
    let cache = home.join("accelerator.json");
    let cached: Option<Probed> = fs::read(&cache).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    if let Some(cached) = cached.filter(|cached| cached.boot == boot && cached.qemu == qemu) {
        return Ok(cached.accelerator);
    }
    let accelerator = match tiny::kernel() {
        Ok(kernel) if kvm_runs(&kernel.vmlinuz)? => Accelerator::Kvm,
        Ok(_) => translated,
        Err(error) => {
            tracing::warn!(%error, "no kernel to probe KVM with: using TCG");
            return Ok(translated);
        }
    };
    tracing::info!(?accelerator, "probed by booting a kernel");
    let probed = serde_json::to_vec(&Probed { boot, qemu, accelerator }).unwrap_or_default();
    if let Err(error) = fs::create_dir_all(home).and_then(|()| fs::write(&cache, probed)) {
        tracing::warn!(%error, path = %cache.display(), "the probe's result is not cached");
    }
    Ok(accelerator)
}

/// Boots `kernel` under KVM and tells whether it printed its first line in time.
fn kvm_runs(kernel: &Path) -> Result<bool, MachineError> {
    let dir = tempfile::tempdir().map_err(MachineError::io("probing KVM"))?;
    let console = dir.path().join("console");
    let mut child = Command::new(QEMU)
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-m", "256"])
        .args(["-machine", "q35"])
        .args(Accelerator::Kvm.arguments())
        .arg("-kernel")
        .arg(kernel)
        .args(["-append", "console=ttyS0 earlyprintk=serial,ttyS0,115200 panic=-1", "-serial"])
        .arg(format!("file:{}", console.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(MachineError::io(format!("starting {QEMU}")))?;
    let spoke = poll(PROBE, || -> Result<Option<bool>, MachineError> {
        let text = fs::read(&console).unwrap_or_default();
        if String::from_utf8_lossy(&text).contains("Linux version") {
            return Ok(Some(true));
        }
        let ended = child.try_wait().map_err(MachineError::io("probing KVM"))?;
        Ok(ended.map(|_| false))
    });
    let _ = child.kill();
    let _ = child.wait();
    Ok(spoke?.unwrap_or(false))
}

fn qemu_version() -> Result<String, MachineError> {
    let text = command::run_text(Command::new(QEMU).arg("--version")).map_err(|_| MachineError::Missing {
        what: "QEMU",
        looked: format!("{QEMU} in PATH"),
        package: "qemu-system-x86",
    })?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// The major number in `QEMU emulator version 10.0.2 (Debian …)`; 0 if there is none.
fn major(version: &str) -> u32 {
    version
        .split_whitespace()
        .find_map(|word| word.split_once('.').and_then(|(major, _)| major.parse().ok()))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(major("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)"), 10);
        assert_eq!(major("QEMU emulator version 7.2.22 (Debian 1:7.2)"), 7);
        assert_eq!(major(""), 0);
    }
}
