//! The image set: recipes of Debian packages, built twice, a security update apart.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use crate::{Bench, Outcome, report};

/// The host's own tree; every other recipe is a container image.
pub const HOST: &str = "host";
/// All container images, those of OpenStack's Python services last.
const FULL: [&str; 10] = [
    "memcached",
    "mariadb",
    "rabbitmq",
    "keystone",
    "glance",
    "placement",
    "nova-api",
    "nova-compute",
    "neutron-server",
    "horizon",
];
/// For a first look: one without Python, one with.
const SMALL: [&str; 3] = ["memcached", "mariadb", "keystone"];
/// Images that share a layer besides the one of all.
pub const OPENSTACK: [&str; 7] =
    ["keystone", "glance", "placement", "nova-api", "nova-compute", "neutron-server", "horizon"];

/// One of the two releases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edition {
    /// Debian's point release.
    A,
    /// The same with all security updates since.
    B,
}

impl Edition {
    /// Both, the older first.
    pub const BOTH: [Self; 2] = [Self::A, Self::B];

    /// `A` or `B`.
    pub fn name(self) -> &'static str {
        match self {
            Self::A => "A",
            Self::B => "B",
        }
    }

    fn suites(self) -> &'static str {
        match self {
            Self::A => "trixie",
            Self::B => "trixie,trixie-security",
        }
    }
}

/// An image that was built: an OCI layout with one layer.
#[derive(Debug, Clone)]
pub struct Built {
    /// Recipe.
    pub name: String,
    /// What its inputs hash to.
    pub key: String,
    /// Its layer's tar.
    pub layer: PathBuf,
    /// Its config.
    pub config: PathBuf,
}

/// `rackstep-image.json` of a layout.
#[derive(Deserialize)]
struct Note {
    key: String,
    config_digest: String,
    diff_ids: Vec<String>,
}

/// Names of the container images of this run.
pub fn names(bench: &Bench) -> Vec<&'static str> {
    match bench.set.as_str() {
        "full" => FULL.to_vec(),
        "small" => SMALL.to_vec(),
        chosen => FULL.into_iter().filter(|name| chosen.split('+').any(|wanted| wanted == *name)).collect(),
    }
}

/// The project's cache.
pub fn cache_dir() -> Outcome<PathBuf> {
    rackstep::rim::cache_dir::cache_dir().ok_or_else(|| "HOME is not set".into())
}

/// Builds one image, or finds it in the cache.
pub fn build(bench: &Bench, name: &str, edition: Edition) -> Outcome<Built> {
    let recipe = bench.project.join("benches/images").join(format!("{name}.yaml"));
    let script = bench.project.join("scripts/build-image.sh");
    let resolved = Command::new(&script)
        .args(["--suites", edition.suites(), "--resolve"])
        .arg(&recipe)
        .stderr(std::process::Stdio::inherit())
        .output()?;
    if !resolved.status.success() {
        return Err(format!("resolving {name} of release {} failed", edition.name()).into());
    }
    #[derive(Deserialize)]
    struct Resolved {
        key: String,
    }
    let resolved: Resolved = serde_json::from_slice(&resolved.stdout)?;
    let layout = cache_dir()?.join("images").join(&resolved.key);
    if !layout.join("rackstep-image.json").exists() {
        report::say(&format!("building {name} of release {}", edition.name()));
        // The script leaves the image in the cache, which is where it is read; the copy is not needed.
        let copy = bench.scratch.join(format!("{name}-{}", edition.name()));
        let status = Command::new(&script)
            .args(["--suites", edition.suites()])
            .arg(&recipe)
            .arg(&copy)
            .stdout(std::process::Stdio::null())
            .status()?;
        let _ = fs::remove_dir_all(&copy);
        if !status.success() {
            return Err(format!("building {name} of release {} failed", edition.name()).into());
        }
    }
    let note: Note = serde_json::from_slice(&fs::read(layout.join("rackstep-image.json"))?)?;
    let blob = |digest: &str| layout.join("blobs/sha256").join(digest.trim_start_matches("sha256:"));
    let layer = blob(note.diff_ids.first().ok_or("an image without layers")?);
    let config = blob(&note.config_digest);
    Ok(Built { name: name.to_owned(), key: note.key, layer, config })
}

/// Bytes below a directory as the disk counts them, every file once.
pub fn disk_bytes(dir: &Path) -> Outcome<u64> {
    let output = Command::new("du").args(["-s", "-B1"]).arg(dir).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let first =
        text.split_whitespace().next().ok_or_else(|| format!("du says nothing of {}", dir.display()))?;
    Ok(first.parse()?)
}

/// Bytes of the files in a directory, as they go over a wire.
pub fn file_bytes(dir: &Path) -> Outcome<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        bytes += entry?.metadata()?.len();
    }
    Ok(bytes)
}
