//! Imaging a disk: a real ostree repo onto an image file, through real loop devices and file systems; every step failed in
//! turn; a death before the last step.
//!
//! Needs root, loop devices, XFS and ext4 in the kernel, ostree, sfdisk, and mtools to look into the ESP.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use rackstep::rim::wait::poll;
use serde_json::{Value, json};

#[path = "support/installable.rs"]
mod installable;

use installable::{Mounted, RELEASE, loops_of, partitions_of, run, stderr};

const SIZE: u64 = 4 << 30;
const MIB: usize = 1 << 20;
const STEPS: [&str; 8] = ["check", "wipe", "partition", "pull", "deploy", "configure", "bootloader", "seal"];

/// One image file and its plan.
struct Case {
    dir: tempfile::TempDir,
    plan: Value,
}

impl Case {
    fn new() -> Self {
        let plan = json!({
            "order": "o-1", "host": "control-1",
            "disk": {"name": "vda", "size": SIZE, "sector": 512, "model": null, "serial": null, "wwn": null,
                     "by_path": [], "rotational": false, "removable": false, "transport": null, "contents": []},
            "generation": 1, "wiped": [], "commit": RELEASE.commit, "ref": "rackstep/x86_64/test",
            "repo": RELEASE.repo, "trusted_keys": [], "kernel_arguments": ["console=ttyS0"],
            "ssh_keys": ["ssh-ed25519 AAAA operator"], "mac": "52-54-00-00-00-01",
            "address": "10.77.0.11/24", "gateway": null, "dns": [], "rack_server": "http://10.77.0.1:8080"
        });
        Self { dir: tempfile::tempdir().unwrap(), plan }
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("disk.raw")
    }

    /// An old system's boot code, which must never be left in front of a half-written disk.
    fn fill_with_boot_code(&mut self) {
        fs::write(self.image(), vec![0xfa; MIB]).unwrap();
        fs::OpenOptions::new().write(true).open(self.image()).unwrap().set_len(SIZE).unwrap();
        self.plan["wipe"] = json!(true);
    }

    fn install(&self, more: &[&str]) -> Output {
        let plan = self.dir.path().join("plan.json");
        fs::write(&plan, self.plan.to_string()).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_rackstep"))
            .args(["install", "--plan"])
            .arg(&plan)
            .arg("--target")
            .arg(self.image())
            .args(more)
            .output()
            .unwrap();
        eprintln!("{}", stderr(&output));
        output
    }

    fn span(&self, offset: u64, size: usize) -> Vec<u8> {
        let mut bytes = vec![0; size];
        fs::File::open(self.image()).unwrap().read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }

    fn assert_blank(&self) {
        assert!(self.span(0, MIB).iter().all(|byte| *byte == 0), "the first MiB is not zero");
        assert!(self.span(SIZE - MIB as u64, MIB).iter().all(|byte| *byte == 0), "the last MiB is not zero");
    }

