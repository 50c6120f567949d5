//! A host of a few megabytes for launchers of containers: a real sysroot with real deployments, whose systemd is a shell script
//! that does what a file in `/var` says.

// Each test takes what it needs of it.
#![allow(dead_code, clippy::unwrap_used)]

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rackstep::lab::machine::container::storage::loops_of;
use rackstep::lab::machine::container::{HostSpec, Link, Storage, cgroup};
use rackstep::lab::machine::tiny;
use rackstep::rim::wait::poll;

/// A few processes on a machine that is busy with other things.
pub const SOON: Duration = Duration::from_secs(60);

/// Process 1. It keeps a mount, a loop device and a process of its own, so that there is something to leave behind.
const INIT: &str = r#"#!/usr/bin/sh
export PATH=/usr/bin
version=$(cat /usr/lib/rackstep/version)
echo "host $(hostname) runs release $version"
mount -t tmpfs tmpfs /run/more
dd if=/dev/zero of=/var/image bs=1M count=2 2>/dev/null && mkfs.ext2 /var/image >/dev/null && mount -o loop /var/image /run/more
sleep 1000 &
echo "$version $(cat /proc/sys/kernel/random/boot_id)" >>/var/boots
while [ ! -e /var/do ]; do sleep 0.1; done
act=$(cat /var/do); rm /var/do; sync
"$act" -f
"#;

/// The host: its sysroot, and a directory for its launcher.
pub struct TinyHost {
    pub dir: tempfile::TempDir,
    pub sysroot: PathBuf,
}

impl TinyHost {
    /// A sysroot without deployments.
    pub fn empty() -> Self {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let sysroot = dir.path().join("host-root");
        fs::create_dir_all(&sysroot).unwrap();
        let host = Self { dir, sysroot };
        host.admin(&["init-fs"]);
        host.admin(&["os-init", "rackstep"]);
        fs::create_dir_all(host.machine()).unwrap();
        host
    }

    /// A host that runs release 1.
    pub fn new() -> Self {
        let host = Self::empty();
        host.deploy("1");
        host
    }

    /// Deploys a release of that version: the next boot takes it.
    pub fn deploy(&self, version: &str) {
        let tree = self.dir.path().join("tree");
        make_tree(&tree, version);
        let repo = format!("--repo={}", self.sysroot.join("ostree/repo").display());
        let commit = ["commit", "--branch=tiny", "--owner-uid=0", "--owner-gid=0", "--link-checkout-speedup"];
        run(Command::new("ostree").args(commit).arg(&repo).arg(format!("--tree=dir={}", tree.display())));
        self.admin(&["deploy", "--os=rackstep", "--retain", "tiny"]);
        fs::remove_dir_all(tree).unwrap();
    }

    fn admin(&self, arguments: &[&str]) {
        let sysroot = format!("--sysroot={}", self.sysroot.display());
        let mut ostree = Command::new("ostree");
        // Else it looks for a boot loader of this machine.
        ostree.args(["admin"]).args(arguments).env("OSTREE_SYSROOT_DEBUG", "mutable-deployments,no-xattrs");
        if arguments[0] == "init-fs" {
            run(ostree.arg(&self.sysroot));
        } else {
            run(ostree.arg(sysroot));
        }
    }

    /// The checkout of the only deployment.
    pub fn checkout(&self) -> PathBuf {
        let deployments = self.sysroot.join("ostree/deploy/rackstep/deploy");
        let paths = fs::read_dir(deployments).unwrap().map(|entry| entry.unwrap().path());
        paths.filter(|path| path.is_dir()).max().unwrap()
    }

    /// The launcher's directory.
    pub fn machine(&self) -> PathBuf {
        self.dir.path().join("machine")
    }

    /// The image, once [`TinyHost::make_disk`] made it.
    pub fn image(&self) -> PathBuf {
        self.dir.path().join("disk.raw")
    }

    /// Puts the sysroot on a disk, as an installer lays it out.
    pub fn make_disk(&self) {
        let image = self.image();
        fs::File::create(&image).unwrap().set_len(512 << 20).unwrap();
        let table =
            "label: gpt\nstart=2048, size=131072, name=rackstep-boot\nsize=876544, name=rackstep-root\n";
        let script = self.dir.path().join("table");
        fs::write(&script, table).unwrap();
        run(Command::new("sfdisk").arg("--quiet").arg(&image).stdin(fs::File::open(script).unwrap()));
        let place = self.dir.path().join("place");
        fs::create_dir(&place).unwrap();
        for (start, size, kind, from, to) in
            [(133_120_u64, 876_544_u64, "xfs", ".", "."), (2048, 131_072, "ext4", "boot", "boot")]
        {
            let output = run(Command::new("losetup")
                .args(["--find", "--show", "--offset", &(start * 512).to_string()])
                .args(["--sizelimit", &(size * 512).to_string()])
                .arg(&image));
            let device = String::from_utf8(output.stdout).unwrap().trim().to_owned();
            run(Command::new(format!("mkfs.{kind}")).arg("-q").arg(&device));
            run(Command::new("mount").arg(&device).arg(&place));
            run(Command::new("cp").arg("-a").arg(self.sysroot.join(from).join(".")).arg(&place));
            if to == "." {
                run(Command::new("find").arg(place.join("boot")).args(["-mindepth", "1", "-delete"]));
            }
            // Somebody's new mount namespace may keep it mounted for a moment.
            run(Command::new("sync").arg("--file-system").arg(&place));
            run(Command::new("umount").arg(&place));
            run(Command::new("losetup").arg("--detach").arg(&device));
        }
    }

