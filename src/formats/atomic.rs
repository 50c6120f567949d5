//! Files that are there wholly or as they were. Every atomic write of the program is [`replace`]; renames of files that
//! other programs made, and of directories, are the business of their makers.

use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// Names of unfinished files begin like this. Kubelet passes over them, and `release prune` removes those of a crash.
pub const UNFINISHED: &str = ".tmp-";

/// Must the file survive a power cut right after?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Gone with the boot anyway, or made again.
    Volatile,
    /// Synced, name and content.
    Durable,
}

/// Replaces `path` by a file of `bytes` with the permissions `mode`, whatever the umask says. The directory must be there.
///
/// The unfinished file stands beside it under a random name, so that two writers do not meet.
pub fn replace(path: &Path, bytes: &[u8], mode: u32, durability: Durability) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Err(io::ErrorKind::InvalidInput.into()),
    };
    let mut file = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(directory)?;
    file.write_all(bytes)?;
    file.as_file().set_permissions(Permissions::from_mode(mode))?;
    if durability == Durability::Durable {
        file.as_file().sync_all()?;
    }
    file.persist(path).map_err(|persist| persist.error)?;
    if durability == Durability::Durable {
        File::open(directory)?.sync_all()?;
    }
    Ok(())
}

/// Bytes that are free for everybody on the file system of `path`.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail * stat.f_frsize)
}

/// Does `path` hold exactly `bytes`, with the permissions `mode`?
pub fn is_same(path: &Path, bytes: &[u8], mode: u32) -> bool {
    fs::metadata(path)
        .is_ok_and(|found| found.len() == bytes.len() as u64 && found.permissions().mode() & 0o7777 == mode)
        && fs::read(path).is_ok_and(|there| there == bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_else_is_left_beside_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        for (bytes, mode, durability) in
            [(&b"one"[..], 0o600, Durability::Volatile), (b"more", 0o755, Durability::Durable)]
        {
            replace(&path, bytes, mode, durability).unwrap();
            assert!(
                is_same(&path, bytes, mode) && !is_same(&path, bytes, 0o444) && !is_same(&path, b"x", mode)
            );
            assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        }
        let nowhere = directory.path().join("none/file");
        assert_eq!(
            replace(&nowhere, b"", 0o600, Durability::Durable).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
        // A directory in its place is an error, and the unfinished file goes.
        fs::create_dir(directory.path().join("dir")).unwrap();
        replace(&directory.path().join("dir"), b"", 0o600, Durability::Volatile).unwrap_err();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
    }
}
