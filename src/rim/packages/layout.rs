//! Turns a tree of packages into what ostree deploys.
//!
//! 1. what is in /opt and /usr/local moves to /usr/lib and is linked from there, so that it changes with the release; what is
//!    in /home, /root and /srv is state, as /var is: a host gets it once, and then it is the host's;
//! 2. what packages put into /var becomes tmpfiles rules: ostree shares /var between deployments and never updates it;
//! 3. /etc moves to /usr/etc, which ostree merges; 4. top-level directories that hold data become links into /var;
//! 5. /sysroot and /ostree exist. Nothing is dropped without a word: [`why_lost`] tells what no host would see.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use walkdir::WalkDir;

use super::{PackageError, at, clean, remove};
use crate::model::Digest;

/// Bump when [`convert`] changes its outcome.
pub const LAYOUT_VERSION: u32 = 3;

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
const VAR_LEFT_OUT: [&str; 15] = [
    "var/lib/dpkg",
    "var/lib/apt",
    "var/lib/ucf",
    "var/lib/pam",
    "var/lib/python",
    "var/lib/shells.state",
    "var/lib/systemd/deb-systemd-helper-enabled",
    "var/lib/systemd/deb-systemd-user-helper-enabled",
    "var/cache/apt",
    "var/cache/debconf",
    "var/cache/fontconfig",
    "var/cache/ldconfig",
    "var/cache/man",
    "var/cache/swcatalog",
    "var/backups",
];

/// Directories that are empty on every host when it starts, or somebody else's.
const NOT_OURS: [&str; 12] =
    ["boot", "dev", "media", "mnt", "ostree", "proc", "run", "sys", "sysroot", "tmp", "var/log", "var/tmp"];

/// Why a file at `place`, relative to the tree, would reach no host, and what to do instead.
pub fn why_lost(place: &Path) -> Option<&'static str> {
    let below = |names: &[&str]| names.iter().any(|name| place.starts_with(name));
    if below(&NOT_OURS) {
        Some("it is empty when a host starts: have a rule in /usr/lib/tmpfiles.d make the file")
    } else if below(&VAR_LEFT_OUT) || below(&clean::REMOVED) {
        Some("it belongs to the package tools, or to one machine, and is taken out of every tree")
    } else if below(&["usr/etc"]) {
        Some("ostree keeps a copy of /etc there: put the file below /etc")
    } else {
        None
    }
}

/// Makes the tree at `root` one that ostree can deploy.
pub fn convert(root: &Path) -> Result<(), PackageError> {
    keep_package_database(root)?;
    for path in VAR_LEFT_OUT {
        remove(&root.join(path))?;
    }
    let mut rules = String::from(VAR_RULES);
    move_programs(root, "opt", "usr/lib/opt", "var/opt", &mut rules)?;
    move_programs(root, "usr/local", "usr/lib/local", "var/usrlocal", &mut rules)?;
    for (from, to) in [("home", "var/home"), ("srv", "var/srv"), ("root", "var/roothome")] {
        move_state(root, from, to)?;
    }
    for name in ["mnt", "media"] {
        if let Some(entry) = clean::read_names(&root.join(name))?.first() {
            return Err(PackageError::Tree(format!("/{name}/{entry}: /{name} is empty when a host starts")));
        }
    }
    move_var(root, rules)?;
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

/// Moves programs of `from` to `kept` in /usr, and has a host link each to where it was, below `var`.
fn move_programs(
    root: &Path,
    from: &str,
    kept: &str,
    var: &str,
    rules: &mut String,
) -> Result<(), PackageError> {
    let base = root.join(from);
    for entry in WalkDir::new(&base).min_depth(1).sort_by_file_name().into_iter().flatten() {
        let path = entry.path();
        let relative = path.strip_prefix(&base).unwrap_or(path);
        let found = path.symlink_metadata().map_err(at(path))?;
        let place = field(&Path::new("/").join(var).join(relative))?;
        if found.is_dir() {
            let (mode, uid, gid) = (found.mode() & 0o7777, found.uid(), found.gid());
            rules.push_str(&format!("d {place} {mode:04o} {uid} {gid} -\n"));
            continue;
        }
        let target = if found.is_symlink() {
            let to = fs::read_link(path).map_err(at(path))?;
            // Relative to where it was, and not to the other side of the link.
            normal(&Path::new("/").join(from).join(relative).join("..").join(to))
        } else {
            require_file(&found, &Path::new("/").join(from).join(relative))?;
            let target = plain(Path::new(kept), relative);
            rename(path, &root.join(&target))?;
            Path::new("/").join(target)
        };
        rules.push_str(&format!("L+ {place} - - - - {}\n", argument(&target)?));
    }
    remove(&base)
}

/// Moves a directory of state to its place in /var.
fn move_state(root: &Path, from: &str, to: &str) -> Result<(), PackageError> {
    for name in clean::read_names(&root.join(from))? {
        let target = root.join(to).join(&name);
        if target.symlink_metadata().is_ok() {
            return Err(PackageError::Tree(format!(
                "/{from}/{name} and /{to}/{name} are one place on a host"
            )));
        }
        rename(&root.join(from).join(&name), &target)?;
    }
    Ok(())
}

fn rename(from: &Path, to: &Path) -> Result<(), PackageError> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).map_err(at(parent))?;
    }
    fs::rename(from, to).map_err(at(from))
}

