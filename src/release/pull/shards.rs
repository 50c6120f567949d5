//! Pulling by pack.
//!
//! 1. List and index: the index is checked against the release's keys, then parsed; it must add up;
//! 2. the pack must fit: `from` is nothing, or a commit that is wholly here; there must be room;
//! 3. a few workers each take a shard from its socket through digest, zstd and records (`records`) into the repo's
//!    staging, object by object;
//! 4. a shard whose every object and whose own digest were right is done, and noted as such.

use std::collections::{BTreeSet, VecDeque};
use std::fs;
use std::io::{self, BufReader, Read};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use base64::Engine as _;

use crate::formats::image::stream::Hashing;
use crate::formats::pack::index::{self, INDEX_LIMIT, Index, List, Shard};
use crate::model::causes::in_one_line;
use crate::model::{Commit, Progress};
use crate::ostree::repo::{Repo, RepoError, Staging, write_atomically};
use crate::ostree::signature::verify_bytes;
use crate::rim::fetch::{Body, FetchError, attempt};

use super::records::{Taker, unpack};
use super::remote::Remote;
use super::{By, PullError, PullReport, PullRequest, is_complete};

/// Workers beyond the cores: while one waits for the network another decodes.
const WORKERS_MORE: usize = 1;
/// No more workers than this: each holds a window and a connection.
const WORKERS_MOST: usize = 8;
/// Bytes that an object takes on the disk beyond its content: inode and half a block.
const OBJECT_OVERHEAD: u64 = 2560;
/// Compressed bytes read at a time.
const CHUNK: usize = 128 << 10;

/// Why a shard was not taken.
#[derive(Debug)]
pub enum ShardError {
    /// Its content is wrong, or it is not there: objects by themselves will do.
    Refused(String),
    /// The connection was lost.
    Fetch(FetchError),
    /// The repo refused.
    Repo(RepoError),
}

/// Pulls the best pack that fits, if there is one. What is missing afterwards comes object by object.
pub fn pull_pack(
    remote: &Remote,
    request: &PullRequest,
    staging: &Staging,
    progress: &dyn Progress,
    report: &mut PullReport,
) -> Result<(), PullError> {
    let repo = staging.repo();
    let mut done = read_done(repo, request.commit);
    // What a process that was killed had finished counts.
    done.extend(staging.finished()?);
    staging.publish()?;
    let index = match choose(remote, request, repo) {
        Ok(Some(index)) => index,
        Ok(None) => return Ok(()),
        Err(ShardError::Refused(reason)) => {
            tracing::warn!(%reason, "no pack: going object by object");
            report.pack_refused = Some(reason);
            return Ok(());
        }
        Err(ShardError::Fetch(source)) => return Err(PullError::Fetch { url: remote.url.clone(), source }),
        Err(ShardError::Repo(source)) => return Err(source.into()),
    };
    let (kept, wanted): (Vec<&Shard>, Vec<&Shard>) =
        index.shards.iter().partition(|shard| done.contains(&shard.digest.hex()));
    require_room(repo, request.commit, &wanted)?;
    report.by = By::Pack;
    report.from = index.from;
    report.shards_kept = kept.len() as u64;
    let bytes = wanted.iter().map(|shard| shard.size).sum();
    progress.begin("pull", Some(bytes));
    let puller = Puller {
        remote,
        staging,
        progress,
        queue: Mutex::new(wanted.into_iter().collect()),
        stop: Mutex::new(None),
        received: AtomicU64::new(0),
        objects: AtomicU64::new(0),
        shards: AtomicU64::new(0),
        taker: Taker::new(repo),
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..(cores + WORKERS_MORE).min(WORKERS_MOST) {
            scope.spawn(|| puller.work());
        }
    });
    report.bytes += puller.received.into_inner();
    report.objects += puller.objects.into_inner();
    report.shards += puller.shards.into_inner();
    report.differences += puller.taker.differences.into_inner();
    report.differences_failed += puller.taker.failed.into_inner();
    let stop = puller.stop.into_inner().unwrap_or_else(PoisonError::into_inner);
    if !matches!(stop, Some(ShardError::Repo(RepoError::DiskFull { .. }))) {
        done.extend(staging.finished()?);
        staging.publish()?;
        write_done(repo, request.commit, &done)?;
    }
    match stop {
        None => {
            progress.end(&format!("{} objects, {} bytes by pack", report.objects, report.bytes));
            Ok(())
        }
        Some(ShardError::Refused(reason)) => {
            tracing::warn!(%reason, "the pack is wrong: going on object by object");
            report.pack_refused = Some(reason);
            progress.end("pack refused");
            Ok(())
        }
        Some(ShardError::Fetch(source)) => Err(PullError::Cut {
            commit: request.commit,
            objects: report.objects,
            bytes: report.bytes,
            source,
        }),
        Some(ShardError::Repo(source)) => Err(source.into()),
    }
}

