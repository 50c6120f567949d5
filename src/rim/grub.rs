//! GRUB, put on a disk that has no partition table yet.
//!
//! `grub-install` and `grub-bios-setup` look for the partition table, which is written last; so their three effects are
//! made here, from the GRUB *of the release*:
//!
//! 1. `grub-mkimage`, run in the deployment, links an image whose prefix is `(,gpt3)/grub`: the `/boot` partition of the
//!    disk that the image itself was loaded from, whatever else is in the machine;
//! 2. BIOS: the image goes to the BIOS boot partition, its block list and `boot.img` are pointed at it
//!    (`util/setup.c` and `include/grub/offsets.h` of GRUB name the offsets); UEFI: it goes to the removable path of the ESP;
//! 3. `/boot/grub` gets the modules and a static `grub.cfg`, which reads the entries that libostree swaps by a rename.
//!
//! It writes no firmware variables: the removable path needs none, and a wrong boot order is worse than none.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use fatfs::{FileSystem, FsOptions};

use super::command::{self, CommandError};
use super::disk::layout::{BOOT_NUMBER, Span};
use super::disk::table::BOOT_CODE;
use super::grub_env::{self, GrubEnv, GrubEnvError};

/// Modules that both images carry: to read the disk, the configuration and the kernel, and to be seen on a serial line.
const MODULES: [&str; 20] = [
    "part_gpt",
    "ext2",
    "normal",
    "configfile",
    "linux",
    "search",
    "search_fs_uuid",
    "search_label",
    "test",
    "echo",
    "sleep",
    "loadenv",
    "gzio",
    "serial",
    "terminal",
    "minicmd",
    "reboot",
    "halt",
    "true",
    "regexp",
];
const BIOS_MODULES: [&str; 1] = ["biosdisk"];
const UEFI_MODULES: [&str; 3] = ["fat", "all_video", "efi_gop"];

/// What a BIOS reads and GRUB counts in.
const SECTOR: usize = 512;
/// In `boot.img`: sector of the core image (`GRUB_BOOT_MACHINE_KERNEL_SECTOR`).
const KERNEL_SECTOR: usize = 0x5c;
/// In `boot.img`: the jump over the fix for BIOSes that pass a wrong drive (`GRUB_BOOT_MACHINE_DRIVE_CHECK`).
const DRIVE_CHECK: usize = 0x66;
/// In the core image's first sector: its block list's first entry (start: 8 bytes, sectors: 2, segment: 2).
const BLOCK_LIST: usize = SECTOR - 12;

/// The static configuration in the release, if it brings one of its own.
const STATIC_CONFIG: &str = "usr/lib/rackstep/grub-static.cfg";
/// The static configuration for a release that brings none.
const DEFAULT_CONFIG: &str = "\
# Written once, by the installer. The entries are in /loader/grub.cfg, which every deployment replaces by a rename.
if serial --unit=0 --speed=115200; then
    terminal_input console serial
    terminal_output console serial
fi
set timeout=2
set default=0
source /loader/grub.cfg
";

