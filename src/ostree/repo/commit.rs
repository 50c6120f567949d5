//! Making a commit of a directory, on all cores.
//!
//! 1. Look: names, owners, modes of the whole tree; a file with several names is one task;
//! 2. hash every file as its object and write those that the repo lacks, in parallel;
//! 3. render directories from the leaves up, write the commit, publish, then move the ref.
//!
//! The checksum is exactly that of `ostree commit --tree=dir=…`. Refused: devices, sockets, pipes and names that are
//! not UTF-8, which ostree cannot hold.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use sha2::{Digest as _, Sha256};

use super::gvariant::{CommitObject, DirTree, FileHeader, MetaValue};
use super::read::{link_target, read_xattrs};
use super::refs::write_atomically;
use super::staging::{Batch, Content};
use super::{DirMeta, Repo, RepoError, Staging};
use crate::model::{Commit, Digest, ObjectKind, ObjectName, Progress, Ref};

/// Deflate level for archive repos: packs are the transport, and level 2 is several times faster than zlib's usual 6.
pub const DEFAULT_DEFLATE_LEVEL: u32 = 2;
/// Files up to this size are read once; larger ones once to hash and, when the repo lacks them, once more to write.
const WHOLE: u64 = 1 << 20;

/// What a commit says besides its tree.
#[derive(Debug, Clone)]
pub struct CommitOptions {
    /// The ref to move; also written as `ostree.ref-binding`.
    pub reference: Option<Ref>,
    /// Seconds since 1970: from the lock, so that the same inputs give the same checksum.
    pub timestamp: u64,
    /// One line.
    pub subject: String,
    /// Metadata, such as `version`.
    pub metadata: Vec<(String, MetaValue)>,
    /// The commit before; a commit with one depends on the history.
    pub parent: Option<Commit>,
    /// Deflate level for archive repos.
    pub deflate: u32,
}

impl Default for CommitOptions {
    fn default() -> Self {
        Self {
            reference: None,
            timestamp: 0,
            subject: String::new(),
            metadata: Vec::new(),
            parent: None,
            deflate: DEFAULT_DEFLATE_LEVEL,
        }
    }
}

/// What a commit took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommitReport {
    /// The commit.
    pub commit: Commit,
    /// Whether the repo had this very commit.
    pub known: bool,
    /// Files and links, hard links counted once.
    pub files: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Objects that the repo lacked.
    pub written: u64,
}

struct Task {
    path: PathBuf,
    stat: Metadata,
}

#[derive(Default)]
struct Directory {
    path: PathBuf,
    files: Vec<(String, usize)>,
    dirs: Vec<(String, usize)>,
}

#[derive(Default)]
struct Tree {
    tasks: Vec<Task>,
    /// Parents before their children.
    dirs: Vec<Directory>,
}

impl Repo {
    /// Makes a commit of the directory `root`.
    pub fn commit_tree(
        &self,
        root: &Path,
        options: &CommitOptions,
        progress: &dyn Progress,
    ) -> Result<CommitReport, RepoError> {
        let staging = Staging::open(self, options.deflate)?;
        staging.discard()?;
        let tree = observe_tree(root)?;
        let bytes = tree.tasks.iter().map(|task| task.stat.len()).sum();
        progress.begin("commit", Some(bytes));
        // A missing batch would mean one of this name is complete, and everything was discarded above.
        let Some(batch) = staging.batch("commit")? else {
            return Err(RepoError::Busy { path: self.path().to_owned() });
        };
        let digests = write_files(&tree.tasks, &staging, &batch, progress)?;
        let (root_tree, root_meta) = write_directories(&tree, &digests, &staging, &batch)?;
        batch.finish()?;

        let mut metadata = options.metadata.clone();
        if let Some(reference) = &options.reference {
            metadata
                .push(("ostree.ref-binding".into(), MetaValue::List(vec![reference.as_str().to_owned()])));
        }
        let object = CommitObject {
            metadata,
            parent: options.parent.map(|parent| Digest::from_bytes(*parent.as_bytes())),
            subject: options.subject.clone(),
            timestamp: options.timestamp,
            root_tree,
            root_meta,
        }
        .render();
        let commit = Commit::from_bytes(*Digest::of(&object).as_bytes());
        let name = ObjectName::of_commit(commit);
        let known = self.has(&name);
        // The commit object comes last: no crash leaves a commit whose objects are not all there.
        let written = staging.publish()? + u64::from(!known);
        if !known {
            write_atomically(&self.object_path(&name), &object)?;
        }
        if let Some(reference) = &options.reference {
            self.set_ref(reference.as_str(), commit)?;
        }
        let files = tree.tasks.len() as u64;
        progress.end(&format!("{files} files, {written} objects new"));
        Ok(CommitReport { commit, known, files, bytes, written })
    }
}

