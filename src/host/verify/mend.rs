//! Mends files of deployments, first out of what this host has twice, then from the repo that it follows.
//!
//! 1. Another copy on this disk: what the boot loader reads, or a file of a checkout that no longer is the object's hard link;
//! 2. the network, for what has no second copy here: containers run from these very objects, so Docker has none;
//! 3. every checkout gets its directories back and hard links to the new objects, and /boot new copies of its kernels, one
//!    rename at a time.
//!
//! Nothing is written under an object's name before its digest is right: a source that lies, or rotted itself, mends nothing.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::VerifyHostError;
use super::files::{BadObject, BadPath, FilesReport, HostFiles};
use crate::host::upgrade::trusted_keys;
use crate::model::causes::in_one_line;
use crate::model::{Digest, HostConfig, ObjectKind, ObjectName, Progress};
use crate::ostree::repo::check::{Condition, open_checkout_file};
use crate::ostree::repo::{Batch, Content, DEFAULT_DEFLATE_LEVEL, FileObject, RepoError, Staging};
use crate::ostree::sysroot::Sysroot;
use crate::release::pull::{PullRequest, pull_again};

/// Beside the file that it becomes.
const NEW: &str = ".rackstep-new";

/// What was mended, and with what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MendedFiles {
    /// Objects from other files of this host.
    pub from_files: usize,
    /// Objects from the repo over the network.
    pub fetched: usize,
    /// Files and directories of checkouts, and files of /boot, that became what they should be.
    pub put_back: usize,
    /// Why the network did not help, if it was needed.
    pub no_network: Option<String>,
}

/// Mends what `found` tells; the repo that the host follows is asked for what nothing on this host can mend.
pub fn repair_files(
    sysroot: &Sysroot,
    found: &FilesReport,
    host_config: Option<&HostConfig>,
    progress: &dyn Progress,
) -> Result<MendedFiles, VerifyHostError> {
    let host = HostFiles::open(sysroot)?;
    let mut mended = MendedFiles::default();
    progress.begin("mending files", Some(found.faults() as u64));
    let left = mend_here(&host, &found.bad, &mut mended)?;
    if !left.is_empty() {
        mended.no_network = match host_config {
            None => Some("no host configuration says which repo this host follows".to_owned()),
            Some(config) => fetch(&host, config, &left, progress, &mut mended)?,
        };
    }
    // A directory that was damaged hid its checkout; now all of them can be compared.
    let put_back = |object: &ObjectName, path: &Path| match object.kind {
        ObjectKind::File => link(&host.repo.object_path(object), path),
        _ => host.repo.read_dir_meta(&object.digest).map_err(io::Error::other)?.give(path),
    };
    let put_in_boot = |object: &ObjectName, path: &Path| copy_over(&host.repo.object_path(object), path);
    mended.put_back += put_good(&host, host.bad_paths()?, put_back)?;
    mended.put_back += put_good(&host, host.bad_boot_files()?, put_in_boot)?;
    rustix::fs::sync();
    progress.end("");
    Ok(mended)
}

/// Puts what is bad back as its object says; gives how many. What may be the last good copy is never replaced by a bad one.
fn put_good(
    host: &HostFiles<'_>,
    bad: Vec<BadPath>,
    put: impl Fn(&ObjectName, &Path) -> io::Result<()>,
) -> Result<usize, VerifyHostError> {
    let mut count = 0;
    for BadPath { path, object, .. } in bad {
        if host.repo.check(&object, &|_| ())? == Condition::Good {
            put(&object, &path).map_err(|source| VerifyHostError::Read { path, source })?;
            count += 1;
        }
    }
    Ok(count)
}

/// Mends what has a second copy on this host; gives the rest.
fn mend_here(
    host: &HostFiles<'_>,
    bad: &[BadObject],
    mended: &mut MendedFiles,
) -> Result<HashSet<ObjectName>, VerifyHostError> {
    let objects: Vec<ObjectName> = bad.iter().map(|bad| bad.object).collect();
    let mut left: HashSet<ObjectName> = objects.iter().copied().collect();
    let files = host.files_of(&objects)?;
    let staging = Staging::open(&host.repo, DEFAULT_DEFLATE_LEVEL)?;
    // What a killed process finished keeps its names, and would be taken for this batch.
    staging.publish()?;
    let Some(batch) = staging.batch("mend")? else {
        return Err(RepoError::Busy { path: host.repo.path().to_owned() }.into());
    };
    for object in &objects {
        let copies = files.get(object).into_iter().flatten();
        if object.kind == ObjectKind::File && any_fits(&batch, object.digest, copies.map(PathBuf::as_path))? {
            mended.from_files += 1;
            left.remove(object);
        }
    }
    batch.finish()?;
    staging.publish()?;
    Ok(left)
}

/// Whether one of the files is the object; it is in the batch then.
fn any_fits<'p>(
    batch: &Batch<'_>,
    object: Digest,
    mut copies: impl Iterator<Item = &'p Path>,
) -> Result<bool, RepoError> {
    let fits = |copy: &Path| match open_checkout_file(copy) {
        Ok(mut file) => take(batch, object, &mut file),
        // Not a copy, then.
        Err(_) => Ok(false),
    };
    copies.try_fold(false, |found, copy| if found { Ok(true) } else { fits(copy) })
}

fn take(batch: &Batch<'_>, object: Digest, file: &mut FileObject) -> Result<bool, RepoError> {
    let prefix = file.header.stream_prefix();
    let content = Content { header: &file.header, stream: &mut *file.content, size: file.size };
    match batch.write_file(object, &prefix, content) {
        Ok(()) => Ok(true),
        Err(RepoError::Damaged { .. } | RepoError::Source { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Fetches what is left, release by release. Gives why not, if something is missing after that.
fn fetch(
    host: &HostFiles<'_>,
    config: &HostConfig,
    left: &HashSet<ObjectName>,
    progress: &dyn Progress,
    mended: &mut MendedFiles,
) -> Result<Option<String>, VerifyHostError> {
    let keys = match trusted_keys(config) {
        Ok(keys) => keys,
        Err(error) => return Ok(Some(in_one_line(&error))),
    };
    let mut why = None;
    for commit in host.commits() {
        let request =
            PullRequest { repo_url: config.repo.clone(), commit, keys: keys.clone(), reference: None };
        if let Err(error) = pull_again(&request, &host.repo, left, progress) {
            why = Some(in_one_line(&error));
        }
    }
    for object in left {
        mended.fetched += usize::from(host.repo.check(object, &|_| ())? == Condition::Good);
    }
    Ok(why.filter(|_| mended.fetched < left.len()))
}

/// Makes `file` a name of `object`, at once.
fn link(object: &Path, file: &Path) -> io::Result<()> {
    replace(file, |new| fs::hard_link(object, new))
}

/// Makes `file` a copy of `object`, at once.
fn copy_over(object: &Path, file: &Path) -> io::Result<()> {
    replace(file, |new| {
        fs::copy(object, new)?;
        File::open(new)?.sync_all()
    })
}

fn replace(file: &Path, make: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    let mut name = file.as_os_str().to_owned();
    name.push(NEW);
    let new = PathBuf::from(name);
    if let Err(error) = fs::remove_file(&new)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    if let Some(parent) = file.parent() {
        fs::create_dir_all(parent)?;
    }
    make(&new)?;
    fs::rename(&new, file)
}