/// Why the boot loader could not be made.
#[derive(Debug, thiserror::Error)]
pub enum GrubError {
    /// The release has no GRUB at all.
    #[error("{} holds neither usr/lib/grub/i386-pc nor usr/lib/grub/x86_64-efi", .0.display())]
    None(PathBuf),
    /// The machine was started by a firmware that the release has no GRUB for.
    #[error("{} holds no GRUB for {firmware}", root.display())]
    Missing {
        /// The deployment.
        root: PathBuf,
        /// `BIOS` or `UEFI`.
        firmware: &'static str,
    },
    /// A program failed.
    #[error("{doing}")]
    Command {
        /// What it was run for.
        doing: &'static str,
        /// Why it failed.
        #[source]
        source: CommandError,
    },
    /// A file could not be read or written.
    #[error("{doing} {}", path.display())]
    Io {
        /// The operation.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// GRUB could not count the boots of a trial there.
    #[error("making GRUB's environment")]
    Environment(#[from] GrubEnvError),
    /// An image has not the size that its format has.
    #[error("{what} has {size} bytes, which cannot be right")]
    Size {
        /// Which image.
        what: &'static str,
        /// Its size.
        size: usize,
    },
}

/// GRUB for BIOS, pointed at its place on the disk.
#[derive(Debug)]
pub struct BiosGrub {
    /// The first bytes of the disk's first sector.
    pub boot_code: Box<[u8; BOOT_CODE]>,
    /// The BIOS boot partition from its first byte on.
    pub core: Vec<u8>,
}

/// GRUB of one deployment.
#[derive(Debug)]
pub struct Grub<'a> {
    root: &'a Path,
}

impl<'a> Grub<'a> {
    /// GRUB as it is in the deployment at `root`.
    pub fn of(root: &'a Path) -> Result<Self, GrubError> {
        let grub = Self { root };
        if grub.has("i386-pc") || grub.has("x86_64-efi") {
            Ok(grub)
        } else {
            Err(GrubError::None(root.to_owned()))
        }
    }

    /// Fails when the release could not start this machine.
    pub fn require(&self, uefi: bool) -> Result<(), GrubError> {
        let (platform, firmware) = if uefi { ("x86_64-efi", "UEFI") } else { ("i386-pc", "BIOS") };
        if self.has(platform) {
            Ok(())
        } else {
            Err(GrubError::Missing { root: self.root.to_owned(), firmware })
        }
    }

    /// Makes GRUB for BIOS for the BIOS boot partition at `span`; none when the release has none.
    pub fn make_bios(&self, span: Span) -> Result<Option<BiosGrub>, GrubError> {
        if !self.has("i386-pc") {
            return Ok(None);
        }
        let core = self.link("i386-pc", &BIOS_MODULES)?;
        let path = self.root.join("usr/lib/grub/i386-pc/boot.img");
        let boot = fs::read(&path).map_err(|source| GrubError::Io { doing: "reading", path, source })?;
        point_at(boot, core, span).map(Some)
    }

    /// Makes the UEFI program and puts it on the ESP `device` under the name that firmware looks for without being told.
    ///
    /// Written without the kernel: the one of the machine that makes an image may not know FAT.
    pub fn install_uefi(&self, device: &Path) -> Result<bool, GrubError> {
        if !self.has("x86_64-efi") {
            return Ok(false);
        }
        let image = self.link("x86_64-efi", &UEFI_MODULES)?;
        write_esp(device, &image).map_err(|source| GrubError::Io {
            doing: "writing EFI/BOOT/BOOTX64.EFI to",
            path: device.to_owned(),
            source,
        })?;
        Ok(true)
    }

    /// Fills `/boot/grub` with the modules and the static configuration.
    pub fn install_files(&self, boot: &Path) -> Result<(), GrubError> {
        let place = boot.join("grub");
        for platform in ["i386-pc", "x86_64-efi"] {
            let from = self.platform(platform);
            if from.is_dir() {
                copy_modules(&from, &place.join(platform))?;
            }
        }
        let own = self.root.join(STATIC_CONFIG);
        let config = if own.exists() {
            fs::read(&own).map_err(|source| GrubError::Io { doing: "reading", path: own, source })?
        } else {
            DEFAULT_CONFIG.into()
        };
        let path = place.join("grub.cfg");
        fs::create_dir_all(&place).and_then(|()| fs::write(&path, config)).map_err(|source| GrubError::Io {
            doing: "writing",
            path,
            source,
        })
    }

    /// Makes the environment in which GRUB counts boots, or keeps the one that is there. A `/boot` that GRUB cannot write
    /// is refused.
    pub fn create_environment(boot: &Path) -> Result<(), GrubError> {
        let env = boot.join(grub_env::PLACE);
        let (filesystem, device) = under(boot);
        grub_env::require_writable(&env, &filesystem, &device)?;
        Ok(GrubEnv::create(&env)?)
    }

