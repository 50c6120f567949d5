//! What dnsmasq says, in a file that is bounded: `dnsmasq.log`, and the one before it as `dnsmasq.log.1`.
//!
//! dnsmasq writes into a pipe, never into the file: strangers decide how much it says, and a full disk must not reach it.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader};

/// Each of both files.
const LARGEST: u64 = 4 << 20;
/// Longer lines are cut.
const LONGEST_LINE: u64 = 4096;

/// The log of one dnsmasq after another.
#[derive(Debug, Clone)]
pub(super) struct DhcpLog(Arc<Mutex<Log>>);

#[derive(Debug)]
struct Log {
    path: PathBuf,
    largest: u64,
    file: Option<(File, u64)>,
    last: String,
}

impl DhcpLog {
    pub(super) fn new(path: PathBuf) -> Self {
        Self(Arc::new(Mutex::new(Log { path, largest: LARGEST, file: None, last: String::new() })))
    }

    /// Keeps what comes, until its end. Nothing that fails here stops dnsmasq.
    pub(super) async fn follow(self, pipe: impl AsyncRead + Unpin) {
        let mut pipe = BufReader::new(pipe);
        let mut line = Vec::new();
        while let Ok(1..) = (&mut pipe).take(LONGEST_LINE).read_until(b'\n', &mut line).await {
            if line.last() != Some(&b'\n') {
                line.push(b'\n');
            }
            self.0.lock().unwrap_or_else(PoisonError::into_inner).write(&line);
            line.clear();
        }
    }

    /// The last line that says something.
    pub(super) fn last_words(&self) -> String {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner).last.clone();
        if last.is_empty() { "no words".to_owned() } else { last }
    }
}

impl Log {
    fn write(&mut self, line: &[u8]) {
        let words = String::from_utf8_lossy(line);
        if !words.trim().is_empty() {
            words.trim().clone_into(&mut self.last);
        }
        if let Err(error) = self.append(line) {
            self.file = None;
            tracing::debug!(%error, "writing dnsmasq's log");
        }
    }

    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        if self.file.as_ref().is_some_and(|(_, size)| *size >= self.largest) {
            self.file = None;
            fs::rename(&self.path, former(&self.path))?;
        }
        if self.file.is_none() {
            let file = File::options().create(true).append(true).open(&self.path)?;
            let size = file.metadata()?.len();
            self.file = Some((file, size));
        }
        if let Some((file, size)) = &mut self.file {
            file.write_all(line)?;
            *size += line.len() as u64;
        }
        Ok(())
    }
}

fn former(path: &Path) -> PathBuf {
    path.with_extension("log.1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn two_files_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dnsmasq.log");
        let log = DhcpLog::new(path.clone());
        log.0.lock().unwrap().largest = 1000;
        let said: String = (0..300).map(|number| format!("DHCPDISCOVER {number}\n")).collect();
        log.clone().follow((said + "\n" + &"x".repeat(9000)).as_bytes()).await;
        let sizes: Vec<u64> =
            [path.clone(), former(&path)].iter().map(|path| fs::metadata(path).unwrap().len()).collect();
        assert!(sizes.iter().all(|size| (1..1000 + LONGEST_LINE + 1).contains(size)), "{sizes:?}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        assert!(log.last_words().starts_with("xxx"));
        // What cannot be written is still heard.
        let lost = DhcpLog::new(PathBuf::from("/dev/full"));
        lost.clone().follow(&b"failed to bind\n"[..]).await;
        assert_eq!(lost.last_words(), "failed to bind");
    }
}
