//! Ends a cluster: switched off with its disks kept, or removed.

use std::fs;
use std::time::Duration;

use super::{ClusterError, Home, Watcher, network};
use crate::lab::machine::{Hypervisor, MachineSpec, Running};
use crate::rim::files::{list, naming};
use crate::rim::wait::poll;

/// Removes the cluster: machines, network, disks and all. Whatever is there of it: one that was never finished goes too.
pub fn remove(home: &Home, hypervisor: &Hypervisor, watcher: &dyn Watcher) -> Result<(), ClusterError> {
    for (name, spec) in machines(home)? {
        if let Some(running) = hypervisor.find(&spec)? {
            running.power_cut()?;
        }
        watcher.end(&name, "removed");
    }
    network::remove(home, hypervisor)?;
    fs::remove_dir_all(&home.dir).map_err(naming("removing", &home.dir))?;
    Ok(())
}

/// Switches every machine off as its power button does, and removes the network. Disks and keys stay for the next `up`.
pub fn switch_off(
    home: &Home,
    hypervisor: &Hypervisor,
    bound: Duration,
    watcher: &dyn Watcher,
) -> Result<(), ClusterError> {
    let switch = |name: &str, spec: &MachineSpec| -> Result<(), ClusterError> {
        let Some(running) = hypervisor.find(spec)? else {
            watcher.end(name, "is off");
            return Ok(());
        };
        watcher.tell(name, "shuts down");
        let pressed = running.press_power_button();
        if pressed.is_ok() && wait_for_end(&running, bound, watcher)? {
            watcher.end(name, "is off");
            return Ok(());
        }
        if watcher.stopped() {
            return Err(ClusterError::Stopped);
        }
        running.power_cut()?;
        watcher.end(name, "did not shut down; its power was cut");
        Ok(())
    };
    let machines = machines(home)?;
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            machines.iter().map(|(name, spec)| scope.spawn(move || switch(name, spec))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or(Err(ClusterError::Stopped)))
    })?;
    network::remove(home, hypervisor)
}

/// Is it off within `bound`, and before somebody stops us?
fn wait_for_end(running: &Running, bound: Duration, watcher: &dyn Watcher) -> Result<bool, ClusterError> {
    let ended = poll(bound, || -> Result<_, ClusterError> {
        if watcher.stopped() {
            return Ok(Some(false));
        }
        Ok((!running.is_alive()?).then_some(true))
    });
    Ok(ended?.unwrap_or(false))
}

/// Cuts the power of one machine; false: it was off.
pub fn cut(home: &Home, hypervisor: &Hypervisor, machine: &str) -> Result<bool, ClusterError> {
    let Some(running) = hypervisor.find(&MachineSpec::new(machine, home.machine_dir(machine)))? else {
        return Ok(false);
    };
    running.power_cut()?;
    Ok(true)
}

/// Every machine that has a directory, by name.
fn machines(home: &Home) -> Result<Vec<(String, MachineSpec)>, ClusterError> {
    let named = |path: std::path::PathBuf| {
        let name = path.file_name()?.to_string_lossy().into_owned();
        Some((name.clone(), MachineSpec::new(&name, path)))
    };
    Ok(list(&home.machines_dir())?.into_iter().filter_map(named).collect())
}