/// Takes a shard that is here already: what a pull does with each that it receives, its digest aside. Gives how many objects
/// were written.
pub fn take_shard(
    staging: &Staging,
    shard: &Shard,
    compressed: &mut impl io::BufRead,
) -> Result<u64, ShardError> {
    let Some(batch) = staging.batch(&shard.digest.hex()).map_err(ShardError::Repo)? else { return Ok(0) };
    let objects = unpack(shard, compressed, &batch, &Taker::new(staging.repo()))?;
    batch.finish().map_err(ShardError::Repo)?;
    Ok(objects)
}

/// Forgets which shards of a commit came: it is complete.
pub fn forget(repo: &Repo, commit: Commit) -> Result<(), RepoError> {
    let path = done_file(repo, commit);
    match fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(RepoError::io("removing", &path, source))
        }
        _ => Ok(()),
    }
}

fn done_file(repo: &Repo, commit: Commit) -> PathBuf {
    repo.path().join(format!("state/rackstep-{commit}.shards"))
}

fn read_done(repo: &Repo, commit: Commit) -> BTreeSet<String> {
    // Unreadable is the same as nothing: shards are then fetched again.
    let text = fs::read_to_string(done_file(repo, commit)).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn write_done(repo: &Repo, commit: Commit, done: &BTreeSet<String>) -> Result<(), RepoError> {
    let text: String = done.iter().map(|digest| format!("{digest}\n")).collect();
    write_atomically(&done_file(repo, commit), text.as_bytes())
}

/// The index of the pack with the fewest bytes among those that fit.
fn choose(remote: &Remote, request: &PullRequest, repo: &Repo) -> Result<Option<Index>, ShardError> {
    let commit = request.commit;
    let Some(list) = get(remote, &index::list_path(commit))? else { return Ok(None) };
    let list = List::parse(&list, commit).map_err(|error| refused(&error))?;
    let has_releases = repo
        .commits()
        .map_err(ShardError::Repo)?
        .iter()
        .any(|info| info.commit != commit && is_complete(repo, info.commit));
    let fits = |from: Option<Commit>| match from {
        Some(from) => is_complete(repo, from),
        // Beside another release most objects are here: one by one the missing ones are far fewer bytes.
        None => !has_releases,
    };
    let best = list.packs.iter().filter(|pack| fits(pack.from)).min_by_key(|pack| pack.bytes);
    let Some(best) = best else { return Ok(None) };
    let path = index::index_path(commit, best.from);
    let Some(bytes) = get(remote, &path)? else {
        return Err(ShardError::Refused(format!("{path} is listed but not there")));
    };
    if !request.keys.is_empty() {
        let signature = get(remote, &format!("{path}.sig"))?
            .and_then(|text| base64::engine::general_purpose::STANDARD.decode(text.trim_ascii()).ok());
        let signatures: Vec<Vec<u8>> = signature.into_iter().collect();
        verify_bytes(&path, &bytes, &signatures, &request.keys).map_err(|error| refused(&error))?;
    }
    Index::parse(&bytes, commit, best.from).map(Some).map_err(|error| refused(&error))
}

fn get(remote: &Remote, path: &str) -> Result<Option<Vec<u8>>, ShardError> {
    match remote.fetch.get_whole(&remote.at(path), INDEX_LIMIT) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(FetchError::NotFound { .. }) => Ok(None),
        Err(error) if error.is_passing() => Err(ShardError::Fetch(error)),
        Err(error) => Err(refused(&error)),
    }
}

