//! Writing objects so that nothing wrong can stay in the repo.
//!
//! 1. [`Staging::open`] keeps `ostree prune` and other writers of ours away;
//! 2. objects are written into a [`Batch`], a directory under the repo's `tmp/`, and their digests are checked on the way;
//! 3. a finished batch is renamed `….done`: a later process of the same boot takes it as it is (page cache and disk agree
//!    while the machine is up); what another boot left behind may be empty files, and is removed;
//! 4. [`Staging::publish`] flushes the file system and renames every object to its name.
//!
//! Writing straight into `objects/` was rejected: after a power cut an object would be there by name with its content
//! never flushed, and every later pull would trust it.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use flate2::{Compress, Compression, FlushCompress};
use rustix::fs::{AtFlags, Gid, Mode as Bits, Timespec, Timestamps, Uid, XattrFlags};
use sha2::{Digest as _, Sha256};

use super::gvariant::FileHeader;
use super::lock::lock_for_writing;
use super::read::check_metadata;
use super::{Mode, Repo, RepoError};
use crate::model::{Digest, ObjectKind, ObjectName};

/// Bytes that are read, hashed and written at a time.
const CHUNK: usize = 128 << 10;
/// What our directories under the repo's `tmp/` begin with. libostree removes them when they are a day old.
const PREFIX: &str = "rackstep-";
const DONE: &str = ".done";
const PART: &str = ".part";

thread_local! {
    /// One buffer per thread: a fresh one per object would cost more than most objects.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; CHUNK]);
}

/// The right to add objects to a repo, and what was added but not published.
pub struct Staging {
    repo: Repo,
    dir: PathBuf,
    claimed: Mutex<HashSet<ObjectName>>,
    deflate: u32,
    /// Holds the lock that keeps other writers of ours away.
    _lock: File,
    /// Its open transaction keeps `ostree prune` away. Touched again only to end that.
    transaction: Mutex<ostree::Repo>,
}

impl Staging {
    /// Begins to write to `repo`; `deflate` is the level for archive repos.
    pub fn open(repo: &Repo, deflate: u32) -> Result<Self, RepoError> {
        let lock = lock_for_writing(repo)?;
        let transaction = ostree::Repo::new_for_path(repo.path());
        transaction
            .open(gio::Cancellable::NONE)
            .and_then(|()| transaction.prepare_transaction(gio::Cancellable::NONE))
            .map_err(|source| RepoError::Ostree {
                action: "locking",
                path: repo.path().to_owned(),
                source,
            })?;
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .unwrap_or_else(|_| std::process::id().to_string());
        let name = format!("{PREFIX}{}", boot.trim());
        let tmp = repo.path().join("tmp");
        let staging = Self {
            repo: repo.clone(),
            dir: tmp.join(&name),
            claimed: Mutex::new(HashSet::new()),
            deflate,
            _lock: lock,
            transaction: Mutex::new(transaction),
        };
        remove_children(&tmp, |child| child.starts_with(PREFIX) && child != name)?;
        fs::create_dir_all(&staging.dir).map_err(|e| RepoError::io("creating", &staging.dir, e))?;
        remove_children(&staging.dir, |child| child.ends_with(PART))?;
        Ok(staging)
    }

    /// The repo that is written to.
    pub fn repo(&self) -> &Repo {
        &self.repo
    }

