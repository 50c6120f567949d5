//! Unpacks the kernel's modules, which distributions ship compressed.
//!
//! 1. Every module below the kernel's directory is decompressed beside itself, and the packed one removed; 2. the
//!    tree's own depmod writes the indexes anew: they name files.
//!
//! A packed module changes from end to end when one instruction does, so a kernel update could not be sent as
//! differences (docs/decisions/0011-kernel-modules-unpacked.md).

use std::path::{Path, PathBuf};
use std::process::Command;

use rayon::prelude::*;
use walkdir::WalkDir;

use super::initramfs::kernel_dir;
use super::{PackageError, chroot, remove};
use crate::rim::command::run;

/// Bump when [`unpack`] changes its outcome.
pub const MODULES_VERSION: u32 = 1;

/// Suffixes of packed modules, and the programs of the composing machine that unpack them: the tree may have none.
const PACKERS: [(&str, &str); 3] = [(".ko.xz", "xz"), (".ko.zst", "zstd"), (".ko.gz", "gzip")];
/// Files given to one program: enough to pay for its start, few enough to keep all cores busy to the end.
const BATCH: usize = 48;

/// Unpacks all modules of `kernel` in the tree at `root` and indexes them; gives how many were packed.
///
/// Packed files are replaced, never written to: a tree that shares them by hard links keeps its own.
pub fn unpack(root: &Path, kernel: &str, created: u64) -> Result<usize, PackageError> {
    let packed = find(&kernel_dir(root, kernel))?;
    let batches: Vec<(&str, &[PathBuf])> = packed
        .iter()
        .flat_map(|(program, files)| files.chunks(BATCH).map(|batch| (*program, batch)))
        .collect();
    batches.into_par_iter().try_for_each(|(program, batch)| unpack_batch(program, batch))?;
    // Also where nothing was packed: a script may have taken modules out.
    chroot::run_in(root, "indexing the kernel's modules", created, ["depmod", kernel])?;
    Ok(packed.iter().map(|(_, files)| files.len()).sum())
}

/// Packed modules by the program that unpacks them. Links are left to their targets: there are none in practice.
fn find(directory: &Path) -> Result<Vec<(&'static str, Vec<PathBuf>)>, PackageError> {
    let mut found = PACKERS.map(|(_, program)| (program, Vec::new()));
    for entry in WalkDir::new(directory).sort_by_file_name() {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy();
        let packer = PACKERS.iter().position(|(suffix, _)| name.ends_with(suffix));
        if let Some(packer) = packer.filter(|_| entry.file_type().is_file()) {
            found[packer].1.push(entry.into_path());
        }
    }
    Ok(found.into())
}

/// All three programs keep mode, owner and time. `--force`: xz refuses files with a second link.
fn unpack_batch(program: &str, batch: &[PathBuf]) -> Result<(), PackageError> {
    run(Command::new(program).args(["--decompress", "--force", "--quiet", "--"]).args(batch))?;
    // zstd keeps what it read.
    batch.iter().try_for_each(|path| remove(path))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    #[test]
    fn replaces_packed_modules() {
        let dir = tempfile::tempdir().unwrap();
        let drivers = dir.path().join("kernel/drivers");
        fs::create_dir_all(&drivers).unwrap();
        for (name, program) in
            [("a.ko", "xz"), ("b.ko", "zstd"), ("c.ko", "gzip"), ("plain.ko", ""), ("text.xz", "")]
        {
            let file = drivers.join(name);
            fs::write(&file, name).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
            if !program.is_empty() {
                run(Command::new(program).arg("-q").arg(&file)).unwrap();
                let _ = fs::remove_file(&file);
            }
        }
        let other = dir.path().join("shared.ko.xz");
        fs::hard_link(drivers.join("a.ko.xz"), &other).unwrap();
        let before = fs::read(&other).unwrap();

        let packed = find(dir.path()).unwrap();
        // The link outside is found too; only the tree's directory is looked at in earnest.
        assert_eq!(packed.iter().map(|(_, files)| files.len()).collect::<Vec<_>>(), [2, 1, 1]);
        for (program, files) in find(&drivers).unwrap() {
            unpack_batch(program, &files).unwrap();
        }
        let mut names: Vec<_> =
            fs::read_dir(&drivers).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["a.ko", "b.ko", "c.ko", "plain.ko", "text.xz"]);
        for name in ["a.ko", "b.ko", "c.ko"] {
            assert_eq!(fs::read(drivers.join(name)).unwrap(), name.as_bytes());
            assert_eq!(fs::metadata(drivers.join(name)).unwrap().mode() & 0o7777, 0o640);
        }
        assert_eq!(fs::read(other).unwrap(), before, "the file that was shared is as it was");
    }

    #[test]
    fn a_damaged_module_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.ko.xz");
        fs::write(&file, "not xz").unwrap();
        let told = unpack_batch("xz", &[file]).unwrap_err().to_string();
        assert!(told.starts_with("xz ended with exit status: 1"), "{told}");
    }
}
