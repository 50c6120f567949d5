//! Pulling object by object, and making sure that nothing is missing.
//!
//! 1. Begin with the root's directory; what is here is read, what is missing is fetched, checked and written;
//! 2. every directory adds its names to the queue, so the walk ends when every object of the commit was seen;
//! 3. a few workers share the queue. With a complete pack before it, this is a walk over directories without a request.

use std::collections::{HashSet, VecDeque};
use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::formats::pack::record::METADATA_LIMIT;
use crate::model::{Commit, ObjectKind, ObjectName, Progress};
use crate::ostree::repo::gvariant::{DirTree, FileHeader};
use crate::ostree::repo::{Batch, Content, Repo, RepoError, Staging};
use crate::rim::fetch::{FetchError, attempt};

use super::remote::Remote;
use super::{By, PullError, PullReport};

/// Requests at a time: one object is mostly waiting, and more would only queue at the server.
const WORKERS: usize = 8;

/// Bytes that an object's header and what is read ahead of its content may take.
const HEADER_LIMIT: u64 = METADATA_LIMIT;

/// The most bytes that deflate makes of `size`: blocks of nothing would otherwise never end. zlib's own bound is far lower.
const fn deflated_limit(size: u64) -> u64 {
    size.saturating_add(size / 8)
}

/// Fetches every object of the commit that is not in the repo, and those of `again` even if they are.
pub fn pull_objects(
    remote: &Remote,
    commit: Commit,
    again: &HashSet<ObjectName>,
    staging: &Staging,
    progress: &dyn Progress,
    report: &mut PullReport,
) -> Result<(), PullError> {
    let (tree, meta) = report.info.root;
    let Some(batch) = staging.batch("objects")? else {
        // A finished batch of a killed process is published before this is called.
        return Err(RepoError::Busy { path: staging.repo().path().to_owned() }.into());
    };
    let free = staging.repo().free_bytes()?;
    let walk = Walk {
        remote,
        commit,
        again,
        repo: staging.repo(),
        batch: &batch,
        progress,
        state: Mutex::new(State::default()),
        changed: Condvar::new(),
        room: Mutex::new(free),
        received: AtomicU64::new(0),
        objects: AtomicU64::new(0),
    };
    walk.add(&[ObjectName::new(ObjectKind::DirMeta, meta), ObjectName::new(ObjectKind::DirTree, tree)]);
    progress.begin("check", None);
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| walk.work());
        }
    });
    let (objects, bytes) = (walk.objects.into_inner(), walk.received.into_inner());
    let stop = walk.state.into_inner().unwrap_or_else(PoisonError::into_inner).stop;
    report.objects += objects;
    report.bytes += bytes;
    if objects > 0 && report.by == By::Nothing {
        report.by = By::Objects;
    }
    // Objects that came are right, whatever stopped the rest.
    batch.finish()?;
    match stop {
        None => {
            progress.end(&format!("{objects} objects, {bytes} bytes one by one"));
            Ok(())
        }
        Some(Stop::Cut(source)) => {
            Err(PullError::Cut { commit, objects: report.objects, bytes: report.bytes, source })
        }
        Some(Stop::Other(error)) => Err(error),
    }
}

#[derive(Debug)]
enum Stop {
    Cut(FetchError),
    Other(PullError),
}

#[derive(Default)]
struct State {
    queue: VecDeque<ObjectName>,
    known: HashSet<ObjectName>,
    /// Workers that may yet add to the queue.
    busy: usize,
    stop: Option<Stop>,
}

struct Walk<'w> {
    remote: &'w Remote,
    commit: Commit,
    again: &'w HashSet<ObjectName>,
    repo: &'w Repo,
    batch: &'w Batch<'w>,
    progress: &'w dyn Progress,
    /// Bytes that were free at the start, without what objects have claimed since.
    room: Mutex<u64>,
    state: Mutex<State>,
    changed: Condvar,
    received: AtomicU64,
    objects: AtomicU64,
}

