//! The few calls to the kernel that have no safe form in `rustix`: the only unsafe code of container hosts.

use std::io;
use std::os::fd::AsFd;

use rustix::ioctl::{Setter, ioctl, opcode};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// `FS_IOC_SHUTDOWN` of ext4 and XFS (`XFS_IOC_GOINGDOWN`, `fs/xfs/libxfs/xfs_fs.h`): `_IOR('X', 125, __u32)`.
const SHUTDOWN: rustix::ioctl::Opcode = opcode::read::<u32>(b'X', 125);
/// Nothing is flushed, not even the log (`EXT4_GOING_FLAGS_NOLOGFLUSH`).
const NO_LOG_FLUSH: u32 = 2;
/// systemd's `SIGRTMIN+4`: start `poweroff.target` (systemd(1), "Signals"). The C library's `SIGRTMIN` is 34.
const POWER_OFF: i32 = 38;

/// Namespaces of the host's own, for the calling thread or its children.
#[derive(Debug, Clone, Copy)]
pub enum Apart {
    /// Mounts.
    Mounts,
    /// Everything that process 1 is to be born into.
    Host,
    /// The control groups below the one that the caller is in.
    ControlGroups,
}

/// Moves the calling thread, or for process ids its children, into namespaces of their own.
#[allow(unsafe_code)]
pub fn unshare(what: Apart) -> io::Result<()> {
    let flags = match what {
        Apart::Mounts => UnshareFlags::NEWNS,
        Apart::Host => {
            UnshareFlags::NEWPID
                | UnshareFlags::NEWNS
                | UnshareFlags::NEWUTS
                | UnshareFlags::NEWIPC
                | UnshareFlags::NEWNET
        }
        Apart::ControlGroups => UnshareFlags::NEWCGROUP,
    };
    // SAFETY: only `UnshareFlags::FILES` takes file descriptors away from a thread, and it is in none of the sets.
    unsafe { unshare_unsafe(flags) }.map_err(Into::into)
}

/// Shuts the file system of `file` down as a power cut would: what was not synced is gone, and nothing can be written any more.
///
/// The caller makes sure that it is the host's own file system.
#[allow(unsafe_code)]
pub fn shut_file_system_down(file: impl AsFd) -> io::Result<()> {
    // SAFETY: the call reads one `__u32` by the pointer that `Setter` gives it; a file system that does not know the number
    // answers ENOTTY.
    unsafe { ioctl(file, Setter::<SHUTDOWN, u32>::new(NO_LOG_FLUSH)) }.map_err(Into::into)
}

/// Asks a systemd that is process 1 to power its host off.
#[allow(unsafe_code)]
pub fn ask_to_power_off(init: Pid) -> io::Result<()> {
    // SAFETY: the number is a signal of Linux that the C library does not use for itself (those are 32 and 33).
    let signal = unsafe { Signal::from_raw_unchecked(POWER_OFF) };
    kill_process(init, signal).map_err(Into::into)
}