fn require_file(found: &fs::Metadata, shown: &Path) -> Result<(), PackageError> {
    if found.is_file() {
        return Ok(());
    }
    Err(PackageError::Tree(format!("{}: neither a file, a directory nor a link", shown.display())))
}

/// The path without `.` and `..`, as if no part of it were a link.
fn normal(path: &Path) -> PathBuf {
    let mut parts = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::ParentDir => drop(parts.pop()),
            Component::Normal(name) => parts.push(name),
            _ => {}
        }
    }
    parts
}

/// A path as a field of a tmpfiles.d line: quoted if it must be, `%` doubled (tmpfiles.d(5)). The forms are those that all
/// versions of systemd read; a name that none of them reads is refused.
fn field(path: &Path) -> Result<String, PackageError> {
    let text = path.to_str().filter(|text| !text.contains(char::is_control));
    let wrong =
        || PackageError::Tree(format!("{path:?}: no rule of tmpfiles.d can make a file of this name"));
    let text = text.ok_or_else(wrong)?.replace('%', "%%");
    if !text.contains([' ', '"', '\'', '\\']) {
        return Ok(text);
    }
    Ok(format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")))
}

/// The last field of a tmpfiles.d line, which systemd takes as it is but for `%`.
fn argument(path: &Path) -> Result<String, PackageError> {
    match path.to_str() {
        // Some versions of systemd read C escapes here, and others do not.
        Some(text) if !text.contains(|c: char| c.is_control() || c == '\\') => Ok(text.replace('%', "%%")),
        _ => Err(PackageError::Tree(format!(
            "a link in /var, /opt or /usr/local to {path:?}: no rule of tmpfiles.d can make it"
        ))),
    }
}

/// Where `relative` is kept below `base`: under its own name, unless a rule could not name it.
fn plain(base: &Path, relative: &Path) -> PathBuf {
    if field(relative).is_ok_and(|field| field.as_bytes() == relative.as_os_str().as_bytes()) {
        return base.join(relative);
    }
    let digest = Digest::of(relative.as_os_str().as_bytes()).hex();
    base.join("rackstep").join(&digest[..ODD_NAME])
}

/// Digits of a digest that stand for a name: 64 bits, and a clash would show as a missing file.
const ODD_NAME: usize = 16;

/// Writes a rule for everything in /var, then empties it.
fn move_var(root: &Path, mut rules: String) -> Result<(), PackageError> {
    let var = root.join("var");
    for entry in WalkDir::new(&var).min_depth(1).sort_by_file_name() {
        let entry = entry.map_err(|error| PackageError::Tree(format!("reading /var: {error}")))?;
        let path = entry.path();
        let relative = path.strip_prefix(root).unwrap_or(path);
        let place = Path::new("/").join(relative);
        if VAR_RULES.contains(&format!(" {} ", place.display())) {
            continue;
        }
        let found = path.symlink_metadata().map_err(at(path))?;
        let shown = field(&place)?;
        if found.is_symlink() {
            let target = fs::read_link(path).map_err(at(path))?;
            rules.push_str(&format!("L {shown} - - - - {}\n", argument(&target)?));
        } else if found.is_dir() {
            let mode = found.mode() & 0o7777;
            rules.push_str(&format!("d {shown} {mode:04o} {} {} -\n", found.uid(), found.gid()));
        } else {
            require_file(&found, &place)?;
            let factory = plain(Path::new(FACTORY), relative);
            rename(path, &root.join(&factory))?;
            rules.push_str(&format!("C {shown} - - - - {}\n", argument(&Path::new("/").join(factory))?));
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

    /// Writes every path that ostree moves, with names that rules must quote, and lets systemd-tmpfiles make a host of it.
    #[test]
    fn nothing_of_an_overlay_vanishes() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        let files = [
            "opt/site-agent/bin/agent",
            "usr/local/bin/site-tool",
            "srv/www/index.html",
            "root/.bash_aliases",
            "home/op/.profile",
            "var/lib/site data/settings",
            "var/cache/site/seed",
            "var/lib/site/50%off.conf",
            "var/lib/site/back\\slash.conf",
            "var/lib/site/q\"uote.conf",
        ];
        for file in files {
            let path = root.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, file).unwrap();
        }
        symlink("../../bin/sh", root.join("usr/local/bin/link")).unwrap();
        convert(&root).unwrap();
        let rules = fs::read_to_string(root.join(RULES_FILE)).unwrap();
        let tmpfiles = std::process::Command::new("systemd-tmpfiles")
            .args(["--create", "--prefix=/var", "--root"])
            .arg(&root)
            .arg(root.join(RULES_FILE))
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&tmpfiles.stderr).into_owned();
        for file in files {
            let place = [("opt/", "var/opt/"), ("usr/local/", "var/usrlocal/"), ("srv/", "var/srv/")];
            let place = place.into_iter().chain([("root/", "var/roothome/"), ("home/", "var/home/")]);
            let place = place.fold(file.to_owned(), |path, (from, to)| match path.strip_prefix(from) {
                Some(rest) => format!("{to}{rest}"),
                None => path,
            });
            let path = root.join(&place);
            let path = match fs::read_link(&path) {
                Ok(target) => root.join(target.strip_prefix("/").unwrap()),
                Err(_) => path,
            };
            assert_eq!(fs::read_to_string(&path).ok().as_deref(), Some(file), "{place}\n{rules}\n{told}");
        }
        assert_eq!(fs::read_link(root.join("var/usrlocal/bin/link")).unwrap(), Path::new("/usr/bin/sh"));
    }

    #[test]
    fn what_no_host_would_see_is_named() {
        for (place, lost) in [
            ("run/overlay-probe", true),
            ("boot/extra.cfg", true),
            ("var/log/site/log", true),
            ("usr/etc/conf", true),
            ("var/lib/dpkg/status", true),
            ("etc/ssl/certs/site.pem", false),
            ("opt/site/agent", false),
            ("var/cache/site/seed", false),
            ("runner", false),
        ] {
            assert_eq!(why_lost(Path::new(place)).is_some(), lost, "{place}");
        }
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("mnt/disk")).unwrap();
        let told = convert(root.path()).unwrap_err().to_string();
        assert!(told.contains("/mnt/disk"), "{told}");
    }
}