impl Walk<'_> {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues what is new. Files and dirmetas that are here need no worker.
    fn add(&self, objects: &[ObjectName]) {
        let fresh: Vec<ObjectName> = {
            let mut state = self.lock();
            objects.iter().copied().filter(|object| state.known.insert(*object)).collect()
        };
        let wanted: Vec<ObjectName> = fresh
            .into_iter()
            .filter(|object| {
                object.kind == ObjectKind::DirTree || !self.repo.has(object) || self.again.contains(object)
            })
            .collect();
        if !wanted.is_empty() {
            self.lock().queue.extend(wanted);
            self.changed.notify_all();
        }
    }

    fn next(&self) -> Option<ObjectName> {
        let mut state = self.lock();
        loop {
            if state.stop.is_some() {
                return None;
            }
            if let Some(object) = state.queue.pop_front() {
                state.busy += 1;
                return Some(object);
            }
            if state.busy == 0 {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn work(&self) {
        while let Some(object) = self.next() {
            let outcome = self.take(&object);
            let mut state = self.lock();
            state.busy -= 1;
            if let Err(stop) = outcome {
                state.stop.get_or_insert(stop);
            }
            drop(state);
            self.changed.notify_all();
        }
    }

    fn take(&self, object: &ObjectName) -> Result<(), Stop> {
        if object.kind == ObjectKind::File {
            return self.attempt(|| self.fetch_file(object));
        }
        let here = match self.repo.read_metadata(object) {
            Ok(bytes) => Some(bytes),
            // A damaged one is replaced by a good one.
            Err(RepoError::Missing { .. } | RepoError::Damaged { .. }) => None,
            Err(error) => return Err(Stop::Other(error.into())),
        };
        let bytes = match here {
            Some(bytes) => bytes,
            None => self.attempt(|| self.fetch_metadata(object))?,
        };
        if object.kind == ObjectKind::DirTree {
            let tree = DirTree::parse(&bytes)
                .map_err(|source| Stop::Other(RepoError::Malformed { object: *object, source }.into()))?;
            let mut children = Vec::new();
            for (_, tree, meta) in &tree.dirs {
                children.push(ObjectName::new(ObjectKind::DirMeta, *meta));
                children.push(ObjectName::new(ObjectKind::DirTree, *tree));
            }
            children.extend(tree.files.iter().map(|(_, file)| ObjectName::new(ObjectKind::File, *file)));
            self.add(&children);
        }
        Ok(())
    }

    fn attempt<T>(&self, act: impl Fn() -> Result<T, Stop>) -> Result<T, Stop> {
        attempt(|stop| matches!(stop, Stop::Cut(error) if error.is_passing()), act)
    }

    fn fetch_metadata(&self, object: &ObjectName) -> Result<Vec<u8>, Stop> {
        let url = self.remote.object_url(object);
        let bytes = self
            .remote
            .fetch
            .get_whole(&url, METADATA_LIMIT)
            .map_err(|error| self.fetch_failed(object, error))?;
        self.count(bytes.len() as u64);
        self.batch.write_metadata(object, &bytes).map_err(|error| self.write_failed(object, error))?;
        self.objects.fetch_add(1, Ordering::Relaxed);
        Ok(bytes)
    }

    fn fetch_file(&self, object: &ObjectName) -> Result<(), Stop> {
        let url = self.remote.object_url(object);
        let body = self.remote.fetch.get(&url).map_err(|error| self.fetch_failed(object, error))?;
        let mut body = std::io::BufReader::new(body);
        let (header, size) = match FileHeader::read_archive(&mut body) {
            Ok(read) => read,
            Err(source) => {
                let error = RepoError::Source { object: *object, source };
                let failure = body.into_inner().failure.take();
                return Err(match failure {
                    Some(failure) => self.fetch_failed(object, failure),
                    None => self.write_failed(object, error),
                });
            }
        };
        self.claim(size)?;
        body.get_mut().bound(HEADER_LIMIT.saturating_add(deflated_limit(size)));
        let written = self.write_file(object, (&header, size), &mut body);
        let mut body = body.into_inner();
        if let Some(error) = body.failure.take() {
            self.give_back(size);
            return Err(self.fetch_failed(object, error));
        }
        written.map_err(|error| {
            self.give_back(size);
            self.write_failed(object, error)
        })?;
        self.count(body.received());
        self.objects.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Claims room for an object before it is received: a server says how large it is, and may say anything.
    fn claim(&self, size: u64) -> Result<(), Stop> {
        let mut room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        match room.checked_sub(size) {
            Some(left) => {
                *room = left;
                Ok(())
            }
            None => Err(Stop::Other(PullError::NoSpace {
                path: self.repo.path().to_owned(),
                commit: self.commit,
                needed: size,
                free: *room,
            })),
        }
    }

    fn give_back(&self, size: u64) {
        *self.room.lock().unwrap_or_else(PoisonError::into_inner) += size;
    }

    fn write_file(
        &self,
        object: &ObjectName,
        (header, size): (&FileHeader, u64),
        body: &mut impl std::io::BufRead,
    ) -> Result<(), RepoError> {
        let prefix = header.stream_prefix();
        let mut inflated = flate2::bufread::DeflateDecoder::new(body);
        let mut nothing = std::io::empty();
        let stream: &mut dyn Read = if header.is_link() { &mut nothing } else { &mut inflated };
        self.batch.write_file(object.digest, &prefix, Content { header, stream, size })
    }

    fn count(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
        self.progress.advance(bytes);
    }

    fn fetch_failed(&self, object: &ObjectName, error: FetchError) -> Stop {
        let (url, object) = (self.remote.url.clone(), object.to_string());
        match error {
            FetchError::NotFound { .. } => {
                Stop::Other(PullError::Missing { url, object, commit: self.commit })
            }
            error if error.is_passing() => Stop::Cut(error),
            source => Stop::Other(PullError::Fetch { url, source }),
        }
    }

    fn write_failed(&self, object: &ObjectName, error: RepoError) -> Stop {
        let got = match error {
            RepoError::Damaged { got, .. } => got,
            RepoError::Malformed { source, .. } => source.to_string(),
            // Not the network, which was asked before: bytes that do not inflate or make no header.
            RepoError::Source { source, .. } => source.to_string(),
            other => return Stop::Other(other.into()),
        };
        Stop::Other(PullError::Damaged {
            url: self.remote.url.clone(),
            object: object.to_string(),
            expected: object.digest.hex(),
            got,
        })
    }
}
