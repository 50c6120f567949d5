//! Reads every file of every deployment: its objects in the repo, that its checkout is made of them, and what of it is in /boot.
//!
//! A checkout's files are hard links to the repo's objects, so what was read under one name need not be read under the
//! other; only what stands apart is (libostree copies empty files, and mending makes new objects). Directories are
//! compared by owner, mode and xattrs.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::VerifyHostError;
use crate::model::{Commit, Deployment, Digest, ObjectKind, ObjectName, Progress};
use crate::ostree::repo::check::{Condition, digest_of, digest_of_directory, open_checkout_file};
use crate::ostree::repo::{FileObject, Repo, RepoError};
use crate::ostree::sysroot::Sysroot;

/// An object of the repo that is not what its name says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadObject {
    /// Which.
    pub object: ObjectName,
    /// The first path of a release that leads to it.
    pub path: String,
    /// What is wrong.
    pub condition: Condition,
}

/// A file or directory of a checkout, or a file of /boot, that is not the release's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadPath {
    /// Where it is on this machine.
    pub path: PathBuf,
    /// The object that it should be: a file's, or a directory's owner, mode and xattrs.
    pub object: ObjectName,
    /// True when there is nothing.
    pub missing: bool,
}

/// What reading all files showed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FilesReport {
    /// Objects that were read.
    pub objects: usize,
    /// Bytes of content that were read.
    pub bytes: u64,
    /// Objects that are bad.
    pub bad: Vec<BadObject>,
    /// Files and directories of checkouts that are bad beside that.
    pub checkouts: Vec<BadPath>,
    /// Kernels and initramfs in /boot that are not their releases'.
    pub boot: Vec<BadPath>,
}

impl FilesReport {
    /// How many things are wrong.
    pub fn faults(&self) -> usize {
        self.bad.len() + self.checkouts.len() + self.boot.len()
    }
}

/// The host's repo and its deployments.
pub(super) struct HostFiles<'a> {
    pub sysroot: &'a Sysroot,
    pub repo: Repo,
    pub deployments: Vec<Deployment>,
}

impl<'a> HostFiles<'a> {
    pub fn open(sysroot: &'a Sysroot) -> Result<Self, VerifyHostError> {
        let sysroot_error = |error| VerifyHostError::Sysroot(Box::new(error));
        let deployments = sysroot.deployments().map_err(sysroot_error)?;
        Ok(Self { sysroot, repo: Repo::open(&sysroot.repo_path())?, deployments })
    }

    /// Every release of a deployment, once.
    pub fn commits(&self) -> Vec<Commit> {
        let mut commits: Vec<Commit> =
            self.deployments.iter().map(|deployment| deployment.id.commit).collect();
        commits.sort_unstable();
        commits.dedup();
        commits
    }

