//! Launchers of hosts that are containers: what they refuse, what a boot is, and that nothing is left of them, however they end.
//! The hosts are of a few megabytes; with a real release: `tests/cluster_container.rs`.
//!
//! Needs root, ostree, xfsprogs, and what `lab::machine::tiny` fetches.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rackstep::lab::machine::Network;
use rackstep::lab::machine::container::{Container, Link, Storage};
use rackstep::rim::wait::poll;

#[path = "support/tiny_host.rs"]
mod tiny_host;

use tiny_host::{SOON, TinyHost, run};

/// How often a launcher is killed.
const KILLS: u32 = 50;
/// By then a tiny host runs.
const BOOTED: Duration = Duration::from_millis(600);

/// What nobody may change by starting a host.
#[derive(Debug, PartialEq)]
struct Machine {
    settings: Vec<(PathBuf, String)>,
    mtab: (PathBuf, i64, i64),
    mark: String,
    host: String,
}

fn machine(mark: &Path) -> Machine {
    let settings = [
        "kernel/panic",
        "kernel/panic_on_oops",
        "vm/overcommit_memory",
        "vm/panic_on_oom",
        "kernel/hostname",
    ]
    .map(|name| Path::new("/proc/sys").join(name));
    let mtab = fs::symlink_metadata("/etc/mtab").unwrap();
    Machine {
        settings: settings.map(|path| (path.clone(), fs::read_to_string(path).unwrap())).to_vec(),
        mtab: (fs::read_link("/etc/mtab").unwrap_or_default(), mtab.mtime(), mtab.ctime()),
        mark: fs::read_to_string(mark).unwrap(),
        host: fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap(),
    }
}

/// Breaks something of a host.
type Damage<'a> = &'a dyn Fn(&TinyHost);

/// Starts a launcher that must refuse, and leave nothing.
#[track_caller]
fn refused(host: &TinyHost, storage: Storage, code: i32, told: &str) {
    let output = host.launcher(storage, None).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.contains(told), "{told:?} is not in {said}");
    assert!(said.trim_end().ends_with("state: the host is off"), "{said}");
    assert!(output.stdout.is_empty());
    assert!(!host.console().contains("runs release"), "{}", host.console());
    host.assert_gone();
}

#[test]
fn init_is_started_in_nothing_but_a_deployment_of_ours() {
    let mark = tempfile::NamedTempFile::new_in("/tmp").unwrap();
    fs::write(&mark, "of the machine").unwrap();
    let before = machine(mark.path());

    let none = TinyHost::empty();
    refused(&none, Storage::Directory(none.machine()), 3, "is not a sysroot: it has no ostree/repo");
    refused(&none, Storage::Directory("/".into()), 3, "/ is the root of this machine itself");
    refused(&none, none.directory(), 3, "nothing is deployed");
    refused(&none, Storage::Directory("/nonexistent".into()), 1, "/nonexistent");

    let damages: [(Damage<'_>, &str); 8] = [
        (&|host| fs::remove_dir_all(host.checkout()).unwrap(), "which is not there"),
        (&|host| fs::remove_dir_all(host.checkout().join("usr/lib/systemd")).unwrap(), "systemd is missing"),
        (&|host| fs::remove_dir_all(host.checkout().join("usr")).unwrap(), "usr is missing"),
        (&|host| fs::remove_dir_all(host.checkout().join("etc")).unwrap(), "etc is missing"),
        (&|host| fs::remove_dir_all(host.sysroot.join("ostree/repo/objects")).unwrap(), ".commit is missing"),
        (
            &|host| {
                let origin = host.checkout().display().to_string() + ".origin";
                fs::remove_file(origin).unwrap();
            },
            ".origin is missing",
        ),
        (
            &|host| fs::remove_file(host.checkout().join("usr/lib/rackstep/release.json")).unwrap(),
            "is not a release of rackstep: it has no usr/lib/rackstep/release.json",
        ),
        (
            &|host| {
                // A link out of the sysroot is followed inside it.
                fs::rename(host.checkout(), host.dir.path().join("elsewhere")).unwrap();
                symlink("/", host.sysroot.join("ostree/deploy/rackstep/deploy").join(name(host))).unwrap();
            },
            "which is not a deployment of this sysroot",
        ),
    ];
    for (damage, told) in damages {
        let host = TinyHost::new();
        damage(&host);
        refused(&host, host.directory(), 3, told);
    }
    assert_eq!(machine(mark.path()), before);
}

/// `<commit>.<serial>`, from what is beside the checkout.
fn name(host: &TinyHost) -> String {
    let beside = fs::read_dir(host.sysroot.join("ostree/deploy/rackstep/deploy")).unwrap();
    let names = beside.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter_map(|name| name.strip_suffix(".origin").map(str::to_owned)).next().unwrap()
}

#[test]
fn a_disk_of_something_else_is_refused() {
    let host = TinyHost::empty();
    fs::File::create(host.image()).unwrap().set_len(8 << 20).unwrap();
    refused(&host, host.disk(), 1, "reading the partition table");
    let mut sfdisk = Command::new("sfdisk");
    let script = host.dir.path().join("script");
    fs::write(&script, "label: gpt\nsize=2048, name=windows\n").unwrap();
    run(sfdisk.arg("--quiet").arg(host.image()).stdin(fs::File::open(script).unwrap()));
    refused(&host, host.disk(), 1, "has no partition rackstep-root: it is not a disk of a release");
}

#[test]
fn a_launcher_without_room_leaves_nothing() {
    let host = TinyHost::new();
    run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=16k", "tmpfs"]).arg(host.machine()));
    let mut launcher = host.launcher(host.directory(), None);
    let _ = fs::write(host.machine().join("filler"), vec![1; 1 << 20]);
    let output = launcher.output().unwrap();
    run(Command::new("umount").arg(host.machine()));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("No space left on device"), "{said}");
    host.assert_gone();
}

