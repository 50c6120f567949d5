//! Reads files that people wrote, without ever waiting for one.
//!
//! A FIFO or a device where a file belongs is refused by name: an ordinary `open` of a FIFO waits for a writer for ever.

use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Component, Path};

/// The largest file that is read: kubelet reads no larger pod.
const MAX_BYTES: u64 = 10 << 20;

/// Reads a regular file of at most 10 MiB.
pub fn read_bytes(path: &Path) -> io::Result<Vec<u8>> {
    let flags = rustix::fs::OFlags::NONBLOCK.bits();
    let file = OpenOptions::new().read(true).custom_flags(flags as i32).open(path)?;
    let wrong = |problem: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, problem.to_owned()));
    if !file.metadata()?.is_file() {
        return wrong("it is not a regular file");
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return wrong("it is larger than 10 MiB");
    }
    Ok(bytes)
}

/// Reads a regular file of UTF-8 text, without its byte order mark.
pub fn read_text(path: &Path) -> io::Result<String> {
    let text = String::from_utf8(read_bytes(path)?)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.utf8_error()))?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

/// Whether a path named by a definition stays in the directory of the definition.
pub fn stays_inside(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    !name.is_empty() && parts.all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}

/// Whether `name` can be one entry of a directory: no way out of it, nothing hidden in it.
pub fn is_entry_name(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && name.len() <= 200 && !name.contains(['/', '\0', '\n'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fifo_is_refused_and_nothing_hangs() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pod.yaml");
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert_eq!(read_bytes(&path).unwrap_err().to_string(), "it is not a regular file");
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "\u{feff}a: 1\n").unwrap();
        assert_eq!(read_text(&path).unwrap(), "a: 1\n");
    }

    #[test]
    fn names_stay_inside() {
        for (name, inside) in
            [("pod.yaml", true), ("a/./b", true), ("../b", false), ("/etc/b", false), ("", false)]
        {
            assert_eq!(stays_inside(name), inside, "{name}");
        }
        for (name, entry) in [("keys", true), ("a/b", false), ("..", false), (".a", false), ("", false)] {
            assert_eq!(is_entry_name(name), entry, "{name}");
        }
    }
}
