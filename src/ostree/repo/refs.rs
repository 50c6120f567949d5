//! Names of commits: refs, versions, prefixes.
//!
//! A revision is, in this order: a whole commit, a ref, a version, an unambiguous beginning of a commit.

use std::fs;
use std::io;
use std::path::Path;

use serde::Serialize;

use super::{CommitInfo, Repo, RepoError};
use crate::formats::atomic::{Durability, replace};
use crate::formats::pack::index::index_path;
use crate::model::commit::version_in_ref;
use crate::model::{Commit, ObjectName, Ref};

/// A beginning of a commit must have this many digits.
const PREFIX_LEAST: usize = 4;

/// One release in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// Refs that point at it now.
    pub refs: Vec<String>,
    /// Its commit.
    pub commit: Commit,
    /// The version that people say.
    pub version: Option<String>,
    /// Seconds since 1970: the commit's own time.
    pub created: u64,
    /// Whether it carries a signature; by whom is not asked.
    pub signed: bool,
    /// Whether it has a whole pack.
    pub packed: bool,
}

/// The only commit of an iterator; nothing if there is none, all of them if they differ.
fn one_of(commits: impl Iterator<Item = Commit>) -> Result<Option<Commit>, Vec<Commit>> {
    let mut found: Vec<Commit> = commits.collect();
    found.sort();
    found.dedup();
    match found.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(*one)),
        _ => Err(found),
    }
}

impl Repo {
    /// Every ref with its commit, sorted by name. Remote refs are `remote:name`.
    pub fn refs(&self) -> Result<Vec<(String, Commit)>, RepoError> {
        let mut refs = Vec::new();
        let heads = self.path.join("refs/heads");
        collect_refs(&heads, "", "", &mut refs)?;
        let remotes = self.path.join("refs/remotes");
        for remote in names_in(&remotes)? {
            collect_refs(&remotes.join(&remote), &format!("{remote}:"), "", &mut refs)?;
        }
        refs.sort();
        Ok(refs)
    }

    /// The commit of a ref (`name` or `remote:name`).
    pub fn resolve_ref(&self, name: &str) -> Result<Option<Commit>, RepoError> {
        let Some(path) = self.ref_path(name) else { return Ok(None) };
        match fs::read_to_string(&path) {
            Ok(text) => Ok(text.trim().parse().ok()),
            Err(error) if not_there(&error) => Ok(None),
            Err(source) => Err(RepoError::io("reading", &path, source)),
        }
    }

    /// Points a ref (`name` or `remote:name`) at a commit that is wholly there.
    pub fn set_ref(&self, name: &str, commit: Commit) -> Result<(), RepoError> {
        let path = self
            .ref_path(name)
            .ok_or_else(|| RepoError::NoRevision { text: name.to_owned(), path: self.path.clone() })?;
        write_atomically(&path, format!("{commit}\n").as_bytes())
    }

    /// Removes a ref (`name` or `remote:name`), unless it is gone already.
    pub fn drop_ref(&self, name: &str) -> Result<(), RepoError> {
        let Some(path) = self.ref_path(name) else { return Ok(()) };
        match fs::remove_file(&path) {
            Err(error) if !not_there(&error) => Err(RepoError::io("removing", &path, error)),
            _ => Ok(()),
        }
    }

    /// The commit that a ref, version, whole commit or unambiguous beginning of one means.
    pub fn resolve(&self, text: &str) -> Result<Commit, RepoError> {
        if let Ok(commit) = text.parse::<Commit>()
            && self.has(&ObjectName::of_commit(commit))
        {
            return Ok(commit);
        }
        if let Some(commit) = self.resolve_ref(text)? {
            return Ok(commit);
        }
        let ambiguous = |found: Vec<Commit>| RepoError::Ambiguous {
            text: text.to_owned(),
            found: found.iter().map(Commit::hex).collect(),
        };
        // A version may have been composed several times; its ref tells which commit it is now.
        let refs = self.refs()?;
        let released =
            refs.iter().filter(|(name, _)| version_in_ref(name) == Some(text)).map(|(_, commit)| *commit);
        if let Some(commit) = one_of(released).map_err(ambiguous)? {
            return Ok(commit);
        }
        let infos = self.commits()?;
        let by_version = infos.iter().filter(|i| i.version.as_deref() == Some(text)).map(|i| i.commit);
        if let Some(commit) = one_of(by_version).map_err(ambiguous)? {
            return Ok(commit);
        }
        let long_enough = text.len() >= PREFIX_LEAST;
        let by_prefix = infos.iter().map(|i| i.commit).filter(|c| long_enough && c.hex().starts_with(text));
        match one_of(by_prefix).map_err(ambiguous)? {
            Some(commit) => Ok(commit),
            None => Err(RepoError::NoRevision { text: text.to_owned(), path: self.path.clone() }),
        }
    }

