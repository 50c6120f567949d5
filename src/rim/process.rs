//! Processes that outlive the program that started them: found again by their pid file, and never mistaken.
//!
//! A pid alone is no name: numbers are used again. A process is ours when its command line holds a word that only ours has
//! (the path of its own files), and it is signalled by a handle that was opened before that look, so that whoever gets the
//! number afterwards is safe.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// How often the end of a process is looked for.
const LOOK: Duration = Duration::from_millis(50);

/// A process of ours that may end at any time by itself.
#[derive(Debug)]
pub struct Detached {
    pid: u32,
    start: u64,
    handle: OwnedFd,
}

impl Detached {
    /// The process whose number is in `pid_file`, if it runs and its command line holds `word`.
    pub fn find(pid_file: &Path, word: &str) -> Option<Self> {
        let pid: u32 = fs::read_to_string(pid_file).ok()?.trim().parse().ok()?;
        let handle = pidfd_open(Pid::from_raw(pid.cast_signed())?, PidfdFlags::empty()).ok()?;
        let start = start_time(pid)?;
        let command_line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        String::from_utf8_lossy(&command_line).contains(word).then_some(Self { pid, start, handle })
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Does it run?
    pub fn is_alive(&self) -> bool {
        start_time(self.pid) == Some(self.start)
    }

    /// Sends it `signal`; one that has ended is fine.
    pub fn signal(&self, signal: Signal) {
        // The only expected failure is ESRCH.
        let _ = pidfd_send_signal(&self.handle, signal);
    }

    /// Kills it and waits until it is gone.
    pub fn kill(&self, bound: Duration) -> io::Result<()> {
        self.signal(Signal::KILL);
        let began = Instant::now();
        while self.is_alive() {
            if began.elapsed() > bound {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("process {} does not end", self.pid),
                ));
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }
}

/// When a process started, in clock ticks since boot; none for one that is gone, or dead and not yet buried.
pub fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name (second field) may hold blanks and brackets: count from the last bracket. State is field 3, start time 22.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn our_own_start_time_is_known() {
        assert!(start_time(std::process::id()).is_some_and(|ticks| ticks > 0));
        assert_eq!(start_time(u32::MAX), None);
    }

    #[test]
    fn a_number_that_another_process_has_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let pid_file = dir.path().join("pid");
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        fs::write(&pid_file, format!("{}\n", child.id())).unwrap();
        assert!(Detached::find(&pid_file, "/state/machines/control").is_none());
        // Its parent is here: it stays a zombie until it is waited for, which must not count as alive.
        let found = super::super::wait::poll(Duration::from_secs(10), || {
            Ok::<_, io::Error>(Detached::find(&pid_file, "1000"))
        });
        let found = found.unwrap().unwrap();
        assert!(found.is_alive() && found.pid() == child.id());
        found.kill(Duration::from_secs(10)).unwrap();
        assert!(!found.is_alive());
        assert!(Detached::find(&pid_file, "1000").is_none());
        child.wait().unwrap();
        found.kill(Duration::from_secs(1)).unwrap();
    }
}
