//! Ctrl-C leaves nothing behind: processes are killed by pid and namespaces removed before the program ends.
//!
//! `Drop` does the same on every other way out; a `kill -9` is made good by the next [`super::Network::create`].

use std::collections::BTreeSet;
use std::sync::{Mutex, Once};

use rustix::process::{Pid, Signal, kill_process};

/// Exit status of a program ended by SIGINT, as shells count.
const INTERRUPTED: i32 = 130;

#[derive(Debug, Default)]
struct Registered {
    pids: BTreeSet<u32>,
    namespaces: BTreeSet<String>,
}

static REGISTERED: Mutex<Registered> =
    Mutex::new(Registered { pids: BTreeSet::new(), namespaces: BTreeSet::new() });

fn with<R>(act: impl FnOnce(&mut Registered) -> R) -> R {
    act(&mut REGISTERED.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
}

pub(super) fn register_pid(pid: u32) {
    with(|all| all.pids.insert(pid));
}

pub(super) fn forget_pid(pid: u32) {
    with(|all| all.pids.remove(&pid));
}

pub(super) fn register_namespace(name: &str) {
    with(|all| all.namespaces.insert(name.to_owned()));
    watch();
}

pub(super) fn forget_namespace(name: &str) {
    with(|all| all.namespaces.remove(name));
}

/// Sends `signal` to one process; a process that is gone already is fine.
pub(super) fn signal_pid(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // The only expected failure is ESRCH, which is the state wanted.
        let _ = kill_process(pid, signal);
    }
}

/// Kills and removes all that is registered; repeatable.
pub fn clean_up() {
    with(|all| {
        for pid in std::mem::take(&mut all.pids) {
            signal_pid(pid, Signal::KILL);
        }
        for name in std::mem::take(&mut all.namespaces) {
            super::network::delete_namespace(&name);
        }
    });
}

/// Starts, once, a thread that cleans up and ends the program at SIGINT or SIGTERM.
fn watch() {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        std::thread::spawn(|| {
            let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
                return;
            };
            runtime.block_on(async {
                use tokio::signal::unix::{SignalKind, signal};
                let Ok(mut terminate) = signal(SignalKind::terminate()) else { return };
                tokio::select! {
                    heard = tokio::signal::ctrl_c() => if heard.is_err() { return },
                    _ = terminate.recv() => {}
                }
                clean_up();
                std::process::exit(INTERRUPTED);
            });
        });
    });
}
