//! Turns a tree of packages into what ostree deploys.
//!
//! 1. what packages put into /var becomes tmpfiles rules: ostree shares /var between deployments and never updates it;
//! 2. /etc moves to /usr/etc, which ostree merges; 3. top-level directories that hold data become links into /var;
//! 4. /sysroot and /ostree exist.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use walkdir::WalkDir;

use super::{PackageError, at, clean, remove};

/// Bump when [`convert`] changes its outcome.
pub const LAYOUT_VERSION: u32 = 2;

/// Top-level names that become links.
const LINKS: [(&str, &str); 8] = [
    ("home", "var/home"),
    ("opt", "var/opt"),
    ("srv", "var/srv"),
    ("root", "var/roothome"),
    ("mnt", "var/mnt"),
    ("media", "run/media"),
    ("tmp", "sysroot/tmp"),
    ("ostree", "sysroot/ostree"),
];

/// Directories that must be there, empty, to mount on.
const MOUNT_POINTS: [&str; 7] = ["boot", "dev", "proc", "sys", "run", "var", "sysroot"];

/// What /var needs for the links above.
const VAR_RULES: &str = "\
d /var/home 0755 root root -
d /var/opt 0755 root root -
d /var/srv 0755 root root -
d /var/roothome 0700 root root -
d /var/mnt 0755 root root -
d /var/usrlocal 0755 root root -
d /var/tmp 1777 root root -
d /var/log 0755 root root -
";

const FACTORY: &str = "usr/share/factory";
/// Sorted last: what packages and the host image say themselves comes first.
const RULES_FILE: &str = "usr/lib/tmpfiles.d/zz-rackstep-var.conf";

/// Parts of /var that are of the package tools, which an ostree host has no use for.
const VAR_LEFT_OUT: [&str; 10] = [
    "var/lib/dpkg",
    "var/lib/apt",
    "var/lib/ucf",
    "var/lib/pam",
    "var/lib/python",
    "var/lib/shells.state",
    "var/lib/systemd/deb-systemd-helper-enabled",
    "var/lib/systemd/deb-systemd-user-helper-enabled",
    "var/cache",
    "var/backups",
];

/// Makes the tree at `root` one that ostree can deploy.
pub fn convert(root: &Path) -> Result<(), PackageError> {
    keep_package_database(root)?;
    for path in VAR_LEFT_OUT {
        remove(&root.join(path))?;
    }
    move_var(root)?;
    let etc = root.join("etc");
    let usr_etc = root.join("usr/etc");
    remove(&usr_etc)?;
    if etc.is_dir() {
        fs::rename(&etc, &usr_etc).map_err(at(&etc))?;
    }
    for (name, target) in LINKS {
        let path = root.join(name);
        remove(&path)?;
        symlink(target, &path).map_err(at(&path))?;
    }
    let local = root.join("usr/local");
    remove(&local)?;
    symlink("../var/usrlocal", &local).map_err(at(&local))?;
    for name in MOUNT_POINTS {
        let path = root.join(name);
        clean::empty(&path)?;
        fs::create_dir_all(&path).map_err(at(&path))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).map_err(at(&path))?;
    }
    Ok(())
}

/// dpkg's status file says what the tree is made of, to scanners too; the rest of its database is for changing it.
fn keep_package_database(root: &Path) -> Result<(), PackageError> {
    let status = root.join("var/lib/dpkg/status");
    if status.is_file() && !root.join("usr/lib/sysimage/dpkg/status").is_file() {
        let kept = root.join("usr/lib/sysimage/dpkg");
        fs::create_dir_all(&kept).map_err(at(&kept))?;
        fs::copy(&status, kept.join("status")).map_err(at(&status))?;
    }
    Ok(())
}

/// Writes a rule for everything in /var, then empties it.
fn move_var(root: &Path) -> Result<(), PackageError> {
    let var = root.join("var");
    let mut rules = String::from(VAR_RULES);
    for entry in WalkDir::new(&var).min_depth(1).sort_by_file_name() {
        let entry = entry.map_err(|error| PackageError::Tree(format!("reading /var: {error}")))?;
        let path = entry.path();
        let relative = path.strip_prefix(root).unwrap_or(path);
        let shown = relative.to_string_lossy();
        if VAR_RULES.contains(&format!(" /{shown} ")) || shown.contains(char::is_whitespace) {
            continue;
        }
        let found = path.symlink_metadata().map_err(at(path))?;
        if found.is_symlink() {
            let target = fs::read_link(path).map_err(at(path))?;
            rules.push_str(&format!("L /{shown} - - - - {}\n", target.display()));
        } else if found.is_dir() {
            let mode = found.mode() & 0o7777;
            rules.push_str(&format!("d /{shown} {mode:04o} {} {} -\n", found.uid(), found.gid()));
        } else if found.is_file() {
            let factory = root.join(FACTORY).join(relative);
            if let Some(parent) = factory.parent() {
                fs::create_dir_all(parent).map_err(at(parent))?;
            }
            fs::rename(path, &factory).map_err(at(path))?;
            rules.push_str(&format!("C /{shown} - - - - /{FACTORY}/{shown}\n"));
        }
    }
    clean::empty(&var)?;
    let file = root.join(RULES_FILE);
    if let Some(parent) = file.parent() {
        fs::create_dir_all(parent).map_err(at(parent))?;
    }
    fs::write(&file, rules).map_err(at(&file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn converts() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        for directory in
            ["etc", "usr/lib", "var/lib/dpkg", "var/lib/chrony", "var/cache/apt", "home", "boot", "tmp"]
        {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        fs::write(root.join("etc/passwd"), "root").unwrap();
        fs::write(root.join("var/lib/dpkg/status"), "Package: x").unwrap();
        fs::write(root.join("var/lib/chrony/drift"), "1").unwrap();
        symlink("/run", root.join("var/run")).unwrap();
        fs::set_permissions(root.join("var/lib/chrony"), fs::Permissions::from_mode(0o750)).unwrap();
        convert(root).unwrap();
        assert_eq!(fs::read_to_string(root.join("usr/etc/passwd")).unwrap(), "root");
        assert!(!root.join("etc").exists());
        assert_eq!(fs::read_to_string(root.join("usr/lib/sysimage/dpkg/status")).unwrap(), "Package: x");
        assert_eq!(fs::read_dir(root.join("var")).unwrap().count(), 0);
        assert_eq!(fs::read_link(root.join("home")).unwrap(), Path::new("var/home"));
        assert!(root.join("sysroot").is_dir());
        let rules = fs::read_to_string(root.join(RULES_FILE)).unwrap();
        let (uid, gid) = {
            let m = root.join("sysroot").metadata().unwrap();
            (m.uid(), m.gid())
        };
        assert!(rules.contains(&format!("d /var/lib/chrony 0750 {uid} {gid} -\n")), "{rules}");
        assert!(
            rules.contains("C /var/lib/chrony/drift - - - - /usr/share/factory/var/lib/chrony/drift\n"),
            "{rules}"
        );
        assert!(rules.contains("L /var/run - - - - /run\n"), "{rules}");
        assert!(!rules.contains("dpkg"), "{rules}");
    }
}