    /// Writes the launcher's record, and gives the command that starts it.
    pub fn launcher(&self, storage: Storage, link: Option<Link>) -> Command {
        let spec = HostSpec {
            name: "tiny".to_owned(),
            dir: self.machine(),
            storage,
            link,
            credentials: vec![("system.hostname".to_owned(), "tiny".to_owned())],
            memory_mib: 256,
            cpus: 1,
        };
        let record = HostSpec::path(&spec.dir);
        fs::write(&record, serde_json::to_vec(&spec).unwrap()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_rackstep"));
        command.args(["container-host", "launch"]).arg(record);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn directory(&self) -> Storage {
        Storage::Directory(self.sysroot.clone())
    }

    pub fn disk(&self) -> Storage {
        Storage::Disk(self.image())
    }

    /// Starts it and waits until it has begun to boot.
    pub fn start(&self, storage: Storage, link: Option<Link>) -> Child {
        let mut child = self.launcher(storage, link).spawn().unwrap();
        let mut said = String::new();
        child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        if said != "started\n" {
            let output = child.wait_with_output().unwrap();
            panic!("{said:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        child
    }

    /// Makes a host that runs from the directory do something; it never sees half of an order.
    pub fn act(&self, act: &str) {
        let var = self.sysroot.join("ostree/deploy/rackstep/var");
        fs::write(var.join("do.new"), act).unwrap();
        fs::rename(var.join("do.new"), var.join("do")).unwrap();
    }

    /// What came over its console.
    pub fn console(&self) -> String {
        fs::read_to_string(self.machine().join("console.log")).unwrap_or_default()
    }

    pub fn wait_for_console(&self, text: &str) {
        let seen =
            poll(SOON, || Ok::<_, std::convert::Infallible>(self.console().contains(text).then_some(())));
        let Ok(seen) = seen;
        assert!(seen.is_some(), "{text:?} is not in {}", self.console());
    }

    /// What is left of it on this machine.
    pub fn remains(&self) -> Vec<String> {
        let mut found = loops_of(&self.image());
        let ours = self.dir.path().display().to_string();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        found.extend(mounts.lines().filter(|line| line.contains(&ours)).map(str::to_owned));
        let group = cgroup::of_host(&cgroup::hierarchy().unwrap(), &self.machine());
        found.extend(group.exists().then(|| group.display().to_string()));
        found.extend(processes_in(group.file_name().unwrap().to_str().unwrap(), &ours));
        found
    }

    /// Waits until nothing is left of it.
    #[track_caller]
    pub fn assert_gone(&self) {
        let gone = poll(SOON, || Ok::<_, std::convert::Infallible>(self.remains().is_empty().then_some(())));
        let Ok(gone) = gone;
        assert!(gone.is_some(), "left behind: {:?}", self.remains());
    }
}

/// Processes of a control group, or with a word in their command line: with them every namespace that they hold.
fn processes_in(group: &str, word: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let read = |name: &str| fs::read(entry.path().join(name)).unwrap_or_default();
        let (groups, line) = (read("cgroup"), read("cmdline"));
        let (groups, line) = (String::from_utf8_lossy(&groups), String::from_utf8_lossy(&line));
        if groups.contains(group) || (line.contains("container-host") && line.contains(word)) {
            found.push(format!("process {}: {line}", entry.file_name().display()));
        }
    }
    found
}

fn make_tree(tree: &Path, version: &str) {
    let write = |path: &str, content: &[u8], mode: u32| {
        let path = tree.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    };
    write("usr/bin/busybox", &fs::read(tiny::kernel().unwrap().busybox).unwrap(), 0o755);
    for tool in [
        "sh",
        "cat",
        "dd",
        "echo",
        "hostname",
        "ip",
        "mkfs.ext2",
        "mount",
        "poweroff",
        "reboot",
        "rm",
        "sleep",
        "sync",
    ] {
        symlink("busybox", tree.join("usr/bin").join(tool)).unwrap();
    }
    write("usr/lib/systemd/systemd", INIT.replace("/run/more", "/mnt").as_bytes(), 0o755);
    let release = format!(
        r#"{{"format": 1, "name": "tiny", "version": "{version}", "created": 0, "kernel": "6", "services": [], "packages": {{}}}}"#
    );
    write("usr/lib/rackstep/release.json", release.as_bytes(), 0o644);
    write("usr/lib/rackstep/version", version.as_bytes(), 0o644);
    write("usr/lib/os-release", b"ID=tiny\nPRETTY_NAME=tiny\n", 0o644);
    write("usr/lib/modules/6/vmlinuz", b"kernel", 0o644);
    write("usr/lib/modules/6/initramfs.img", b"initramfs", 0o644);
    write("usr/etc/name", b"tiny\n", 0o644);
    for empty in ["var", "boot", "sysroot", "proc", "sys", "dev", "run", "tmp", "mnt"] {
        fs::create_dir(tree.join(empty)).unwrap();
    }
    symlink("usr/bin", tree.join("bin")).unwrap();
    symlink("sysroot/ostree", tree.join("ostree")).unwrap();
}

pub fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}
