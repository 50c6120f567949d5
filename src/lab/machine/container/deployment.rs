//! The deployment that a boot loader would start, and whether it is a release of ours. It looks, and mounts nothing.
//!
//! 1. The entry that GRUB would take: `/boot/loader/grub.cfg` is read and GRUB's environment kept as GRUB does it, so that boots
//!    of a trial are counted. Without that file the entry of the highest `version` in `/boot/loader/entries` (Boot Loader
//!    Specification, as libostree writes it);
//! 2. its `ostree=` argument, followed inside the sysroot and never out of it;
//! 3. *by path*: the checkout is `ostree/deploy/<stateroot>/deploy/<commit>.<serial>` of this very sysroot;
//! 4. *by marks*: libostree's (origin, commit object) and the release's own (`release.json`, systemd);
//! 5. neither is this machine's own root.
//!
//! A launcher that was once pointed at an empty sysroot started the machine's own tree as a guest, whose tmpfiles emptied
//! `/tmp`: that is what all of this is for.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use crate::model::release::RELEASE_FORMAT;
use crate::model::trial::{RELEASE_ARGUMENT, TRIAL_ARGUMENT};
use crate::model::{Commit, RELEASE_DIR, ReleaseInfo};
use crate::rim::grub_env::{self, GrubEnv, GrubEnvError};
use crate::rim::grub_script::{self, ScriptError};

/// What is to be process 1.
pub const INIT: &str = "usr/lib/systemd/systemd";
/// Directories that a checkout has, for what is mounted there.
const PLACES: [&str; 9] = ["boot", "dev", "etc", "proc", "run", "sys", "sysroot", "usr", "var"];

/// A deployment that was looked at and found to be a release of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deployment {
    /// The boot entry's file name.
    pub entry: String,
    /// Its kernel arguments.
    pub options: String,
    /// The stateroot.
    pub stateroot: String,
    /// The release's commit.
    pub commit: Commit,
    /// The release's version.
    pub version: String,
    /// The checkout.
    pub checkout: PathBuf,
    /// Device and inode of the checkout.
    pub identity: (u64, u64),
}

/// Why init is not started there.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// A file or directory cannot be read.
    #[error("{operation} {}", path.display())]
    Unreadable {
        /// What was tried.
        operation: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It is what this machine runs from.
    #[error("{} is the root of this machine itself", .0.display())]
    OwnRoot(PathBuf),
    /// There is no ostree repo.
    #[error("{} is not a sysroot: it has no ostree/repo", .0.display())]
    NoSysroot(PathBuf),
    /// There is no boot entry.
    #[error("no boot entry in {}: nothing is deployed", .0.display())]
    NoEntry(PathBuf),
    /// GRUB's configuration is not ours.
    #[error(transparent)]
    Script(#[from] ScriptError),
    /// GRUB's environment.
    #[error(transparent)]
    Environment(#[from] GrubEnvError),
    /// GRUB would stay at its menu.
    #[error("GRUB would wait for a person at its menu: neither the new release nor {0} came up")]
    Waits(String),
    /// A boot entry names no deployment.
    #[error("boot entry {0} has no ostree= argument")]
    NoArgument(String),
    /// A boot entry leads nowhere.
    #[error("boot entry {entry} leads to {argument}, which is not there")]
    Gone {
        /// The entry.
        entry: String,
        /// Its `ostree=`.
        argument: String,
    },
    /// A boot entry leads to something that is no deployment of this sysroot.
    #[error("boot entry {entry} leads to {}, which is not a deployment of this sysroot", path.display())]
    Elsewhere {
        /// The entry.
        entry: String,
        /// Where it leads.
        path: PathBuf,
    },
    /// Something that every deployment has is missing.
    #[error("deployment {deployment} is not whole: {} is missing", mark.display())]
    Incomplete {
        /// `<commit>.<serial>`.
        deployment: String,
        /// What is missing.
        mark: PathBuf,
    },
    /// It is a deployment of something else.
    #[error("deployment {deployment} is not a release of rackstep: {why}")]
    NotARelease {
        /// `<commit>.<serial>`.
        deployment: String,
        /// Why not.
        why: String,
    },
}

/// Finds the deployment that `sysroot` boots, and checks it.
pub fn find(sysroot: &Path) -> Result<Deployment, Refused> {
    let sysroot = &fs::canonicalize(sysroot).map_err(unreadable("looking for", sysroot))?;
    require_other_root(sysroot)?;
    if !sysroot.join("ostree/repo/config").is_file() {
        return Err(Refused::NoSysroot(sysroot.clone()));
    }
    let entry = chosen_entry(sysroot)?;
    let checkout = follow(sysroot, &entry)?;
    let (stateroot, name) = split(sysroot, &checkout)
        .ok_or_else(|| Refused::Elsewhere { entry: entry.name.clone(), path: checkout.clone() })?;
    let commit: Commit = name
        .split_once('.')
        .and_then(|(commit, _)| commit.parse().ok())
        .ok_or_else(|| Refused::Elsewhere { entry: entry.name.clone(), path: checkout.clone() })?;
    require_whole(sysroot, &checkout, &stateroot, &name, commit)?;
    let version = require_release(&checkout, &name)?;
    let identity = require_other_root(&checkout)?;
    Ok(Deployment {
        entry: entry.name,
        options: entry.options,
        stateroot,
        commit,
        version,
        checkout,
        identity,
    })
}

/// Device and inode of a directory that is not this machine's root.
fn require_other_root(directory: &Path) -> Result<(u64, u64), Refused> {
    let identity = |path: &Path| {
        fs::metadata(path)
            .map(|metadata| (metadata.dev(), metadata.ino()))
            .map_err(unreadable("looking at", path))
    };
    let found = identity(directory)?;
    if found == identity(Path::new("/"))? {
        return Err(Refused::OwnRoot(directory.to_owned()));
    }
    Ok(found)
}

/// A boot entry.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    name: String,
    version: u64,
    options: String,
}

/// The entry that GRUB would boot, or the highest one where there is no GRUB.
fn chosen_entry(sysroot: &Path) -> Result<Entry, Refused> {
    let entries = sysroot.join("boot/loader/entries");
    let config = sysroot.join("boot/loader/grub.cfg");
    let text = match fs::read_to_string(&config) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return highest_entry(&entries),
        Err(error) => return Err(unreadable("reading", &config)(error)),
    };
    let path = sysroot.join("boot").join(grub_env::PLACE);
    let mut env = GrubEnv::read(&path)?;
    let choice = grub_script::run(&text, env.as_mut(), &mut |env| env.write(&path).is_ok())?;
    if choice.waits {
        return Err(Refused::Waits(choice.id));
    }
    let name = |argument: &String| argument.starts_with(RELEASE_ARGUMENT) || argument.starts_with("ostree=");
    let marks: Vec<&String> = choice.arguments.iter().filter(|argument| name(argument)).collect();
    let mut found = all_entries(&entries)?.into_iter().filter(|entry| {
        marks.iter().all(|mark| entry.options.split_whitespace().any(|word| word == mark.as_str()))
    });
    let mut entry = found.next().ok_or(Refused::NoEntry(entries))?;
    // GRUB adds it to boots of a trial.
    for argument in choice.arguments.iter().filter(|argument| argument.starts_with(TRIAL_ARGUMENT)) {
        entry.options = format!("{} {argument}", entry.options);
    }
    Ok(entry)
}