    /// Calls `seen(path, object)` for every file and directory of every checkout whose release can be read.
    fn each_path(&self, seen: &mut dyn FnMut(PathBuf, ObjectName)) -> Result<(), VerifyHostError> {
        for deployment in &self.deployments {
            let root = self.sysroot.path().join(&deployment.path);
            let mut found = |path: &str, object| seen(root.join(path.trim_start_matches('/')), object);
            match self.repo.walk_paths(deployment.id.commit, &mut found) {
                // Told as a bad object already.
                Err(RepoError::Missing { .. } | RepoError::Damaged { .. } | RepoError::Malformed { .. }) => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// The files that should be these objects.
    pub fn files_of(
        &self,
        objects: &[ObjectName],
    ) -> Result<HashMap<ObjectName, Vec<PathBuf>>, VerifyHostError> {
        let mut files: HashMap<ObjectName, Vec<PathBuf>> =
            objects.iter().map(|object| (*object, Vec::new())).collect();
        let mut note = |path, object| {
            if let Some(files) = files.get_mut(&object) {
                files.push(path);
            }
        };
        self.each_path(&mut note)?;
        for (copy, object) in self.boot_files()? {
            note(copy, object);
        }
        Ok(files)
    }

    /// What the boot loader reads, with the object that each file is a copy of.
    fn boot_files(&self) -> Result<Vec<(PathBuf, ObjectName)>, VerifyHostError> {
        let copies: HashMap<PathBuf, PathBuf> =
            self.sysroot.boot_copies().into_iter().map(|both| (both.original, both.copy)).collect();
        let mut files = Vec::new();
        self.each_path(&mut |path, object| {
            if let Some(copy) = copies.get(&path) {
                files.push((copy.clone(), object));
            }
        })?;
        Ok(files)
    }

    /// Every file that the boot loader reads and that has not the content of its object. Owner and mode may differ there.
    pub fn bad_boot_files(&self) -> Result<Vec<BadPath>, VerifyHostError> {
        let judge_copy = |(copy, object): (PathBuf, ObjectName)| {
            let header = match self.repo.open_file(&object.digest) {
                Ok(opened) => opened.header,
                // Told as a bad object already.
                Err(RepoError::Missing { .. }) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            judge(copy, object, |copy| digest_of_file(FileObject { header, ..open_checkout_file(copy)? }))
        };
        self.boot_files()?.into_iter().filter_map(|both| judge_copy(both).transpose()).collect()
    }

    /// Everything in a checkout that is not the object that it should be, a directory before what is in it; objects
    /// themselves are not looked into.
    pub fn bad_paths(&self) -> Result<Vec<BadPath>, VerifyHostError> {
        let mut objects: HashMap<Digest, Option<(u64, u64)>> = HashMap::new();
        let mut apart = Vec::new();
        let identity = |path: &Path| fs::symlink_metadata(path).ok().map(|stat| (stat.dev(), stat.ino()));
        self.each_path(&mut |path, object| {
            if object.kind == ObjectKind::File {
                let of_object = *objects
                    .entry(object.digest)
                    .or_insert_with(|| identity(&self.repo.object_path(&object)));
                let here = identity(&path);
                if here.is_some() && here == of_object {
                    return;
                }
            }
            apart.push((path, object));
        })?;
        let digest_at = |object: ObjectName, path: &Path| match object.kind {
            ObjectKind::File => digest_of_file(open_checkout_file(path)?),
            _ => digest_of_directory(path),
        };
        apart
            .into_par_iter()
            .filter_map(|(path, object)| judge(path, object, |path| digest_at(object, path)).transpose())
            .collect()
    }
}

fn digest_of_file(mut opened: FileObject) -> io::Result<Digest> {
    digest_of(&mut opened, &|_| ())
}

fn judge(
    path: PathBuf,
    object: ObjectName,
    digest: impl FnOnce(&Path) -> io::Result<Digest>,
) -> Result<Option<BadPath>, VerifyHostError> {
    match digest(&path) {
        Ok(got) if got == object.digest => Ok(None),
        Ok(_) => Ok(Some(BadPath { path, object, missing: false })),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(Some(BadPath { path, object, missing: true }))
        }
        Err(source) => Err(VerifyHostError::Read { path, source }),
    }
}

/// Reads every file of every deployment.
pub fn verify_files(sysroot: &Sysroot, progress: &dyn Progress) -> Result<FilesReport, VerifyHostError> {
    let host = HostFiles::open(sysroot)?;
    let objects = host.repo.survey(&host.commits())?;
    let size_of = |object: &ObjectName| {
        fs::symlink_metadata(host.repo.object_path(object)).map_or(0, |stat| stat.size())
    };
    let bytes = objects.keys().map(size_of).sum();
    progress.begin("reading files", Some(bytes));
    let bad = objects
        .par_iter()
        .filter_map(|(object, path)| match host.repo.check(object, &|count| progress.advance(count)) {
            Ok(Condition::Good) => None,
            Ok(condition) => Some(Ok(BadObject { object: *object, path: path.clone(), condition })),
            Err(error) => Some(Err(error)),
        })
        .collect::<Result<Vec<_>, RepoError>>()?;
    let checkouts = host.bad_paths()?;
    let boot = host.bad_boot_files()?;
    let report = FilesReport { objects: objects.len(), bytes, bad, checkouts, boot };
    progress.end(&format!("{} objects read, {} faults", report.objects, report.faults()));
    Ok(report)
}
