//! `qemu-img`: turns a raw disk image into a compressed qcow2 one.

use std::io::Read;
use std::path::Path;
use std::process::{ChildStdout, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use crate::rim::command::CommandError;

const PROGRAM: &str = "qemu-img";
/// Ten times as fast as its default, zlib, and smaller; QEMU 5.1 and later read it.
const COMPRESSION: &str = "compression_type=zstd";
/// Clusters in work at once, written in the order in which they are ready.
const COROUTINES: &str = "4";
/// How long a stop may go unseen while it tells nothing.
const LOOK: Duration = Duration::from_millis(200);

/// Converts `from` (raw) to `to` (qcow2, compressed), and calls `moved(percent)` as it gets on, several times a second: false
/// stops it.
///
/// Blocks that were never written take no room, as in a sparse file.
pub fn compress(from: &Path, to: &Path, moved: &mut dyn FnMut(u64) -> bool) -> Result<(), CommandError> {
    let started = |source| CommandError::Start { program: PROGRAM.to_owned(), source };
    let mut child = Command::new(PROGRAM)
        .args(["convert", "-p", "-c", "-f", "raw", "-O", "qcow2", "-o", COMPRESSION])
        .args(["-W", "-m", COROUTINES])
        .args([from, to])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(started)?;
    let (sender, marks) = channel();
    let reader = child.stdout.take().map(|stdout| std::thread::spawn(move || follow(stdout, &sender)));
    let (mut percent, mut stopped) = (0, false);
    // It writes a line or two to stderr at most, so reading stdout alone cannot block it.
    loop {
        match marks.recv_timeout(LOOK) {
            Ok(mark) => percent = mark,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if !moved(percent) && !stopped {
            stopped = true;
            // It may have ended meanwhile; its status tells.
            let _ = child.kill();
        }
    }
    let output = child.wait_with_output().map_err(started)?;
    if let Some(reader) = reader {
        // It has ended: its end of the channel is gone.
        let _ = reader.join();
    }
    if output.status.success() && !stopped {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(CommandError::Status { program: PROGRAM.to_owned(), status: output.status, stderr })
}

/// Passes on what it tells until it ends.
fn follow(mut stdout: ChildStdout, marks: &Sender<u64>) {
    let mut text = String::new();
    let mut bytes = [0; 256];
    while let Ok(count @ 1..) = stdout.read(&mut bytes) {
        text.push_str(&String::from_utf8_lossy(&bytes[..count]));
        if let Some(percent) = last_percent(&text)
            && marks.send(percent).is_err()
        {
            return;
        }
        // What is not yet a whole mark stays.
        text = text.rsplit('\r').next().unwrap_or_default().to_owned();
    }
}

/// The last whole mark of `    (12.34/100%)\r    (13.00/100%)\r`.
fn last_percent(text: &str) -> Option<u64> {
    let (before, _) = text.rsplit_once("/100%)")?;
    let (_, number) = before.rsplit_once('(')?;
    number.split('.').next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_marks() {
        for (text, percent) in [
            ("", None),
            ("    (0.00/100%)\r", Some(0)),
            ("    (0.00/100%)\r    (13.37/100%)\r    (14.", Some(13)),
            ("    (100.00/100%)\r\n", Some(100)),
            ("nonsense", None),
        ] {
            assert_eq!(last_percent(text), percent, "{text:?}");
        }
    }

    #[test]
    fn sparse_stays_sparse_and_a_failure_tells_why() {
        let dir = tempfile::tempdir().unwrap();
        let (raw, qcow2) = (dir.path().join("raw"), dir.path().join("qcow2"));
        std::fs::File::create(&raw).unwrap().set_len(64 << 20).unwrap();
        let mut last = 0;
        compress(&raw, &qcow2, &mut |percent| {
            last = percent;
            true
        })
        .unwrap();
        assert_eq!(last, 100);
        assert!(qcow2.metadata().unwrap().len() < 1 << 20);
        assert!(compress(&raw, &qcow2, &mut |_| false).is_err(), "stopped");
        let error = compress(&dir.path().join("none"), &qcow2, &mut |_| true).unwrap_err();
        assert!(error.to_string().contains("none"), "{error}");
    }
}