fn highest_entry(directory: &Path) -> Result<Entry, Refused> {
    let highest = all_entries(directory)?.into_iter().max_by_key(|entry| entry.version);
    highest.ok_or_else(|| Refused::NoEntry(directory.to_owned()))
}

fn all_entries(directory: &Path) -> Result<Vec<Entry>, Refused> {
    let listing = match fs::read_dir(directory) {
        Ok(listing) => listing,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Refused::NoEntry(directory.to_owned()));
        }
        Err(error) => return Err(unreadable("listing", directory)(error)),
    };
    let mut entries = Vec::new();
    for file in listing {
        let path = file.map_err(unreadable("listing", directory))?.path();
        if path.extension().is_none_or(|extension| extension != "conf") {
            continue;
        }
        let text = fs::read_to_string(&path).map_err(unreadable("reading", &path))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        entries.push(parse_entry(name, &text));
    }
    Ok(entries)
}

fn parse_entry(name: String, text: &str) -> Entry {
    let field = |key: &str| {
        let mut lines = text.lines().filter_map(|line| line.trim().split_once(char::is_whitespace));
        lines.find(|(found, _)| *found == key).map(|(_, value)| value.trim())
    };
    let version = field("version").and_then(|version| version.parse().ok()).unwrap_or_default();
    Entry { name, version, options: field("options").unwrap_or_default().to_owned() }
}

/// Where the entry's `ostree=` leads, inside the sysroot.
fn follow(sysroot: &Path, entry: &Entry) -> Result<PathBuf, Refused> {
    let argument = entry
        .options
        .split_whitespace()
        .find_map(|word| word.strip_prefix("ostree="))
        .ok_or_else(|| Refused::NoArgument(entry.name.clone()))?;
    let gone = || Refused::Gone { entry: entry.name.clone(), argument: argument.to_owned() };
    let root = fs::File::open(sysroot).map_err(unreadable("opening", sysroot))?;
    let found = open_inside(&root, argument).map_err(|errno| match errno {
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP => gone(),
        errno => unreadable("following a boot entry in", sysroot)(errno.into()),
    })?;
    let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&found));
    fs::read_link(link).map_err(|_error| gone())
}

/// Opens a directory below `root`, which no link leads out of.
fn open_inside(root: &fs::File, path: &str) -> Result<OwnedFd, Errno> {
    /// Far more than a machine that renames and mounts all the time needs.
    const TRIES: u32 = 10_000;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let mut tries = 0;
    loop {
        match openat2(root, path, flags, Mode::empty(), inside) {
            // Links of libostree's have `..` in them; whatever is renamed or mounted meanwhile, anywhere, makes the kernel say
            // that it cannot be sure (openat2(2), EAGAIN).
            Err(Errno::AGAIN) if tries < TRIES => {
                tries += 1;
                std::thread::yield_now();
            }
            found => return found,
        }
    }
}

