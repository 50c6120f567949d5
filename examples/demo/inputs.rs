//! What the demonstration composes from, and what it keeps between two runs: releases by the digest of all that they are made
//! of, so that another program or another definition never meets a release of older ones; and how long stages took here.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rackstep::lab::story::Timing;
use rackstep::rim::cache_dir::cache_dir;
use sha2::{Digest as _, Sha256};

/// Directories of the checkout that releases are made of.
const SOURCES: [&str; 5] = ["host-image", "manifests", "pxe", "scripts", "tests/releases"];
/// Digits of a digest that name a directory.
const DIGITS: usize = 16;

/// The kept directory.
pub struct Inputs {
    /// Releases of exactly these inputs.
    pub dir: PathBuf,
    times: PathBuf,
    _lock: File,
}

impl Inputs {
    /// Finds or makes the directory for this program and these definitions; releases of others are removed.
    pub fn open(program: &Path, checkout: &Path) -> Result<Self, io::Error> {
        let home = || io::Error::other("HOME is not set");
        let demo = cache_dir().ok_or_else(home)?.join("demo");
        fs::create_dir_all(&demo)?;
        let lock = File::create(demo.join("lock"))?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive)
            .map_err(|_errno| io::Error::other("another demonstration runs on this machine"))?;
        let mut digest = Sha256::new();
        digest.update(fs::read(program)?);
        for source in SOURCES {
            for entry in walkdir::WalkDir::new(checkout.join(source)).sort_by_file_name() {
                let entry = entry?;
                digest.update(
                    entry
                        .path()
                        .strip_prefix(checkout)
                        .unwrap_or(entry.path())
                        .as_os_str()
                        .as_encoded_bytes(),
                );
                if entry.file_type().is_file() {
                    digest.update(fs::read(entry.path())?);
                }
            }
        }
        let name: String = hex::encode(digest.finalize()).chars().take(DIGITS).collect();
        let dir = demo.join(format!("releases-{name}"));
        let fresh = std::env::var("FRESH").is_ok_and(|fresh| fresh == "1");
        for entry in fs::read_dir(&demo)? {
            let path = entry?.path();
            let is_releases =
                path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("releases-"));
            if is_releases && (fresh || path != dir) {
                fs::remove_dir_all(path)?;
            }
        }
        fs::create_dir_all(&dir)?;
        Ok(Self { dir, times: demo.join("times.json"), _lock: lock })
    }

    /// Seconds of each stage when it last ran here, by name and what it ran on.
    pub fn times(&self) -> BTreeMap<String, f64> {
        fs::read(&self.times).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }

    /// Keeps how long stages took.
    pub fn remember(&self, timings: &[Timing]) -> Result<(), io::Error> {
        let mut times = self.times();
        times.extend(timings.iter().map(|timing| (timing.name.clone(), timing.took.as_secs_f64())));
        fs::write(&self.times, serde_json::to_vec(&times)?)
    }

    /// Was the stage `name` done by an earlier run?
    pub fn is_there(&self, name: &str) -> bool {
        let version = match name {
            name if name.ends_with("first release") => "1.0.0",
            name if name.ends_with("second release") => "2.0.0",
            _ => return false,
        };
        let locked = name.starts_with("lock") && self.dir.join(format!("{version}.lock.yaml")).exists();
        std::env::var_os("RACKSTEP_STORY_REPO").is_some()
            || locked
            || self.dir.join(format!("{version}.json")).exists()
    }
}
