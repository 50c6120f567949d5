//! Puts a program of the developer's in place of the release's on machines that run: the inner loop of host code.
//!
//! 1. The program, without its debugging tables, goes over ssh into the machine's memory (`/run`); 2. it is run there once, so
//!    that one that cannot run changes nothing; 3. a mount lays it over `/usr/bin/rackstep`.
//!
//! Nothing of it is on the machine's disk: a restart brings the release's program back, and `rackstep status` says as long
//! that the release is unlocked.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::{ClusterError, Host};
use crate::rim::command;
use crate::rim::files::naming;

/// Takes the program from stdin. An earlier one may run still: it is replaced by a rename, and its mount by a new one.
const TAKE: &str = "set -e; umask 022; mkdir -p /run/rackstep-pushed; cd /run/rackstep-pushed; cat >new; chmod 755 new; \
                    ./new --version >/dev/null; mv new rackstep; \
                    while findmnt --noheadings --mountpoint /usr/bin/rackstep >/dev/null; do umount --lazy /usr/bin/rackstep; done; \
                    mount --bind rackstep /usr/bin/rackstep";
/// Takes the mount away.
const GIVE_BACK: &str = "while findmnt --noheadings --mountpoint /usr/bin/rackstep >/dev/null; do \
                         umount --lazy /usr/bin/rackstep; done; rm -rf /run/rackstep-pushed";

/// A program that is ready to go.
#[derive(Debug)]
pub struct Parcel {
    file: tempfile::NamedTempFile,
    /// Its bytes.
    pub bytes: u64,
}

/// Takes the debugging tables out of a copy of `program`: machines do not need them, and they are most of it.
pub fn pack(program: &Path) -> Result<Parcel, ClusterError> {
    let failed = || naming("packing", program);
    let file = tempfile::NamedTempFile::new().map_err(failed())?;
    command::run(Command::new("strip").arg("-o").arg(file.path()).arg(program))
        .map_err(ClusterError::Pack)?;
    // `strip` may have put another file in its place.
    let bytes = std::fs::metadata(file.path()).map_err(failed())?.len();
    Ok(Parcel { file, bytes })
}

/// Puts the program in place on `host`; gives how long it took.
pub fn push(host: &Host<'_>, parcel: &Parcel) -> Result<Duration, ClusterError> {
    let began = Instant::now();
    let open = File::open(parcel.file.path()).map_err(naming("opening", parcel.file.path()))?;
    speak(host, TAKE, Stdio::from(open))?;
    Ok(began.elapsed())
}

/// Brings the release's own program back.
pub fn give_back(host: &Host<'_>) -> Result<(), ClusterError> {
    speak(host, GIVE_BACK, Stdio::null())
}

fn speak(host: &Host<'_>, script: &str, stdin: Stdio) -> Result<(), ClusterError> {
    let place = PathBuf::from(&host.name);
    let output = host
        .ssh
        .command(script)
        .stdin(stdin)
        .output()
        .map_err(|error: io::Error| ClusterError::File(naming("speaking to", &place)(error)))?;
    if output.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(ClusterError::Unhealthy { machine: host.name.clone(), why })
}