    /// Every commit object of the repo.
    pub fn commits(&self) -> Result<Vec<CommitInfo>, RepoError> {
        let mut infos = Vec::new();
        let objects = self.path.join("objects");
        for head in names_in(&objects)? {
            for name in names_in(&objects.join(&head))? {
                if let Some(tail) = name.strip_suffix(".commit")
                    && let Ok(commit) = format!("{head}{tail}").parse()
                {
                    infos.push(self.commit_info(commit)?);
                }
            }
        }
        Ok(infos)
    }

    /// Every release of the repo, newest first.
    pub fn releases(&self) -> Result<Vec<Listed>, RepoError> {
        let refs = self.refs()?;
        let mut releases = Vec::new();
        for info in self.commits()? {
            let on = refs.iter().filter(|(_, commit)| *commit == info.commit);
            releases.push(Listed {
                refs: on.map(|(name, _)| name.clone()).collect(),
                commit: info.commit,
                signed: self.read_detached(info.commit)?.is_some(),
                packed: self.path.join(index_path(info.commit, None)).exists(),
                version: info.version,
                created: info.timestamp,
            });
        }
        releases.sort_by_key(|listed| (std::cmp::Reverse(listed.created), listed.commit));
        Ok(releases)
    }

    /// Tells clients which refs there are: renews libostree's `summary`.
    pub fn publish_releases(&self) -> Result<(), RepoError> {
        let failed =
            |source| RepoError::Ostree { action: "writing the summary of", path: self.path.clone(), source };
        let handle = ostree::Repo::new_for_path(&self.path);
        handle.open(gio::Cancellable::NONE).map_err(failed)?;
        handle.regenerate_summary(None, gio::Cancellable::NONE).map_err(failed)
    }

    fn ref_path(&self, name: &str) -> Option<std::path::PathBuf> {
        match name.split_once(':') {
            None => Some(self.path.join("refs/heads").join(name.parse::<Ref>().ok()?.as_str())),
            Some((remote, name)) => {
                let remote = remote.parse::<Ref>().ok().filter(|remote| !remote.as_str().contains('/'))?;
                let name = name.parse::<Ref>().ok()?;
                Some(self.path.join("refs/remotes").join(remote.as_str()).join(name.as_str()))
            }
        }
    }
}

fn not_there(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory
    )
}

/// Names in a directory, sorted; none if it is not there.
fn names_in(path: &Path) -> Result<Vec<String>, RepoError> {
    let reading = |source| RepoError::io("reading", path, source);
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if not_there(&error) => return Ok(Vec::new()),
        Err(error) => return Err(reading(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry.map_err(reading)?.file_name().into_string().ok());
    }
    names.sort();
    Ok(names)
}

fn collect_refs(
    dir: &Path,
    remote: &str,
    above: &str,
    refs: &mut Vec<(String, Commit)>,
) -> Result<(), RepoError> {
    for name in names_in(dir)?.into_iter().filter(|name| !name.starts_with('.')) {
        let path = dir.join(&name);
        let whole = if above.is_empty() { name } else { format!("{above}/{name}") };
        if path.is_dir() {
            collect_refs(&path, remote, &whole, refs)?;
        } else if let Ok(text) = fs::read_to_string(&path)
            && let Ok(commit) = text.trim().parse()
        {
            refs.push((format!("{remote}{whole}"), commit));
        }
    }
    Ok(())
}

/// Writes a small file so that it is there wholly or as it was, also after a power cut.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), RepoError> {
    let writing = |source| RepoError::io("writing", path, source);
    let parent = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(writing)?;
    replace(path, bytes, 0o644, Durability::Durable).map_err(writing)
}