    /// Begins a batch; nothing if a batch of this name is complete already.
    pub fn batch(&self, name: &str) -> Result<Option<Batch<'_>>, RepoError> {
        if self.dir.join(format!("{name}{DONE}")).is_dir() {
            return Ok(None);
        }
        let dir = self.dir.join(format!("{name}{PART}"));
        if dir.exists() {
            fs::remove_dir_all(&dir).map_err(|source| RepoError::io("removing", &dir, source))?;
        }
        fs::create_dir(&dir).map_err(|source| RepoError::io("creating", &dir, source))?;
        Ok(Some(Batch { staging: self, name: name.to_owned(), dir, finished: false }))
    }

    /// True for the first caller that asks for this object: it is the one that writes it.
    pub fn claim(&self, object: &ObjectName) -> bool {
        self.claimed.lock().unwrap_or_else(PoisonError::into_inner).insert(*object)
    }

    /// Names of the batches that are finished and not published.
    pub fn finished(&self) -> Result<Vec<String>, RepoError> {
        let names = children(&self.dir)?;
        Ok(names.iter().filter_map(|name| name.strip_suffix(DONE)).map(str::to_owned).collect())
    }

    /// Flushes what finished batches hold and gives the objects their names. Gives how many.
    pub fn publish(&self) -> Result<u64, RepoError> {
        let mut published = 0;
        let batches = children(&self.dir)?;
        let done: Vec<_> = batches.iter().filter(|name| name.ends_with(DONE)).collect();
        if !done.is_empty() {
            self.sync()?;
        }
        for name in &done {
            let dir = self.dir.join(name);
            for object in children(&dir)? {
                let Some((head, tail)) = object.split_at_checked(2) else { continue };
                self.place(&dir.join(&object), head, tail)?;
                published += 1;
            }
            fs::remove_dir(&dir).map_err(|source| RepoError::io("removing", &dir, source))?;
        }
        if published > 0 {
            self.sync()?;
        }
        Ok(published)
    }

    /// Removes everything that was not published.
    pub fn discard(&self) -> Result<(), RepoError> {
        remove_children(&self.dir, |_| true)
    }

    fn place(&self, from: &Path, head: &str, tail: &str) -> Result<(), RepoError> {
        let parent = self.repo.path().join("objects").join(head);
        let to = parent.join(tail);
        let moved = match fs::rename(from, &to) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(&parent).and_then(|()| fs::rename(from, &to))
            }
            other => other,
        };
        moved.map_err(|source| RepoError::io("creating", &to, source))
    }

    fn sync(&self) -> Result<(), RepoError> {
        let path = self.repo.path();
        let dir = File::open(path).map_err(|source| RepoError::io("opening", path, source))?;
        rustix::fs::syncfs(&dir).map_err(|source| RepoError::io("flushing", path, source.into()))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Fails while batches are left for the next process: that is what they are for.
        let _ = fs::remove_dir(&self.dir);
        let transaction = self.transaction.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = transaction.abort_transaction(gio::Cancellable::NONE) {
            tracing::warn!(%error, "unlocking the repo");
        }
    }
}

/// Objects that become complete together: the objects of a shard, say.
pub struct Batch<'s> {
    staging: &'s Staging,
    name: String,
    dir: PathBuf,
    finished: bool,
}

/// Where a file object's content comes from and whether its digest is known to be right.
pub struct Content<'c> {
    /// Owner, mode, link target, xattrs.
    pub header: &'c FileHeader,
    /// The content; its end must come after `size` bytes.
    pub stream: &'c mut dyn Read,
    /// Bytes of content.
    pub size: u64,
}

