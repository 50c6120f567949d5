//! Boxes and disk images: a small release through the installer and qemu-img, into a box that Vagrant could add; a second
//! version in the same catalogue; an interruption and wrong input, after which nothing is left.
//!
//! Needs what `tests/install_disk.rs` needs, and qemu-img.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

#[path = "support/installable.rs"]
mod installable;

use installable::{Mounted, RELEASE, partitions_of, run, stderr};

/// The command for the release of the tests, in a disk as small as one may be.
fn rackstep_box(output: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rackstep"));
    command.args(["box", "1.0", "--size=4", "--name=acme/host", "--repo"]).arg(&RELEASE.repo);
    command.arg("--output").arg(output).args(more);
    command
}

fn names_in(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).unwrap();
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn image_info(path: &Path) -> Value {
    let info = run(Command::new("qemu-img").args(["info", "--output=json"]).arg(path));
    serde_json::from_slice(&info.stdout).unwrap()
}

/// The loop devices whose file lies, or lay, below `directory`.
fn attached_below(directory: &Path) -> Vec<String> {
    let backings = fs::read_dir("/sys/block")
        .unwrap()
        .flatten()
        .map(|entry| fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default());
    backings.filter(|backing| Path::new(backing.trim()).starts_with(directory)).collect()
}

/// Nothing of the work is attached or mounted any more. A loop device goes with its last user, and
/// udev may still be one of them for a moment: it reads every new partition table.
fn assert_let_go(output: &Path) {
    let bound = Instant::now() + Duration::from_secs(20);
    while !attached_below(output).is_empty() {
        assert!(Instant::now() < bound, "{:?}", attached_below(output));
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_release_becomes_a_box_and_its_next_version_joins_the_catalogue() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("boxes");
    let made = run(&mut rackstep_box(&output, &["--json"]));
    let told: Value = serde_json::from_slice(&made.stdout).unwrap();
    let file = output.join("host-1.0-libvirt.box");
    assert_eq!(names_in(&output), ["host-1.0-libvirt.box", "host.json"].map(str::to_owned).into());
    assert_let_go(&output);

    let sum = run(Command::new("sha256sum").arg(&file)).stdout;
    let sum = String::from_utf8(sum).unwrap()[..64].to_owned();
    assert_eq!(told["bytes"], file.metadata().unwrap().len());
    assert_eq!((&told["sha256"], &told["commit"]), (&json!(sum), &json!(RELEASE.commit)));
    let entry = |version: &str, file: &Path, sum: &str| {
        json!({"version": version, "providers": [{
            "name": "libvirt", "url": format!("file://{}", file.display()), "checksum_type": "sha256",
            "checksum": sum, "architecture": "amd64", "default_architecture": true}]})
    };
    let catalogue = json_of(&output.join("host.json"));
    assert_eq!(catalogue["name"], "acme/host");
    assert_eq!(catalogue["versions"], json!([entry("1.0", &file, &sum)]));

    let listed = run(Command::new("tar").arg("-tzf").arg(&file)).stdout;
    assert_eq!(String::from_utf8(listed).unwrap(), "metadata.json\nVagrantfile\nbox.img\n");
    let unpacked = dir.path().join("unpacked");
    fs::create_dir(&unpacked).unwrap();
    run(Command::new("tar").arg("-xzf").arg(&file).arg("-C").arg(&unpacked));
    assert_eq!(
        json_of(&unpacked.join("metadata.json")),
        json!({"provider": "libvirt", "architecture": "amd64", "format": "qcow2", "virtual_size": 4})
    );
    let vagrantfile = fs::read_to_string(unpacked.join("Vagrantfile")).unwrap();
    // The release of the tests has no rsync: no folder is promised.
    assert!(
        vagrantfile.contains("config.ssh.username = \"root\"") && !vagrantfile.contains("type: \"rsync\"")
    );
    let info = image_info(&unpacked.join("box.img"));
    assert_eq!((&info["format"], &info["virtual-size"]), (&json!("qcow2"), &json!(4u64 << 30)));
    assert!(info.get("backing-filename").is_none());
    check_disk(&unpacked.join("box.img"), dir.path());

    // The same release under another version, where the boxes are served from.
    run(&mut rackstep_box(&output, &["--box-version=1.1", "--url=http://boxes.example"]));
    let versions = json_of(&output.join("host.json"))["versions"].clone();
    assert_eq!(versions.as_array().unwrap().len(), 2);
    assert_eq!(versions[0], entry("1.0", &file, &sum));
    assert_eq!(versions[1]["providers"][0]["url"], "http://boxes.example/host-1.1-libvirt.box");
}

/// The disk of a box: bootable, everybody's key, and nothing that belongs to one machine.
fn check_disk(qcow2: &Path, scratch: &Path) {
    let raw = scratch.join("raw");
    run(Command::new("qemu-img").args(["convert", "-f", "qcow2", "-O", "raw"]).args([qcow2, raw.as_path()]));
    let mounted = Mounted::new(&raw, &partitions_of(&raw));
    let grub = fs::read_to_string(mounted.place("boot").join("loader/grub.cfg")).unwrap();
    assert!(grub.contains("console=tty0 console=ttyS0,115200n8"), "{grub}");
    let stateroot = mounted.place("root").join("ostree/deploy/rackstep");
    let etc = stateroot.join(format!("deploy/{}.0/etc", RELEASE.commit));
    // The release's own file, not one of ours.
    assert_eq!(fs::read_to_string(etc.join("hostname")).unwrap(), "localhost\n");
    assert!(!etc.join("machine-id").exists() && !etc.join("systemd/network").exists());
    let host = json_of(&etc.join("rackstep/host.json"));
    assert_eq!((&host["name"], &host["address"]), (&json!(""), &json!("")));
    assert_eq!((&host["ref"], host.get("mac")), (&json!("rackstep/x86_64/test"), None));
    assert_eq!(host["repo"], "http://192.168.121.1:8080");
    let keys = fs::read_to_string(stateroot.join("var/roothome/.ssh/authorized_keys")).unwrap();
    assert!(keys.starts_with("ssh-rsa ") && keys.ends_with(" vagrant insecure public key\n"), "{keys}");
}

#[test]
fn plain_images_let_nobody_in() {
    let dir = tempfile::tempdir().unwrap();
    run(&mut rackstep_box(dir.path(), &["--format=qcow2"]));
    run(&mut rackstep_box(dir.path(), &["--format=raw"]));
    assert_eq!(names_in(dir.path()), ["host-1.0.qcow2", "host-1.0.raw"].map(str::to_owned).into());
    let info = image_info(&dir.path().join("host-1.0.qcow2"));
    assert_eq!((&info["format"], &info["virtual-size"]), (&json!("qcow2"), &json!(4u64 << 30)));
    let raw = dir.path().join("host-1.0.raw");
    let mounted = Mounted::new(&raw, &partitions_of(&raw));
    assert!(!mounted.place("root").join("ostree/deploy/rackstep/var/roothome").exists());
}

#[test]
fn an_interruption_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("boxes");
    for stage in ["making file systems", "writing the partition table"] {
        let mut child = rackstep_box(&output, &[]).stderr(Stdio::piped()).spawn().unwrap();
        let mut told = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        told.by_ref().find(|line| line.starts_with(stage)).unwrap();
        run(Command::new("kill").args(["-INT", &child.id().to_string()]));
        let rest: Vec<String> = told.collect();
        assert_eq!(child.wait().unwrap().code(), Some(130), "{rest:?}");
        assert_eq!(rest.last().unwrap(), "state: nothing changed", "{rest:?}");
        assert_eq!(names_in(&output), BTreeSet::new());
        assert_let_go(&output);
    }
}

#[test]
fn wrong_input_costs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let output: PathBuf = dir.path().join("boxes");
    fs::create_dir(&output).unwrap();
    fs::write(output.join("other.json"), r#"{"name": "somebody/other", "versions": []}"#).unwrap();
    for (more, told) in [
        (["--name=other", "--format=vagrant"], "is the catalogue of \"somebody/other\", not of \"other\""),
        (["--box-version=v1", "--format=raw"], "\"v1\" is not a version for a box"),
        (["--name=a/b/c", "--format=raw"], "is not a name for a box"),
        (["--keys=/nonexistent", "--format=raw"], "/nonexistent"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rackstep"));
        command.args(["box", "1.0", "--size=4", "--repo"]).arg(&RELEASE.repo).arg("--output").arg(&output);
        let output = command.args(more).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert!(stderr(&output).contains(told), "{}", stderr(&output));
    }
    assert_eq!(names_in(&output), ["other.json".to_owned()].into());
}
