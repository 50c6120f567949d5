//! Layers written by the tar writers that people use, taken apart and put together again.

use std::path::Path;
use std::process::Command;

use rackstep::image::{Limits, Ownership, layer};
use rackstep::model::Digest;

/// Splits and joins `tar` and requires the same bytes.
fn round_trip(tar: &[u8]) -> layer::SplitLayer {
    let dir = tempfile::tempdir().unwrap();
    let split = layer::split(tar, dir.path(), Ownership::Ignore, &Limits::default()).unwrap();
    assert_eq!(split.diff_id, Digest::of(tar));
    let mut joined = Vec::new();
    let digest = layer::join(dir.path(), &mut joined).unwrap();
    assert_eq!(digest, split.diff_id);
    assert!(joined == tar, "bytes differ");
    split
}

fn run(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn gnu_tar_of_this_source() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    for format in ["gnu", "pax", "ustar", "v7", "oldgnu"] {
        let tar = run(Command::new("tar")
            .args(["--format", format, "-C"])
            .arg(here)
            .args(["-cf", "-", "src", "docs"]));
        let split = round_trip(&tar);
        assert!(split.files > 20, "{format}: {split:?}");
        assert_eq!(split.odd_files, 0, "{format}");
    }
}