impl Batch<'_> {
    /// Writes a metadata object after checking digest and form.
    pub fn write_metadata(&self, object: &ObjectName, bytes: &[u8]) -> Result<(), RepoError> {
        let got = Digest::of(bytes);
        if got != object.digest {
            return Err(RepoError::Damaged { object: *object, got: got.hex() });
        }
        check_metadata(object, bytes)?;
        self.write_rendered(object, bytes)
    }

    /// Writes a metadata object whose digest was just computed from these bytes.
    pub(super) fn write_rendered(&self, object: &ObjectName, bytes: &[u8]) -> Result<(), RepoError> {
        let path = self.path_of(object);
        write_mode(&path, 0o644)
            .and_then(|mut file| file.write_all(bytes))
            .map_err(|source| RepoError::io("writing", &path, source))
    }

    /// Writes a file object and checks its digest on the way; `prefix` is the canonical stream's own beginning.
    pub fn write_file(&self, digest: Digest, prefix: &[u8], content: Content<'_>) -> Result<(), RepoError> {
        self.write_content(digest, Some(prefix), content)
    }

    /// Writes a file object whose digest the caller computed from this very content.
    pub(super) fn write_hashed_file(&self, digest: Digest, content: Content<'_>) -> Result<(), RepoError> {
        self.write_content(digest, None, content)
    }

    fn write_content(
        &self,
        digest: Digest,
        check: Option<&[u8]>,
        mut content: Content<'_>,
    ) -> Result<(), RepoError> {
        let object = ObjectName::new(ObjectKind::File, digest);
        if content.header.is_link() && content.size > 0 {
            // It would count for the checksum, and no repo would keep it.
            let got = format!("a link with {} bytes of content", content.size);
            return Err(RepoError::Damaged { object, got });
        }
        let path = self.path_of(&object);
        let mut hasher = check.map(|prefix| Sha256::new().chain_update(prefix));
        let written = match self.staging.repo.mode() {
            Mode::Archive => {
                write_archive(&path, &object, &mut content, hasher.as_mut(), self.staging.deflate)
            }
            Mode::Bare => write_bare(&path, &object, &mut content, hasher.as_mut()),
        };
        let checked = written.and_then(|()| match hasher {
            None => Ok(()),
            Some(hasher) => {
                let got = Digest::from_bytes(hasher.finalize().into());
                if got == digest { Ok(()) } else { Err(RepoError::Damaged { object, got: got.hex() }) }
            }
        });
        if checked.is_err() {
            // The batch may yet be finished with its other objects: this one must not be among them.
            if let Err(source) = fs::remove_file(&path)
                && source.kind() != io::ErrorKind::NotFound
            {
                return Err(RepoError::io("removing the unfinished", &path, source));
            }
        }
        checked
    }

    /// Declares that everything in the batch is complete.
    pub fn finish(mut self) -> Result<(), RepoError> {
        let done = self.staging.dir.join(format!("{}{DONE}", self.name));
        fs::rename(&self.dir, &done).map_err(|source| RepoError::io("creating", &done, source))?;
        self.finished = true;
        Ok(())
    }

    fn path_of(&self, object: &ObjectName) -> PathBuf {
        let path = Repo::object_path_of(self.staging.repo.mode(), object);
        self.dir.join(path.trim_start_matches("objects/").replace('/', ""))
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        if !self.finished
            && let Err(error) = fs::remove_dir_all(&self.dir)
        {
            tracing::warn!(%error, path = %self.dir.display(), "removing an unfinished batch");
        }
    }
}

fn write_mode(path: &Path, mode: u32) -> io::Result<File> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path)?;
    // The umask must not decide what others may read.
    rustix::fs::fchmod(&file, Bits::from_raw_mode(mode))?;
    Ok(file)
}

/// Feeds the content to `take` by chunks, and to the hasher.
fn pump(
    object: &ObjectName,
    content: &mut Content<'_>,
    mut hasher: Option<&mut Sha256>,
    take: &mut dyn FnMut(&[u8]) -> Result<(), RepoError>,
) -> Result<(), RepoError> {
    let receiving = |source| RepoError::Source { object: *object, source };
    BUFFER.with_borrow_mut(|buffer| {
        let mut total = 0u64;
        loop {
            let count = match content.stream.read(buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(receiving(error)),
            };
            total += count as u64;
            if total > content.size {
                break;
            }
            if let Some(hasher) = hasher.as_deref_mut() {
                hasher.update(&buffer[..count]);
            }
            take(&buffer[..count])?;
        }
        if total == content.size {
            return Ok(());
        }
        let reason = format!("{total} bytes of content where {} were expected", content.size);
        Err(RepoError::Damaged { object: *object, got: reason })
    })
}