    fn platform(&self, name: &str) -> PathBuf {
        self.root.join("usr/lib/grub").join(name)
    }

    fn has(&self, platform: &str) -> bool {
        self.platform(platform).is_dir()
    }

    /// Links an image; grub-mkimage prints it, so nothing is written into the deployment.
    ///
    /// It prints to a file because it syncs what it has printed, which fails on a pipe.
    fn link(&self, platform: &str, modules: &[&str]) -> Result<Vec<u8>, GrubError> {
        let mut mkimage = Command::new("chroot");
        mkimage
            .arg(self.root)
            .args(["/usr/bin/grub-mkimage", "--format", platform])
            .args(["--prefix", &format!("(,gpt{BOOT_NUMBER})/grub")])
            .args(MODULES)
            .args(modules);
        let failed =
            |source| GrubError::Io { doing: "keeping GRUB's image of", path: self.root.to_owned(), source };
        let mut printed = tempfile::tempfile().map_err(failed)?;
        command::run(mkimage.stdout(printed.try_clone().map_err(failed)?))
            .map_err(|source| GrubError::Command { doing: "linking GRUB", source })?;
        let mut image = Vec::new();
        printed.rewind().and_then(|()| printed.read_to_end(&mut image)).map_err(failed)?;
        Ok(image)
    }
}

/// Points `boot.img` and the core image at the core image's place.
fn point_at(mut boot: Vec<u8>, mut core: Vec<u8>, span: Span) -> Result<BiosGrub, GrubError> {
    if boot.len() != SECTOR {
        return Err(GrubError::Size { what: "GRUB's boot.img", size: boot.len() });
    }
    if core.len() <= SECTOR || core.len() as u64 > span.size {
        return Err(GrubError::Size { what: "GRUB's core image", size: core.len() });
    }
    let size = core.len();
    core.resize(size.div_ceil(SECTOR) * SECTOR, 0);
    let first = span.start / SECTOR as u64;
    let rest = u16::try_from(core.len() / SECTOR - 1)
        .map_err(|_| GrubError::Size { what: "GRUB's core image", size })?;
    core[BLOCK_LIST..BLOCK_LIST + 8].copy_from_slice(&(first + 1).to_le_bytes());
    core[BLOCK_LIST + 8..BLOCK_LIST + 10].copy_from_slice(&rest.to_le_bytes());
    boot[KERNEL_SECTOR..KERNEL_SECTOR + 8].copy_from_slice(&first.to_le_bytes());
    // Two no-ops, as grub-bios-setup does for every hard disk.
    boot[DRIVE_CHECK..DRIVE_CHECK + 2].copy_from_slice(&[0x90, 0x90]);
    let mut boot_code = Box::new([0; BOOT_CODE]);
    boot_code.copy_from_slice(&boot[..BOOT_CODE]);
    Ok(BiosGrub { boot_code, core })
}

fn write_esp(device: &Path, program: &[u8]) -> io::Result<()> {
    let disk = File::options().read(true).write(true).open(device)?;
    let esp = FileSystem::new(&disk, FsOptions::new())?;
    let boot = esp.root_dir().create_dir("EFI")?.create_dir("BOOT")?;
    let mut file = boot.create_file("BOOTX64.EFI")?;
    file.truncate()?;
    file.write_all(program)?;
    file.flush()?;
    drop((file, boot));
    esp.unmount()?;
    disk.sync_all()
}

/// Type of the file system that `path` is in, and the name of the device below it, from `/proc/self/mountinfo`; what is not
/// found there is not on a disk.
fn under(path: &Path) -> (String, String) {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let path = path.canonicalize().unwrap_or_else(|_gone| path.to_owned());
    let mounts = table.lines().filter_map(|line| {
        let (mount, rest) = line.split_once(" - ")?;
        let place = PathBuf::from(mount.split(' ').nth(4)?.replace("\\040", " "));
        let mut rest = rest.split(' ');
        let (kind, source) = (rest.next()?, rest.next()?);
        path.starts_with(&place).then(|| (place, kind.to_owned(), source.to_owned()))
    });
    // Of two at one place the later one counts.
    let found = mounts.max_by_key(|(place, ..)| place.components().count());
    let (_, kind, source) = found.unwrap_or_default();
    let device = Path::new(&source).canonicalize().unwrap_or_else(|_none| source.clone().into());
    (kind, device.file_name().unwrap_or_default().to_string_lossy().into_owned())
}

fn copy_modules(from: &Path, to: &Path) -> Result<(), GrubError> {
    let failed = |doing: &'static str, path: &Path| {
        let path = path.to_owned();
        move |source| GrubError::Io { doing, path, source }
    };
    fs::create_dir_all(to).map_err(failed("creating", to))?;
    for entry in fs::read_dir(from).map_err(failed("listing", from))? {
        let path = entry.map_err(failed("listing", from))?.path();
        let wanted = path.extension().is_some_and(|kind| kind == "mod" || kind == "lst");
        if let (true, Some(name)) = (wanted, path.file_name()) {
            fs::copy(&path, to.join(name)).map_err(failed("copying", &path))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_code_points_at_the_core_and_the_core_at_its_rest() {
        let span = Span { start: 1_048_576, size: 1_048_576 };
        let made = point_at(vec![0xeb; 512], vec![0xcc; 1300], span).unwrap();
        // Sector 2048 and, for the two sectors after the first, 2049.
        assert_eq!(made.boot_code[0x5c..0x64], [0, 8, 0, 0, 0, 0, 0, 0]);
        assert_eq!(made.boot_code[0x66..0x68], [0x90, 0x90]);
        assert_eq!(made.core.len(), 1536);
        assert_eq!(made.core[500..510], [1, 8, 0, 0, 0, 0, 0, 0, 2, 0]);
        // The segment stays as grub-mkimage wrote it.
        assert_eq!(made.core[510..512], [0xcc, 0xcc]);
        assert_eq!(made.core[1299..1301], [0xcc, 0]);
    }

    #[test]
    fn images_of_a_wrong_size() {
        let span = Span { start: 1_048_576, size: 1_048_576 };
        for (boot, core) in [(511, 1300), (512, 512), (512, 1_048_577)] {
            assert!(matches!(point_at(vec![0; boot], vec![0; core], span), Err(GrubError::Size { .. })));
        }
    }

    #[test]
    fn a_release_without_grub() {
        let root = tempfile::tempdir().unwrap();
        assert!(matches!(Grub::of(root.path()), Err(GrubError::None(_))));
        fs::create_dir_all(root.path().join("usr/lib/grub/i386-pc")).unwrap();
        let grub = Grub::of(root.path()).unwrap();
        assert!(grub.require(false).is_ok());
        assert!(matches!(grub.require(true), Err(GrubError::Missing { firmware: "UEFI", .. })));
    }

    #[test]
    fn own_configuration_goes_before_the_default() {
        let (root, boot) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let pc = root.path().join("usr/lib/grub/i386-pc");
        fs::create_dir_all(&pc).unwrap();
        fs::write(pc.join("ext2.mod"), "m").unwrap();
        fs::write(pc.join("boot.img"), "i").unwrap();
        let grub = Grub::of(root.path()).unwrap();
        grub.install_files(boot.path()).unwrap();
        let config = boot.path().join("grub/grub.cfg");
        assert!(fs::read_to_string(&config).unwrap().contains("source /loader/grub.cfg"));
        assert!(boot.path().join("grub/i386-pc/ext2.mod").exists());
        assert!(!boot.path().join("grub/i386-pc/boot.img").exists());
        fs::create_dir_all(root.path().join("usr/lib/rackstep")).unwrap();
        fs::write(root.path().join(STATIC_CONFIG), "own").unwrap();
        grub.install_files(boot.path()).unwrap();
        assert_eq!(fs::read_to_string(&config).unwrap(), "own");
    }
}