#[test]
fn a_reboot_takes_what_the_entries_name_and_a_power_off_ends_it() {
    let mark = tempfile::NamedTempFile::new_in("/tmp").unwrap();
    fs::write(&mark, "of the machine").unwrap();
    let before = machine(mark.path());
    let host = TinyHost::new();
    let network = Network::create("10.84.0.1/24").unwrap();
    let link = Link {
        network: network.name().to_owned(),
        outside: "vetiny".to_owned(),
        mac: "52:54:00:84:00:01".to_owned(),
    };
    let mut child = host.start(host.directory(), Some(link));
    host.wait_for_console("host tiny runs release 1");
    let second = host.launcher(host.directory(), None).output().unwrap();
    assert!(String::from_utf8_lossy(&second.stderr).contains("a host already runs from"));

    let found = Container::find(&host.machine()).unwrap();
    assert!(found.is_alive() && !found.can_lose().unwrap());
    let inside = |words: &[&str]| {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        String::from_utf8(run(&mut found.command(&words).unwrap()).stdout).unwrap()
    };
    assert_eq!(inside(&["cat", "/usr/lib/rackstep/version"]), "1");
    assert!(inside(&["ip", "link", "show", "host0"]).contains("52:54:00:84:00:01"));
    assert!(inside(&["cat", "/proc/cmdline"]).contains("ostree=/ostree/boot."));
    let boots =
        || fs::read_to_string(host.sysroot.join("ostree/deploy/rackstep/var/boots")).unwrap_or_default();
    let booted = |times| {
        let seen = || Ok::<_, std::convert::Infallible>((boots().lines().count() == times).then_some(()));
        let Ok(seen) = poll(SOON, seen);
        assert!(seen.is_some(), "{}", boots());
    };
    booted(1);

    host.deploy("2");
    host.act("reboot");
    host.wait_for_console("host tiny runs release 2");
    booted(2);
    let names: Vec<String> = boots().lines().map(|line| line[2..].to_owned()).collect();
    assert_ne!(names[0], names[1]);
    assert_ne!(names[1], before.host.trim());

    host.act("poweroff");
    assert!(child.wait().unwrap().success());
    assert!(!found.is_alive() && Container::find(&host.machine()).is_none());
    host.assert_gone();
    assert!(!String::from_utf8_lossy(&run(network.command("ip").arg("link")).stdout).contains("vetiny"));
    assert_eq!(machine(mark.path()), before);
}

#[test]
fn a_power_cut_loses_what_was_not_synced() {
    let host = TinyHost::new();
    host.make_disk();
    let mut child = host.start(host.disk(), None);
    host.wait_for_console("host tiny runs release 1");
    let found = Container::find(&host.machine()).unwrap();
    let shell = |script: &str| {
        let words = ["sh", "-c", script].map(str::to_owned);
        run(&mut found.command(&words).unwrap())
    };
    shell(
        "echo kept >/var/kept && sync && echo lost >/var/lost && echo new >/var/kept.new && mv /var/kept.new /var/kept",
    );
    found.power_cut().unwrap();
    child.wait().unwrap();
    host.assert_gone();

    let mut child = host.start(host.disk(), None);
    let found = Container::find(&host.machine()).unwrap();
    let words = ["sh", "-c", "cat /var/kept; cat /var/lost"].map(str::to_owned);
    let output = found.command(&words).unwrap().output().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "kept\n",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    found.power_cut().unwrap();
    child.wait().unwrap();
    host.assert_gone();
}

#[test]
fn nothing_is_left_of_launchers_that_are_killed_at_any_moment() {
    let mark = tempfile::NamedTempFile::new_in("/tmp").unwrap();
    fs::write(&mark, "of the machine").unwrap();
    let before = machine(mark.path());
    let host = TinyHost::new();
    host.make_disk();
    let (mut booted, began) = (0, Instant::now());
    for number in 0..KILLS {
        let _ = fs::remove_file(host.machine().join("console.log"));
        let mut child = host.launcher(host.disk(), None).spawn().unwrap();
        // Evenly over its beginning, in an order that is not the hours': 7 and 50 have no common part.
        std::thread::sleep(BOOTED * (number * 7 % KILLS) / KILLS);
        child.kill().unwrap();
        child.wait().unwrap();
        booted += u32::from(host.console().contains("runs release"));
        host.assert_gone();
    }
    eprintln!(
        "{KILLS} launchers killed, {booted} of them with a running host: {:.1} s",
        began.elapsed().as_secs_f64()
    );
    assert!((1..KILLS).contains(&booted), "{booted}");
    assert_eq!(machine(mark.path()), before);
    // Its disk is whole after all that.
    let mut child = host.start(host.disk(), None);
    host.wait_for_console("host tiny runs release 1");
    Container::find(&host.machine()).unwrap().power_cut().unwrap();
    child.wait().unwrap();
    host.assert_gone();
}