fn write_bare(
    path: &Path,
    object: &ObjectName,
    content: &mut Content<'_>,
    hasher: Option<&mut Sha256>,
) -> Result<(), RepoError> {
    let writing = |source: io::Error| RepoError::io("writing", path, source);
    let header = content.header;
    let (owner, group) = (Uid::from_raw(header.uid), Gid::from_raw(header.gid));
    if header.is_link() {
        let own = || -> io::Result<()> {
            std::os::unix::fs::symlink(&header.target, path)?;
            let at = AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::chownat(rustix::fs::CWD, path, Some(owner), Some(group), at)?;
            for (name, value) in &header.xattrs {
                rustix::fs::lsetxattr(path, name.as_slice(), value, XattrFlags::empty())?;
            }
            Ok(())
        };
        own().map_err(writing)?;
        return pump(object, content, hasher, &mut |_| Ok(()));
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(writing)?;
    pump(object, content, hasher, &mut |chunk| file.write_all(chunk).map_err(writing))?;
    // In this order: a change of owner clears setuid bits and capabilities.
    let own = || -> io::Result<()> {
        rustix::fs::fchown(&file, Some(owner), Some(group))?;
        rustix::fs::fchmod(&file, Bits::from_raw_mode(header.mode & 0o7777))?;
        for (name, value) in &header.xattrs {
            rustix::fs::fsetxattr(file.as_fd(), name.as_slice(), value, XattrFlags::empty())?;
        }
        // Deployed files are hard links to these: libostree gives them all the time 0, so that nothing depends on it.
        let epoch = Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::fs::futimens(&file, &Timestamps { last_access: epoch, last_modification: epoch })?;
        Ok(())
    };
    own().map_err(writing)
}

fn write_archive(
    path: &Path,
    object: &ObjectName,
    content: &mut Content<'_>,
    hasher: Option<&mut Sha256>,
    level: u32,
) -> Result<(), RepoError> {
    let writing = |source: io::Error| RepoError::io("writing", path, source);
    let mut file = write_mode(path, 0o644).map_err(writing)?;
    let mut pending = content.header.archive_prefix(content.size);
    if content.header.is_link() {
        pump(object, content, hasher, &mut |_| Ok(()))?;
        return file.write_all(&pending).map_err(writing);
    }
    with_deflate(level, |deflate| {
        let mut feed = |input: &[u8], flush: FlushCompress, pending: &mut Vec<u8>| -> io::Result<()> {
            let mut rest = input;
            loop {
                if pending.len() >= CHUNK {
                    file.write_all(pending)?;
                    pending.clear();
                }
                pending.reserve(CHUNK);
                let before = deflate.total_in();
                let status = deflate.compress_vec(rest, pending, flush)?;
                rest = &rest[(deflate.total_in() - before) as usize..];
                let ended = match flush {
                    FlushCompress::Finish => status == flate2::Status::StreamEnd,
                    _ => rest.is_empty(),
                };
                if ended {
                    break;
                }
            }
            if matches!(flush, FlushCompress::Finish) { file.write_all(pending) } else { Ok(()) }
        };
        pump(object, content, hasher, &mut |chunk| {
            feed(chunk, FlushCompress::None, &mut pending).map_err(writing)
        })?;
        feed(&[], FlushCompress::Finish, &mut pending).map_err(writing)
    })
}

/// Lends the thread's compressor: its tables are larger than most files.
fn with_deflate<R>(level: u32, act: impl FnOnce(&mut Compress) -> R) -> R {
    thread_local! {
        static DEFLATE: RefCell<Option<(u32, Compress)>> = const { RefCell::new(None) };
    }
    DEFLATE.with_borrow_mut(|slot| {
        let fresh = || (level, Compress::new(Compression::new(level), false));
        let (had, deflate) = slot.get_or_insert_with(fresh);
        if *had == level {
            deflate.reset();
        } else {
            (*had, *deflate) = fresh();
        }
        act(deflate)
    })
}

fn children(dir: &Path) -> Result<Vec<String>, RepoError> {
    let reading = |source| RepoError::io("reading", dir, source);
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(reading)? {
        names.extend(entry.map_err(reading)?.file_name().into_string().ok());
    }
    Ok(names)
}

fn remove_children(dir: &Path, unwanted: impl Fn(&str) -> bool) -> Result<(), RepoError> {
    for name in children(dir)?.into_iter().filter(|name| unwanted(name)) {
        let path = dir.join(name);
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(|source| RepoError::io("removing", &path, source))?;
    }
    Ok(())
}
