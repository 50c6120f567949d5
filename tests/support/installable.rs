//! A repo with one small release that the installer can put on a disk, and what looks at such disks.

// Each test takes what it needs of it.
#![allow(dead_code, clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use serde_json::Value;

/// A repo with one small release, made once.
pub struct Release {
    pub repo: PathBuf,
    pub commit: String,
    _dir: tempfile::TempDir,
}

pub static RELEASE: LazyLock<Release> = LazyLock::new(make_release);

fn make_release() -> Release {
    let dir = tempfile::tempdir().unwrap();
    let (tree, repo) = (dir.path().join("tree"), dir.path().join("repo"));
    let write = |path: &str, content: &[u8], mode: u32| {
        let path = tree.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    };
    write("usr/lib/modules/6.12.0-rs/vmlinuz", b"kernel", 0o644);
    write("usr/lib/modules/6.12.0-rs/initramfs.img", b"initramfs", 0o644);
    write("usr/lib/os-release", b"ID=rackstep\nPRETTY_NAME=\"rackstep 1.0\"\nVERSION_ID=1.0\n", 0o644);
    write("usr/etc/os-name", b"release\n", 0o644);
    write("usr/etc/hostname", b"localhost\n", 0o644);
    // The contract of the real one: `-o FILE`, entries beside it.
    let grub_config =
        b"#!/bin/sh\nset -eu\nd=${2%/*}\n{ echo '# made'; cat \"$d\"/entries/*.conf; } > \"$2\"\n";
    write("usr/lib/rackstep/grub-config", grub_config, 0o755);
    // A stand-in that prints an image of the right kind: a shell and what it needs to run in a chroot.
    write("usr/bin/grub-mkimage", b"#!/bin/sh\nprintf '%3000s' core\n", 0o755);
    for (from, to) in [
        ("/bin/dash", "usr/bin/sh"),
        ("/lib/x86_64-linux-gnu/libc.so.6", "usr/lib/x86_64-linux-gnu/libc.so.6"),
        ("/lib64/ld-linux-x86-64.so.2", "usr/lib64/ld-linux-x86-64.so.2"),
    ] {
        write(to, &fs::read(from).unwrap(), 0o755);
    }
    write("usr/lib/grub/i386-pc/boot.img", &[0xeb; 512], 0o644);
    write("usr/lib/grub/i386-pc/ext2.mod", b"module", 0o644);
    write("usr/lib/grub/x86_64-efi/ext2.mod", b"module", 0o644);
    for (link, to) in [
        ("bin", "usr/bin"),
        ("lib", "usr/lib"),
        ("lib64", "usr/lib64"),
        ("root", "var/roothome"),
        ("ostree", "sysroot/ostree"),
    ] {
        symlink(to, tree.join(link)).unwrap();
    }
    for empty in ["var", "boot", "sysroot", "proc", "sys", "dev", "run", "tmp"] {
        fs::create_dir(tree.join(empty)).unwrap();
    }
    run(Command::new("ostree").arg("init").arg("--mode=archive").arg(format!("--repo={}", repo.display())));
    let output = run(Command::new("ostree")
        .args(["commit", "--branch=rackstep/x86_64/test", "--owner-uid=0", "--owner-gid=0"])
        .args(["--add-metadata-string=version=1.0", "--timestamp=@1700000000"])
        .arg(format!("--repo={}", repo.display()))
        .arg(format!("--tree=dir={}", tree.display())));
    let commit = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    Release { repo, commit, _dir: dir }
}

pub fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Loop devices that hold the image.
pub fn loops_of(image: &Path) -> Vec<String> {
    let backing = |entry: &fs::DirEntry| {
        let file = fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
        Path::new(file.trim()) == image
    };
    fs::read_dir("/sys/block")
        .unwrap()
        .flatten()
        .filter(backing)
        .map(|entry| format!("/dev/{}", entry.file_name().to_string_lossy()))
        .collect()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The partitions of an image, as sfdisk tells them.
pub fn partitions_of(image: &Path) -> Vec<Value> {
    let text = run(Command::new("sfdisk").arg("--json").arg(image)).stdout;
    let table: Value = serde_json::from_slice(&text).unwrap();
    table["partitiontable"]["partitions"].as_array().unwrap().clone()
}

/// Root and `/boot` of an image, mounted read-only.
pub struct Mounted {
    dir: tempfile::TempDir,
    pub devices: [String; 2],
}

impl Mounted {
    pub fn new(image: &Path, partitions: &[Value]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let devices = [(2, "boot", "ro"), (3, "root", "ro,norecovery")].map(|(index, name, options)| {
            let bytes = |key: &str| (partitions[index][key].as_u64().unwrap() * 512).to_string();
            let output = run(Command::new("losetup")
                .args(["--find", "--show", "--read-only"])
                .args(["--offset", &bytes("start"), "--sizelimit", &bytes("size")])
                .arg(image));
            let device = String::from_utf8(output.stdout).unwrap().trim().to_owned();
            let place = dir.path().join(name);
            fs::create_dir(&place).unwrap();
            run(Command::new("mount").args(["-o", options]).arg(&device).arg(&place));
            device
        });
        Self { dir, devices }
    }

    pub fn place(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        for (device, name) in self.devices.iter().zip(["boot", "root"]) {
            let _ = Command::new("umount").arg(self.place(name)).status();
            let _ = Command::new("losetup").arg("--detach").arg(device).status();
        }
    }
}
