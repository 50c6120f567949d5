//! A host's console: a terminal whose every word goes into a file.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use super::ContainerError;

/// A terminal of the host; written to a file as long as the launcher lives.
#[derive(Debug)]
pub struct Console {
    /// The host's end.
    pub terminal: PathBuf,
    log: File,
    /// Without a user of the other end, reads fail: between two boots there is none.
    _held: File,
}

impl Console {
    /// Opens a terminal and appends what is written to it to `log`.
    pub fn open(log: &Path) -> Result<Self, ContainerError> {
        let opening = || ContainerError::io("opening a terminal for the console");
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
            .and_then(|ours| grantpt(&ours).and_then(|()| unlockpt(&ours)).map(|()| ours))
            .map_err(|errno| opening()(errno.into()))?;
        let name = ptsname(&ours, Vec::new()).map_err(|errno| opening()(errno.into()))?;
        let terminal = PathBuf::from(std::ffi::OsString::from_vec(name.into_bytes()));
        let held = open_terminal(&terminal).map_err(opening())?;
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .map_err(ContainerError::path("opening", log))?;
        let copy = file.try_clone().map_err(opening())?;
        std::thread::spawn(move || copy_out(ours, copy));
        Ok(Self { terminal, log: file, _held: held })
    }

    /// A line of the launcher's own.
    pub fn say(&mut self, line: &str) {
        // A full disk must not keep a host from starting.
        let _ = writeln!(self.log, "rackstep: {line}");
    }
}

/// Opens a terminal that does not become the caller's own: the login prompt hangs it up, which would end the launcher.
pub(super) fn open_terminal(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map(File::from).map_err(Into::into)
}

fn copy_out(terminal: OwnedFd, mut log: File) {
    // The last word of a terminal is an error: nobody is left to speak.
    let _ = io::copy(&mut File::from(terminal), &mut log);
}
