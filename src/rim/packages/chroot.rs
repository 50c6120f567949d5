//! Runs programs inside a tree that is not booted.
//!
//! A mount namespace of their own holds /proc, /sys and /dev, so nothing stays mounted, however they end.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use super::PackageError;
use crate::rim::command::run;

/// What runs in the new namespaces before the program; $1 is the tree.
const SETUP: &str = r#"set -e
root=$1; shift
mount --make-rprivate /
mkdir -p "$root/proc" "$root/sys" "$root/dev" "$root/tmp" "$root/run"
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys" 2>/dev/null || mount --bind /sys "$root/sys"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for node in null zero full random urandom tty; do
    : > "$root/dev/$node"; mount --bind "/dev/$node" "$root/dev/$node"
done
ln -s /proc/self/fd "$root/dev/fd"; ln -s /proc/self/fd/0 "$root/dev/stdin"
ln -s /proc/self/fd/1 "$root/dev/stdout"; ln -s /proc/self/fd/2 "$root/dev/stderr"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
exec chroot "$root" "$@"
"#;

/// Runs `program` in `root` with an environment that tells nothing of this machine.
pub fn run_in<I, S>(root: &Path, what: &str, created: u64, program: I) -> Result<(), PackageError>
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--pid", "--fork", "--kill-child", "--uts", "--", "sh", "-c", SETUP, "sh"])
        .arg(root);
    command.args(program);
    command.env_clear().envs(environment(created)).current_dir("/").stdin(std::process::Stdio::null());
    run(&mut command).map(drop).map_err(|source| PackageError::Inside { what: what.to_owned(), source })
}

/// The environment of everything that writes into a tree.
pub fn environment(created: u64) -> Vec<(&'static str, String)> {
    vec![
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()),
        ("HOME", "/root".to_owned()),
        ("LC_ALL", "C.UTF-8".to_owned()),
        ("TZ", "UTC".to_owned()),
        ("DEBIAN_FRONTEND", "noninteractive".to_owned()),
        ("SYSTEMD_OFFLINE", "1".to_owned()),
        ("SOURCE_DATE_EPOCH", created.to_string()),
    ]
}