fn observe_tree(root: &Path) -> Result<Tree, RepoError> {
    let mut tree = Tree::default();
    let mut several_names = HashMap::new();
    tree.dirs.push(Directory { path: root.to_owned(), ..Directory::default() });
    let mut next = 0;
    while next < tree.dirs.len() {
        let path = tree.dirs[next].path.clone();
        let reading = |source| RepoError::io("reading", &path, source);
        for entry in fs::read_dir(&path).map_err(reading)? {
            let entry = entry.map_err(reading)?;
            let child = entry.path();
            let unfit = |reason: &str| RepoError::Unfit { path: child.clone(), reason: reason.to_owned() };
            let name = entry.file_name().into_string().map_err(|_| unfit("its name is not UTF-8"))?;
            let stat = entry.metadata().map_err(|source| RepoError::io("looking at", &child, source))?;
            let kind = stat.file_type();
            if kind.is_dir() {
                let index = tree.dirs.len();
                tree.dirs.push(Directory { path: child, ..Directory::default() });
                tree.dirs[next].dirs.push((name, index));
                continue;
            }
            if !kind.is_file() && !kind.is_symlink() {
                let what = if kind.is_fifo() {
                    "a pipe"
                } else if kind.is_socket() {
                    "a socket"
                } else {
                    "a device"
                };
                return Err(unfit(&format!("it is {what}")));
            }
            let fresh = tree.tasks.len();
            let index = if stat.nlink() > 1 {
                *several_names.entry((stat.dev(), stat.ino())).or_insert(fresh)
            } else {
                fresh
            };
            if index == fresh {
                tree.tasks.push(Task { path: child, stat });
            }
            tree.dirs[next].files.push((name, index));
        }
        tree.dirs[next].files.sort();
        tree.dirs[next].dirs.sort();
        next += 1;
    }
    Ok(tree)
}

fn write_files(
    tasks: &[Task],
    staging: &Staging,
    batch: &Batch<'_>,
    progress: &dyn Progress,
) -> Result<Vec<Digest>, RepoError> {
    // Large files first: one that comes last would leave the other cores idle.
    let mut order: Vec<usize> = (0..tasks.len()).collect();
    order.sort_by_key(|index| std::cmp::Reverse(tasks[*index].stat.len() / (16 * WHOLE)));
    let hashed: Vec<(usize, Digest)> = order
        .into_par_iter()
        .with_max_len(64)
        .map_init(Vec::new, |buffer, index| {
            let task = &tasks[index];
            let digest = write_one(task, staging, batch, buffer)?;
            progress.advance(task.stat.len());
            Ok((index, digest))
        })
        .collect::<Result<_, RepoError>>()?;
    let mut digests = vec![Digest::from_bytes([0; 32]); tasks.len()];
    for (index, digest) in hashed {
        digests[index] = digest;
    }
    Ok(digests)
}

