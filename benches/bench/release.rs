//! Two releases to measure with: a host's tree as Debian has it, and ours: its kernel as compose puts it, and the
//! container images in it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rackstep::rim::packages::{initramfs, modules};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::images::{self, Built, Edition};
use crate::measure::{self, Measured};
use crate::{Bench, Outcome, layers, report};

/// Bump when the same images give other trees.
const VERSION: u32 = 3;

/// One release on disk.
#[derive(Debug, Clone)]
pub struct Release {
    /// Which.
    pub edition: Edition,
    /// The host's files alone, as Debian ships them: what the peers transport.
    pub host: PathBuf,
    /// What compose would make of them, and the container images: what ours transports, and both sides commit.
    pub tree: PathBuf,
    /// OCI layouts of the container images, by name.
    pub layouts: PathBuf,
    /// What splitting the images took, if it was done in this run.
    pub split: Option<Measured>,
}

impl Release {
    /// Where the container images and their pin set are.
    pub fn dir(&self) -> PathBuf {
        self.tree.join("usr/lib/rackstep")
    }
}

/// Makes both releases, or finds them.
pub fn prepare(bench: &Bench) -> Outcome<[Release; 2]> {
    let names = images::names(bench);
    let mut built: BTreeMap<&str, Vec<Built>> = BTreeMap::new();
    let mut hosts = Vec::new();
    for edition in Edition::BOTH {
        hosts.push(images::build(bench, images::HOST, edition)?);
        for name in &names {
            built.entry(edition.name()).or_default().push(images::build(bench, name, edition)?);
        }
    }
    let mut hasher = Sha256::new_with_prefix(VERSION.to_be_bytes());
    for image in hosts.iter().chain(built.values().flatten()) {
        hasher.update(image.key.as_bytes());
    }
    let key = hex::encode(&hasher.finalize()[..8]);
    if names.is_empty() {
        return Err(format!("no image of the set {:?}", bench.set).into());
    }
    let dir = bench.inputs.join(format!("{}-{key}", bench.set));
    let [a, b] = Edition::BOTH;
    Ok([
        prepare_one(&dir, a, &hosts[0], &built[a.name()], &names)?,
        prepare_one(&dir, b, &hosts[1], &built[b.name()], &names)?,
    ])
}

fn prepare_one(
    dir: &Path,
    edition: Edition,
    host: &Built,
    images: &[Built],
    names: &[&str],
) -> Outcome<Release> {
    let dir = dir.join(edition.name());
    let mut release = Release {
        edition,
        host: dir.join("host"),
        tree: dir.join("tree"),
        layouts: dir.join("layouts"),
        split: None,
    };
    let done = dir.join("done");
    if done.exists() {
        return Ok(release);
    }
    report::say(&format!("making release {}", edition.name()));
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&release.host)?;
    layers::write_layouts(images, &release.layouts)?;
    unpack(&host.layer, &release.host)?;
    run(Command::new("cp").arg("-al").arg(&release.host).arg(&release.tree))?;
    prepare_kernel(&release.tree)?;
    let store = release.dir().join("images");
    fs::create_dir_all(&store)?;
    let (layouts, store) = (text(&release.layouts), text(&store));
    let mut arguments = vec!["split", layouts.as_str(), store.as_str()];
    arguments.extend(names);
    let split = measure::step(&arguments)?;
    fs::write(release.dir().join("pins.json"), split.told["pins"].to_string())?;
    let info = json!({
        "format": 1, "name": "bench", "version": edition.name(), "created": 0, "kernel": "bench",
        "services": names, "packages": {},
    });
    fs::write(release.dir().join("release.json"), info.to_string())?;
    release.split = Some(split);
    fs::write(done, "")?;
    Ok(release)
}

/// The host's tree as a commit can hold it: no devices, nothing in the directories that exist at run time only.
fn unpack(layer: &Path, host: &Path) -> Outcome<()> {
    run(Command::new("tar")
        .args([
            "-x",
            "-p",
            "--numeric-owner",
            "--xattrs",
            "--xattrs-include=security.capability",
            "--exclude=./dev/*",
        ])
        .arg("-f")
        .arg(layer)
        .arg("-C")
        .arg(host))
}

/// What compose does to a host's kernel: modules unpacked, and kernel and initramfs where libostree looks for them.
fn prepare_kernel(tree: &Path) -> Outcome<()> {
    let kernel = initramfs::observe_kernel(tree)?.ok_or("the host has no kernel")?;
    modules::unpack(tree, &kernel, 0)?;
    initramfs::place_kernel(tree, &kernel)?;
    initramfs::build(tree, &kernel, &[], &[], 0)?;
    Ok(())
}

/// Runs a command that nobody measures.
pub fn run(command: &mut Command) -> Outcome<()> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{:?} failed: {}", command.get_program(), said.trim()).into())
}

/// A path for an argument.
pub fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