fn refused(error: &dyn std::error::Error) -> ShardError {
    ShardError::Refused(in_one_line(error))
}

fn require_room(repo: &Repo, commit: Commit, shards: &[&Shard]) -> Result<(), PullError> {
    let needed = shards.iter().fold(0u64, |sum, shard| {
        let each = shard.content().saturating_add(shard.objects.saturating_mul(OBJECT_OVERHEAD));
        sum.saturating_add(each)
    });
    let free = repo.free_bytes()?;
    // Archive repos compress again, so that less would do: they are on servers, where this is no matter.
    if needed <= free {
        return Ok(());
    }
    Err(PullError::NoSpace { path: repo.path().to_owned(), commit, needed, free })
}

struct Puller<'p> {
    remote: &'p Remote,
    staging: &'p Staging,
    progress: &'p dyn Progress,
    queue: Mutex<VecDeque<&'p Shard>>,
    stop: Mutex<Option<ShardError>>,
    received: AtomicU64,
    objects: AtomicU64,
    shards: AtomicU64,
    taker: Taker<'p>,
}

impl Puller<'_> {
    fn work(&self) {
        loop {
            if self.stop.lock().unwrap_or_else(PoisonError::into_inner).is_some() {
                return;
            }
            let next = self.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(shard) = next else { return };
            if let Err(error) = self.take(shard) {
                let mut stop = self.stop.lock().unwrap_or_else(PoisonError::into_inner);
                // The first reason is the one to tell.
                stop.get_or_insert(error);
                return;
            }
        }
    }

    /// Takes a shard; a lost connection is tried again.
    fn take(&self, shard: &Shard) -> Result<(), ShardError> {
        let is_passing = |error: &ShardError| matches!(error, ShardError::Fetch(error) if error.is_passing());
        let objects = attempt(is_passing, || self.take_once(shard))?;
        self.objects.fetch_add(objects, Ordering::Relaxed);
        self.shards.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn take_once(&self, shard: &Shard) -> Result<u64, ShardError> {
        let Some(batch) = self.staging.batch(&shard.digest.hex()).map_err(ShardError::Repo)? else {
            return Ok(0);
        };
        let body = match self.remote.fetch.get(&self.remote.at(&shard.path())) {
            Ok(body) => body,
            Err(error) if error.is_passing() => return Err(ShardError::Fetch(error)),
            Err(error) => return Err(refused(&error)),
        };
        let received = Received {
            inner: Hashing::new(body),
            limit: shard.size,
            received: &self.received,
            progress: self.progress,
        };
        let mut compressed = BufReader::with_capacity(CHUNK, received);
        let unpacked = unpack(shard, &mut compressed, &batch, &self.taker);
        let (mut body, got, size) = compressed.into_inner().inner.into_parts();
        if let Some(error) = body.failure.take() {
            return Err(ShardError::Fetch(error));
        }
        let objects = unpacked?;
        if size != shard.size || got != shard.digest {
            return Err(ShardError::Refused(format!(
                "shard {}: expected {} bytes, got {} bytes with the digest {got}",
                shard.digest, shard.size, size
            )));
        }
        batch.finish().map_err(ShardError::Repo)?;
        Ok(objects)
    }
}

/// Tells of a shard's bytes as they come, and takes no more than the index says.
struct Received<'h, 'f> {
    inner: Hashing<Body<'f>>,
    limit: u64,
    received: &'h AtomicU64,
    progress: &'h dyn Progress,
}

impl Read for Received<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.received.fetch_add(count as u64, Ordering::Relaxed);
        self.progress.advance(count as u64);
        if self.inner.count() > self.limit {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "more bytes than the index says"));
        }
        Ok(count)
    }
}
