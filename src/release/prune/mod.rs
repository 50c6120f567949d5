//! Takes releases, packs and leftovers out of a server's repo.
//!
//! 1. Observe: releases, packs with the shards that they name, shards, unfinished files. An index that cannot be read ends
//!    it: its shards are unknown;
//! 2. run the plan of [`plan_prune`](crate::release::prune::plan::plan_prune): refs and summary first, so that nobody chooses what
//!    goes; then packs, the list before the rest; commits, objects, shards. What is cut leaves no release that misses
//!    something, and is ended by saying it again.

pub mod plan;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::formats::atomic::UNFINISHED;
use crate::formats::pack::index::{
    Index, IndexError, PACKS_DIR, SHARDS_DIR, from_in_index_name, index_path, list_path,
};
use crate::model::{Commit, Digest};
use crate::ostree::repo::{PruneLock, Repo, RepoError};
use crate::release::prune::plan::{Found, Plan, Release};

/// Why nothing, or not all of it, was taken away.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// The repo.
    #[error(transparent)]
    Repo(#[from] RepoError),
    /// The shards of a pack are not known.
    #[error("reading pack {path}")]
    Index {
        /// Its index.
        path: PathBuf,
        /// Why.
        #[source]
        source: IndexError,
    },
}

/// Looks at everything that a plan needs to know.
pub fn observe(repo: &Repo) -> Result<Found, PruneError> {
    let releases = repo.releases()?.into_iter().map(|listed| Release {
        commit: listed.commit,
        version: listed.version,
        created: listed.created,
        refs: listed.refs,
    });
    let mut found = Found { releases: releases.collect(), ..Found::default() };
    let packs = repo.path().join(PACKS_DIR);
    for (name, _) in files_in(&packs)? {
        let Ok(to) = name.parse::<Commit>() else { continue };
        let mut shards = BTreeSet::new();
        for (file, bytes) in files_in(&packs.join(&name))? {
            if file.starts_with(UNFINISHED) {
                found.unfinished.insert(format!("{PACKS_DIR}/{name}/{file}"), bytes);
            } else if let Some(from) = from_in_index_name(&file) {
                shards.extend(read_index(repo, to, from)?.shards.iter().map(|shard| shard.digest));
            }
        }
        found.packs.insert(to, shards);
    }
    for (name, bytes) in files_in(&repo.path().join(SHARDS_DIR))? {
        if let Ok(digest) = Digest::parse_hex(&name) {
            found.shards.insert(digest, bytes);
        } else if name.starts_with(UNFINISHED) {
            found.unfinished.insert(format!("{SHARDS_DIR}/{name}"), bytes);
        }
    }
    Ok(found)
}

/// Runs `plan`, made of what was seen while `alone` was held. Gives the bytes that went: objects, shards, unfinished files.
pub fn run(repo: &Repo, alone: &PruneLock, plan: &Plan) -> Result<u64, PruneError> {
    let refs: Vec<&String> = plan.releases.iter().flat_map(|release| &release.refs).collect();
    for name in &refs {
        repo.drop_ref(name)?;
    }
    if !refs.is_empty() {
        repo.publish_releases()?;
    }
    for to in &plan.packs {
        remove(&repo.path().join(list_path(*to)))?;
        let dir = repo.path().join(PACKS_DIR).join(to.hex());
        fs::remove_dir_all(&dir).map_err(|source| RepoError::io("removing", &dir, source))?;
    }
    let commits: Vec<Commit> = plan.releases.iter().map(|release| release.commit).collect();
    let objects = repo.delete_commits(alone, &commits)?;
    for shard in &plan.shards {
        remove(&repo.path().join(SHARDS_DIR).join(shard.hex()))?;
    }
    for name in &plan.unfinished {
        remove(&repo.path().join(name))?;
    }
    Ok(objects + plan.bytes)
}

fn read_index(repo: &Repo, to: Commit, from: Option<Commit>) -> Result<Index, PruneError> {
    let path = repo.path().join(index_path(to, from));
    let bytes = fs::read(&path).map_err(|source| RepoError::io("reading", &path, source))?;
    Index::parse(&bytes, to, from).map_err(|source| PruneError::Index { path, source })
}

/// Names in a directory with their bytes; none if it is not there.
fn files_in(dir: &Path) -> Result<BTreeMap<String, u64>, RepoError> {
    let reading = |source| RepoError::io("reading", dir, source);
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(reading(error)),
    };
    let mut files = BTreeMap::new();
    for entry in entries {
        let entry = entry.map_err(reading)?;
        let bytes = entry.metadata().map_err(reading)?.len();
        files.extend(entry.file_name().into_string().ok().map(|name| (name, bytes)));
    }
    Ok(files)
}

fn remove(path: &Path) -> Result<(), RepoError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(RepoError::io("removing", path, error)),
        _ => Ok(()),
    }
}