fn write_one(
    task: &Task,
    staging: &Staging,
    batch: &Batch<'_>,
    buffer: &mut Vec<u8>,
) -> Result<Digest, RepoError> {
    let path = task.path.as_path();
    let reading = |source| RepoError::io("reading", path, source);
    let stat = &task.stat;
    let link = stat.file_type().is_symlink();
    let target = if link { link_target(path).map_err(reading)? } else { String::new() };
    let xattrs = read_xattrs(path).map_err(reading)?;
    let header = FileHeader { uid: stat.uid(), gid: stat.gid(), mode: stat.mode(), target, xattrs };
    let size = if link { 0 } else { stat.len() };
    let mut hasher = Sha256::new_with_prefix(header.stream_prefix());
    let absent = |digest: Digest| {
        let object = ObjectName::new(ObjectKind::File, digest);
        staging.claim(&object) && !staging.repo().has(&object)
    };
    if size <= WHOLE {
        buffer.clear();
        if !link {
            File::open(path).and_then(|file| file.take(WHOLE + 1).read_to_end(buffer)).map_err(reading)?;
        }
        require_size(path, size, buffer.len() as u64)?;
        hasher.update(&buffer);
        let digest = Digest::from_bytes(hasher.finalize().into());
        if absent(digest) {
            let content = Content { header: &header, stream: &mut buffer.as_slice(), size };
            batch.write_hashed_file(digest, content)?;
        }
        return Ok(digest);
    }
    let mut file = File::open(path).map_err(reading)?;
    buffer.resize(WHOLE as usize, 0);
    let mut total = 0;
    loop {
        let count = file.read(buffer).map_err(reading)?;
        if count == 0 {
            break;
        }
        total += count as u64;
        hasher.update(&buffer[..count]);
    }
    require_size(path, size, total)?;
    let digest = Digest::from_bytes(hasher.finalize().into());
    if absent(digest) {
        io::Seek::rewind(&mut file).map_err(reading)?;
        batch.write_hashed_file(digest, Content { header: &header, stream: &mut file, size })?;
        let now = file.metadata().map_err(reading)?;
        if (now.mtime(), now.mtime_nsec()) != (stat.mtime(), stat.mtime_nsec()) {
            return Err(changed(path));
        }
    }
    Ok(digest)
}

/// The checksum of the object that a commit makes of the regular file at `path`; `also` is given its content meanwhile.
pub fn file_object(path: &Path, also: &mut dyn FnMut(&[u8])) -> Result<Digest, RepoError> {
    let reading = |source| RepoError::io("reading", path, source);
    let mut file = File::open(path).map_err(reading)?;
    let stat = file.metadata().map_err(reading)?;
    let xattrs = read_xattrs(path).map_err(reading)?;
    let header =
        FileHeader { uid: stat.uid(), gid: stat.gid(), mode: stat.mode(), target: String::new(), xattrs };
    let mut hasher = Sha256::new_with_prefix(header.stream_prefix());
    let mut buffer = vec![0; stat.len().clamp(1, WHOLE) as usize];
    let mut total = 0;
    loop {
        let count = file.read(&mut buffer).map_err(reading)?;
        if count == 0 {
            break;
        }
        total += count as u64;
        hasher.update(&buffer[..count]);
        also(&buffer[..count]);
    }
    require_size(path, stat.len(), total)?;
    Ok(Digest::from_bytes(hasher.finalize().into()))
}

fn require_size(path: &Path, expected: u64, got: u64) -> Result<(), RepoError> {
    if expected == got { Ok(()) } else { Err(changed(path)) }
}

fn changed(path: &Path) -> RepoError {
    RepoError::Unfit { path: path.to_owned(), reason: "it changed while it was read".to_owned() }
}

fn write_directories(
    tree: &Tree,
    files: &[Digest],
    staging: &Staging,
    batch: &Batch<'_>,
) -> Result<(Digest, Digest), RepoError> {
    let write = |kind: ObjectKind, bytes: &[u8]| -> Result<Digest, RepoError> {
        let digest = Digest::of(bytes);
        let object = ObjectName::new(kind, digest);
        if staging.claim(&object) && !staging.repo().has(&object) {
            batch.write_rendered(&object, bytes)?;
        }
        Ok(digest)
    };
    let nothing = Digest::from_bytes([0; 32]);
    let mut done = vec![(nothing, nothing); tree.dirs.len()];
    for (index, directory) in tree.dirs.iter().enumerate().rev() {
        let path = directory.path.as_path();
        let reading = |source| RepoError::io("reading", path, source);
        let meta = DirMeta::read(path).map_err(reading)?.render();
        let names = DirTree {
            files: directory.files.iter().map(|(name, task)| (name.clone(), files[*task])).collect(),
            dirs: directory
                .dirs
                .iter()
                .map(|(name, child)| (name.clone(), done[*child].0, done[*child].1))
                .collect(),
        };
        done[index] = (write(ObjectKind::DirTree, &names.render())?, write(ObjectKind::DirMeta, &meta)?);
    }
    Ok(done[0])
}
