//! GRUB itself counts the boots of a trial: our GRUB on a small disk, a tiny kernel that panics, hangs or comes up, BIOS and
//! UEFI, power cuts in between. Needs root, loop devices, QEMU and apt.
#![allow(clippy::unwrap_used)] // a failed unwrap is a failed test

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rackstep::lab::machine::{Boot, DiskFormat, DiskSpec, Firmware, Machine, MachineSpec, Network, tiny};
use rackstep::model::trial::Ladder;
use rackstep::rim::disk::filesystem::{format_ext4, format_fat, random_uuid};
use rackstep::rim::disk::layout::{Layout, plan_layout, render_sfdisk};
use rackstep::rim::disk::loops::LoopDevice;
use rackstep::rim::disk::mounts::Mount;
use rackstep::rim::disk::target::Target;
use rackstep::rim::grub::Grub;
use rackstep::rim::grub_env::{GrubEnv, PLACE};
use rackstep::rim::wait::poll;

const NEW: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
const OLD: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const SIZE: u64 = 4 << 30;
/// One boot of a bare kernel under TCG on a busy machine, its hang and the watchdog.
const BOOT: Duration = Duration::from_secs(240);

/// What a release does is an argument of its kernel; where it is counted, it says which boot it is.
const INIT: &str = "
line=$(cat /proc/cmdline)
release=${line##*rackstep.release=}
trial=${line##*rackstep.trial=}
[ \"$trial\" != \"$line\" ] || trial=0
echo \"boot of ${release%\"${release#?}\"} trial ${trial%% *};\"
case $line in
*how=panic*) exit 1 ;;
*how=hang*)
    # Whoever hangs does not feed the watchdog, and the kernel restarts.
    rmmod softdog; insmod /lib/softdog.ko soft_margin=3
    exec 3>/dev/watchdog
    echo >&3
    while :; do sleep 1000; done ;;
esac
echo up
read line
";

/// A disk that our GRUB starts from: the new release first, the old one behind it.
struct Disk {
    dir: tempfile::TempDir,
    layout: Layout,
}

impl Disk {
    fn new(how: &str) -> Self {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let disk = Self { dir, layout: plan_layout(SIZE).unwrap() };
        let image = disk.image();
        fs::File::create(&image).unwrap().set_len(SIZE).unwrap();
        let script = disk.dir.path().join("table");
        fs::write(&script, render_sfdisk(&disk.layout, 512)).unwrap();
        run(Command::new("sfdisk").arg("--quiet").arg(&image).stdin(fs::File::open(script).unwrap()));

        let root = disk.dir.path().join("root");
        let _root = Tree::new(&grub_files(), &root);
        let grub = Grub::of(&root).unwrap();
        let target = Target::open_for_writing(&image).unwrap();
        let bios = grub.make_bios(disk.layout.bios).unwrap().unwrap();
        target.write(disk.layout.bios.start, &bios.core).unwrap();
        target.write(0, bios.boot_code.as_slice()).unwrap();
        let uuid = random_uuid().unwrap();
        let esp = LoopDevice::attach(&target, disk.layout.esp).unwrap();
        format_fat(esp.path(), &uuid, "ESP").unwrap();
        assert!(grub.install_uefi(esp.path()).unwrap());
        esp.detach().unwrap();
        let boot = LoopDevice::attach(&target, disk.layout.boot).unwrap();
        format_ext4(boot.path(), &uuid, "boot").unwrap();
        boot.detach().unwrap();
        disk.with_boot(|boot| {
            grub.install_files(boot).unwrap();
            Grub::create_environment(boot).unwrap();
            fill(boot, how);
            let path = boot.join(PLACE);
            let mut env = GrubEnv::read(&path).unwrap().unwrap();
            env.set("confirmed", OLD);
            env.write(&path).unwrap();
        });
        disk
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("disk.raw")
    }

    /// The file system of `/boot`, as whoever looks at a machine that is off.
    fn with_boot<T>(&self, act: impl FnOnce(&Path) -> T) -> T {
        let place = self.dir.path().join("boot");
        fs::create_dir_all(&place).unwrap();
        let target = Target::open_for_writing(&self.image()).unwrap();
        let device = LoopDevice::attach(&target, self.layout.boot).unwrap();
        let mount = Mount::new(device.path(), "ext4", &place).unwrap();
        let done = act(&place);
        mount.unmount().unwrap();
        device.detach().unwrap();
        done
    }

    fn ladder(&self) -> Ladder {
        self.with_boot(|boot| {
            let env = GrubEnv::read(&boot.join(PLACE)).unwrap().unwrap();
            Ladder::parse(Ladder::NAMES.map(|name| env.get(name)))
        })
    }
}

/// GRUB's modules, which the machine that tests has not installed: apt brings them, once.
fn grub_files() -> PathBuf {
    let home = rackstep::rim::cache_dir::cache_dir().unwrap().join("grub");
    if !home.join("usr/lib/grub/x86_64-efi").exists() {
        let parent = home.parent().unwrap();
        fs::create_dir_all(parent).unwrap();
        let work = tempfile::tempdir_in(parent).unwrap();
        let packages = ["grub-pc-bin", "grub-efi-amd64-bin"];
        run(Command::new("apt-get").args(["-qq", "download"]).args(packages).current_dir(work.path()));
        let tree = work.path().join("tree");
        let debs = fs::read_dir(work.path()).unwrap().map(|entry| entry.unwrap().path());
        for deb in debs.filter(|path| path.extension().is_some_and(|kind| kind == "deb")).collect::<Vec<_>>()
        {
            run(Command::new("dpkg-deb").arg("-x").arg(deb).arg(&tree));
        }
        // Whoever was faster has the same.
        let _ = fs::rename(&tree, &home);
    }
    home
}

/// This machine's files with GRUB's modules among them: a release's tree, as far as `grub-mkimage` sees one.
struct Tree(PathBuf);

impl Tree {
    fn new(over: &Path, place: &Path) -> Self {
        fs::create_dir_all(place).unwrap();
        run(Command::new("mount").args(["--bind", "/"]).arg(place));
        let made = Self(place.to_owned());
        // Else the next mount shows in this machine's own tree too.
        run(Command::new("mount").arg("--make-private").arg(place));
        let grub = Path::new("usr/lib/grub");
        run(Command::new("mount").arg("--bind").arg(over.join(grub)).arg(place.join(grub)));
        made
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--recursive").arg(&self.0).status();
    }
}

/// Kernel and boot entries, and the script that `grub-config` makes of them.
fn fill(boot: &Path, how: &str) {
    let kernel = tiny::kernel().unwrap();
    fs::create_dir_all(boot.join("loader/entries")).unwrap();
    fs::copy(&kernel.vmlinuz, boot.join("vmlinuz")).unwrap();
    tiny::initramfs(&kernel, "/init", INIT, &boot.join("initramfs")).unwrap();
    for (version, commit, how) in [(2, NEW, how), (1, OLD, "come-up")] {
        let options = format!("console=ttyS0 quiet panic=1 how={how} rackstep.release={commit}");
        let text =
            format!("title {how}\nversion {version}\noptions {options}\nlinux /vmlinuz\ninitrd /initramfs\n");
        fs::write(boot.join(format!("loader/entries/ostree-{version}.conf")), text).unwrap();
    }
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("host-image/root/usr/lib/rackstep");
    run(Command::new("sh").arg(files.join("grub-config")).arg("-o").arg(boot.join("loader/grub.cfg")));
    fs::copy(files.join("grub-static.cfg"), boot.join("grub/grub.cfg")).unwrap();
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// What the console said of each boot, in order: the release's letter and which boot of a trial it is.
fn boots(machine: &Machine<'_>) -> Vec<String> {
    let console = machine.console();
    console.split("boot of ").skip(1).filter_map(|rest| Some(rest.split_once(';')?.0.to_owned())).collect()
}

fn wait_for(machine: &Machine<'_>, count: usize) {
    let seen = poll(BOOT * u32::try_from(count).unwrap(), || {
        Ok::<_, ()>((boots(machine).len() >= count).then_some(()))
    });
    assert!(seen.unwrap().is_some(), "{:?}\n{}", boots(machine), machine.console());
}

/// The new release does `how`, and the power may be cut at its first boot. The old one comes up by itself.
fn comes_back(how: &str, firmware: Firmware, cut: bool) {
    let disk = Disk::new(how);
    let network = Network::create("10.81.0.1/24").unwrap();
    let mut spec = MachineSpec::new("counter", disk.dir.path().join("machine"));
    spec.memory_mib = 256;
    spec.firmware = firmware;
    spec.boot = Boot::Disk;
    let serial = "counter".to_owned();
    spec.disks.push(DiskSpec { path: disk.image(), format: DiskFormat::Raw, serial });
    let mut machine = Machine::new(&network, spec).unwrap();
    machine.power_on().unwrap();
    if cut {
        wait_for(&machine, 1);
        machine.power_cut().unwrap();
        // The count of before the cut is on the disk.
        let ladder = disk.ladder();
        assert!(ladder.tries >= 1 && ladder.trial == NEW.parse().ok(), "{ladder:?}");
        // The panic of before the cut is not one of this start.
        machine.mark();
        machine.power_on().unwrap();
    }
    wait_for(&machine, 4);
    assert_eq!(boots(&machine), ["b trial 1", "b trial 2", "b trial 3", "a trial 0"]);
    machine.quit().unwrap();
    let ladder = disk.ladder();
    let expected = Ladder { confirmed: OLD.parse().ok(), trial: NEW.parse().ok(), tries: 4 };
    assert_eq!(ladder, expected);
}

#[test]
fn a_panic_is_counted_and_a_power_cut_does_not_reset_the_count_bios() {
    comes_back("panic", Firmware::Bios, true);
}

#[test]
fn a_hang_is_counted_bios() {
    comes_back("hang", Firmware::Bios, false);
}

#[test]
fn a_panic_is_counted_uefi() {
    comes_back("panic", Firmware::Uefi, false);
}