/// Stateroot and name of a checkout `ostree/deploy/<stateroot>/deploy/<commit>.<serial>` of `sysroot`.
fn split(sysroot: &Path, checkout: &Path) -> Option<(String, String)> {
    let names: Vec<&str> = checkout
        .strip_prefix(sysroot)
        .ok()?
        .components()
        .map(|part| match part {
            Component::Normal(name) => name.to_str(),
            _ => None,
        })
        .collect::<Option<_>>()?;
    match names.as_slice() {
        ["ostree", "deploy", stateroot, "deploy", name] => {
            let (_, serial) = name.split_once('.')?;
            serial.parse::<u32>().ok()?;
            Some(((*stateroot).to_owned(), (*name).to_owned()))
        }
        _ => None,
    }
}

/// What libostree leaves beside and in every deployment, and what is mounted over.
fn require_whole(
    sysroot: &Path,
    checkout: &Path,
    stateroot: &str,
    name: &str,
    commit: Commit,
) -> Result<(), Refused> {
    let missing =
        |mark: &Path| Err(Refused::Incomplete { deployment: name.to_owned(), mark: mark.to_owned() });
    let hex = commit.to_string();
    let object = sysroot.join(format!("ostree/repo/objects/{}/{}.commit", &hex[..2], &hex[2..]));
    let origin = checkout.with_file_name(format!("{name}.origin"));
    for file in [&origin, &object] {
        if !file.is_file() {
            return missing(file);
        }
    }
    let var = sysroot.join("ostree/deploy").join(stateroot).join("var");
    for directory in PLACES.iter().map(|place| checkout.join(place)).chain([var]) {
        let real = fs::symlink_metadata(&directory).is_ok_and(|metadata| metadata.is_dir());
        if !real {
            return missing(&directory);
        }
    }
    Ok(())
}

/// The release's own marks; its version.
fn require_release(checkout: &Path, name: &str) -> Result<String, Refused> {
    let other = |why: String| Refused::NotARelease { deployment: name.to_owned(), why };
    let path = checkout.join(RELEASE_DIR).join("release.json");
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(other(format!("it has no {RELEASE_DIR}/release.json")));
        }
        Err(error) => return Err(unreadable("reading", &path)(error)),
    };
    let release: ReleaseInfo =
        serde_json::from_slice(&text).map_err(|error| other(format!("its release.json: {error}")))?;
    if release.format != RELEASE_FORMAT {
        return Err(other(format!("its release.json is of format {}", release.format)));
    }
    let init = checkout.join(INIT);
    let is_program = fs::symlink_metadata(&init)
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0);
    if !is_program {
        return Err(Refused::Incomplete { deployment: name.to_owned(), mark: init });
    }
    Ok(release.version)
}

fn unreadable<'a>(operation: &'static str, path: &'a Path) -> impl Fn(io::Error) -> Refused + 'a {
    move |source| Refused::Unreadable { operation, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_as_libostree_writes_them() {
        let text = "title rackstep 1.0 (ostree:0)\nversion 2\noptions root=UUID=1 rw ostree=/ostree/boot.1/rackstep/ab/0\n\
                    linux /ostree/rackstep-ab/vmlinuz\n";
        let entry = parse_entry("ostree-2.conf".to_owned(), text);
        assert_eq!(
            (entry.version, entry.options.as_str()),
            (2, "root=UUID=1 rw ostree=/ostree/boot.1/rackstep/ab/0")
        );
        assert_eq!(parse_entry(String::new(), "").options, "");
    }

    #[test]
    fn the_highest_version_counts_as_a_number() {
        let dir = tempfile::tempdir().unwrap();
        for (name, version) in [("ostree-9.conf", 9), ("ostree-10.conf", 10), ("other.txt", 11)] {
            fs::write(dir.path().join(name), format!("version {version}\n")).unwrap();
        }
        assert_eq!(highest_entry(dir.path()).unwrap().name, "ostree-10.conf");
    }

    #[test]
    fn only_checkouts_of_the_sysroot_are_deployments() {
        let hex = "ab".repeat(32);
        let good = format!("/s/ostree/deploy/rackstep/deploy/{hex}.0");
        assert_eq!(
            split(Path::new("/s"), Path::new(&good)),
            Some(("rackstep".to_owned(), format!("{hex}.0")))
        );
        for bad in [
            "/".to_owned(),
            "/s".to_owned(),
            format!("/s/ostree/deploy/rackstep/deploy/{hex}"),
            format!("/s/ostree/deploy/rackstep/deploy/{hex}.x"),
            format!("/s/ostree/deploy/rackstep/deploy/{hex}.0/usr"),
            format!("/other/ostree/deploy/rackstep/deploy/{hex}.0"),
        ] {
            assert_eq!(split(Path::new("/s"), Path::new(&bad)), None, "{bad}");
        }
    }
}