    /// Nothing boots, and the mark says whose it is: see `docs/formats.md`.
    fn assert_marked_and_else_blank(&self) {
        let (head, at) = (self.span(0, MIB), MIB / 2);
        assert!(head[at..].starts_with(b"rackstep-mark 1 "), "no mark");
        let mark = String::from_utf8_lossy(&head[at..at + 4096]).into_owned();
        assert!(
            mark.contains(r#""host":"control-1","generation":1"#) && mark.contains("unfinished"),
            "{mark}"
        );
        assert!(
            head[..at].iter().chain(&head[at + 4096..]).all(|byte| *byte == 0),
            "the first MiB is not zero"
        );
        assert!(self.span(SIZE - MIB as u64, MIB).iter().all(|byte| *byte == 0), "the last MiB is not zero");
    }

    /// A mounted loop device is attached, so this covers mounts as well.
    fn assert_let_go(&self) {
        // Another process of this machine that looks at all devices may hold one open for a moment: it goes with the last.
        let gone =
            poll(Duration::from_secs(10), || Ok::<_, ()>(loops_of(&self.image()).is_empty().then_some(())));
        assert_eq!((gone, loops_of(&self.image())), (Ok(Some(())), Vec::<String>::new()));
    }
}

#[test]
fn a_blank_image_becomes_a_disk_with_the_release() {
    let case = Case::new();
    let output = case.install(&[]);
    assert!(output.status.success(), "{}", stderr(&output));
    case.assert_let_go();

    run(Command::new("sfdisk").arg("--verify").arg(case.image()));
    let partitions = partitions_of(&case.image());
    let names: Vec<_> = partitions.iter().map(|p| p["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["rackstep-bios", "rackstep-esp", "rackstep-boot", "rackstep-root"]);
    // Boot code from boot.img, pointed at sector 2048; the core image is there.
    assert_eq!(case.span(0, 4), [0xeb; 4]);
    assert_eq!(case.span(0x5c, 8), 2048u64.to_le_bytes());
    assert_eq!(&case.span(1 << 20, 3000)[2996..], b"core");

    let esp = format!("{}@@{}", case.image().display(), 2 << 20);
    let program =
        run(Command::new("mdir").env("MTOOLS_SKIP_CHECK", "1").args(["-b", "-i", &esp, "::/EFI/BOOT"]));
    assert!(String::from_utf8_lossy(&program.stdout).contains("BOOTX64.EFI"));

    let mounted = Mounted::new(&case.image(), &partitions);
    let (boot, root) = (mounted.place("boot"), mounted.place("root"));
    let grub = fs::read_to_string(boot.join("loader/grub.cfg")).unwrap();
    assert!(grub.starts_with("# made"), "{grub}");
    let uuid = run(Command::new("blkid").args(["-p", "-s", "UUID", "-o", "value"]).arg(&mounted.devices[1]));
    let uuid = String::from_utf8(uuid.stdout).unwrap();
    assert!(grub.contains(&format!("root=UUID={} rw console=ttyS0", uuid.trim())), "{grub}");
    assert!(fs::read_to_string(boot.join("grub/grub.cfg")).unwrap().contains("/loader/grub.cfg"));
    assert!(boot.join("grub/i386-pc/ext2.mod").exists());
    let deployment = root.join(format!("ostree/deploy/rackstep/deploy/{}.0", RELEASE.commit));
    assert_eq!(fs::read_to_string(deployment.join("etc/hostname")).unwrap(), "control-1\n");
    assert_eq!(fs::read_to_string(deployment.join("usr/etc/hostname")).unwrap(), "localhost\n");
    let fstab = fs::read_to_string(deployment.join("etc/fstab")).unwrap();
    assert!(fstab.contains(" /boot ext4 ") && fstab.contains(" /boot/efi vfat "), "{fstab}");
    let keys = root.join("ostree/deploy/rackstep/var/roothome/.ssh/authorized_keys");
    assert_eq!(fs::read_to_string(keys).unwrap(), "ssh-ed25519 AAAA operator\n");
    let host = fs::read(deployment.join("etc/rackstep/host.json")).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&host).unwrap()["address"], "10.77.0.11");
    run(Command::new("ostree").arg("fsck").arg(format!("--repo={}", root.join("ostree/repo").display())));
}

#[test]
fn every_step_failed_in_turn_leaves_a_blank_disk_and_nothing_mounted() {
    let mut case = Case::new();
    for (when, step) in STEPS.iter().flat_map(|step| [("before", step), ("after", step)]) {
        case.fill_with_boot_code();
        let output = case.install(&[&format!("--fault={when}:{step}")]);
        assert_eq!(output.status.code(), Some(1), "{when} {step}");
        let told = stderr(&output);
        assert!(told.contains("a fault was asked for"), "{told}");
        if *step == "check" {
            assert!(told.contains("state: nothing changed"), "{told}");
            assert_eq!(case.span(0, MIB), vec![0xfa; MIB]);
        } else {
            assert!(told.contains("is blank: it has no partition table and does not boot"), "{told}");
            case.assert_blank();
        }
        case.assert_let_go();
    }
    // And the very same disk can be imaged afterwards, without leave to wipe.
    case.plan["wipe"] = json!(false);
    assert!(case.install(&[]).status.success());
}

#[test]
fn a_death_before_the_last_step_leaves_nothing_that_boots() {
    let mut case = Case::new();
    case.fill_with_boot_code();
    for step in ["bootloader", "seal"] {
        let output = case.install(&[&format!("--fault=kill:{step}")]);
        assert_eq!(output.status.code(), None);
        case.assert_marked_and_else_blank();
        clean_up_after_death(&case.image());
        case.assert_let_go();
    }
}

/// Who may have the disk next, after an attempt that died, after another system, after a finished installation.
#[test]
fn the_disk_itself_tells_whose_it_is() {
    let mut case = Case::new();
    let of = |case: &mut Case, host: &str, generation: u32, wipe: bool| {
        case.plan["host"] = json!(host);
        case.plan["generation"] = json!(generation);
        case.plan["wipe"] = json!(wipe);
    };
    assert_eq!(case.install(&["--fault=kill:deploy"]).status.code(), None);
    clean_up_after_death(&case.image());
    of(&mut case, "control-2", 1, false);
    let output = case.install(&[]);
    assert_eq!(output.status.code(), Some(3));
    assert!(
        stderr(&output).contains("control-1 of generation 1, an unfinished installation"),
        "{}",
        stderr(&output)
    );
    // The same order again needs no leave; another system that came in between does.
    of(&mut case, "control-1", 1, false);
    run(Command::new("mkfs.ext4").args(["-q", "-F", "-L", "other"]).arg(case.image()));
    assert_eq!(case.install(&[]).status.code(), Some(3));
    run(Command::new("wipefs").args(["-a", "-q"]).arg(case.image()));
    assert_eq!(case.install(&[]).status.code(), Some(3), "what is left of another system is data");
    of(&mut case, "control-1", 1, true);
    assert!(case.install(&[]).status.success());
    // Finished: `wipe: true` that was left in the file wipes nothing, nor does an older order.
    for generation in [1, 0] {
        of(&mut case, "control-1", generation, true);
        let before = case.span(0, MIB);
        let output = case.install(&[]);
        assert_eq!(output.status.code(), Some(3));
        let told = stderr(&output);
        assert!(told.contains("holds control-1 as generation 1 installed it"), "{told}");
        assert!(told.contains("raise reimage of control-1 to 2"), "{told}");
        assert_eq!(case.span(0, MIB), before);
    }
    // Raised since that installation.
    of(&mut case, "control-1", 2, false);
    assert!(case.install(&[]).status.success());
    let partitions = partitions_of(&case.image());
    assert_eq!(partitions.len(), 4);
}

/// What a reboot would do.
fn clean_up_after_death(image: &Path) {
    let devices = loops_of(image);
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    for line in mounts.lines().rev() {
        let mut words = line.split(' ');
        let (device, place) = (words.next().unwrap(), words.next().unwrap());
        if devices.iter().any(|known| known == device) {
            run(Command::new("umount").arg(place));
        }
    }
    for device in devices {
        run(Command::new("losetup").arg("--detach").arg(device));
    }
}

#[test]
fn data_is_refused_without_leave_to_wipe() {
    let case = Case::new();
    fs::File::create(case.image()).unwrap().set_len(SIZE).unwrap();
    run(Command::new("mkfs.ext4").args(["-q", "-L", "precious"]).arg(case.image()));
    let before = case.span(0, MIB);
    let output = case.install(&[]);
    assert_eq!(output.status.code(), Some(3));
    let told = stderr(&output);
    let reason =
        "holds data (ext4 \"precious\" on the file) and the rule of control-1 does not say wipe: true";
    assert!(told.contains(reason), "{told}");
    assert!(told.ends_with("state: nothing changed\n"), "{told}");
    assert_eq!(case.span(0, MIB), before);
}

#[test]
fn a_release_that_is_not_there_costs_nothing() {
    let mut case = Case::new();
    case.fill_with_boot_code();
    case.plan["commit"] = json!("0".repeat(64));
    let output = case.install(&[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).ends_with("state: nothing changed\n"), "{}", stderr(&output));
    assert_eq!(case.span(0, MIB), vec![0xfa; MIB]);
}

#[test]
fn bad_plans_are_bad_input() {
    let mut case = Case::new();
    case.plan["commit"] = json!("abc");
    let output = case.install(&[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("plan.json"), "{}", stderr(&output));
}
