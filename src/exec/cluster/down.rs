//! Ends a cluster: switched off with its disks kept, or removed.

use std::fs;
use std::time::Duration;

use super::{ClusterError, Home, Watcher};
use crate::engine::machine::{MachineSpec, Network, poll, press_power_button};
use crate::engine::process::Detached;
use crate::exec::files::{list, naming};

/// A killed QEMU is gone at once.
const DEATH: Duration = Duration::from_secs(30);

/// Removes the cluster: machines, network, disks and all. Whatever is there of it: one that was never finished goes too.
pub fn remove(home: &Home, watcher: &dyn Watcher) -> Result<(), ClusterError> {
    for (name, spec) in machines(home)? {
        if let Some(process) = spec.find_process() {
            process.kill(DEATH).map_err(naming("switching off the machine in", &spec.dir))?;
        }
        watcher.end(&name, "removed");
    }
    Network::remove(&home.network_name());
    fs::remove_dir_all(&home.dir).map_err(naming("removing", &home.dir))?;
    Ok(())
}

/// Switches every machine off as its power button does, and removes the network. Disks and keys stay for the next `up`.
pub fn switch_off(home: &Home, bound: Duration, watcher: &dyn Watcher) -> Result<(), ClusterError> {
    let switch = |name: &str, spec: &MachineSpec| -> Result<(), ClusterError> {
        let Some(process) = spec.find_process() else {
            watcher.end(name, "is off");
            return Ok(());
        };
        watcher.tell(name, "shuts down");
        let pressed = press_power_button(spec);
        if pressed.is_ok() && wait_for_end(&process, bound, watcher) {
            watcher.end(name, "is off");
            return Ok(());
        }
        if watcher.stopped() {
            return Err(ClusterError::Stopped);
        }
        process.kill(DEATH).map_err(naming("switching off the machine in", &spec.dir))?;
        watcher.end(name, "did not shut down; its power was cut");
        Ok(())
    };
    let machines = machines(home)?;
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            machines.iter().map(|(name, spec)| scope.spawn(move || switch(name, spec))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or(Err(ClusterError::Stopped)))
    })?;
    Network::remove(&home.network_name());
    Ok(())
}

fn wait_for_end(process: &Detached, bound: Duration, watcher: &dyn Watcher) -> bool {
    let ended = poll(bound, || {
        if watcher.stopped() {
            return Err(());
        }
        Ok((!process.is_alive()).then_some(()))
    });
    matches!(ended, Ok(Some(())))
}

/// Every machine that has a directory, by name.
fn machines(home: &Home) -> Result<Vec<(String, MachineSpec)>, ClusterError> {
    let named = |path: std::path::PathBuf| {
        let name = path.file_name()?.to_string_lossy().into_owned();
        Some((name.clone(), MachineSpec::new(&name, path)))
    };
    Ok(list(&home.machines_dir())?.into_iter().filter_map(named).collect())
}
