//! Reads every file of every deployment: its objects in the repo, that its checkout is made of them, and what of it is in /boot.
//!
//! A checkout's files are hard links to the repo's objects, so what was read under one name need not be read under the
//! other; only what stands apart is (libostree copies empty files, and mending makes new objects).

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::VerifyHostError;
use crate::engine::repo::check::{Condition, digest_of, open_checkout_file};
use crate::engine::repo::{FileObject, Repo, RepoError};
use crate::engine::sysroot::Sysroot;
use crate::model::{Commit, Deployment, Digest, ObjectKind, ObjectName, Progress};

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

/// A file of a checkout, or of /boot, that is not the release's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadLink {
    /// Where it is on this machine.
    pub file: PathBuf,
    /// The object that it should be.
    pub object: Digest,
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
    /// Files of checkouts that are bad beside that.
    pub links: Vec<BadLink>,
    /// Kernels and initramfs in /boot that are not their releases'.
    pub boot: Vec<BadLink>,
}

impl FilesReport {
    /// How many things are wrong.
    pub fn faults(&self) -> usize {
        self.bad.len() + self.links.len() + self.boot.len()
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

    /// Calls `seen(file, digest)` for every file of every checkout whose release can be read.
    fn each_file(&self, seen: &mut dyn FnMut(PathBuf, Digest)) -> Result<(), VerifyHostError> {
        for deployment in &self.deployments {
            let root = self.sysroot.path().join(&deployment.path);
            let mut found = |path: &str, digest| seen(root.join(path.trim_start_matches('/')), digest);
            match self.repo.walk_paths(deployment.id.commit, &mut found) {
                // Told as a bad object already.
                Err(RepoError::Missing { .. } | RepoError::Damaged { .. } | RepoError::Malformed { .. }) => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// The files that should be these objects.
    pub fn files_of(&self, objects: &[ObjectName]) -> Result<HashMap<Digest, Vec<PathBuf>>, VerifyHostError> {
        let mut files: HashMap<Digest, Vec<PathBuf>> =
            objects.iter().map(|object| (object.digest, Vec::new())).collect();
        self.each_file(&mut |file, digest| {
            if let Some(files) = files.get_mut(&digest) {
                files.push(file);
            }
        })?;
        for (copy, digest) in self.boot_files()? {
            if let Some(files) = files.get_mut(&digest) {
                files.push(copy);
            }
        }
        Ok(files)
    }

    /// What the boot loader reads, with the object that each file is a copy of.
    fn boot_files(&self) -> Result<Vec<(PathBuf, Digest)>, VerifyHostError> {
        let copies: HashMap<PathBuf, PathBuf> =
            self.sysroot.boot_copies().into_iter().map(|both| (both.original, both.copy)).collect();
        let mut files = Vec::new();
        self.each_file(&mut |file, digest| {
            if let Some(copy) = copies.get(&file) {
                files.push((copy.clone(), digest));
            }
        })?;
        Ok(files)
    }

    /// Every file that the boot loader reads and that has not the content of its object. Owner and mode may differ there.
    pub fn bad_boot_files(&self) -> Result<Vec<BadLink>, VerifyHostError> {
        let judge_copy = |(file, object): (PathBuf, Digest)| {
            let header = match self.repo.open_file(&object) {
                Ok(opened) => opened.header,
                // Told as a bad object already.
                Err(RepoError::Missing { .. }) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            judge(file, object, |file| Ok(FileObject { header, ..open_checkout_file(file)? }))
        };
        self.boot_files()?.into_iter().filter_map(|both| judge_copy(both).transpose()).collect()
    }

    /// Every file of a checkout that is not the object that it should be; objects themselves are not looked into.
    pub fn bad_links(&self) -> Result<Vec<BadLink>, VerifyHostError> {
        let mut objects: HashMap<Digest, Option<(u64, u64)>> = HashMap::new();
        let mut apart = Vec::new();
        self.each_file(&mut |file, digest| {
            let object = *objects.entry(digest).or_insert_with(|| {
                let path = self.repo.object_path(&ObjectName::new(ObjectKind::File, digest));
                fs::symlink_metadata(path).ok().map(|stat| (stat.dev(), stat.ino()))
            });
            let here = fs::symlink_metadata(&file).ok().map(|stat| (stat.dev(), stat.ino()));
            if here.is_none() || here != object {
                apart.push((file, digest));
            }
        })?;
        apart
            .into_par_iter()
            .filter_map(|(file, digest)| judge(file, digest, open_checkout_file).transpose())
            .collect()
    }
}

fn judge(
    file: PathBuf,
    object: Digest,
    open: impl FnOnce(&Path) -> io::Result<FileObject>,
) -> Result<Option<BadLink>, VerifyHostError> {
    let got = open(&file).and_then(|mut opened| digest_of(&mut opened, &|_| ()));
    match got {
        Ok(got) if got == object => Ok(None),
        Ok(_) => Ok(Some(BadLink { file, object, missing: false })),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(Some(BadLink { file, object, missing: true }))
        }
        Err(source) => Err(VerifyHostError::Read { path: file, source }),
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
    let links = host.bad_links()?;
    let boot = host.bad_boot_files()?;
    let report = FilesReport { objects: objects.len(), bytes, bad, links, boot };
    progress.end(&format!("{} objects read, {} faults", report.objects, report.faults()));
    Ok(report)
}
